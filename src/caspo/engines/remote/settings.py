"""Settings of the engine `openai_compatible`."""

from __future__ import annotations

from pydantic import Field, field_validator

from caspo.core.config import Config

__all__ = ["RemoteSettings"]


class RemoteSettings(Config):
    """Where the servers of a model are, and how patient we are. They must all serve the same model."""

    urls: tuple[str, ...] = ()
    """Addresses of the servers, for example http://localhost:8000/v1; requests go to the one with the least to do."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key; servers of your own need none."""
    top_logprobs: int = Field(20, ge=2)
    """Most probable tokens asked for at each position; as many as the vocabulary has make entropies exact (llama.cpp)."""
    vocab_size: int | None = Field(None, ge=2)
    """Tokens that the output layer knows, where neither the server nor ``tokenizer`` tells it."""
    tokenizer: str | None = None
    """Hub name or folder of the model's tokenizer, where the server does not tokenise; no weights are loaded."""
    concurrency: int = Field(32, ge=1)
    """Requests on their way to one server at once."""
    timeout: float = Field(120.0, gt=0)
    """To the first token, seconds."""
    token_timeout: float = Field(60.0, gt=0)
    """From one token to the next, seconds."""
    patience: float = Field(120.0, gt=0)
    """A request without any progress is tried again for so long, seconds; also while no server is up."""

    @field_validator("urls")
    @classmethod
    def _are_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is no URL of a server; one begins with http:// or https://")
            if "@" in url.partition("://")[2].partition("/")[0]:
                raise ValueError("a URL with a password in it would stand in logs; put a key into key_variable")
        return urls
