"""The requests that `llama_cpp` decodes together: a token for each at a step, and pieces of prompts beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.llama.cells import Strand
from caspo.engines.llama.context import LlamaContext
from caspo.engines.rows import SHARED, Row, shared_length
from caspo.engines.sampling import draw_rows

__all__ = ["LlamaBatch"]


@dataclass(eq=False)
class _Fed:
    """A row that has a strand."""

    row: Row
    strand: Strand
    computed: int = 0
    """Tokens of its prefix that it computed itself."""
    suspect: bool = False
    """Its logits were NaN beside others, which a neighbour's NaN can do: it has to show alone what it gives."""

    @property
    def ids(self) -> tuple[int, ...]:
        """What its strand has to hold for the next token."""
        return (*self.row.request.prefix_ids, *self.row.tokens)

    @property
    def missing(self) -> int:
        """How many of these it does not hold yet: 1, unless its prompt is under way."""
        return len(self.row.request.prefix_ids) + len(self.row.tokens) - len(self.strand.ids)


class LlamaBatch:
    """Continuous batching: a row joins as soon as there are cells for it, and gives its own up when they run out.

    The row that came last gives way then: it waits, and its tokens are computed again later, not drawn again.
    """

    def __init__(self, context: LlamaContext, most: int, turn: str = "") -> None:
        self._context, self._most, self._turn = context, most, turn
        self._waiting: list[Row] = []
        self._rows: list[_Fed] = []
        self._short = False
        """A row gave way: none joins before another one leaves."""

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        return max(0, self._most - len(self._rows) - len(self._waiting))

    def add(self, place: int, request: Request) -> None:
        """Take a request in; it joins at a step.

        Raises:
            EngineError: its prefix leaves no room in the model's context, or in the engine's cells.
        """
        self._context.check(request)
        before = self._context.piece(request.prefix_ids[-1])
        self._waiting.append(Row(place, request, turn=self._turn, before=before))

    def drop(self, place: int) -> None:
        """Free the request's cells, or its place among those that wait."""
        self._waiting = [row for row in self._waiting if row.place != place]
        with self._context.lock:
            for fed in [fed for fed in self._rows if fed.row.place == place]:
                self._leave(fed)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Let those join for which there is room, compute prompts, and draw a token for every row whose prompt is there."""
        context = self._context
        with context.lock:
            context.alive()
            self._join()
            finished = self._make_room()
            if not self._rows:
                return finished
            planned = self._plan()
            try:
                logits_BV = context.decode(
                    [(fed.strand.id, len(fed.strand.ids), new, new_is_all) for fed, new, new_is_all in planned]
                )
            except EngineError as error:
                finished += [(fed.row.place, error) for fed in self._rows]
                self._clear()
                context.cells.wipe()  # nobody knows what was written
                return finished
            for fed, new, new_is_all in planned:
                context.cells.extend(fed.strand, new)
                if not fed.row.tokens:
                    fed.computed += len(new)
                if new_is_all and not fed.row.tokens and fed.computed >= SHARED:
                    context.cells.keep_copy(fed.strand)
            return finished + self._take([fed for fed, _, new_is_all in planned if new_is_all], logits_BV)

    def close(self) -> None:
        """Give up all rows; what was kept stays with the context."""
        self._waiting = []
        with self._context.lock:
            self._clear()

    def _clear(self) -> None:
        for fed in list(self._rows):
            self._leave(fed)

    def _join(self) -> None:
        """Let waiting rows in, in their order, as long as there are cells for what all have to compute.

        One that begins like a prompt under way waits for it.
        """
        cells, waiting, full = self._context.cells, [], self._short
        owed = sum(fed.missing for fed in self._rows)
        for row in self._waiting:
            ids = (*row.request.prefix_ids, *row.tokens)
            there = cells.longest(ids[:-1])
            under_way = (shared_length(ids[:-1], fed.ids) for fed in self._rows if fed.missing > 1)
            strand = None
            if not full and all(shared < there + SHARED for shared in under_way):
                strand = cells.begin(ids[:-1])
            if strand is not None and not cells.room(owed + len(ids) - len(strand.ids)):
                cells.free(strand)
                strand, full = None, True
            if strand is None:
                waiting.append(row)
            else:
                self._rows.append(_Fed(row, strand))
                owed += self._rows[-1].missing
        self._waiting = waiting

    def _make_room(self) -> list[tuple[int, Completion | EngineError]]:
        """Cells for this step's tokens; rows give way until there are enough. What cannot go on even alone fails."""
        cells = self._context.cells
        while self._rows and not cells.room(sum(len(new) for _, new, _ in self._plan())):
            last = self._rows[-1]
            alone = len(self._rows) == 1
            self._leave(last)
            if alone:
                error = EngineError(
                    f"A prompt and its continuation, {len(last.ids)} tokens by now, do not fit into the {cells.size} cells "
                    "of the engine. Raise `cells`, or ask for fewer tokens."
                )
                return [(last.row.place, error)]
            self._waiting.insert(0, last.row)
            self._short = True
        return []

    def _plan(self) -> list[tuple[_Fed, tuple[int, ...], bool]]:
        """Which tokens each row is fed, and whether these are all that are missing; prompts share what the others leave."""
        left = self._context.chunk
        planned = []
        suspects = [fed for fed in self._rows if fed.suspect][:1]
        for fed in suspects or sorted(self._rows, key=lambda fed: fed.missing > 1):
            new = fed.ids[len(fed.strand.ids) :][:left]
            if new:
                planned.append((fed, new, len(new) == fed.missing))
                left -= len(new)
        return planned

    def _take(self, asked: list[_Fed], logits_BV: torch.Tensor) -> list[tuple[int, Completion | EngineError]]:
        """Draw a token for every row of the logits; those that finished or failed."""
        context, finished = self._context, list[tuple[int, Completion | EngineError]]()
        if not asked:
            return finished
        drawn, failures = draw_rows(logits_BV, [fed.row for fed in asked])
        tokens, measured = drawn.tokens.tolist(), drawn.measured()
        for at, fed in enumerate(asked):
            row, token = fed.row, tokens[at]
            alone, fed.suspect = fed.suspect or len(self._rows) == 1, at in failures
            if fed.suspect and alone:
                finished.append((row.place, failures[at]))
                self._leave(fed)
            elif not fed.suspect and row.take(
                token,
                measured[at],
                context.piece(token),
                ends=token in context.tokenizer.eos_ids,
                context_length=context.context_length,
            ):
                finished.append((row.place, row.completion()))
                self._leave(fed, keep=row.request.keep)
        if failures:
            context.cells.wipe()  # the keys and values of a NaN are NaN, and so is their product with a weight of zero
        return finished

    def _leave(self, fed: _Fed, keep: bool = False) -> None:
        self._rows.remove(fed)
        self._short = False
        if self._context.closed:
            return
        (self._context.cells.keep if keep else self._context.cells.free)(fed.strand)
