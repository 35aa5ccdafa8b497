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

All questions are expanded together, depth by depth. A question's result does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass
class _State:
    """One question's search."""

    builder: TreeBuilder
    live: list[_Path] = field(default_factory=lambda: [_Path()])
    done: list[_Path] = field(default_factory=list)
    tokens: int = 0


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
        states = [_State(TreeBuilder(q, engine.prompt(q.text))) for q in questions]
        while growing := [state for state in states if state.live]:
            self._grow(growing, engine, seed)
            if on_done is not None:
                on_done(sum(1 for state in growing if not state.live))
        return [_solution(state) for state in states]

    def _grow(self, states: Sequence[_State], engine: Engine, seed: int) -> None:
        """One more step for every live path of every question."""
        settings = self.settings
        parents = [(state, path) for state in states for path in state.live]
        first = engine.generate([self._request(state, path, seed, 0) for state, path in parents])
        unsure = [
            (state, path)
            for (state, path), completion in zip(parents, first, strict=True)
            if step_score(completion.trace, settings.branch_signal) < settings.branch_below
        ]
        more = engine.generate(
            [self._request(s, p, seed, sample) for s, p in unsure for sample in range(1, settings.children)]
        )
        children: dict[int, list[_Path]] = {}
        seen: set[tuple[int, int]] = set()
        every = list(zip(parents, first, strict=True))
        every += zip((pair for pair in unsure for _ in range(1, settings.children)), more, strict=True)
        for (state, path), completion in every:
            state.tokens += len(completion.token_ids)
            child = self._child(state, path, completion)
            if (id(state), child.node) not in seen:
                seen.add((id(state), child.node))
                children.setdefault(id(state), []).append(child)
        for state in states:
            self._select(state, children[id(state)])

    def _request(self, state: _State, path: _Path, seed: int, sample: int) -> Request:
        settings = self.settings
        return Request(
            prefix_ids=state.builder.prefix_ids(path.node),
            seed=seed_of("cat", seed, state.builder.question.id, tuple(state.builder.texts(path.node)), sample),
            max_new_tokens=min(settings.max_step_tokens, settings.max_tokens - path.tokens),
            temperature=settings.temperature if sample else 0.0,
            top_p=settings.top_p,
            stop=("\n",),
        )

    def _child(self, state: _State, path: _Path, completion: Completion) -> _Path:
        settings = self.settings
        step = Step(completion.text, completion.token_ids, completion.trace)
        node = state.builder.add(path.node, step, final=completion.finish == "eos")
        trace = state.builder.nodes[node].step.trace
        child = _Path(
            node,
            path.confidence * step_score(trace, settings.prune_signal),
            path.rank + math.log(max(step_score(trace, settings.rank_signal), 1e-300)),
            path.tokens + len(completion.token_ids),
        )
        child.answer = extract_answer(completion.text)
        child.cut = completion.finish == "length"
        return child

    def _select(self, state: _State, children: list[_Path]) -> None:
        """Prune, keep the best, and set finished paths aside."""
        settings, builder = self.settings, state.builder
        ranked = sorted(children, key=lambda c: (-c.rank, c.node))
        kept = [c for c in ranked if c.confidence >= settings.prune_below]
        if not kept and not state.done:
            kept = ranked[:1]
        for child in children:
            if child not in kept:
                builder.decide(child.node, "pruned")
        state.live = []
        for place, child in enumerate(kept):
            completed = builder.nodes[child.node]
            if completed.final or child.answer is not None:
                builder.decide(child.node, "finished")
                state.done.append(child)
            elif child.cut or child.tokens >= settings.max_tokens:
                builder.decide(child.node, "cut")
            elif place < settings.width:
                builder.decide(child.node, "expanded")
                state.live.append(child)
            else:
                builder.decide(child.node, "dropped")


def _solution(state: _State) -> Solution:
    paths = state.done
    best = max((path.rank for path in paths), default=0.0)
    answer, share = vote([p.answer for p in paths], [math.exp(p.rank - best) for p in paths])
    return Solution(state.builder.question.id, answer, share, state.builder.build(), state.tokens)
