"""CaT as the paper has it, and as it was here at first: one threshold on the cumulative confidence of a path.

As it comes, entropy decides everything, with the paper's budget of ten paths; `cat` is what is recommended (docs/search.md).

The first path is the greedy chain of thought. A step of which the model is unsure (``branch_signal``) may be branched: at
its most uncertain token the next most probable ones are taken instead, each continued greedily, with the keys and values of
everything before it as they are: no token is decoded twice. Branches and paths under way are gone on with step by step, most
probable first (``rank_signal``), ``width`` at a time, until

- the leading answer cannot be overtaken by what may still come, or
- nothing is open, or the limits (``paths``, ``budget``) are reached.

A path's confidence is cumulative over its steps (``prune_signal``); under ``prune_below`` it is pruned, in the middle of a
step as soon as no continuation can save it, unless fewer than ``min_survivors`` paths are there. Finished paths vote for
their answers with the weight of their rank score: with `logprob_sum` the votes are the probabilities of the paths, and the
vote approaches what self-consistency estimates by sampling, from its largest terms down. The confidence in the answer is
its share of the votes times the cumulative confidence of its best path. What was not explored has a vote too, against it:
that of one more path, which leaves the others at the most probable place still open and goes on as surely as they do.

Three signals, because "is this step right?" and "which of these siblings is right?" are different questions: entropy
answers the first, but siblings share the entropy of the position at which they part, and choosing among them by entropy is
worse than not branching at all (docs/search.md).

Nothing is drawn at random, and a question's result does not depend on the others in its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from pydantic import Field

from caspo.answers import group_answers, same_answer, stated_answer
from caspo.confidence import best_possible, step_score
from caspo.engines.base import Completion, Engine, Request, Watch
from caspo.records import ROOT, Measured, Solution, Step, TokenTrace
from caspo.search.base import Method, Paths, PathSettings, Search, SignalName
from caspo.search.bound import Open, most_to_come
from caspo.search.vote import vote
from caspo.steps import StepReader
from caspo.trees import TreeBuilder

__all__ = ["PaperTree", "PaperTreeSettings"]


class PaperTreeSettings(PathSettings):
    """How the earlier CaT grows and prunes."""

    children: Paths = 4
    """Continuations of an unsure step at most, the most probable one included; 1 never branches."""
    width: Paths = 2
    """Paths that take their next step at once, before the answers are looked at again."""
    paths: Paths = 10
    """Paths begun, at most, the greedy one included."""
    budget: int | None = Field(None, ge=1)
    """Tokens generated for a question, at most."""
    branch_signal: SignalName = "entropy"
    """Signal of the score that ``branch_below`` is about."""
    branch_below: float = Field(0.97, ge=0, le=1)
    """A step whose score is below this may be branched; 0 never branches."""
    prune_signal: SignalName = "entropy"
    """Signal of the scores that ``prune_below`` is about."""
    prune_below: float = Field(0.5, ge=0, le=1)
    """A path whose cumulative confidence (product of its steps' scores) falls below this is pruned."""
    min_survivors: Paths = 1
    """Paths that must have finished before any is pruned."""
    rank_signal: SignalName = "entropy"
    """Signal that orders branches and weighs a path's vote."""
    abstain_below: float = Field(0.0, ge=0, le=1)
    """An answer with less confidence than this is withheld."""


class PaperTree(Method[PaperTreeSettings]):
    """Confidence-aware Thought: the answer that the surviving paths agree on; every decision stands in the tree's nodes."""

    name, title = "cat_paper", "CaT (paper)"
    settings_type = PaperTreeSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The greedy path, then others while they can matter; nothing is drawn, so the seed is not used."""
        paths = _Paths(tree, self, engine)
        turn = [_Branch(ROOT)]
        while turn:
            found = yield paths.requests(turn)
            for branch, completion in zip(turn, found, strict=True):
                paths.grow(branch, completion)
            turn = paths.choose()
        return paths.vote()

    def settles(self, step: Step) -> bool:
        """Whether no path leaves the greedy one at this step; nothing is told that may be withheld in the end."""
        return self.settings.abstain_below == 0 and not self.branches(step)

    def branches(self, step: Step) -> bool:
        """Whether a path may leave another one at this step: the model is unsure of it."""
        settings = self.settings
        several = settings.children > 1 and settings.paths > 1
        return several and step_score(step.trace, settings.branch_signal) < settings.branch_below


_NO_TOKENS = TokenTrace.of(())
_NONE = 1e-6
"""A token of a lower probability is no alternative."""


class _State(NamedTuple):
    """What a path has come to, up to and including one node."""

    confidence: float = 1.0
    """Product of the steps' scores by the prune signal."""
    rank: float = 0.0
    """Sum of the logs of the steps' scores by the rank signal."""
    tokens: int = 0


@dataclass(frozen=True)
class _Branch:
    """A place where a path may leave the others: after ``head`` in the step that follows ``parent``."""

    parent: int
    head: tuple[int, ...] = ()
    trace: TokenTrace = _NO_TOKENS
    """What was measured of ``head``, and of the token to come: its log p is the most it can be."""
    rank: int = 1
    """Rank of the token to come: 1 is the greedy path itself."""
    taken: float = 0.0
    """Probability of the better ones."""
    probability: float = 1.0
    """Probability of the token to come, at most."""
    odds: float = 1.0
    """Of a path through here beside the first one, if it goes on as surely: its tokens' p over that of the tokens that the
    first path, or another, took where they part."""
    priority: float = 0.0
    """Log of the rank score of a path through here; no lower than that of any such path if the rank signal is a sum."""

    @property
    def starts(self) -> bool:
        """Whether a path begins here; otherwise one goes on with its next step."""
        return self.rank > 1 or self.parent == ROOT


class _Finished(NamedTuple):
    answer: str | None
    rank: float
    confidence: float


class _Paths:
    """The paths of one question: what they have come to, and where they may go on."""

    def __init__(self, tree: TreeBuilder, method: PaperTree, engine: Engine) -> None:
        self._tree, self._method, self._settings, self._engine = tree, method, method.settings, engine
        self._state = {ROOT: _State()}
        self._open: list[_Branch] = []
        self._finished: list[_Finished] = []
        self._begun = 0
        self._tokens = 0

    # Ask: a branch becomes a request, which ends with its step, or in the middle of it once nothing can save it.

    def requests(self, branches: list[_Branch]) -> list[Request]:
        """What to decode; the first path is decoded to its end, others step by step."""
        settings, requests = self._settings, list[Request]()
        self._begun += sum(branch.starts for branch in branches)
        for branch in branches:
            room = self._room(branch)
            if settings.budget is not None:
                room = min(room, (settings.budget - self._tokens) // len(branches))
            request = Request(
                prefix_ids=self._tree.prefix_ids(branch.parent) + branch.head,
                seed=0,
                max_new_tokens=room,
                temperature=0.0,
                step=None if branch.parent == ROOT and branch.rank == 1 else self._reader(branch),
                rank=branch.rank,
                keep=settings.children > 1,
                watch=self._watch(branch, room),
            )
            requests.append(request)
        return requests

    def _reader(self, branch: _Branch) -> StepReader:
        """A reader of what is written before the branch's token."""
        reader = self._tree.reader(branch.parent)
        for piece in self._engine.pieces(branch.head):
            reader.take(piece)
        return reader

    def _room(self, branch: _Branch) -> int:
        """Tokens that a path from here may have."""
        return self._settings.longest_path - self._state[branch.parent].tokens - len(branch.head)

    def _watch(self, branch: _Branch, room: int) -> Watch | None:
        settings = self._settings
        if settings.prune_below == 0 or len(self._finished) < settings.min_survivors:
            return None
        reader = self._tree.reader(branch.parent)
        return _PruneWatch(branch, self._state[branch.parent].confidence, room, reader, self._engine, settings)

    # Grow: what was decoded becomes nodes, and unsure steps become branches.

    def grow(self, branch: _Branch, completion: Completion) -> None:
        """Add a decoded path to the tree, and open the branches that it has."""
        tree, new = self._tree, completion.trace
        self._tokens += completion.decoded
        if branch.rank > 1:
            self._open_next_rank(branch, new)
        head = len(branch.head)
        trace = TokenTrace.join([branch.trace[:head], new]) if head else new
        ids = (*branch.head, *completion.token_ids)
        known = len(tree.nodes)
        nodes = tree.add_steps(branch.parent, ids, trace, final=completion.finish == "eos")
        if not nodes:  # the model began another turn at once: the solution ends where it was
            if branch.parent != ROOT:
                self._end(branch.parent, completion, branch.odds)
            return
        fixed = head + 1 if branch.rank > 1 else 0  # what this path shares with another one, or was told to take
        if tree.nodes[nodes[0]].parent != branch.parent:  # it goes on with the parent's step
            fixed += len(tree.nodes[branch.parent].step.token_ids)
        for node in nodes:
            step, parent = tree.nodes[node].step, tree.nodes[node].parent
            if node >= known:
                self._state[node] = self._after(parent, step)
                if self._method.branches(step):
                    self._open_step(branch.odds, parent, step.token_ids, step.trace, fixed)
            fixed = 0
            if node != nodes[-1]:
                tree.decide(node, "expanded")
        if nodes[-1] >= known:
            self._end(nodes[-1], completion, branch.odds)

    def _after(self, parent: int, step: Step) -> _State:
        before, settings = self._state[parent], self._settings
        return _State(
            before.confidence * step_score(step.trace, settings.prune_signal),
            before.rank + math.log(step_score(step.trace, settings.rank_signal)),
            before.tokens + len(step.token_ids),
        )

    def _end(self, leaf: int, completion: Completion, odds: float) -> None:
        """Prune the path, open its next step, or take it in as finished."""
        tree, settings, state = self._tree, self._settings, self._state[leaf]
        survivors = len(self._finished)
        if completion.finish == "abandoned" or (
            state.confidence < settings.prune_below and survivors >= settings.min_survivors
        ):
            tree.decide(leaf, "pruned")
            return
        if completion.finish == "stop" and state.tokens < settings.longest_path:
            tree.decide(leaf, "dropped")  # unless it is gone on with
            self._open.append(_Branch(leaf, completion.ahead, completion.ahead_trace, priority=state.rank, odds=odds))
            return
        ended = completion.finish == "eos"
        answer = stated_answer(tree.question, tree.answer_text(leaf), ended=ended)
        whole = ended or answer is not None
        tree.decide(leaf, "finished" if whole else "cut")
        if whole:
            self._finished.append(_Finished(answer, state.rank, state.confidence))

    # Branch: at the most uncertain token of an unsure step, the next most probable token first.

    def _open_step(self, odds: float, parent: int, ids: tuple[int, ...], trace: TokenTrace, fixed: int) -> None:
        """Open a branch at the most uncertain token of a step, of those from ``fixed`` on, in a path of these odds."""
        if fixed >= len(ids):
            return
        at = fixed + int(np.argmax(trace.entropy[fixed:]))
        first = math.exp(float(trace.max_logprob[at]))
        branch = _Branch(parent, ids[:at], trace[: at + 1], rank=2, taken=first, probability=first, odds=odds)
        self._open_branch(branch, first - float(trace.margin[at]))

    def _open_next_rank(self, branch: _Branch, new: TokenTrace) -> None:
        """After the token of one rank, that of the next."""
        took = math.exp(float(new.logprob[0]))
        if branch.rank < self._settings.children:
            odds = branch.odds * took / branch.probability
            following = replace(branch, rank=branch.rank + 1, taken=branch.taken + took, probability=took, odds=odds)
            self._open_branch(following, min(took, 1 - following.taken))

    def _open_branch(self, branch: _Branch, probability: float) -> None:
        """Note a branch whose token has at most this probability; it has that of the better one before."""
        if probability <= _NONE:
            return
        logprob = np.append(branch.trace.logprob[:-1], np.float32(math.log(probability)))
        trace = replace(branch.trace, logprob=logprob)
        score = math.log(step_score(trace, self._settings.rank_signal))
        priority = self._state[branch.parent].rank + score
        odds = branch.odds * probability / branch.probability
        self._open.append(replace(branch, trace=trace, probability=probability, priority=priority, odds=odds))

    # Prune and stop: what cannot stay above the threshold goes, and all of it once the answer is settled.

    def choose(self) -> list[_Branch]:
        """The branches to decode next; none if the search is over."""
        settings = self._settings
        left = settings.paths - self._begun
        self._open = sorted(filter(self._possible, self._open), key=lambda branch: -branch.priority)
        if self._settled(left):
            return []
        number = settings.width if settings.budget is None else min(settings.width, settings.budget - self._tokens)
        chosen: list[_Branch] = []
        for branch in self._open:
            if len(chosen) < number and (not branch.starts or left > 0):
                chosen.append(branch)
                left -= branch.starts
        self._open = [branch for branch in self._open if branch not in chosen]
        for branch in chosen:
            if not branch.starts:
                self._tree.decide(branch.parent, "expanded")
        return chosen

    def _possible(self, branch: _Branch) -> bool:
        """Whether a path from here has room, and may stay above the threshold where paths are pruned."""
        settings = self._settings
        if self._room(branch) <= 0:
            return False
        if branch.rank == 1 or len(self._finished) < settings.min_survivors:
            return True  # of rank 1: its last step was looked at when it came in
        best = best_possible(branch.trace, settings.prune_signal, settings.longest_path)
        return self._state[branch.parent].confidence * best >= settings.prune_below

    def _settled(self, left: int) -> bool:
        """Whether ``left`` more paths and those under way cannot change the leading answer."""
        if not self._finished:
            return False
        best = max(path.rank for path in self._finished)
        totals: dict[int, float] = {}
        for group, path in zip(group_answers([p.answer for p in self._finished]), self._finished, strict=True):
            totals[group] = totals.get(group, 0.0) + (math.exp(path.rank - best) if path.answer is not None else 0.0)
        ranked = [*sorted(totals.values(), reverse=True), 0.0]
        shared = self._settings.rank_signal == "logprob_sum"
        places = [self._place(branch, best, shared) for branch in self._open]
        return ranked[0] - ranked[1] > most_to_come(places, left, shared=shared)

    def _place(self, branch: _Branch, best: float, shared: bool) -> Open:
        """A branch as the bound knows it; weights in units of the best finished path's."""
        if not shared:  # a path scores no more than the whole steps before its branch do
            return Open(math.exp(self._state[branch.parent].rank - best), branch.starts)
        tokens = min(self._settings.children - branch.rank + 1, (1 - branch.taken) / branch.probability)
        return Open(math.exp(branch.priority - best), branch.starts, tokens)

    # Vote: finished paths for their answers, with the weight of their rank score.

    def vote(self) -> Solution:
        """The answer of the finished paths."""
        paths, question = self._finished, self._tree.question
        best = max((path.rank for path in paths), default=0.0)
        weights = [math.exp(path.rank - best) for path in paths]
        answer, share = vote([path.answer for path in paths], weights)
        if answer is not None:
            share *= sum(weights) / (sum(weights) + max((branch.odds for branch in self._open), default=0.0))
        agreeing = [path for path in paths if same_answer(path.answer, answer)]
        confidence = share * max(agreeing, key=lambda path: path.rank).confidence if agreeing else 0.0
        abstained = answer is not None and confidence < self._settings.abstain_below
        given = None if abstained else answer
        return Solution(question.id, given, confidence, self._tree.build(), self._tokens, abstained=abstained)


class _PruneWatch:
    """Ends a path as soon as its cumulative confidence cannot stay above the threshold, whatever follows."""

    def __init__(
        self, branch: _Branch, confidence: float, room: int, reader: StepReader, engine: Engine, settings: PaperTreeSettings
    ) -> None:
        self._confidence, self._room, self._engine, self._settings = confidence, room, engine, settings
        self._rows: list[Measured] = []
        """What was measured of the step that is being written."""
        self._reader, self._ended = reader, reader.tokens
        """And how many tokens are in steps that have ended."""
        for token, row in zip(branch.head, branch.trace.measured(), strict=False):
            self._take(token, row)

    def __call__(self, token: int, measured: Measured) -> bool:
        self._take(token, measured)
        self._room -= 1
        possible = best_possible(TokenTrace.of(self._rows), self._settings.prune_signal, self._room)
        return self._confidence * possible >= self._settings.prune_below

    def _take(self, token: int, row: Measured) -> None:
        self._rows.append(row)
        for end, _ in self._reader.take(self._engine.pieces([token])[0]):
            size = end - self._ended
            if size > 0:
                self._confidence *= step_score(TokenTrace.of(self._rows[:size]), self._settings.prune_signal)
                self._rows, self._ended = self._rows[size:], end
