"""Ends a path at strings of the user's choice, wherever in its tokens they stand, whichever requests it was decoded by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caspo.engines.base import Completion, Engine, Watch
from caspo.types import Measured

__all__ = ["Until", "cut"]


class Until:
    """A `Watch` that ends a continuation as soon as one of the strings is written, whatever another watch wants."""

    def __init__(self, written: str, until: tuple[str, ...], engine: Engine, inner: Watch | None) -> None:
        self._until, self._engine, self._inner = until, engine, inner
        self._keep = max(map(len, until), default=1) - 1
        self._tail = self._before = written[-self._keep :] if self._keep else ""

    def __call__(self, token: int, measured: Measured) -> bool:
        """Whether to go on."""
        text = self._tail + self._engine.pieces([token])[0]
        self._tail = text[-self._keep :] if self._keep else ""
        if any(stop in text for stop in self._until):
            return False
        return self._inner is None or self._inner(token, measured)

    def ended(self, completion: Completion) -> Completion:
        """The continuation, ended if one of the strings is in it; the last token is not always shown to a watch."""
        text = self._before + completion.text
        return replace(completion, finish="eos") if any(stop in text for stop in self._until) else completion


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the strings."""
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]
