"""One job under way: its search, the requests it waits to have decoded, and what of its tree was told already."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caspo.confidence import step_score
from caspo.engines.base import Completion, Engine, Request, ServingEngine, Watch
from caspo.engines.until import Until
from caspo.search import answer_path
from caspo.serve.job import Done, Grown, Settled, Ticket
from caspo.steps import StepReader
from caspo.types import Measured, Node, Step, TokenTrace

__all__ = ["Running"]


class Running:
    """A search between the scheduler, which decodes for it, and the ticket, which it tells what it comes to.

    `take` and `receive` are called from different threads; all but `waiting` and `rows` is guarded by the lock.
    """

    def __init__(self, ticket: Ticket, engine: ServingEngine) -> None:
        self.ticket = ticket
        self.rows = 0
        """Requests of it in the batch."""
        self.waiting: deque[tuple[Any, Request]] = deque()
        """Requests of it that wait for a place in the batch, with the search's names for them."""
        self.lock = threading.Lock()
        job = ticket.job
        self._engine = engine
        self._search = job.method.search(job.question, _Asked(engine, job.prompt_ids), job.seed)
        self._untils: dict[Any, Until] = {}
        self._told: list[Node] = []
        first = list(self._search.begin())
        if len(first) == 1:
            key, request = first[0]
            first = [(key, replace(request, watch=_Settling(ticket, engine, request.watch)))]
        self.waiting += self._with_stops(first)

    def receive(self, key: Any, completion: Completion) -> list[tuple[Any, Request]]:
        """Take a continuation in and tell what came of it; what to decode next."""
        with self.lock:
            until = self._untils.pop(key, None)
            wanted = list(self._search.receive(key, completion if until is None else until.ended(completion)))
            if self.ticket.cancelled:
                return []
            if self._search.over:
                solution = self._search.solution()
                self._tell_growth(solution.tree.nodes)
                self.ticket.tell(Done(solution, answer_path(solution.tree, solution.answer)))
            else:
                self._tell_growth(self._search.builder.nodes)
            return self._with_stops(wanted)

    @property
    def over(self) -> bool:
        """Whether it wants nothing more."""
        return self._search.over

    def _with_stops(self, wanted: Sequence[tuple[Any, Request]]) -> list[tuple[Any, Request]]:
        job = self.ticket.job
        if not job.stop:
            return list(wanted)
        stopped = []
        for key, request in wanted:
            written = "".join(self._engine.pieces(request.prefix_ids[len(job.prompt_ids) :]))
            self._untils[key] = until = Until(written, job.stop, self._engine, request.watch)
            stopped.append((key, replace(request, watch=until)))
        return stopped

    def _tell_growth(self, nodes: Sequence[Node]) -> None:
        if not self.ticket.job.grow:
            return
        old = self._told
        changed = tuple(node for node in nodes if node.id >= len(old) or old[node.id] is not node)
        self._told = list(nodes)
        if changed:
            self.ticket.tell(Grown(changed))


class _Settling:
    """Watches the first path and tells its steps while they are settled."""

    def __init__(self, ticket: Ticket, engine: Engine, inner: Watch | None) -> None:
        self._ticket, self._engine, self._inner = ticket, engine, inner
        self._reader = StepReader()
        self._tokens: list[int] = []
        self._rows: list[Measured] = []
        self._number = 0
        self._settled = True

    def __call__(self, token: int, measured: Measured) -> bool:
        if self._settled:
            ended = self._reader.take(self._engine.pieces([token])[0])
            if ended:
                self._tell(ended)
            self._tokens.append(token)
            self._rows.append(measured)
        return self._inner is None or self._inner(token, measured)

    def _tell(self, size: int) -> None:
        """The step of the first ``size`` tokens has ended."""
        ids, self._tokens = self._tokens[:size], self._tokens[size:]
        trace = TokenTrace.of(self._rows[:size])
        self._rows = self._rows[size:]
        step = Step("".join(self._engine.pieces(ids)), tuple(ids), trace)
        self._settled = self._ticket.job.method.settles(step)
        if self._settled:
            self._ticket.tell(Settled(self._number, step.text, step_score(trace)))
            self._number += 1


class _Asked:
    """The engine as one job's search sees it: whatever it asks, the prompt is the client's."""

    def __init__(self, engine: ServingEngine, prompt_ids: tuple[int, ...]) -> None:
        self._engine, self._prompt_ids = engine, prompt_ids
        self.name = engine.name
        self.pieces = engine.pieces
        self.generate = engine.generate
        self.forget = engine.forget

    def prompt(self, question: str) -> tuple[int, ...]:
        """The client's prompt."""
        return self._prompt_ids
