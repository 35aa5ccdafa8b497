"""How good a judge is, against labels that are taken for the truth. Pure functions of labels and verdicts.

A judge answers up to its first "wrong" (`caspo.judges.base`), and a label means something up to the first wrong step of the
solution; nothing beyond either is counted. "Unknown" never accuses a step. Where it enters:

- ``first_error_accuracy``: the share of solutions whose first wrong step the judge names, or where there is none and it
  calls none wrong. The judge's first "wrong" is its answer; without one the answer is "no error", unknown steps
  notwithstanding. ``accuracy_erroneous`` and ``accuracy_correct`` are the same over solutions with and without an
  error, and ``f1`` is their harmonic mean (ProcessBench, Zheng et al. 2024). A judge that only ever says "unknown" has 0.
- ``decided``: the share of solutions without an unknown verdict up to the judge's answer; ``accuracy_decided`` is the
  first-error accuracy over these alone.
- ``coverage``: of the labelled steps that the judge came to, the share that it did not call unknown. A step labelled
  unknown is not counted anywhere.
- ``precision_wrong``: of the labelled steps that it called wrong, the share that are wrong. Unknown does not enter.
- ``recall_wrong``: of the wrong steps that it came to, the share that it called wrong. Unknown counts as not found.
- ``kappa``: Cohen's kappa of the two labels, over the steps that both call right or wrong. Unknown does not enter.

Intervals are 95% percentile bootstraps over questions (`resampling`); several solutions of one question are drawn together.
Where no resample moves a share (all of it, or none), it is Wilson's interval of its count; F1 and kappa then have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caspo.evaluate.estimates import wilson
from caspo.evaluate.resampling import draw_questions, ends, percentile_interval, ratio
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
    "solutions", "erroneous", "erroneous_found", "correct", "correct_found", "decided", "decided_found",
    "steps", "known", "right_right", "right_wrong", "wrong_right", "wrong_wrong", "wrong_met",
)  # fmt: skip
"""What is counted of each solution; ``right_wrong``: labelled right, called wrong."""

_SHARES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = MappingProxyType(
    {
        "first_error_accuracy": (("erroneous_found", "correct_found"), ("solutions",)),
        "accuracy_erroneous": (("erroneous_found",), ("erroneous",)),
        "accuracy_correct": (("correct_found",), ("correct",)),
        "decided": (("decided",), ("solutions",)),
        "accuracy_decided": (("decided_found",), ("decided",)),
        "coverage": (("known",), ("steps",)),
        "precision_wrong": (("wrong_wrong",), ("right_wrong", "wrong_wrong")),
        "recall_wrong": (("wrong_wrong",), ("wrong_met",)),
    }
)
"""The figures that are shares: sums of counts, of how many."""

FIGURES = (
    "f1", "first_error_accuracy", "accuracy_erroneous", "accuracy_correct", "decided", "accuracy_decided", "coverage",
    "precision_wrong", "recall_wrong", "kappa",
)  # fmt: skip


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
    sums = table.sum(axis=0)
    total = _figures(sums[None, :])
    resampled = _figures(draw_questions(len(places)).astype(np.float64) @ table)
    found: dict[str, Any] = {name: int(sums[_COUNTS.index(name)]) for name in ("solutions", "erroneous", "steps")}
    for name in FIGURES:
        value, interval = float(total[name][0]), percentile_interval(resampled[name])
        if interval is None or interval.low == interval.high:
            k, n = (int(sums[[_COUNTS.index(part) for part in parts]].sum()) for parts in _SHARES.get(name, ((), ())))
            interval = wilson(k, n) if n else None
        found[name] = {"value": None if np.isnan(value) else value, **ends(interval)}
    return found


def _figures(counts_RC: Floats64) -> dict[str, Floats64]:
    """Every figure of R rows of counts, (R,) each; NaN where it is undefined."""
    c = dict(zip(_COUNTS, counts_RC.T, strict=True))
    shares = {name: ratio(*(_sum(c, part) for part in parts)) for name, parts in _SHARES.items()}
    erroneous, correct = shares["accuracy_erroneous"], shares["accuracy_correct"]
    total = erroneous + correct
    both = _sum(c, ("right_right", "right_wrong", "wrong_right", "wrong_wrong"))
    agreed = ratio(c["right_right"] + c["wrong_wrong"], both)
    labelled_wrong = ratio(c["wrong_right"] + c["wrong_wrong"], both)
    called_wrong = ratio(c["right_wrong"] + c["wrong_wrong"], both)
    by_chance = labelled_wrong * called_wrong + (1 - labelled_wrong) * (1 - called_wrong)
    return {
        **shares,
        "f1": np.where(total == 0, 0.0, ratio(2 * erroneous * correct, total)),
        "kappa": ratio(agreed - by_chance, 1 - by_chance),
    }


def _sum(counts: Mapping[str, Floats64], names: Sequence[str]) -> Floats64:
    """The sum of some counts, (R,)."""
    total: Floats64 = np.sum([counts[name] for name in names], axis=0)
    return total
