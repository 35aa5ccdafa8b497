"""What a call of `HFEngine.generate` has to do, shared by its decode streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition

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
    """Requests that wait, and completions; a stream takes its share of the one and hands in the other.

    Args:
        requests: what to begin with.
        on_done: what to add when a completion is there; called by one stream at a time.
        streams: how many share the work.
        check: raises for a request that cannot be served.
    """

    def __init__(
        self, requests: Sequence[Request], on_done: OnDone | None, streams: int, check: Callable[[Request], None]
    ) -> None:
        self._requests: list[Request] = []
        self._completions: dict[int, Completion] = {}
        self._on_done, self._check = on_done, check
        self._held = [0] * streams
        self._idle = 0
        self._closed = False
        self._changed = Condition()
        self._add(requests)
        # Requests with the same prefix are admitted together, the longest first: their end is what one waits for.
        self._waiting = sorted(range(len(requests)), key=lambda i: (requests[i].max_new_tokens, requests[i].prefix_ids))

    def take(self, stream: int, held: int, free: int) -> list[Row]:
        """The stream's share of what waits, ``free`` rows at most; it holds ``held`` rows already.

        A stream that holds nothing waits until there is something; an empty answer then says that all is done.
        """
        with self._changed:
            self._held[stream] = held
            if not held:
                self._idle += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed or self._idle == len(self._held))
                if not self._waiting:
                    return []
                self._idle -= 1
            share = -(-(len(self._waiting) + sum(self._held)) // len(self._held))
            count = max(0, min(free, share - held, len(self._waiting)))
            taken = [self._waiting.pop() for _ in range(count)]
            self._held[stream] += count
            return [Row(place, self._requests[place]) for place in taken]

    def done(self, place: int, completion: Completion) -> None:
        """Hand in a completion."""
        with self._changed:
            self._completions[place] = completion
            if self._on_done is not None:
                first = len(self._requests)
                self._add(self._on_done(place, completion))
                self._waiting += range(first, len(self._requests))
                self._changed.notify_all()

    def finished(self) -> list[Completion]:
        """All completions, in the order of their places."""
        assert len(self._completions) == len(self._requests)
        return [self._completions[place] for place in range(len(self._requests))]

    @contextmanager
    def closing_on_error(self) -> Iterator[None]:
        """Send the other streams home when this one fails."""
        try:
            yield
        except BaseException:
            with self._changed:
                self._closed = True
                self._waiting = []
                self._changed.notify_all()
            raise

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._check(request)
        self._requests += requests
