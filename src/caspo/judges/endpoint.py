"""Asks an OpenAI-compatible endpoint (``/chat/completions``) many questions at once, and lives with its failures.

Retried, with waits that double and are jittered: 408, 409, 429 and 5xx (``Retry-After`` is honoured), time-outs, broken
connections, half a body, an empty body, a body that is not what the API promises. Whatever else it answers, or still
answers after the last try, becomes the `ModelAnswer.problem`. Only what no other question could mend raises: a key that is
refused, a path or a model that does not exist.

Not covered: streaming, tools, other APIs. The key is read from the environment and stands in no message.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic import Field

from caspo.core.config import Config
from caspo.core.errors import ConfigError
from caspo.engines.retries import ApiKey, Passing, backoff, passing, retry_after

__all__ = ["ChatEndpoint", "EndpointSettings", "ModelAnswer"]

log = logging.getLogger(__name__)


class EndpointSettings(Config):
    """Where the server is, and how patient we are."""

    url: str = Field(pattern=r"^https?://")
    """The base of the API, for example http://localhost:8000/v1."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key; servers of your own need none."""
    concurrency: int = Field(8, ge=1)
    """Requests on their way at once."""
    timeout: float = Field(120.0, gt=0)
    """A try that takes longer has failed, seconds."""
    retries: int = Field(6, ge=0)
    """Tries after the first one."""
    first_wait: float = Field(1.0, gt=0)
    """Before the first retry, seconds; every further wait is twice as long, and jittered by a half either way."""
    longest_wait: float = Field(120.0, gt=0)
    """A wait is no longer than this, seconds; a server that asks for more (Retry-After) is not asked again."""


@dataclass(frozen=True)
class ModelAnswer:
    """What a model said, or why it said nothing."""

    text: str | None
    problem: str = ""


class ChatEndpoint:
    """One model at one endpoint.

    Args:
        settings: where, and how patiently.
        model: its name there.
        instruction: the system message.
        sampling: what else goes into every request: temperature, max_tokens.
    """

    def __init__(self, settings: EndpointSettings, model: str, instruction: str, sampling: Mapping[str, float]) -> None:
        self.settings, self.model, self.instruction, self.sampling = settings, model, instruction, sampling
        self._key = ApiKey(settings.key_variable)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[ModelAnswer]:
        """An answer to each prompt, in order; at most `concurrency` are asked at once.

        Raises:
            ConfigError: the endpoint refuses the key, or does not know the path or the model.
        """
        if not prompts:
            return []
        with (
            httpx2.Client(
                timeout=self.settings.timeout,
                headers=self._key.headers(),
                limits=httpx2.Limits(max_connections=self.settings.concurrency),
            ) as client,
            ThreadPoolExecutor(self.settings.concurrency) as executor,
        ):
            try:
                return list(executor.map(lambda prompt, seed: self._answer(client, prompt, seed), prompts, seeds))
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise

    def _answer(self, client: httpx2.Client, prompt: str, seed: int) -> ModelAnswer:
        from tenacity import Retrying, before_sleep_log, retry_if_exception_type, stop_after_attempt

        settings = self.settings
        messages = [{"role": "system", "content": self.instruction}, {"role": "user", "content": prompt}]
        ask = Retrying(
            retry=retry_if_exception_type(Passing),
            stop=stop_after_attempt(settings.retries + 1),
            wait=lambda state: max(
                backoff(state.attempt_number - 1, settings.first_wait, settings.longest_wait),
                state.outcome.exception().wait,  # type: ignore[union-attr]
            ),
            before_sleep=before_sleep_log(log, logging.INFO),
            reraise=True,
        )
        body = {"model": self.model, "messages": messages, "seed": seed % 2**31, **self.sampling}
        try:
            return ask(self._try, client, body)
        except Passing as error:
            return ModelAnswer(None, f"{error} ({settings.retries + 1} tries)")

    def _try(self, client: httpx2.Client, body: Mapping[str, Any]) -> ModelAnswer:
        url = f"{self.settings.url.rstrip('/')}/chat/completions"
        try:
            response = client.post(url, json=body)
        except httpx2.RequestError as error:
            raise Passing(f"{type(error).__name__} from the endpoint") from error
        if response.is_success:
            text = _content(response)
            if text is None:
                raise Passing("the endpoint's reply is cut off or empty")
            return ModelAnswer(text) if text.strip() else ModelAnswer(None, "the model's reply holds no text")
        problem = f"the endpoint answered {response.status_code}: {self._key.shown(response.text)}"
        if response.status_code in (401, 404):
            raise ConfigError(
                f"{problem}. Check the judge's endpoint ({url}), its model ({self.model}), and the API key in the "
                f"environment variable {self.settings.key_variable}."
            )
        if not passing(response.status_code):
            return ModelAnswer(None, problem)
        asked = retry_after(response.headers) or 0.0
        if asked > self.settings.longest_wait:
            return ModelAnswer(None, f"{problem}; it asks to wait {asked:.0f} s")
        raise Passing(problem, wait=asked)


def _content(response: httpx2.Response) -> str | None:
    """What the model said, empty where it said nothing; None where the body is not a whole reply."""
    try:
        text: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else ""
