"""Continuations that `vllm` decodes, as a `Batch`: vLLM schedules them, prompts in chunks beside tokens."""

from __future__ import annotations

from collections.abc import Callable

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.rows import Row
from caspo.engines.vllm.context import VllmContext
from caspo.steps import Reading

__all__ = ["VllmBatch"]


class VllmBatch:
    """Its rows go on with every step of the engine, also with those that another batch asks for: then they are told of at
    its own next one."""

    def __init__(
        self, context: VllmContext, most: int, reading: Reading, piece: Callable[[int], bytes], eos_ids: frozenset[int]
    ) -> None:
        self._context, self._most, self._turn = context, most, reading.turn
        self._piece, self._eos_ids = piece, eos_ids
        self._keys: dict[int, str] = {}
        self._over: list[tuple[int, Completion | EngineError]] = []

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        return max(0, self._most - len(self._keys))

    def add(self, place: int, request: Request) -> None:
        """Take a request in.

        Raises:
            EngineError: its prefix leaves no room in the model's context, or holds tokens that the model does not have.
        """
        before = self._piece(request.prefix_ids[-1]) if request.prefix_ids else b""
        row = Row(place, request, turn=self._turn, before=before)
        self._keys[place] = self._context.add(row, self._end)

    def drop(self, place: int) -> None:
        """Free what vLLM holds for the request."""
        key = self._keys.pop(place, None)
        if key is not None:
            self._context.drop(key)
            self._over = [over for over in self._over if over[0] != place]

    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """A token for every row whose prompt is there, a piece of the prompt for others."""
        with self._context.lock:
            if not self._over and self._keys:
                self._context.step(self._piece, self._eos_ids)
            over, self._over = self._over, []
            for place, _ in over:
                del self._keys[place]
            return over

    def close(self) -> None:
        """Give up all rows; what they share with others to come stays in vLLM's prefix cache."""
        for place in list(self._keys):
            self.drop(place)

    def _end(self, row: Row, completion: Completion | EngineError) -> None:
        self._over.append((row.place, completion))
