"""CaT, Confidence-aware Thought: a tree of paths that is grown where the model is unsure, for as long as that can matter.

The first path is the greedy chain of thought. Others are drawn from the model, in waves, each from the place where it tells
most for its tokens: a beginning of its own, or the end of a step of a path that is there. What stands before such a
place is not decoded again; but a path that shares it is no independent witness, and counts as the part of one that it is
(`shares`). A path under way is not gone on with where one of its steps states an equation that is false (`prune_false`),
or scores less than `prune_below`.

Paths are witnesses of their answers, each as good as its own confidence says, and `belief` makes of them how probable each
answer is. The search ends once the leading answer is so much more probable than the next best (`level`), or after `paths`
paths or `budget` tokens. So a question that the model is sure of costs its greedy path, one that it is not costs what
self-consistency does, and these two are the ends of one method: `level` 0 and 1.

A path with a beginning of its own is self-consistency's sample of its number and seed: what one of the two methods decoded,
the other need not (`caspo.engines.kept`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from caspo.answers import group_answers, stated_answer
from caspo.confidence import step_score
from caspo.engines.base import Completion, Engine, Request
from caspo.engines.drive import Asking, drive
from caspo.records import ROOT, Measured, Question, Solution, Step, TokenTrace
from caspo.search.base import Method, Paths, PathSettings, Search, SignalName
from caspo.search.evidence import Belief, EvidenceModel, Origin, belief, share, shares
from caspo.search.evidence_fit import Told
from caspo.search.sampled import Head, SelfConsistency, sample
from caspo.steps import StepReader, states_falsehood, text_of
from caspo.trees import TreeBuilder, seed_of

__all__ = ["ConfidenceTree", "ConfidenceTreeSettings"]

Floats64 = NDArray[np.float64]


class ConfidenceTreeSettings(PathSettings):
    """How long CaT searches, where, and what it believes."""

    level: float = Field(0.6, ge=0, le=1)
    """The dial: the search ends when the leading answer, given that it or the next best is right, is this probable. 0: one
    greedy path; 1: always `paths` paths."""
    paths: Paths = 10
    """Paths begun, at most, the greedy one included."""
    budget: int | None = Field(None, ge=1)
    """Tokens generated for a question, at most."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token of a later path is drawn."""
    branches: bool = False
    """Whether paths may leave others where that is worth more; otherwise each has a beginning of its own."""
    evidence: EvidenceModel = EvidenceModel()
    """What the confidence of paths is worth."""
    prune_false: bool = True
    """Whether a path is ended at the first of its steps, outside of thinking, that states an equation which is false beyond
    doubt: 3 * 4 = 13, but not 10 / 3 = 3.3."""
    prune_below: float = Field(0.0, ge=0, le=1)
    """A path is ended when one of its steps scores less than this by `prune_signal`; 0: none is."""
    prune_signal: SignalName = "entropy"
    """Signal of the scores that ``prune_below`` is about."""
    min_survivors: Paths = 1
    """Paths that must have finished before any is pruned."""
    abstain_below: float = Field(0.0, ge=0, le=1)
    """An answer with less confidence than this is withheld."""

    @property
    def rows(self) -> int:
        """The last wave."""
        return max(1, self.paths // 3)


class ConfidenceTree(Method[ConfidenceTreeSettings]):
    """Confidence-aware Thought: the most probable answer of the paths that were worth their tokens.

    The confidence is the probability that it is right, after all of them (`belief`): where another model or task is
    searched than the evidence was fitted to, a score.
    """

    name, title = "cat", "CaT"
    settings_type = ConfidenceTreeSettings
    measured = thrifty = greedy = True

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The greedy path, then others while they are worth it."""
        return (yield from self._grown(tree, engine, seed)).solution()

    def _grown(self, tree: TreeBuilder, engine: Engine, seed: int) -> Asking[_Paths]:
        paths = _Paths(tree, self.settings, engine, seed)
        turn = [Origin()]
        while turn:
            paths.take(turn, (yield paths.requests(turn)))
            turn = paths.next()
        return paths

    def told(
        self,
        questions: Sequence[Question],
        engine: Engine,
        grade: Callable[[Question, str | None], bool],
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Told]:
        """What `fit_evidence` learns from: all `paths` of each question, whole, and which of them state the right answer.

        Args:
            questions: with known answers.
            engine: the model.
            grade: whether an answer is right (`Task.grade`).
            seed: as in `solve`.
            on_done: called with the number of questions done since the last call.
        """
        whole = {"level": 1.0, "budget": None, "branches": False, "prune_false": False, "prune_below": 0.0}
        every = ConfidenceTree(self.settings.model_copy(update=whole))
        trees = [TreeBuilder(question, engine.prompt(every.asked(question.text)), engine) for question in questions]
        growing = [every.within_limits(every._grown(tree, engine, seed), tree, engine) for tree in trees]
        return [paths.told(grade) for paths in drive(growing, engine, lambda: on_done(1) if on_done is not None else None)]

    def settles(self, step: Step) -> bool:
        """Only where there is no other path, and none is withheld."""
        settings = self.settings
        return (settings.paths == 1 or settings.level == 0) and settings.abstain_below == 0


class _Path(NamedTuple):
    ids: tuple[int, ...]
    trace: TokenTrace
    ends: tuple[int, ...]
    """Tokens up to the end of each of its steps, where others may leave it; none without branches."""
    answer: str | None
    signals: list[float]
    """Of it as a witness (`EvidenceModel.signals`); NaN if it has no tokens."""
    origin: Origin
    left: Floats64
    """(T + 1,) the part of its entropy that stands after so many of its tokens; of its tokens, where it has no entropy."""

    def after(self, at: int) -> float:
        """The part of its entropy that stands after ``at`` tokens."""
        return float(self.left[at])


def _left(trace: TokenTrace) -> Floats64:
    after = np.append(np.cumsum(trace.entropy[::-1], dtype=np.float64)[::-1], 0.0)
    return after / after[0] if after[0] > 0 else np.linspace(1.0, 0.0, len(after))


class _Paths:
    """The paths of one question."""

    def __init__(self, tree: TreeBuilder, settings: ConfidenceTreeSettings, engine: Engine, seed: int) -> None:
        self._tree, self._settings, self._engine, self._seed = tree, settings, engine, seed
        self._paths: list[_Path] = []
        self._spent = 0

    # Ask.

    def requests(self, turn: Sequence[Origin]) -> list[Request]:
        """What to decode for paths that begin there."""
        settings, room = self._settings, self._settings.longest_path
        if settings.budget is not None:
            room = min(room, (settings.budget - self._spent) // len(turn))
        begun = sum(path.origin.path is None for path in self._paths)
        requests = []
        for place, origin in enumerate(turn, start=len(self._paths)):
            requests.append(self._request(origin, begun if origin.path is None else place, room))
            begun += origin.path is None
        return requests

    def _request(self, origin: Origin, number: int, room: int) -> Request:
        """The request for a path, of those with a beginning of their own, or else of all, the one of this number."""
        settings, tree = self._settings, self._tree
        watch = self._watch(origin)
        if origin.path is None:
            begins = sample(tree, settings, SelfConsistency.name, self._seed, number - 1, settings.temperature)
            if number == 0:
                begins = replace(begins, temperature=0.0, top_p=1.0)
            return replace(begins, max_new_tokens=min(room, settings.longest_path), keep=settings.branches, watch=watch)
        head = self._head(origin).token_ids
        return Request(
            prefix_ids=tree.prompt_ids + head,
            seed=seed_of("cat", self._seed, tree.question.id, head, number),
            max_new_tokens=min(room, settings.longest_path - origin.at),
            temperature=settings.temperature,
            top_p=settings.top_p,
            keep=True,
            watch=watch,
        )

    def _watch(self, origin: Origin) -> _Prune | None:
        settings = self._settings
        finished = sum(path.answer is not None for path in self._paths)
        if not (settings.prune_false or settings.prune_below) or finished < settings.min_survivors:
            return None
        reader = self._tree.reader(ROOT)
        for piece in self._engine.pieces(self._head(origin).token_ids):
            reader.take(piece)
        return _Prune(reader, self._engine, settings, self._tree.question.text)

    # Grow.

    def take(self, turn: Sequence[Origin], found: Sequence[Completion]) -> None:
        """Take in what was decoded for the paths of a turn."""
        tree = self._tree
        for origin, one in zip(turn, found, strict=True):
            self._spent += one.decoded
            whole = self._head(origin).joined(one, self._engine)
            ids, trace = whole.token_ids, whole.trace
            ended, pruned = whole.finish == "eos", whole.finish == "abandoned"
            end = tree.add_solution(ids, trace, final=ended)
            pieces = self._engine.pieces(ids)
            answer = None if pruned else stated_answer(tree.question, tree.said(whole.text), ended=ended)
            if end != ROOT:
                finished = ended or answer is not None
                tree.decide(end, "pruned" if pruned else "finished" if finished else "cut")
            ends = self._ends(pieces) if self._settings.branches else ()
            signals = self._signals(trace, pieces, end, whole=not pruned)
            self._paths.append(_Path(ids, trace, ends, answer, signals, origin, _left(trace)))

    def _signals(self, trace: TokenTrace, pieces: Sequence[bytes], end: int, *, whole: bool) -> list[float]:
        """Of a path that ends at this node."""
        tree, model = self._tree, self._settings.evidence
        if end == ROOT:
            return [math.nan] * (len(model.slopes) + len(model.common) + 1)
        said = [step.text for step in (tree.nodes[node].step for node in tree.path(end)) if not step.thinking]
        false = any(states_falsehood(text, tree.question.text) for text in said)
        return model.signals(trace, pieces, false=false, whole=whole)

    def _head(self, origin: Origin) -> Head:
        """What a path that begins there shares with the one that it leaves."""
        if origin.path is None:
            return Head()
        before = self._paths[origin.path]
        return Head(before.ids[: origin.at], before.trace[: origin.at])

    def _ends(self, pieces: Sequence[bytes]) -> tuple[int, ...]:
        reader = self._tree.reader(ROOT)
        taken = [one.end for piece in pieces for one in reader.take(piece)]
        return tuple(end for end in taken if 0 < end < len(pieces))

    # Choose.

    def next(self) -> list[Origin]:
        """Where the paths of the next wave begin; none once the search is over.

        A wave is half as many as there are: that costs 3% more tokens than one by one, and a third fewer turns (LOG.md).
        """
        settings = self._settings
        left = min(max(1, len(self._paths) // 2), settings.paths - len(self._paths))
        if settings.budget is not None:
            left = min(left, settings.budget - self._spent)
        if left <= 0 or (settings.level < 1 and self._belief()[0].lead >= settings.level):
            return []
        if not settings.branches:
            return [Origin()] * left
        origins = [path.origin for path in self._paths]
        for _ in range(left):
            origins.append(self._place(origins))
        return origins[len(self._paths) :]

    def _place(self, origins: Sequence[Origin]) -> Origin:
        """Where one more path takes most off the variance of the vote, for the tokens that it is likely to have."""
        lengths = [len(path.ids) for path in self._paths if path.origin.path is None]
        prices = {Origin(): max(1.0, float(np.mean(lengths)))}
        for number, path in enumerate(self._paths):
            prices |= {Origin(number, at): float(len(path.ids) - at) for at in path.ends if at > path.origin.at}
        now = self._variance(origins)
        return max(prices, key=lambda origin: (now - self._variance([*origins, origin])) / prices[origin])

    def _variance(self, origins: Sequence[Origin]) -> float:
        """Of the vote, in units of one path's.

        The vote is a mean over beginnings. Each brings in a variance of 1, or less where others leave it: of what arises
        after such a place, taken to be the part of the path's entropy there, k continuations bring in one k-th (nested
        sampling, with Neyman's rule for where to draw next).
        """
        brought = sum(self._brought(path, origins) for path in range(len(origins)))
        return brought / sum(origin.path is None for origin in origins) ** 2

    def _brought(self, number: int, origins: Sequence[Origin]) -> float:
        """The variance that a path brings in, between its origin and its end; of one that is still to be drawn as well."""
        origin = origins[number]
        if number >= len(self._paths):
            after = 1.0 if origin.path is None else self._paths[origin.path].after(origin.at)
            return share(origins, number) ** 2 * after
        path, found, start = self._paths[number], 0.0, origin.at
        for at in (*sorted({other.at for other in origins if other.path == number}), len(path.ids)):
            found += share(origins, number, at) ** 2 * (path.after(start) - path.after(at))
            start = at
        return found

    # Vote.

    def _belief(self) -> tuple[Belief, list[int | None]]:
        """What is believed of the answers, and the group of each path's."""
        model, groups = self._settings.evidence, self._groups()
        logits = model.logits([path.signals for path in self._paths])
        return belief(groups, logits.tolist(), model, shares([path.origin for path in self._paths])), groups

    def _groups(self) -> list[int | None]:
        answers = [path.answer for path in self._paths]
        return [None if answer is None else group for answer, group in zip(answers, group_answers(answers), strict=True)]

    def told(self, grade: Callable[[Question, str | None], bool]) -> Told:
        """What they say, and which answer is right."""
        groups, question = self._groups(), self._tree.question
        stated = zip(groups, (path.answer for path in self._paths), strict=True)
        right = next((group for group, answer in stated if group is not None and grade(question, answer)), None)
        return Told(groups, np.array([path.signals for path in self._paths]), right)

    def solution(self) -> Solution:
        """The most probable answer."""
        found, groups = self._belief()
        tree, leader = self._tree, found.leader
        if leader is None:
            return Solution(tree.question.id, None, 0.0, tree.build(), self._spent)
        answer, confidence = self._paths[groups.index(leader)].answer, found.right[leader]
        abstained = confidence < self._settings.abstain_below
        given = None if abstained else answer
        return Solution(tree.question.id, given, confidence, tree.build(), self._spent, abstained=abstained)


class _Prune:
    """A `Watch` that ends a path with the first of its steps that is false, or scores too little."""

    def __init__(self, reader: StepReader, engine: Engine, settings: ConfidenceTreeSettings, question: str) -> None:
        self._reader, self._engine, self._settings, self._question = reader, engine, settings, question
        self._before = reader.tokens
        self._rows: list[Measured] = []
        self._pieces: list[bytes] = []

    def __call__(self, token: int, measured: Measured) -> bool:
        settings = self._settings
        (piece,) = self._engine.pieces([token])
        self._rows.append(measured)
        self._pieces.append(piece)
        for end, thinking in self._reader.take(piece):
            size = end - self._before
            if size <= 0:  # it ended with what was there before
                continue
            step, self._rows, self._before = self._rows[:size], self._rows[size:], end
            pieces, self._pieces = self._pieces[:size], self._pieces[size:]
            if settings.prune_false and not thinking and states_falsehood(text_of(pieces), self._question):
                return False
            if settings.prune_below and step_score(TokenTrace.of(step), settings.prune_signal) < settings.prune_below:
                return False
        return True
