"""Many users, one engine: searches of many jobs share one batch, which never waits for any of them.

One thread owns the batch. It admits jobs, feeds their requests to the batch, takes it on by a step at a time, and hands what
finished to a few workers, in which the searches think (comparing two answers may take a while); what they ask for next comes
back to it. A job that was given up, or is past its deadline, leaves the batch at the next step.

Fair: of the requests that wait the next is always one of the client with the fewest rows in the batch, of its jobs the one
with the fewest, of these the oldest; jobs that wait are admitted by the same rule. So a client that asks for much delays its
own questions, not those of others.

A result does not depend on what else is decoded, as everywhere in caspo. What is not here: HTTP, keys, limits of single
requests.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import NamedTuple

from caspo.core.errors import CaspoError, EngineError
from caspo.engines.base import Batch, Completion, ServingEngine
from caspo.serve.job import Closing, Failed, Job, Overloaded, Ticket
from caspo.serve.search import Running
from caspo.serve.thread import EngineThread

__all__ = ["Load", "Scheduler"]

log = logging.getLogger(__name__)

_WORKERS = 4
"""Threads in which searches think."""

_UNHEALTHY = 3
"""Failures of the whole batch one after the other, without a continuation between them."""


class Load(NamedTuple):
    """How busy the scheduler is."""

    active: int
    """Jobs under way."""
    waiting: int
    """Jobs that wait for a place."""
    rows: int
    """Continuations in the batch."""
    generated_tokens: int
    """Since the start; what was given up on the way is not counted."""
    healthy: bool
    """Whether the engine works, as far as is known."""


class Scheduler:
    """Solves jobs with one engine.

    Args:
        engine: decodes for all of them.
        active: jobs under way at once.
        waiting: jobs that may wait for a place; more are refused.
        thread: to work in; that which opened the engine, where it matters (see `caspo.serve.thread`).
    """

    def __init__(
        self, engine: ServingEngine, *, active: int = 128, waiting: int = 512, thread: EngineThread | None = None
    ) -> None:
        self._engine, self._most_active, self._most_waiting = engine, active, waiting
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        """What other threads want of the scheduler's own; run there."""
        self._thread = thread or EngineThread()
        self._work: Future[None] | None = None
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="caspo-search")
        self._lock = threading.Lock()
        self._jobs = 0
        """Submitted and not done; guarded by the lock."""
        self._closing = False
        self._mean_seconds = 1.0
        """How long a job takes from admission to its end; a running mean."""
        # What follows is the scheduler's own thread's.
        self._waiting: list[Ticket] = []
        self._active: dict[Ticket, Running] = {}
        self._since: dict[Ticket, float] = {}
        self._decoding: dict[int, tuple[Running, int]] = {}
        self._next_place = 0
        self._tokens = 0
        self._failures = 0
        self._left = False

    def start(self) -> None:
        """Begin to work."""
        self._work = self._thread.submit(self._run)

    def stop(self, grace: float = 10.0) -> None:
        """Take no more jobs, finish those there are within ``grace`` seconds, fail the rest, and return."""
        with self._lock:
            self._closing = True
        until = time.monotonic() + grace
        while time.monotonic() < until and self._jobs and self._works:
            time.sleep(0.01)
        self._inbox.put(self._leave)
        if self._work is not None:
            wait([self._work], timeout=max(1.0, grace))
        self._workers.shutdown(wait=False, cancel_futures=True)

    def submit(self, job: Job) -> Ticket:
        """Ask for a job; called on an event loop, where its events are told.

        Raises:
            Overloaded: too many jobs wait.
            Closing: the server is shutting down.
        """
        with self._lock:
            if self._closing:
                raise Closing("The server is shutting down. Ask again in a moment, or ask another one.")
            waiting = self._jobs - self._most_active
            if waiting >= self._most_waiting:
                seconds = min(60.0, max(1.0, self._mean_seconds * self._jobs / self._most_active))
                raise Overloaded(f"{waiting} questions wait already. Ask again in {seconds:.0f} s.", retry_after=seconds)
            self._jobs += 1
        ticket = Ticket(job, lambda ticket: self._inbox.put(partial(self._end, ticket)))
        self._inbox.put(partial(self._waiting.append, ticket))
        return ticket

    def load(self) -> Load:
        """How busy it is now."""
        return Load(
            len(self._active),
            max(0, self._jobs - len(self._active)),
            len(self._decoding),
            self._tokens,
            self._works and self._failures < _UNHEALTHY,
        )

    @property
    def _works(self) -> bool:
        return self._work is not None and not self._work.done()

    def _run(self) -> None:
        batch = self._engine.batch()
        try:
            while not self._left:
                try:
                    self._listen()
                    self._expire()
                    self._drop(batch)
                    self._admit()
                    self._feed(batch)
                    for place, result in batch.step() if self._decoding else ():
                        self._hand_over(place, result)
                except Exception as error:  # whatever an engine may raise: the server goes on
                    log.exception("The engine failed; the jobs under way are given up.")
                    self._failures += 1
                    batch.close()
                    self._decoding.clear()
                    reason = str(error) if isinstance(error, CaspoError) else "The engine failed; see the server's log."
                    for ticket in list(self._active):
                        self._fail(ticket, Failed("engine", reason))
                    batch = self._engine.batch()
        finally:
            batch.close()

    def _listen(self) -> None:
        """Do what other threads ask for; wait for it while there is nothing else to do."""
        idle = not self._decoding and not any(running.waiting for running in self._active.values())
        try:
            if idle and not (self._waiting and len(self._active) < self._most_active):
                tickets = [*self._waiting, *self._active]
                soonest = min((ticket.deadline for ticket in tickets), default=None)
                wait = None if soonest is None else max(0.0, soonest - time.monotonic())
                self._inbox.get(timeout=wait)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            pass

    def _expire(self) -> None:
        now = time.monotonic()
        for ticket in [t for t in (*self._waiting, *self._active) if t.deadline <= now]:
            seconds = ticket.job.seconds
            self._fail(ticket, Failed("deadline", f"Not done within {seconds:g} s. Give it more time or fewer tokens."))

    def _drop(self, batch: Batch) -> None:
        """Take out of the batch what belongs to no job any more."""
        gone = [place for place, (running, _) in self._decoding.items() if running.ticket not in self._active]
        for place in gone:
            batch.drop(place)
            del self._decoding[place]

    def _admit(self) -> None:
        if not self._waiting or len(self._active) >= self._most_active:
            return
        jobs = Counter(ticket.job.client for ticket in self._active)
        while self._waiting and len(self._active) < self._most_active:
            ticket = min(self._waiting, key=lambda ticket: jobs[ticket.job.client])  # of equals the oldest
            self._waiting.remove(ticket)
            jobs[ticket.job.client] += 1
            try:
                self._active[ticket] = Running(ticket, self._engine)
            except CaspoError as error:
                self._fail(ticket, Failed("engine", str(error)))
            else:
                self._since[ticket] = time.monotonic()
                if self._active[ticket].over:  # it asked for nothing
                    self._end(ticket)

    def _feed(self, batch: Batch) -> None:
        wanting = [running for running in self._active.values() if running.waiting]
        if not wanting:
            return
        rows = Counter[str]()
        for running in self._active.values():
            rows[running.ticket.job.client] += running.rows
        for _ in range(batch.free):
            if not wanting:
                return
            running = min(wanting, key=lambda running: (rows[running.ticket.job.client], running.rows))
            turn_place, request = running.waiting.popleft()
            if not running.waiting:
                wanting.remove(running)
            place, self._next_place = self._next_place, self._next_place + 1
            try:
                batch.add(place, request)
            except EngineError as error:
                self._fail(running.ticket, Failed("engine", str(error)))
                wanting = [other for other in wanting if other is not running]
                continue
            self._decoding[place] = running, turn_place
            running.rows += 1
            rows[running.ticket.job.client] += 1

    def _hand_over(self, place: int, result: Completion | EngineError) -> None:
        running, turn_place = self._decoding.pop(place)
        running.rows -= 1
        if running.ticket not in self._active:
            return
        if isinstance(result, EngineError):
            self._fail(running.ticket, Failed("engine", str(result)))
            return
        self._failures = 0
        self._tokens += result.decoded
        self._workers.submit(self._think, running, turn_place, result)

    def _think(self, running: Running, turn_place: int, completion: Completion) -> None:
        """Let a search take a continuation in; in a worker."""
        try:
            wanted = running.receive(turn_place, completion)
        except Exception as error:
            log.exception("A search failed.")
            reason = str(error) if isinstance(error, CaspoError) else "The search failed; see the server's log."
            self._inbox.put(partial(self._fail, running.ticket, Failed("engine", reason)))
            return
        if running.over:
            self._inbox.put(partial(self._end, running.ticket))
        elif wanted:
            self._inbox.put(partial(running.waiting.extend, wanted))

    def _fail(self, ticket: Ticket, event: Failed) -> None:
        if ticket in self._active or ticket in self._waiting:
            ticket.tell(event)
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        """Forget a job that is done, failed or given up."""
        running = self._active.pop(ticket, None)
        if running is None:
            if ticket not in self._waiting:
                return
            self._waiting.remove(ticket)
        else:
            running.close()
            seconds = time.monotonic() - self._since.pop(ticket)
            self._mean_seconds += 0.1 * (seconds - self._mean_seconds)
        with self._lock:
            self._jobs -= 1

    def _leave(self) -> None:
        """Fail what there is, and end."""
        for ticket in [*self._waiting, *self._active]:
            self._fail(ticket, Failed("shutdown", "The server is shutting down. Ask again in a moment."))
        self._left = True
