"""Figures of an evaluation on resampled questions, all resamples at once. Numpy only; pure functions.

The steps of one question are not independent, so a resample draws *questions* with replacement, and a step counts as
often as its question was drawn (cluster bootstrap; Davison and Hinkley 1997, section 3.8). So a resample is a row of
multiplicities (`draw_questions`), and a figure made of weighted sums is computed for all of them without gathering rows:
every ``resampled_*`` gives one figure a resample, (R,), NaN where it is undefined. `bootstrap_ci` takes any
statistic instead, and gathers the rows of every resample for it.

Intervals are made of them in `intervals`; two models on the same draws are paired by question.

What goes in are columns of one table, n rows, checked where it was made: what does not fit together here is a defect, not
a user's mistake. ``right`` says whether a row is right, (n,); ``weights``, (n,), are not negative; ``question``, (n,), is
which question a row belongs to, in [0, Q); ``draws`` are resamples, (R, Q).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from caspo.confidence.calibration import equal_width_bin
from caspo.evaluate.estimates import Interval

__all__ = [
    "Draws", "draw_questions", "ends", "ratio", "resampled_aurc", "resampled_auroc", "resampled_gaps", "resampled_ratio",
    "sums_of_questions",
]  # fmt: skip

Floats64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.intp]

Draws = NDArray[np.uint8]
"""(R, Q): how often each of Q questions is in each of R resamples; every row sums to Q. That a question is drawn more than
255 times has a chance below 1 / 255!."""

_PART_VALUES = 250_000
"""Values of one temporary array, about: 2 MB, so that it stays in a processor's cache."""


