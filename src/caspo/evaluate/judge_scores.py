"""How good a judge is, against labels that are taken for the truth. Pure functions of labels and verdicts.

A judge answers up to its first "wrong" (`caspo.judges.base`), and a label means something up to the first wrong step of the
solution; nothing beyond either is counted. "Unknown" never accuses a step. Where it enters:

- ``processbench_f1``: as ProcessBench publishes it (Zheng et al. 2024): the harmonic mean of the shares of the solutions
  with an error whose first wrong step the judge names (``accuracy_erroneous``) and of those without one of which it says
  so (``processbench_correct``). A missing answer is a miss: a judge that calls no step wrong and could not tell all of them
  has not said that there is no error.
- ``first_error_accuracy``: the share of solutions whose first wrong step the judge names, or where there is none and it
  calls none wrong, unknown steps notwithstanding. ``accuracy_correct`` is the same over solutions without an error, and
  ``f1_unknown_as_right`` its harmonic mean with ``accuracy_erroneous``: what a search meets that trusts the judge's
  "wrong" and lets all else pass. A judge that only ever says "unknown" has 0 in both F1s.
- ``decided``: the share of solutions without an unknown verdict up to the judge's answer; ``accuracy_decided`` is the
  first-error accuracy over these alone.
- ``coverage``: of the labelled steps that the judge came to, the share that it did not call unknown. A step labelled
  unknown is not counted anywhere.
- ``precision_wrong``: of the labelled steps that it called wrong, the share that are wrong. Unknown does not enter.
- ``recall_wrong``: of the wrong steps that it came to, the share that it called wrong. Unknown counts as not found.
- ``kappa``: Cohen's kappa of the two labels, over the steps that both call right or wrong. Unknown does not enter.

Intervals are 95%, over questions (`intervals`); several solutions of one question are drawn together. An F1 rises with both
of its shares, so its interval is that of the F1s of their ends, which is somewhat wide. Kappa has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caspo.evaluate.estimates import Interval
from caspo.evaluate.intervals import estimate_mean
from caspo.evaluate.resampling import draw_questions, ends
from caspo.formats import LabelledSolution
from caspo.records import Label

__all__ = ["FIGURES", "Judged", "judge_scores", "score_counts"]

Floats64 = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A labelled solution and what a judge said of its steps, up to and including the first it calls wrong."""

    solution: LabelledSolution
    verdicts: tuple[Label, ...]

    def __post_init__(self) -> None:
        assert "wrong" not in self.verdicts[:-1], "a judge stops at the first wrong step"
        assert len(self.verdicts) <= len(self.solution.steps)

    @property
    def first_error(self) -> int | None:
        """Where the judge says the first error is."""
        return self.verdicts.index("wrong") if "wrong" in self.verdicts else None


_COUNTS = (
    "solutions", "erroneous", "erroneous_found", "correct", "correct_found", "correct_told", "decided", "decided_found",
    "steps", "known", "right_right", "right_wrong", "wrong_right", "wrong_wrong", "wrong_met",
)  # fmt: skip
"""What is counted of each solution; ``right_wrong``: labelled right, called wrong."""

_SHARES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "first_error_accuracy": (("erroneous_found", "correct_found"), ("solutions",)),
        "accuracy_erroneous": (("erroneous_found",), ("erroneous",)),
        "accuracy_correct": (("correct_found",), ("correct",)),
        "processbench_correct": (("correct_told",), ("correct",)),
        "decided": (("decided",), ("solutions",)),
        "accuracy_decided": (("decided_found",), ("decided",)),
        "coverage": (("known",), ("steps",)),
        "precision_wrong": (("wrong_wrong",), ("right_wrong", "wrong_wrong")),
        "recall_wrong": (("wrong_wrong",), ("wrong_met",)),
    }
)
"""The figures that are shares: sums of counts, of how many."""

_F1S = {"processbench_f1": "processbench_correct", "f1_unknown_as_right": "accuracy_correct"}
"""Each is the harmonic mean of ``accuracy_erroneous`` and this share."""

FIGURES = (*_F1S, *_SHARES, "kappa")


