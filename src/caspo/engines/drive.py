"""Many searches, one batch: each asks for continuations, and goes on as soon as its own are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from caspo.engines.base import Completion, Engine, Request

__all__ = ["Asking", "drive"]

Key = TypeVar("Key")


class Asking(Protocol[Key]):
    """One question's search (or tree). A key is its own name for a request."""

    def begin(self) -> Sequence[tuple[Key, Request]]:
        """What to sample first."""

    def receive(self, key: Key, completion: Completion) -> Sequence[tuple[Key, Request]]:
        """Take a continuation in; what to sample next. Completions come in any order."""


def drive(
    searches: Sequence[Asking[Any]],
    engine: Engine,
    on_received: Callable[[Any, Completion], None] = lambda search, completion: None,
) -> None:
    """Run all searches to their ends, in one batch of the engine.

    ``on_received`` is called after a search took a completion in.
    """
    asked: list[tuple[Asking[Any], Any]] = []

    def ask(search: Asking[Any], wanted: Sequence[tuple[Any, Request]]) -> list[Request]:
        asked.extend((search, key) for key, _ in wanted)
        return [request for _, request in wanted]

    def receive(place: int, completion: Completion) -> list[Request]:
        search, key = asked[place]
        wanted = search.receive(key, completion)
        on_received(search, completion)
        return ask(search, wanted)

    engine.generate([request for search in searches for request in ask(search, search.begin())], receive)
