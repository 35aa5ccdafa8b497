"""CaT, Confidence-aware Thought: a tree of steps, wide where the model is unsure and pruned where it loses confidence.

At every depth, for every live path:

1. take the most probable continuation; if the model is sure of it (``branch_signal``), that is all;
2. otherwise sample ``children - 1`` more and merge equal steps;
3. a path's confidence is cumulative over its steps (``prune_signal``): a path under ``prune_below`` is pruned, unless no
   other is left;
4. of what remains the ``width`` best paths go on, ranked by the probability of their steps (``rank_signal``).

Finished paths vote for their answers with the weight of their rank score. Three signals, because "is this step right?"
and "which of these siblings is right?" are different questions: entropy answers the first, but siblings share the
entropy of the position at which they part; what tells them apart is how probable the sampled tokens were.

All questions share one batch, and each goes on to its next step as soon as its own paths are there. A question's result
does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from caspo.answers import extract_answer
from caspo.confidence import step_score
from caspo.engines.base import Completion, Engine, Request
from caspo.search.base import PathSettings
from caspo.search.vote import vote
from caspo.trees import TreeBuilder, seed_of
from caspo.types import ROOT, Question, Solution, Step

__all__ = ["ConfidenceTree", "ConfidenceTreeSettings"]


class ConfidenceTreeSettings(PathSettings):
    """How CaT grows and prunes."""

    children: int = Field(4, ge=1)
    """Continuations of an unsure path, the greedy one included."""
    width: int = Field(2, ge=1)
    """Paths that live on at each depth, at most."""
    temperature: float = Field(0.8, gt=0)
    """Of the sampled continuations."""
    branch_signal: str = "entropy_max"
    branch_below: float = Field(0.6, ge=0, le=1)
    """A greedy step whose score is below this is branched; 0 never branches."""
    prune_signal: str = "entropy"
    prune_below: float = Field(0.05, ge=0, le=1)
    """A path whose cumulative confidence (product of its steps' scores) falls below this is pruned."""
    rank_signal: str = "logprob_sum"
    max_step_tokens: int = Field(128, ge=1)
    """Tokens of one step, at most; a longer one ends its path."""


@dataclass
class _Path:
    """A live or finished path of one question."""

    node: int = ROOT
    confidence: float = 1.0
    rank: float = 0.0
    """Sum of log rank scores."""
    tokens: int = 0
    answer: str | None = None
    cut: bool = False
    """Its last step reached a limit before its line break."""


class ConfidenceTree:
    """Confidence-aware Thought."""

    name = "cat"

    def __init__(self, settings: ConfidenceTreeSettings | None = None) -> None:
        self.settings = settings or ConfidenceTreeSettings()

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """The answer that the surviving paths agree on; every decision stands in the tree's nodes."""
        searches = [_Search(TreeBuilder(q, engine.prompt(q.text)), self.settings, seed) for q in questions]
        asked: list[tuple[_Search, _Continuation]] = []

        def ask(search: _Search, wanted: Sequence[_Continuation]) -> list[Request]:
            asked.extend((search, continuation) for continuation in wanted)
            return [search.request(continuation) for continuation in wanted]

        def receive(place: int, completion: Completion) -> list[Request]:
            search, continuation = asked[place]
            wanted = search.receive(continuation, completion)
            if on_done is not None and not search.live:
                on_done(1)
            return ask(search, wanted)

        first = [request for search in searches for request in ask(search, search.begin())]
        engine.generate(first, receive)
        return [search.solution() for search in searches]


_Continuation = tuple[int, int]
"""Place of a path among the live ones, and which of its samples; sample 0 is the greedy one."""


class _Search:
    """The search for one question's answer."""

    def __init__(self, builder: TreeBuilder, settings: ConfidenceTreeSettings, seed: int) -> None:
        self.builder, self.settings, self.seed = builder, settings, seed
        self.live = [_Path()]
        self.done: list[_Path] = []
        self.tokens = 0
        self._arrived: dict[_Continuation, Completion] = {}
        self._missing = 0

    def begin(self) -> list[_Continuation]:
        """The next step of every live path: its greedy continuation."""
        self._arrived, self._missing = {}, len(self.live)
        return [(place, 0) for place in range(len(self.live))]

    def receive(self, continuation: _Continuation, completion: Completion) -> list[_Continuation]:
        """Take a continuation in; those to sample next."""
        settings = self.settings
        place, sample = continuation
        self._arrived[continuation] = completion
        self.tokens += len(completion.token_ids)
        self._missing -= 1
        if sample == 0 and step_score(completion.trace, settings.branch_signal) < settings.branch_below:
            more = [(place, extra) for extra in range(1, settings.children)]
            self._missing += len(more)
            if more:
                return more
        if self._missing:
            return []
        self._select()
        return self.begin()

    def request(self, continuation: _Continuation) -> Request:
        """What to ask the engine for."""
        settings = self.settings
        place, sample = continuation
        path = self.live[place]
        return Request(
            prefix_ids=self.builder.prefix_ids(path.node),
            seed=seed_of("cat", self.seed, self.builder.question.id, tuple(self.builder.texts(path.node)), sample),
            max_new_tokens=min(settings.max_step_tokens, settings.max_tokens - path.tokens),
            temperature=settings.temperature if sample else 0.0,
            top_p=settings.top_p,
            stop=("\n",),
        )

    def solution(self) -> Solution:
        """The vote of the finished paths."""
        best = max((path.rank for path in self.done), default=0.0)
        answer, share = vote([p.answer for p in self.done], [math.exp(p.rank - best) for p in self.done])
        return Solution(self.builder.question.id, answer, share, self.builder.build(), self.tokens)

    def _select(self) -> None:
        """Turn what arrived into paths: prune, keep the best, and set finished ones aside."""
        settings, builder = self.settings, self.builder
        children: dict[int, _Path] = {}
        for place, sample in sorted(self._arrived, key=lambda c: (c[1] > 0, c)):
            child = self._child(self.live[place], self._arrived[place, sample])
            children.setdefault(child.node, child)
        ranked = sorted(children.values(), key=lambda c: (-c.rank, c.node))
        kept = [c for c in ranked if c.confidence >= settings.prune_below]
        if not kept and not self.done:
            kept = ranked[:1]
        for child in children.values():
            if child not in kept:
                builder.decide(child.node, "pruned")
        self.live = []
        for rank, child in enumerate(kept):
            if builder.nodes[child.node].final or child.answer is not None:
                builder.decide(child.node, "finished")
                self.done.append(child)
            elif child.cut or child.tokens >= settings.max_tokens:
                builder.decide(child.node, "cut")
            elif rank < settings.width:
                builder.decide(child.node, "expanded")
                self.live.append(child)
            else:
                builder.decide(child.node, "dropped")

    def _child(self, path: _Path, completion: Completion) -> _Path:
        settings = self.settings
        step = Step(completion.text, completion.token_ids, completion.trace)
        node = self.builder.add(path.node, step, final=completion.finish == "eos")
        trace = self.builder.nodes[node].step.trace
        return _Path(
            node,
            path.confidence * step_score(trace, settings.prune_signal),
            path.rank + math.log(max(step_score(trace, settings.rank_signal), 1e-300)),
            path.tokens + len(completion.token_ids),
            extract_answer(completion.text),
            completion.finish == "length",
        )