def score_counts(judged: Judged) -> dict[str, int]:
    """The counts of one solution, by the names above."""
    solution, verdicts = judged.solution, judged.verdicts
    erroneous = solution.first_error is not None
    found = judged.first_error == solution.first_error
    decided = "unknown" not in verdicts and (judged.first_error is not None or len(verdicts) == len(solution.steps))
    counts = dict.fromkeys(_COUNTS, 0)
    counts |= {"solutions": 1, "erroneous": int(erroneous), "correct": int(not erroneous), "decided": int(decided)}
    counts |= {
        "erroneous_found": int(erroneous and found),
        "correct_found": int(not erroneous and found),
        "correct_told": int(not erroneous and found and decided),
        "decided_found": int(decided and found),
    }
    end = len(solution.steps) if solution.first_error is None else solution.first_error + 1
    for label, said in zip(solution.labels[:end], verdicts, strict=False):  # either may be the shorter
        if label != "unknown":
            counts["steps"] += 1
            counts["wrong_met"] += label == "wrong"
            if said != "unknown":
                counts["known"] += 1
                counts[f"{label}_{said}"] += 1
    return counts


def judge_scores(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """The figures of all solutions (``all``) and of every subset, each with its 95% interval.

    Per set ``solutions``, ``erroneous`` and ``steps`` (labelled ones that the judge came to), and per figure ``value``,
    ``low`` and ``high``; None where it is undefined.
    """
    subsets = dict.fromkeys(one.solution.subset for one in judged)
    sets = {"all": list(judged)}
    if len(subsets) > 1:
        sets |= {name: [one for one in judged if one.solution.subset == name] for name in subsets}
    return {name: _scores(members) for name, members in sets.items()}


def _scores(judged: Sequence[Judged]) -> dict[str, Any]:
    places: dict[str, int] = {}
    for one in judged:
        places.setdefault(one.solution.question.text, len(places))
    table = np.zeros((len(places), len(_COUNTS)))
    for one in judged:
        table[places[one.solution.question.text]] += list(score_counts(one).values())
    counts = dict(zip(_COUNTS, table.T, strict=True))  # of every question
    draws, rows = draw_questions(len(places)), np.arange(len(places))
    found: dict[str, Any] = {name: int(counts[name].sum()) for name in ("solutions", "erroneous", "steps")}
    shares: dict[str, tuple[float | None, Interval | None]] = {}
    for name, (above, below) in _SHARES.items():
        share = estimate_mean(_sum(counts, above), _sum(counts, below), rows, draws)
        shares[name] = share.value, share.interval
    for name, of_correct in _F1S.items():
        shares[name] = _harmonic(shares["accuracy_erroneous"], shares[of_correct])
    shares["kappa"] = _kappa({name: float(column.sum()) for name, column in counts.items()}), None
    return found | {name: {"value": shares[name][0], **ends(shares[name][1])} for name in FIGURES}


def _harmonic(
    a: tuple[float | None, Interval | None], b: tuple[float | None, Interval | None]
) -> tuple[float | None, Interval | None]:
    """The harmonic mean of two shares, 0 if both are, and its interval."""

    def mean(x: float, y: float) -> float:
        return 2 * x * y / (x + y) if x + y else 0.0

    if a[0] is None or b[0] is None:
        return None, None
    interval = None if a[1] is None or b[1] is None else Interval(mean(a[1].low, b[1].low), mean(a[1].high, b[1].high))
    return mean(a[0], b[0]), interval


def _kappa(counts: Mapping[str, float]) -> float | None:
    """Cohen's kappa of the labels that both sides give; None where there are none, or chance agrees always."""
    both = sum(counts[f"{label}_{said}"] for label in ("right", "wrong") for said in ("right", "wrong"))
    if not both:
        return None
    labelled_wrong = (counts["wrong_right"] + counts["wrong_wrong"]) / both
    called_wrong = (counts["right_wrong"] + counts["wrong_wrong"]) / both
    by_chance = labelled_wrong * called_wrong + (1 - labelled_wrong) * (1 - called_wrong)
    agreed = (counts["right_right"] + counts["wrong_wrong"]) / both
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else None


def _sum(counts: Mapping[str, Floats64], names: Sequence[str]) -> Floats64:
    """The sum of some counts, for every question, (Q,)."""
    total: Floats64 = np.sum([counts[name] for name in names], axis=0)
    return total
