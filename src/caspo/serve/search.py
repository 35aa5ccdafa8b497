"""One job under way: its search, the requests it waits to have decoded, and what of its tree was told already."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from caspo.confidence import step_score
from caspo.engines.base import Completion, Engine, Request, ServingEngine, Watch
from caspo.engines.drive import Asking, Underway, changed
from caspo.engines.until import until
from caspo.records import ROOT, Measured, Node, Solution, Step, TokenTrace
from caspo.search import answer_path
from caspo.search.base import Search
from caspo.serve.job import Done, Grown, Settled, Ticket
from caspo.steps import Characters, text_of
from caspo.trees import TreeBuilder

__all__ = ["Running"]


class Running:
    """A search between the scheduler, which decodes for it, and the ticket, which it tells what it comes to.

    `receive` and `close` are called from different threads; all but `waiting` and `rows` is guarded by the lock.
    """

    def __init__(self, ticket: Ticket, engine: ServingEngine) -> None:
        self.ticket, self._engine = ticket, engine
        self.rows = 0
        """Requests of it in the batch."""
        self._lock = threading.Lock()
        self._given_up = False
        self._told: list[Node] = []
        job = ticket.job
        self._tree = TreeBuilder(job.question, job.prompt_ids, engine)
        search = _telling(job.method.started(self._tree, engine, job.seed), ticket, engine, self._tree)
        self._search: Underway[Solution] = Underway(until(search, job.stop, engine, len(job.prompt_ids), job.parting))
        self.waiting: deque[tuple[int, Request]] = deque(enumerate(self._search.begin()))
        """Requests of it that wait for a place in the batch, with their places in the search's turn."""
        self._tell()

    def receive(self, place: int, completion: Completion) -> Sequence[tuple[int, Request]]:
        """Take a continuation in and tell what came of it; what to decode next."""
        with self._lock:
            wanted = [] if self._given_up else list(enumerate(self._search.receive(place, completion)))
            if not self._given_up:
                self._tell()
        if self._given_up:  # while the lock was held, when `close` could not do it
            self.close()
            return []
        return wanted

    def close(self) -> None:
        """Give the search up. Waits for nothing: one that thinks just now is closed by its own thread."""
        self._given_up = True
        if self._lock.acquire(blocking=False):
            try:
                self._search.close()
            finally:
                self._lock.release()

    @property
    def over(self) -> bool:
        """Whether it wants nothing more."""
        return self._search.over

    def _tell(self) -> None:
        """Tell how the tree grew, and the solution once it is there."""
        if self.ticket.job.grow:
            old, nodes = self._told, self._tree.nodes
            new = [node for node in nodes if node.id >= len(old) or old[node.id] is not node]
            self._told = list(nodes)
            if new:
                self.ticket.tell(Grown(tuple(_whole(node, self._engine) for node in new)))
        if self._search.over:
            solution = self._search.result
            nodes = [_whole(node, self._engine) for node in solution.tree.nodes]
            solution = replace(solution, tree=replace(solution.tree, nodes=tuple(nodes)))
            self.ticket.tell(Done(solution, answer_path(solution.tree, solution.answer)))


def _whole(node: Node, engine: Engine) -> Node:
    """The node without half a character at its end, where a limit of tokens has cut one in two."""
    if not node.step.text.endswith("\ufffd"):
        return node
    text = "".join(map(Characters().take, engine.pieces(node.step.token_ids)))
    return replace(node, step=replace(node.step, text=text))


def _telling(search: Search, ticket: Ticket, engine: Engine, tree: TreeBuilder) -> Search:
    """The same search, of whose first path, if it begins with one, steps are told as soon as they are settled."""
    begun = False

    def turn(wanted: Sequence[Request]) -> Asking[Sequence[Completion]]:
        nonlocal begun
        if not begun and len(wanted) == 1:
            wanted = [replace(wanted[0], watch=_Settling(ticket, engine, tree, wanted[0].watch))]
        begun = True
        return (yield wanted)

    return changed(search, turn)


class _Settling:
    """Watches the first path and tells its steps while they are settled."""

    def __init__(self, ticket: Ticket, engine: Engine, tree: TreeBuilder, inner: Watch | None) -> None:
        self._ticket, self._engine, self._inner = ticket, engine, inner
        self._reader = tree.reader(ROOT)
        self._tokens: list[int] = []
        self._rows: list[Measured] = []
        self._number = self._told = 0
        """Steps that were told, and their tokens."""
        self._settled = True

    def __call__(self, token: int, measured: Measured) -> bool:
        if self._settled:
            self._tokens.append(token)
            self._rows.append(measured)
            for end, thinking in self._reader.take(self._engine.pieces([token])[0]):
                if self._settled:
                    self._tell(end - self._told, thinking)
        return self._inner is None or self._inner(token, measured)

    def _tell(self, size: int, thinking: bool) -> None:
        """The step of the first ``size`` tokens has ended."""
        ids, self._tokens = self._tokens[:size], self._tokens[size:]
        trace = TokenTrace.of(self._rows[:size])
        self._rows = self._rows[size:]
        step = Step(text_of(self._engine.pieces(ids)), tuple(ids), trace, thinking)
        self._told += size
        self._settled = self._ticket.job.method.settles(step)
        if self._settled:
            self._ticket.tell(Settled(self._number, step.text, step_score(trace), thinking))
            self._number += 1
