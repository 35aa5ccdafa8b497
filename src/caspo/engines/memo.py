"""Engine `memo`: remembers what another engine decoded, so that searches that differ in a threshold share their paths.

It remembers in memory, for as long as it is there, or in a file (`CompletionFile`) for good.

A continuation depends on its request and on no other, so the same request is decoded once. It is decoded to its end,
without its watch; the watch is then shown the tokens one by one, as the engine would, and the continuation is cut where it
says so. So every watch may cut elsewhere, and none has to be run twice.

What is not here: any limit of memory (some kilobytes a path). Price and time are those of the first asking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from caspo.engines.base import Completion, Engine, OnDone, Request
from caspo.records import TokenTrace
from caspo.steps import text_of

__all__ = ["Known", "MemoEngine"]


class Known(Protocol):
    """What was decoded before."""

    def get(self, request: Request) -> Completion | None:
        """What ``request`` would be given, its watch apart; None if that is not known."""

    def put(self, request: Request, whole: Completion) -> None:
        """Remember what was decoded for ``request``, without its watch."""

    def forget(self) -> None:
        """Drop what is in memory only."""


class _Memory:
    """A continuation depends on its request; the reader of its step follows from its prefix, but for whether it has one."""

    def __init__(self) -> None:
        self._known: dict[tuple[Request, bool], Completion] = {}

    def get(self, request: Request) -> Completion | None:
        return self._known.get((request, request.step is not None))

    def put(self, request: Request, whole: Completion) -> None:
        self._known[request, request.step is not None] = whole

    def forget(self) -> None:
        self._known.clear()


class MemoEngine:
    """Gives what ``engine`` gives, and asks it for nothing that it gave before."""

    def __init__(self, engine: Engine, known: Known | None = None) -> None:
        self._engine = engine
        self._known: Known = _Memory() if known is None else known
        self.name, self.prompt, self.pieces, self.reading = engine.name, engine.prompt, engine.pieces, engine.reading

    def forget(self) -> None:
        """Drop what is remembered in memory, and what the engine kept."""
        self._known.forget()
        self._engine.forget()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Give what is known at once and have the engine decode the rest, in one batch; as `Engine.generate`."""
        asked: list[Request] = []
        given: dict[int, Completion] = {}
        decoding: list[int] = []  # place here of each request to the engine

        def give(place: int, whole: Completion) -> Sequence[Request]:
            given[place] = self._watched(asked[place], whole)
            return on_done(place, given[place]) if on_done is not None else ()

        def add(new: Sequence[Request]) -> list[Request]:
            """What the engine is to decode of these, and of what follows on those that are known."""
            missing = []
            place = len(asked)
            asked.extend(new)
            while place < len(asked):
                whole = self._known.get(asked[place])
                if whole is None:
                    decoding.append(place)
                    missing.append(replace(asked[place], watch=None))
                else:
                    asked.extend(give(place, whole))
                place += 1
            return missing

        def received(place: int, whole: Completion) -> list[Request]:
            self._known.put(asked[decoding[place]], whole)
            return add(give(decoding[place], whole))

        missing = add(requests)
        if missing:
            self._engine.generate(missing, received)
        return [given[place] for place in range(len(asked))]

    def _watched(self, request: Request, whole: Completion) -> Completion:
        """The continuation as the request's watch leaves it; it is not asked about the token that ends one by itself."""
        if request.watch is None:
            return whole
        decoded, trace, rows = whole.token_ids, whole.trace, whole.measured()
        if whole.ahead and whole.top_k_logprob is None:
            decoded, trace = decoded + whole.ahead, TokenTrace.join([trace, whole.ahead_trace])
            rows += whole.ahead_trace.measured()
        for length, (token, measured) in enumerate(zip(decoded[:-1], rows[:-1], strict=True), start=1):
            if not request.watch(token, measured):
                ids = decoded[:length]
                top_k = None if whole.top_k_logprob is None else whole.top_k_logprob[:length]
                return Completion(ids, text_of(self.pieces(ids)), trace[:length], "abandoned", top_k)
        return whole
