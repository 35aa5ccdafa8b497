"""How far a method's confidence in its answers can be trusted: calibration, ranking, and what answering less would gain.

All of it over the questions that were answered; an answer that was withheld (`abstained`) or never found has no row.
Intervals are 95%, over the questions (`intervals`). What is not here: the confidence in steps
(`step_figures`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caspo.confidence.calibration import ece
from caspo.evaluate.intervals import Estimate, estimate_aurc, estimate_auroc, estimate_ece, estimate_mean
from caspo.evaluate.resampling import Draws, draw_questions
from caspo.evaluate.run import Outcome

__all__ = ["ESTIMATES", "AnswerRows", "answer_figures", "answer_rows", "risk_coverage"]

Floats64 = NDArray[np.float64]

_POINTS = 100
"""Points of a risk-coverage curve, at most."""


@dataclass(frozen=True)
class AnswerRows:
    """The answered questions of a method, n rows."""

    confidence: Floats64
    """(n,) in [0, 1], by the method's own measure."""
    right: NDArray[np.bool_]
    question: NDArray[np.intp]
    """Which question each is: its place among all that were asked."""
    questions: int
    """How many were asked."""

    @property
    def ones(self) -> Floats64:
        """Every answer weighs the same."""
        return np.ones(len(self.right))


def answer_rows(outcomes: Sequence[Outcome]) -> AnswerRows:
    """The table of the answers of a method."""
    rows = [(o.confidence, o.correct, place) for place, o in enumerate(outcomes) if o.answer is not None]
    return AnswerRows(
        confidence=np.clip(np.array([row[0] for row in rows], dtype=np.float64), 0.0, 1.0),  # sums of votes round
        right=np.array([row[1] for row in rows], dtype=np.bool_),
        question=np.array([row[2] for row in rows], dtype=np.intp),
        questions=len(outcomes),
    )


ESTIMATES: Mapping[str, Callable[[AnswerRows, Draws], Estimate]] = MappingProxyType(
    {
        "ece": lambda rows, draws: Estimate(ece(rows.confidence, rows.right) if len(rows.right) else None),
        "ece_debiased": lambda rows, draws: estimate_ece(rows.confidence, rows.right, rows.ones, rows.question, draws),
        "brier": lambda rows, draws: estimate_mean((rows.confidence - rows.right) ** 2, rows.ones, rows.question, draws),
        "auroc": lambda rows, draws: estimate_auroc(rows.confidence, rows.right, rows.ones, rows.question, draws),
        "aurc": lambda rows, draws: estimate_aurc(rows.confidence, rows.right, rows.question, draws),
    }
)
"""The figures that sides are compared by, with their intervals; ``ece``, which is biased, has none."""


def answer_figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The ``answers`` of a method in `metrics.json`; None where a figure is undefined.

    ``ece`` and ``ece_mass`` are the plain ones of the literature, biased upwards and therefore without an interval
    (``ece_ci95`` is None); ``ece_debiased`` has one.
    """
    rows = answer_rows(outcomes)
    n, draws = len(rows.right), draw_questions(rows.questions)
    figures: dict[str, Any] = {"n": n, "ece_mass": ece(rows.confidence, rows.right, kind="mass") if n else None}
    for name, estimate in ESTIMATES.items():
        found = estimate(rows, draws)
        figures |= {name: found.value, f"{name}_ci95": found.ci95}
    return figures


def risk_coverage(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """Share of wrong answers (``risk``) against the share of questions answered (``coverage``), if only answers with at
    least the confidence ``threshold`` were given; from the most confident ones on (El-Yaniv and Wiener 2010).

    One point for every confidence that occurs, thinned to a hundred; the last is what the method does without a threshold.
    """
    rows = answer_rows(outcomes)
    if not len(rows.right):
        return []
    order = np.argsort(-rows.confidence, kind="stable")
    confidence, wrong = rows.confidence[order], np.cumsum(~rows.right[order])
    ends = np.append(np.flatnonzero(np.diff(confidence)), len(confidence) - 1)
    if len(ends) > _POINTS:
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, _POINTS).round().astype(np.intp))]
    return [
        {
            "threshold": float(confidence[end]),
            "coverage": float((end + 1) / rows.questions),
            "risk": float(wrong[end] / (end + 1)),
        }
        for end in ends
    ]
