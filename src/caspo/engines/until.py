"""Ends paths at strings of the user's choice, wherever in their tokens these stand, by whichever requests they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from caspo.engines.base import Completion, Engine, Request, Watch
from caspo.engines.drive import Asking, changed
from caspo.records import Measured
from caspo.steps import Characters

__all__ = ["cut", "until"]

T = TypeVar("T")


def until(asking: Asking[T], stops: tuple[str, ...], engine: Engine, prompt: int) -> Asking[T]:
    """The same search, for which a path ends where it holds one of the strings: it sees such an end as EOS.

    ``prompt`` is the number of tokens before everything that was generated.
    """
    if not stops:
        return asking

    def turn(wanted: Sequence[Request]) -> Asking[Sequence[Completion]]:
        ends = [_End(engine.pieces(r.prefix_ids[prompt:]), stops, engine, r.watch) for r in wanted]
        found = yield [replace(request, watch=end) for request, end in zip(wanted, ends, strict=True)]
        return [end.ended(completion) for end, completion in zip(ends, found, strict=True)]

    return changed(asking, turn)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class _End:
    """A `Watch` that ends a continuation as soon as one of the strings is written, whatever another watch wants."""

    def __init__(self, written: Sequence[bytes], stops: tuple[str, ...], engine: Engine, inner: Watch | None) -> None:
        self._stops, self._engine, self._inner = stops, engine, inner
        self._keep = max(map(len, stops)) - 1
        self._characters = Characters()
        text = "".join(map(self._characters.take, written))
        self._tail = self._before = text[-self._keep :] if self._keep else ""

    def __call__(self, token: int, measured: Measured) -> bool:
        text = self._tail + self._characters.take(self._engine.pieces([token])[0])
        self._tail = text[-self._keep :] if self._keep else ""
        if any(stop in text for stop in self._stops):
            return False
        return self._inner is None or self._inner(token, measured)

    def ended(self, completion: Completion) -> Completion:
        """The continuation, ended if one of the strings is in it; the last token is not always shown to a watch."""
        text = self._before + completion.text
        return replace(completion, finish="eos") if any(stop in text for stop in self._stops) else completion
