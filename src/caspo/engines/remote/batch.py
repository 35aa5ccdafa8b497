"""Continuations under way on servers, one stream each, as a `Batch`.

Streams are read in the pool's thread; stop strings, watches and the end of a continuation are decided in the thread of the
batch's owner, and a stream is closed as soon as one is to end, so that its server stops decoding.
"""

from __future__ import annotations

import asyncio
import queue
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass

from caspo.core.errors import CaspoError, EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.remote.reply import RANKS
from caspo.engines.remote.stream import Ended, Side, Token, tokens
from caspo.engines.rows import Row

__all__ = ["RemoteBatch"]

_WAIT = 0.05
"""Seconds that a step waits for something to arrive."""
_NOTHING = (
    "The server ended a text with a token that it does not show (llama-cpp-python's does so), where nothing else stood: "
    "there is no log-probability for it, so no confidence. Use a server that shows it: vLLM, SGLang, llama.cpp."
)


@dataclass
class _StreamedRow(Row):
    """A continuation as its owner sees it."""

    task: Future[None] | None = None


class RemoteBatch:
    """Implements `Batch`."""

    def __init__(self, side: Side, most: int) -> None:
        self._side, self._most = side, most
        self._rows: dict[int, _StreamedRow] = {}
        self._arrived: queue.SimpleQueue[tuple[_StreamedRow, Token | Ended | EngineError]] = queue.SimpleQueue()

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        return max(0, self._most - len(self._rows))

    def add(self, place: int, request: Request) -> None:
        """Take a request in."""
        _refuse(request, self._side)
        side = self._side
        (before,) = side.pieces(request.prefix_ids[-1:])
        self._rows[place] = row = _StreamedRow(place, request, turn=side.reading.turn, before=before)
        row.task = self._side.pool.start(self._follow(row))

    def drop(self, place: int) -> None:
        """Close the stream of a request, so that its server stops."""
        row = self._rows.pop(place, None)
        if row is not None and row.task is not None:
            row.task.cancel()

    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Take in what has arrived; wait for it for a moment if nothing has."""
        finished: list[tuple[int, Completion | EngineError]] = []
        if not self._rows:
            return finished
        wait = _WAIT
        while True:
            try:
                row, event = self._arrived.get(timeout=wait) if wait else self._arrived.get_nowait()
            except queue.Empty:
                return finished
            wait = 0.0
            if self._rows.get(row.place) is not row:
                continue  # of a request that was given up
            done = self._take(row, event)
            if done is not None:
                self.drop(row.place)
                finished.append((row.place, done))

    def close(self) -> None:
        """Close all streams."""
        for place in list(self._rows):
            self.drop(place)

    def _take(self, row: _StreamedRow, event: Token | Ended | EngineError) -> Completion | EngineError | None:
        if isinstance(event, EngineError):
            return event
        if isinstance(event, Ended):
            row.finish = event.finish
            return self._complete(row)
        side, token = self._side, event.token
        piece = b"" if event.last else side.pieces([token])[0]
        ended = row.take(token, event.measured, piece, ends=event.last, context_length=side.context_length)
        return self._complete(row) if ended else None

    def _complete(self, row: _StreamedRow) -> Completion | EngineError:
        if not row.tokens:
            return EngineError(_NOTHING)
        side = self._side
        return row.completion() if side.k >= side.vocab_size else row.completion("top_k", side.k)

    async def _follow(self, row: _StreamedRow) -> None:
        """Read a continuation to its end, over as many streams as that takes."""
        try:
            async with aclosing(tokens(self._side, row.request)) as events:
                async for event in events:
                    self._arrived.put((row, event))
        except asyncio.CancelledError:
            raise
        except EngineError as error:
            self._arrived.put((row, error))
        except CaspoError as error:
            self._arrived.put((row, EngineError(str(error))))
        except Exception as error:  # a bug of ours must not leave its owner waiting
            self._arrived.put((row, EngineError(f"Reading a stream failed: {type(error).__name__}: {error}")))


def _refuse(request: Request, side: Side) -> None:
    features = side.features
    if features.ids and len(request.prefix_ids) >= side.context_length:
        raise EngineError(
            f"A prompt of {len(request.prefix_ids)} tokens leaves no room in the context of {features.model} "
            f"({side.context_length} tokens). Shorten the question, or serve the model with a longer context."
        )
    if request.top_k > side.k:
        raise EngineError(f"The mean of the top {request.top_k} was asked for, and the server shows {side.k}.")
    if request.rank > min(side.k, RANKS):
        raise EngineError(f"A token of rank {request.rank} was asked for, and the server shows {side.k}.")
    greedy = request.temperature == 0
    raw = features.greedy_raw if greedy else features.sampled_raw
    if not raw and (greedy or request.temperature != 1 or request.top_p != 1):
        raise EngineError(
            f"{features.server} shows the sampler's log-probabilities, not the model's, at temperature "
            f"{request.temperature:g} and top_p {request.top_p:g}: they would be taken for confidence. Use temperature 1 "
            "(or 0) and top_p 1, or start the server so that it shows the model's: vLLM with "
            "--logprobs-mode raw_logprobs, SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment."
        )