def draw_questions(questions: int, seed: int = 0, n_boot: int = 2000) -> Draws:
    """``n_boot`` resamples of ``questions`` questions, (R, Q); the draws of `bootstrap_ci` with the same seed.

    None at all, (0, Q), of fewer than two questions: one question says nothing about how questions differ.
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros((n_boot if questions > 1 else 0, questions), dtype=np.uint8)
    for row in draws:
        row[:] = np.bincount(rng.integers(0, questions, questions), minlength=questions)
    return draws


def ends(interval: Interval | None) -> dict[str, float | None]:
    """``low`` and ``high`` of a record; None where there is no interval."""
    return dict(zip(("low", "high"), interval or (None, None), strict=True))


def resampled_ratio(above: Floats64, below: Floats64, question: Rows, draws: Draws) -> Floats64:
    """``sum(above) / sum(below)`` over the n rows of each resample, (R,); a weighted mean where ``above = w x, below = w``.

    Args:
        above: (n,).
        below: (n,) non-negative; where a resample's sum is 0 the ratio is undefined.
    """
    top, bottom = _sums(np.column_stack([above, below]), question, draws).T
    return ratio(top, bottom)


def resampled_gaps(
    prob: Floats64, right: Bools, weights: Floats64, question: Rows, draws: Draws, bins: int = 10
) -> Floats64:
    """The gaps of the bins of equal width in each resample, (R, bins): ``sum_(i in b) w_i (p_i - y_i) / sum_i w_i``.

    The sum of their absolute values is `ece`.

    Args:
        prob: (n,) in [0, 1].
        bins: number of bins.
    """
    gaps = np.zeros((len(prob), bins))
    gaps[np.arange(len(prob)), equal_width_bin(prob, bins)] = weights * (prob - right)
    sums = _sums(np.column_stack([gaps, weights]), question, draws)
    return ratio(sums[:, :-1], np.broadcast_to(sums[:, -1:], (len(sums), bins)))


def resampled_auroc(scores: Floats64, right: Bools, weights: Floats64, question: Rows, draws: Draws) -> Floats64:
    """`auroc` of each resample, (R,): the rows are sorted once, a resample only changes their weights. Time R n.

    With C(s) the weight of the wrong rows below score s in a resample, and C'(s) of those at or below it, it is
    ``sum_(i right) w_i (C(s_i) + C'(s_i)) / 2`` over the product of the weights of right and of wrong rows.

    Args:
        scores: (n,), higher means right; only their order matters.
    """
    assert scores.shape == right.shape == weights.shape == question.shape
    assert not np.isnan(scores).any()
    order = np.argsort(scores, kind="stable")
    up, down = order[right[order]], order[~right[order]]
    first, last = (np.searchsorted(scores[down], scores[up], side) for side in ("left", "right"))
    figures = []
    for part in _parts(draws, len(scores)):
        mass_up = np.take(part, question[up], axis=1) * weights[up]
        below = np.zeros((len(part), len(down) + 1))
        np.cumsum(np.take(part, question[down], axis=1) * weights[down], axis=1, out=below[:, 1:])
        mean_below = np.take(below, first, axis=1)
        mean_below += np.take(below, last, axis=1)
        won = 0.5 * np.einsum("ri,ri->r", mass_up, mean_below)
        figures.append(ratio(won, mass_up.sum(axis=1) * below[:, -1]))
    return np.concatenate([np.empty(0), *figures])


def resampled_aurc(confidence: Floats64, right: Bools, question: Rows, draws: Draws) -> Floats64:
    """Area under the risk-coverage curve of each resample, (R,): the mean over i of the share of wrong answers among the i
    most confident ones (Geifman and El-Yaniv 2017). Equal confidences stand in random order, and it is the mean over those.

    With w answers of one confidence, e of them wrong, after W more confident ones of which E are wrong, they add
    ``sum_(j=1..w) (E + j e / w) / (W + j) = e + (E - W e / w) (H(W + w) - H(W))``, H being the harmonic numbers.

    Args:
        confidence: (n,), higher means answered earlier.
    """
    assert confidence.shape == right.shape == question.shape
    order = np.argsort(-confidence, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(confidence[order])) + 1) if len(order) else np.zeros(0, dtype=np.intp)
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, draws.shape[1] + 1)))  # no resample holds more rows
    figures = []
    for part in _parts(draws, len(order)) if len(order) else ():
        drawn = np.take(part, question[order], axis=1).astype(np.int64)
        size, wrong = (np.add.reduceat(values, starts, axis=1) for values in (drawn, drawn * ~right[order]))
        size_before, wrong_before = size.cumsum(axis=1) - size, wrong.cumsum(axis=1) - wrong
        rate = np.divide(wrong, size, out=np.zeros(size.shape), where=size > 0)
        terms = wrong + (wrong_before - size_before * rate) * (harmonic[size_before + size] - harmonic[size_before])
        figures.append(ratio(terms.sum(axis=1), size.sum(axis=1)))
    return np.concatenate(figures) if figures else np.full(len(draws), np.nan)


def sums_of_questions(columns: Floats64, question: Rows, questions: int) -> Floats64:
    """The sum of each of the columns, (n, c), over the rows of every question, (Q, c)."""
    return np.column_stack([np.bincount(question, column, questions) for column in columns.T])


def _sums(columns: Floats64, question: Rows, draws: Draws) -> Floats64:
    """The sum of each of the columns, (n, c), in every resample, (R, c)."""
    assert len(columns) == len(question)
    questions = draws.shape[1]
    per_question = sums_of_questions(columns, question, questions)
    sums = [part.astype(np.float64) @ per_question for part in _parts(draws, questions)]
    return np.concatenate([np.empty((0, columns.shape[1])), *sums])


def _parts(draws: Draws, width: int) -> Iterator[Draws]:
    """The resamples in parts, so that an array of ``width`` values for each resample of a part stays small."""
    size = max(1, _PART_VALUES // max(1, width))
    return (draws[start : start + size] for start in range(0, len(draws), size))


def ratio(above: Floats64, below: Floats64) -> Floats64:
    """``above / below``, elementwise; NaN where there is nothing below, or NaN."""
    found: Floats64 = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=(below != 0) & ~np.isnan(below))
    return found
