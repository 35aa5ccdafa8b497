"""How the server is set: where it listens, what it searches with, and its limits."""

from __future__ import annotations

import ipaddress
from typing import Any, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from caspo.core.config import Config
from caspo.engines.prompts import INSTRUCTION
from caspo.search import DEFAULT_METHOD, METHODS
from caspo.search.base import Method

__all__ = ["ServeSettings", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServeSettings(Config):
    """What `caspo serve` was told."""

    host: str = "127.0.0.1"
    """Address to listen at. Other than loopback only with keys."""
    port: int = Field(8000, ge=0, le=65535)
    """0: any that is free."""
    model: str = Field("caspo", min_length=1)
    """The name that clients ask for."""
    method: str = DEFAULT_METHOD
    """For requests that name none."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of that method, where they differ from its defaults."""
    instruction: str = INSTRUCTION
    """System message of a conversation that has none; empty: none."""
    fixed: bool = False
    """Requests may change neither the method nor its settings: they were calibrated."""
    keys: tuple[SecretStr, ...] = ()
    """One of them must come with every request; none: no key is asked for."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call this server, such as https://example.org."""
    max_body: int = Field(1 << 20, ge=1024)
    """Bytes of a request's body, at most."""
    max_prompt: int | None = Field(None, ge=1)
    """Tokens of a prompt, at most; the model's context by default."""
    max_tokens: int = Field(4096, ge=1)
    """Tokens of one path that a request may ask for, at most."""
    max_budget: int = Field(32768, ge=1)
    """Tokens generated for one request, at most."""
    max_paths: int = Field(64, ge=1)
    """Paths decoded at once for one request, at most: samples, beams, children, choices."""
    max_choices: int = Field(8, ge=1)
    """Choices of one request, at most."""
    max_seconds: float = Field(600.0, gt=0)
    """Deadline of a request that names none, and the longest that one may name."""
    send_seconds: float = Field(30.0, gt=0)
    """A client that reads nothing for so long is given up."""
    grace: float = Field(30.0, ge=0)
    """Seconds that requests under way have at shutdown."""

    @field_validator("keys")
    @classmethod
    def _ascii(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not text.isascii() or not text.isprintable() or " " in text or len(text) < 8:
                raise ValueError("an API key must have 8 characters or more, of printable ASCII without spaces")
        return keys

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.method not in METHODS:
            raise ValueError(f"there is no method {self.method!r}; choose one of {', '.join(METHODS)}")
        if not is_loopback(self.host) and not self.keys:
            raise ValueError(
                f"listening at {self.host} lets others in, and no API key is set; give keys (the variable "
                "CASPO_API_KEYS, or --api-keys FILE), or listen at 127.0.0.1"
            )
        if "*" in self.cors and not self.keys:
            raise ValueError("cors '*' without API keys would let every web page use this server; name the origins")
        return self

    def default_method(self) -> Method[Any]:
        """The method of requests that name none."""
        chosen = METHODS[self.method]
        return chosen(chosen.settings_type.model_validate(self.settings))
