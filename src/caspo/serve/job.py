"""What a request becomes inside the server: a job, and the events that are told of it until it is done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from caspo.core.errors import CaspoError
from caspo.records import Node, Question, Solution
from caspo.search import Method
from caspo.steps import Parting

__all__ = ["Closing", "Done", "Event", "Failed", "Grown", "Job", "Overloaded", "Settled", "Ticket"]


@dataclass(frozen=True)
class Job:
    """One question, and how it is to be solved."""

    method: Method[Any]
    question: Question
    """Its id is the job's name; answers are compared by it."""
    prompt_ids: tuple[int, ...]
    seed: int = 0
    stop: tuple[str, ...] = ()
    """A path ends where one of these is written; it is not taken off the text."""
    parting: Parting | None = None
    """Tells the model's thinking, at the beginning of its text, from what it says; None: the text is told as it is."""
    seconds: float = 600.0
    """From its submission to its deadline."""
    grow: bool = False
    """Whether the growth of the tree is told."""
    client: str = ""
    """Whose it is: clients get equal shares."""


class Settled(NamedTuple):
    """A step that the answer's path goes through, whatever is still decoded; told in order, the first ones at least."""

    number: int
    text: str
    confidence: float
    thinking: bool
    """It stands in the model's thinking."""


class Grown(NamedTuple):
    """Nodes of the tree that are new or were decided on; of equal ids the last holds."""

    nodes: tuple[Node, ...]


class Done(NamedTuple):
    """It is solved."""

    solution: Solution
    path: tuple[Node, ...]
    """The answer's steps; the settled ones are its beginning."""


class Failed(NamedTuple):
    """It is not solved, and never will be."""

    reason: Literal["deadline", "engine", "shutdown"]
    message: str


Event: TypeAlias = Settled | Grown | Done | Failed


class Overloaded(CaspoError):
    """Too many jobs wait already."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which a place is likely to be free."""


class Closing(CaspoError):
    """The server is shutting down and takes no more jobs."""


class Ticket:
    """A job's events, on the event loop it was submitted from: ``async for event in ticket``, up to Done or Failed."""

    def __init__(self, job: Job, cancel: Callable[[Ticket], None]) -> None:
        self.job = job
        self.deadline = time.monotonic() + job.seconds
        self.cancelled = False
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def cancel(self) -> None:
        """Give the job up; no more events come of it. Does nothing once it is done."""
        if not self.cancelled:
            self.cancelled = True
            self._cancel(self)

    def tell(self, event: Event) -> None:
        """Pass an event on, from any thread."""
        if not self.cancelled:
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Event]:
        event: Event | None = None
        while not isinstance(event, Done | Failed):
            event = await self._events.get()
            yield event
