"""What every client of an HTTP API here needs: which failures pass, how long to wait, and a key that is never shown.

Not here: any request. Judges and the engine `openai_compatible` make theirs, each in its own way.
"""

from __future__ import annotations

import email.utils
import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime

from caspo.core.errors import EngineError

__all__ = ["ApiKey", "Passing", "backoff", "passing", "retry_after"]

_RETRIED = frozenset({408, 409, 425, 429})


class Passing(EngineError):
    """A failure that may be over when the request is tried again.

    Args:
        message: what happened.
        down: whether the server itself has failed, not only this request.
        wait: seconds that it asks to wait.
        answered: whether this was the server's answer.
    """

    def __init__(self, message: str, *, down: bool = False, wait: float = 0.0, answered: bool = False) -> None:
        super().__init__(message)
        self.down, self.wait, self.answered = down, wait, answered


class ApiKey:
    """An API key in an environment variable. It is looked up when it is sent, and stands in no message, repr or file."""

    def __init__(self, variable: str) -> None:
        self.variable = variable

    def headers(self) -> dict[str, str]:
        """What authorises a request; empty where there is no key."""
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def shown(self, body: str, most: int = 200) -> str:
        """The beginning of what a server said, on one line; some servers repeat the key that they refuse."""
        text = " ".join(body.split())
        key = self._key()
        return (text.replace(key, "***") if key else text)[:most]

    def _key(self) -> str:
        return os.environ.get(self.variable, "").strip()


def passing(status: int) -> bool:
    """Whether a failure with this status may be over when it is tried again."""
    return status in _RETRIED or status >= 500


def backoff(attempt: int, first: float, longest: float) -> float:
    """Seconds before try ``attempt`` + 2: doubling, at most ``longest``, jittered by a half either way."""
    return float(min(longest, first * 2.0 ** min(attempt, 60))) * random.uniform(0.5, 1.5)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: a number of them, or a date."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
