"""Runs a batch to its end: what `Engine.generate` does, for every engine that has a `Batch`."""

from __future__ import annotations

from collections.abc import Sequence

from caspo.core.errors import EngineError
from caspo.engines.base import Batch, Completion, OnDone, Request

__all__ = ["run"]


def run(batch: Batch, requests: Sequence[Request], on_done: OnDone | None) -> list[Completion]:
    """Sample every request, and those that ``on_done`` adds; results in the order of their places.

    Raises:
        EngineError: a request cannot be served, or failed.
    """
    asked = list(requests)
    completions: dict[int, Completion] = {}
    # Requests with the same prefix are admitted together, the longest first: their end is what one waits for.
    waiting = sorted(range(len(asked)), key=lambda i: (asked[i].max_new_tokens, asked[i].prefix_ids))
    try:
        while len(completions) < len(asked):
            for _ in range(min(batch.free, len(waiting))):
                place = waiting.pop()
                batch.add(place, asked[place])
            for place, completion in batch.step():
                if isinstance(completion, EngineError):
                    raise completion
                completions[place] = completion
                if on_done is not None:
                    new = on_done(place, completion)
                    waiting += range(len(asked), len(asked) + len(new))
                    asked += new
    finally:
        batch.close()
    return [completions[place] for place in range(len(asked))]
