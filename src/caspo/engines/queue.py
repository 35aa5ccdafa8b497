"""What a call of `HFEngine.generate` has to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from caspo.engines.base import Completion, Finish, OnDone, Request

__all__ = ["Row", "WorkQueue"]


@dataclass
class Row:
    """A request on its way through the batch."""

    place: int
    request: Request
    tokens: list[int] = field(default_factory=list)
    statistics: list[list[float]] = field(default_factory=list)
    """What was measured of each token; see `caspo.engines.sampling.Draw`."""
    text: str = ""
    finish: Finish | None = None

    @property
    def last(self) -> int:
        """The token that the next step feeds."""
        return self.tokens[-1] if self.tokens else self.request.prefix_ids[-1]


class WorkQueue:
    """Requests that wait, and completions.

    Args:
        requests: what to begin with.
        on_done: what to add when a completion is there.
        check: raises for a request that cannot be served.
    """

    def __init__(self, requests: Sequence[Request], on_done: OnDone | None, check: Callable[[Request], None]) -> None:
        self._requests: list[Request] = []
        self._completions: dict[int, Completion] = {}
        self._on_done, self._check = on_done, check
        self._add(requests)
        # Requests with the same prefix are admitted together, the longest first: their end is what one waits for.
        self._waiting = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, requests[i].prefix_ids))

    def take(self, free: int) -> list[Row]:
        """Some of what waits, ``free`` rows at most."""
        taken = [self._waiting.pop() for _ in range(min(free, len(self._waiting)))]
        return [Row(place, self._requests[place]) for place in taken]

    def done(self, place: int, completion: Completion) -> None:
        """Hand in a completion."""
        self._completions[place] = completion
        if self._on_done is not None:
            first = len(self._requests)
            self._add(self._on_done(place, completion))
            self._waiting += range(first, len(self._requests))

    def finished(self) -> list[Completion]:
        """All completions, in the order of their places."""
        assert len(self._completions) == len(self._requests)
        return [self._completions[place] for place in range(len(self._requests))]

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._check(request)
        self._requests += requests
