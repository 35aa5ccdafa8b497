"""Limits of their own for a model's thinking and for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from caspo.engines.base import Completion, Engine, Request
from caspo.engines.drive import Asking, changed
from caspo.records import ROOT, Measured
from caspo.trees import TreeBuilder

__all__ = ["limited"]

T = TypeVar("T")


def limited(search: Asking[T], tree: TreeBuilder, engine: Engine, thinking: int, answer: int) -> Asking[T]:
    """The same search, whose paths may have so many tokens of thinking, and so many besides. A path that meets one of the
    limits ends as at any limit of length."""

    def turn(wanted: Sequence[Request]) -> Asking[Sequence[Completion]]:
        counts = [_Count(tree, engine, request, thinking, answer) for request in wanted]
        found = yield [replace(request, watch=count) for request, count in zip(wanted, counts, strict=True)]
        return [
            replace(one, finish="length") if count.full and one.finish == "abandoned" else one
            for one, count in zip(found, counts, strict=True)
        ]

    return changed(search, turn)


class _Count:
    """A `Watch` that ends a path at its limits, besides whatever another watch wants."""

    def __init__(self, tree: TreeBuilder, engine: Engine, request: Request, thinking: int, answer: int) -> None:
        self._engine, self._inner, self._thinking, self._answer = engine, request.watch, thinking, answer
        self._reader = tree.reader(ROOT) if request.step is None else request.step.copy()
        if request.step is None:
            for piece in engine.pieces(request.prefix_ids[len(tree.prompt_ids) :]):
                self._reader.take(piece)

    @property
    def full(self) -> bool:
        """Whether a limit was met, with more to come: thinking that has ended may have all of its tokens."""
        reader = self._reader
        return (reader.thinking and reader.thought >= self._thinking) or reader.tokens - reader.thought >= self._answer

    def __call__(self, token: int, measured: Measured) -> bool:
        self._reader.take(self._engine.pieces([token])[0])
        return (self._inner is None or self._inner(token, measured)) and not self.full
