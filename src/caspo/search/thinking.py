"""Limits of their own for a model's thinking and for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caspo.engines.base import Completion, Engine, Request
from caspo.engines.drive import Asking, changed
from caspo.records import ROOT, Measured, Solution
from caspo.trees import TreeBuilder

__all__ = ["limited"]


def limited(search: Asking[Solution], tree: TreeBuilder, engine: Engine, thinking: int, answer: int) -> Asking[Solution]:
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
        self._engine, self._inner = engine, request.watch
        self._left = {True: thinking, False: answer}
        self._reader = tree.reader(ROOT)
        for piece in engine.pieces(request.prefix_ids[len(tree.prompt_ids) :]):
            self._take(piece)

    @property
    def full(self) -> bool:
        """Whether a limit was met."""
        return min(self._left.values()) <= 0

    def __call__(self, token: int, measured: Measured) -> bool:
        self._take(self._engine.pieces([token])[0])
        return (self._inner is None or self._inner(token, measured)) and not self.full

    def _take(self, piece: bytes) -> None:
        before = self._reader.thinking
        self._reader.take(piece)
        self._left[before or self._reader.thinking] -= 1
