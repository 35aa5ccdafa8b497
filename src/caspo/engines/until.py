"""Ends paths at strings of the user's choice, wherever in their tokens these stand, by whichever requests they came."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from caspo.engines.base import Completion, Engine, Request, Watch
from caspo.engines.drive import Asking, changed
from caspo.records import Measured
from caspo.steps import Characters, Parting

__all__ = ["cut", "until"]

T = TypeVar("T")


def until(
    asking: Asking[T], stops: tuple[str, ...], engine: Engine, prompt: int, parting: Parting | None = None
) -> Asking[T]:
    """The same search, for which a path ends where it holds one of the strings: it sees such an end as EOS.

    Args:
        asking: the search.
        stops: the strings.
        engine: knows the text of tokens.
        prompt: tokens before everything that was generated.
        parting: tells the model's thinking, in which the strings end nothing; None: they end a path wherever they are.
    """
    if not stops:
        return asking

    def turn(wanted: Sequence[Request]) -> Asking[Sequence[Completion]]:
        ends = [_End(_Seen(stops, engine, parting, r.prefix_ids[prompt:]), r.watch) for r in wanted]
        found = yield [replace(request, watch=end) for request, end in zip(wanted, ends, strict=True)]
        return [end.ended(completion) for end, completion in zip(ends, found, strict=True)]

    return changed(asking, turn)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the strings."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class _Seen:
    """The end of a path's text, as far as one of the strings may begin there, while its tokens come."""

    def __init__(self, stops: tuple[str, ...], engine: Engine, parting: Parting | None, written: Sequence[int]) -> None:
        self._stops, self._engine, self._keep = stops, engine, max(map(len, stops)) - 1
        self._characters, self._parting = Characters(), None if parting is None else parting.copy()
        self._tail = ""
        self.take(written)

    def copy(self) -> _Seen:
        other = copy.copy(self)
        other._characters = copy.copy(self._characters)
        other._parting = None if self._parting is None else self._parting.copy()
        return other

    def take(self, tokens: Sequence[int]) -> bool:
        """Take the next tokens in; whether one of the strings ends in them."""
        text = "".join(map(self._characters.take, self._engine.pieces(tokens)))
        if self._parting is not None:
            text = "".join(part.text for part in self._parting.feed(text) if not part.thinking)
        text = self._tail + text
        self._tail = text[-self._keep :] if self._keep else ""
        return any(stop in text for stop in self._stops)


class _End:
    """A `Watch` that ends a continuation as soon as one of the strings is written, whatever another watch wants."""

    def __init__(self, before: _Seen, inner: Watch | None) -> None:
        self._before, self._seen, self._inner = before, before.copy(), inner

    def __call__(self, token: int, measured: Measured) -> bool:
        if self._seen.take([token]):
            return False
        return self._inner is None or self._inner(token, measured)

    def ended(self, completion: Completion) -> Completion:
        """The continuation, ended if one of the strings is in it; the last token is not always shown to a watch."""
        return replace(completion, finish="eos") if self._before.copy().take(completion.token_ids) else completion
