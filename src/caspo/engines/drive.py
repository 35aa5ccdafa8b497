"""Many searches, one batch: each asks for continuations, and goes on as soon as its own are there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Generic, TypeAlias, TypeVar

from caspo.engines.base import Completion, Engine, Request

__all__ = ["Asking", "Underway", "changed", "drive"]

T = TypeVar("T")

Asking: TypeAlias = Generator[Sequence[Request], Sequence[Completion], T]
"""What asks a model in turns: it yields the requests of a turn, is sent their completions in the same order, and returns
what it came to. Completions must be all it depends on: then it does not matter what else is in the batch."""


def changed(asking: Asking[T], turn: Callable[[Sequence[Request]], Asking[Sequence[Completion]]]) -> Asking[T]:
    """The same, of which every turn is asked by ``turn``: it is given the requests, and returns their completions."""
    try:
        wanted = next(asking)
        while True:
            wanted = asking.send((yield from turn(wanted)))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        asking.close()


class Underway(Generic[T]):
    """A generator and its turn: completions are taken in one by one, in any order, and it is sent all of a turn at once."""

    def __init__(self, asking: Asking[T]) -> None:
        self._asking = asking
        self._found: dict[int, Completion] = {}
        self._asked = 0
        self._results: list[T] = []

    def begin(self) -> Sequence[Request]:
        """The requests of the first turn; empty if it asks for nothing."""
        return self._go_on(lambda: next(self._asking))

    def receive(self, place: int, completion: Completion) -> Sequence[Request]:
        """Take in the completion of the request at this place of the turn; the next turn's requests if it was the last."""
        self._found[place] = completion
        if len(self._found) < self._asked:
            return ()
        found = [self._found[place] for place in range(self._asked)]
        return self._go_on(lambda: self._asking.send(found))

    @property
    def over(self) -> bool:
        """Whether it has returned."""
        return bool(self._results)

    @property
    def result(self) -> T:
        """What it returned, once it is over."""
        return self._results[0]

    def close(self) -> None:
        """Give it up; nothing happens to one that is over."""
        self._asking.close()

    def _go_on(self, advance: Callable[[], Sequence[Request]]) -> Sequence[Request]:
        try:
            wanted = advance()
            while not wanted:  # a turn without requests is complete at once
                wanted = self._asking.send(())
        except StopIteration as end:
            self._results.append(end.value)
            wanted = ()
        self._found, self._asked = {}, len(wanted)
        return wanted


def drive(askings: Sequence[Asking[T]], engine: Engine, on_over: Callable[[], None] = lambda: None) -> list[T]:
    """Run all of them to their ends in one batch of the engine; what each returned, in order.

    ``on_over`` is called whenever one has ended.
    """
    underway = [Underway(asking) for asking in askings]
    asked: list[tuple[Underway[T], int]] = []

    def ask(search: Underway[T], wanted: Sequence[Request]) -> list[Request]:
        asked.extend((search, place) for place in range(len(wanted)))
        if search.over:
            on_over()
        return list(wanted)

    def receive(place: int, completion: Completion) -> list[Request]:
        search, turn_place = asked[place]
        return ask(search, search.receive(turn_place, completion))

    try:
        engine.generate([request for search in underway for request in ask(search, search.begin())], receive)
    finally:
        for search in underway:
            search.close()
    return [search.result for search in underway]
