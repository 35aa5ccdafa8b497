"""The judged steps of an evaluation as one table, their figures with intervals, and how those changed between two rounds.

Intervals are 95%, over the questions (`intervals`). What is not here: figures of whole solutions
(`metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caspo.confidence import DEFAULT_SIGNAL, signals, step_score
from caspo.confidence.calibration import Calibrator, brier, ece, fit
from caspo.data.annotate import judge_trees
from caspo.evaluate.estimates import pairs_won, sibling_pairs
from caspo.evaluate.intervals import Estimate, change, estimate_auroc, estimate_ece, estimate_mean
from caspo.evaluate.resampling import Draws, draw_questions, ends
from caspo.evaluate.run import EvaluateSettings, read_outcomes
from caspo.judges.base import Judge
from caspo.records import Node, Tree
from caspo.trees import seed_of

__all__ = ["SIBLING_FREQUENCY", "StepRows", "sampled_method", "step_calibrator", "step_changes", "step_figures", "step_rows"]

Floats64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.intp]

SIBLING_FREQUENCY = "sibling_frequency"
"""A signal of a node among its siblings, not of its tokens: the share of the samples that went on from the same prefix and
took this step. It says something only where a prefix was continued several times, as self-consistency does."""


@dataclass(frozen=True)
class StepRows:
    """The judged steps of some trees, one row per distinct step; n rows.

    A row weighs as much as it was sampled often wherever all steps are looked at: then every figure, the AUROC of the
    sibling frequency too, is that of the single samples. Among siblings a distinct step counts once: the question is
    which of the continuations to take, not how often.
    """

    signals: dict[str, Floats64]
    """(n,) each: those of `SIGNALS`, and `SIBLING_FREQUENCY`."""
    confidence: Floats64
    entropy: Floats64
    """Mean token entropy, nats."""
    right: Bools
    weights: Floats64
    """How often each step was sampled."""
    question: Rows
    """Which question each step belongs to: its place among those that were asked."""
    asked: tuple[str, ...]
    """Ids of all questions that were asked, those without a judged step too."""
    groups: tuple[Rows, ...]
    """Rows of each sibling group."""

    @property
    def questions(self) -> int:
        """How many were asked."""
        return len(self.asked)

    @property
    def second_half(self) -> Bools:
        """Which rows belong to questions of the second of two halves, (n,). The halves go by a hash of the ids: the order
        of the questions may mean something (levels of difficulty take turns, say), and both halves must be of one kind."""
        order = sorted(range(self.questions), key=lambda place: seed_of("half", self.asked[place]))
        second = np.zeros(self.questions, dtype=np.bool_)
        second[order[1::2]] = True
        return second[self.question]


def sampled_method(settings: EvaluateSettings) -> str | None:
    """The method whose trees the figures of the steps are of: self-consistency, which samples most, or else the first."""
    names = [method.name for method in settings.methods()]
    return "self_consistency" if "self_consistency" in names else names[0] if names else None


def step_rows(trees: Sequence[Tree], asked: Sequence[str]) -> StepRows:
    """The table of the steps of judged trees; unknown verdicts, and what follows a wrong step, are left out.

    ``asked`` are the ids of all questions: a blank answer leaves no tree, and still its question could have been drawn.
    """
    place = {question_id: number for number, question_id in enumerate(asked)}
    nodes: list[Node] = []
    frequency: list[float] = []
    groups: list[Rows] = []
    question: list[int] = []
    for tree in trees:
        for _, children in tree.groups():
            judged = [c for c in children if c.verdict is not None and c.verdict.label != "unknown"]
            if judged:
                groups.append(np.arange(len(nodes), len(nodes) + len(judged)))
                nodes += judged
                samples = sum(c.count for c in children)
                frequency += [c.count / samples for c in judged]
                question += [place[tree.question.id]] * len(judged)
    table = [signals(n.step.trace) for n in nodes]
    of_traces = {name: np.array([row[name] for row in table]) for name in (table[0] if table else ())}
    return StepRows(
        signals=of_traces | {SIBLING_FREQUENCY: np.array(frequency)},
        confidence=np.array([step_score(n.step.trace) for n in nodes]),
        entropy=np.array([float(n.step.trace.entropy.mean()) for n in nodes]),
        right=np.array([n.right for n in nodes], dtype=np.bool_),
        weights=np.array([float(n.count) for n in nodes]),
        question=np.array(question, dtype=np.intp),
        asked=tuple(asked),
        groups=tuple(groups),
    )


def step_calibrator(rows: StepRows, which: Bools | None = None) -> Calibrator | None:
    """The map from step confidence to the probability of being right; None where all steps are right, or all wrong."""
    kept = np.ones(len(rows.right), dtype=np.bool_) if which is None else which
    right = rows.right[kept]
    if right.all() or not right.any():
        return None
    return fit(rows.confidence[kept], right, weights=rows.weights[kept], signal=DEFAULT_SIGNAL)


def step_figures(rows: StepRows, calibrated: Floats64 | None) -> dict[str, Any]:
    """The ``steps`` of a round in `metrics.json`; ``calibrated`` are probabilities (n,) of being right, if there are any.

    A figure is None where it is undefined (no wrong step, say), an interval also where too few questions hold what the
    figure is about.
    """
    if len(rows.right) == 0:
        return {"n": 0}
    draws = draw_questions(rows.questions)
    pairs = sibling_pairs(rows.right, rows.groups)
    across = {name: _auroc(rows, name, draws) for name in rows.signals}
    siblings = {name: _siblings(rows, pairs_won(values, pairs), pairs, draws) for name, values in rows.signals.items()}
    debiased = _ece(rows, draws)

    def mean_entropy(which: Bools) -> float | None:
        return float(np.average(rows.entropy[which], weights=rows.weights[which])) if which.any() else None

    return {
        "n": int(rows.weights.sum()),
        "accuracy": float(np.average(rows.right, weights=rows.weights)),
        "ece": ece(rows.confidence, rows.right, weights=rows.weights),
        "ece_debiased": debiased.value,
        "ece_debiased_ci95": debiased.ci95,
        "brier": brier(rows.confidence, rows.right, weights=rows.weights),
        "ece_calibrated": None if calibrated is None else ece(calibrated, rows.right, weights=rows.weights),
        "brier_calibrated": None if calibrated is None else brier(calibrated, rows.right, weights=rows.weights),
        "auroc": {name: found.value for name, found in across.items()},
        "auroc_ci95": {name: found.ci95 for name, found in across.items()},
        "auroc_siblings": {name: found.value for name, found in siblings.items()},
        "auroc_siblings_ci95": {name: found.ci95 for name, found in siblings.items()},
        "sibling_groups": sum(bool(rows.right[g].any() and not rows.right[g].all()) for g in rows.groups),
        "entropy_right": mean_entropy(rows.right),
        "entropy_wrong": mean_entropy(~rows.right),
    }


def step_changes(before: Path, after: Path, judge: Judge, settings: EvaluateSettings) -> list[dict[str, Any]]:
    """How figures of the steps differ between two evaluations of the same questions: after minus before, in their unit.

    Each with its interval, paired by question: both evaluations are resampled alike. None where a figure is undefined.
    """
    method = sampled_method(settings)
    if method is None:
        return []
    both = [read_outcomes(folder, method) for folder in (before, after)]
    asked, again = ([outcome.question_id for outcome in outcomes] for outcomes, _ in both)
    assert asked == again, "the rounds of a run are evaluated on the same questions, in one order"
    first, second = (step_rows(judge_trees(trees, judge), asked) for _, trees in both)
    if min(len(first.right), len(second.right)) == 0:
        return []
    draws = draw_questions(first.questions)
    changes = []
    for name, figure in _CHANGING.items():
        difference, interval = change(figure(first, draws), figure(second, draws))
        changes.append({"figure": name, "difference": difference, **ends(interval)})
    return changes


def _auroc(rows: StepRows, name: str, draws: Draws) -> Estimate:
    return estimate_auroc(rows.signals[name], rows.right, rows.weights, rows.question, draws)


def _ece(rows: StepRows, draws: Draws) -> Estimate:
    return estimate_ece(rows.confidence, rows.right, rows.weights, rows.question, draws)


def _siblings(rows: StepRows, won: Floats64, pairs: Rows, draws: Draws) -> Estimate:
    """The AUROC among siblings; both of a pair are of one question."""
    return estimate_mean(won, np.ones(len(pairs)), rows.question[pairs[:, 0]], draws)


def _mean(rows: StepRows, values: Floats64, draws: Draws) -> Estimate:
    return estimate_mean(rows.weights * values, rows.weights, rows.question, draws)


def _entropy_siblings(rows: StepRows, draws: Draws) -> Estimate:
    pairs = sibling_pairs(rows.right, rows.groups)
    return _siblings(rows, pairs_won(rows.signals["entropy"], pairs), pairs, draws)


_CHANGING: Mapping[str, Callable[[StepRows, Draws], Estimate]] = MappingProxyType(
    {
        "accuracy": lambda rows, draws: _mean(rows, rows.right.astype(np.float64), draws),
        "ece_debiased": _ece,
        "brier": lambda rows, draws: _mean(rows, (rows.confidence - rows.right) ** 2, draws),
        "auroc_entropy": lambda rows, draws: _auroc(rows, "entropy", draws),
        "auroc_siblings_entropy": _entropy_siblings,
    }
)
"""The figures whose change is followed over the rounds."""
