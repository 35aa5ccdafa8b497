"""The rows that the engine `hf` decodes together: which are in the batch, which wait, one token for each at a step."""

from __future__ import annotations

from collections.abc import Generator

import torch

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.local.decoder import Decoder
from caspo.engines.local.kv import Prefix, RowPool
from caspo.engines.rows import Row
from caspo.engines.sampling import Draw, draw_rows

__all__ = ["HFBatch"]

_HELD_STEPS = 32
"""For so many steps a row that needs a pass of prefill may be held back, while rows that need none take places."""


class HFBatch:
    """Continuous batching: a row that finishes leaves at once and one that waits takes its place."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self._decoder, self._most = decoder, most
        self._waiting: list[Row] = []
        self._arriving: list[Row | None] = []
        """Those whose prefixes are being computed; None: given up meanwhile."""
        self._computing: Generator[None, None, list[Prefix]] | None = None
        self._held = 0
        """Steps since some that wait were held back."""
        self._rows: list[Row] = []
        self._pool: RowPool | None = None

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        room = self._most if self._pool is None else self._limit(self._pool.columns)
        arriving = sum(row is not None for row in self._arriving)
        return max(0, room - len(self._rows) - arriving - len(self._waiting))

    def add(self, place: int, request: Request) -> None:
        """Take a request in; it joins the batch at a step.

        Raises:
            EngineError: its prefix leaves no room in the model's context.
        """
        self._decoder.check(request)
        decoder = self._decoder
        before = decoder.pieces[request.prefix_ids[-1]]
        self._waiting.append(Row(place, request, turn=decoder.reading.turn, before=before))

    def drop(self, place: int) -> None:
        """Free the request's row, or its place among those that wait."""
        self._waiting = [row for row in self._waiting if row.place != place]
        self._arriving = [None if row is None or row.place == place else row for row in self._arriving]
        if not any(self._arriving):  # nobody wants what is being computed: others need not wait for it
            self._arriving, self._computing = [], None
        for at, row in enumerate(self._rows):
            if row.place == place:
                self._remove(at)
                break

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Let some of those that wait join, if there is room for enough of them, and decode a token for every row.

        Beside rows under way one pass of prefill is done a step: a long prompt does not hold up what others see.

        Raises:
            EngineError: a row of those that joined could not be prefilled; the batch is as it was.
        """
        self._join()
        if not self._rows:
            return []
        pool = self._joined_pool
        finished: list[tuple[int, Completion | EngineError]] = []
        drawn, failures = self._draw(pool)
        tokens, measured = drawn.tokens.tolist(), drawn.measured()
        decoder = self._decoder
        # From the last one on: what takes the place of a row that leaves was looked at already.
        for at in reversed(range(len(self._rows))):
            row, token = self._rows[at], tokens[at]
            if at in failures:
                finished.append((row.place, failures[at]))
            elif row.take(
                token,
                measured[at],
                decoder.pieces[token],
                ends=token in decoder.eos_ids,
                context_length=decoder.context_length,
            ):
                finished.append((row.place, row.completion()))
                if row.request.keep:
                    decoder.store.put(row.request.prefix_ids + tuple(row.tokens[:-1]), pool.take(at))
            else:
                continue
            self._remove(at)
        return finished

    def close(self) -> None:
        """Give up all rows; the memory stays with the decoder for its next batch."""
        self._waiting, self._arriving, self._computing, self._rows = [], [], None, []
        if self._pool is not None:
            self._decoder.give_back(self._pool)
            self._pool = None

    def _limit(self, columns: int) -> int:
        """Rows at once, in a pool of so many columns."""
        return min(self._most, self._decoder.capacity(columns))

    @property
    def _joined_pool(self) -> RowPool:
        assert self._pool is not None
        return self._pool

    def _join(self) -> None:
        """Go on with the prefixes of those that are to join; once these are there, they are in."""
        if self._computing is None:
            self._choose()
        if self._computing is None:
            return
        try:
            while True:
                next(self._computing)
                if self._rows:
                    return
        except StopIteration as end:
            arrived = [(row, prefix) for row, prefix in zip(self._arriving, end.value, strict=True) if row is not None]
        except BaseException:
            self._waiting = [row for row in self._arriving if row is not None] + self._waiting
            self._arriving, self._computing = [], None
            raise
        self._arriving, self._computing = [], None
        if arrived:
            self._admit([row for row, _ in arrived], [prefix for _, prefix in arrived])

    def _choose(self) -> None:
        """Begin with some of those that wait: with rows that continue what is kept at once. Others need a pass, which costs
        most when it is short: while rows are under way, they wait until an eighth of all rows can come together, but not for
        ever: where a search takes every place that another leaves, these never are so many."""
        if not self._waiting:
            return
        decoder = self._decoder
        if self._rows:
            limit = self._limit(self._joined_pool.columns)
        else:
            limit = self._limit(decoder.columns([row.request for row in self._waiting]))
        room = limit - len(self._rows)
        if room <= 0:
            return
        new = self._waiting
        if self._rows and room < limit // 8 and self._held < _HELD_STEPS:
            new = [row for row in new if decoder.has(row.request.prefix_ids[:-1])]
        self._held = self._held + 1 if len(new) < len(self._waiting) else 0
        new = new[:room]
        if new:
            chosen = {row.place for row in new}
            self._waiting = [row for row in self._waiting if row.place not in chosen]
            self._arriving = list(new)
            self._computing = decoder.computing([row.request.prefix_ids[:-1] for row in new])

    def _admit(self, new: list[Row], prefixes: list[Prefix]) -> None:
        """Give them places in the pool."""
        decoder = self._decoder
        rows, columns = len(self._rows) + len(new), decoder.columns([row.request for row in (*new, *self._waiting)])
        if not self._rows:
            if self._pool is not None:
                decoder.give_back(self._pool)
            self._pool = decoder.pool_for(columns, rows)
        pool = self._joined_pool
        columns = max(pool.columns, columns)
        if columns > pool.columns or rows > pool.capacity:
            # Memory that was never used is not asked for: at most twice the rows that there are.
            pool.widen(columns, max(rows, min(2 * pool.capacity, self._limit(columns))))
        pool.admit(prefixes)
        self._rows += new

    def _draw(self, pool: RowPool) -> tuple[Draw, dict[int, EngineError]]:
        """One token for every row; the rows whose logits are not numbers, with what is wrong."""
        decoder, rows = self._decoder, self._rows
        logits_BV = decoder.model(
            input_ids=torch.tensor([[row.last] for row in rows], device=decoder.device),
            attention_mask=pool.mask(),
            position_ids=pool.positions(),
            past_key_values=pool.cache,
            use_cache=True,
        ).logits[:, -1]
        pool.advance()
        return draw_rows(logits_BV, rows)

    def _remove(self, at: int) -> None:
        """Free a row; the last one takes its place."""
        self._joined_pool.remove(at)
        self._rows[at] = self._rows[-1]
        self._rows.pop()
