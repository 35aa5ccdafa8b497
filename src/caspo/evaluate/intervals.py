"""Figures of resampled questions with 95% intervals, and how much a figure differs between two sides. Pure functions.

A percentile bootstrap is not 95% where it matters here: few questions, figures near 0 or 1, and above all the calibration
error, whose upward bias it adds a second time. So three other rules stand here, each with its source, and
``benchmarks/coverage.py`` simulates how often their intervals hold the truth (docs/evaluate.md has the table):

- A figure in [0, 1] (`estimate_mean`, `estimate_auroc`, `estimate_aurc`): Wilson's interval of as many questions as would
  give the variance that the resamples show (Korn and Graubard 1998; Franco et al. 2019), on Student's quantile.
- The calibration error (`estimate_ece`): every true error is tried, and those stay under which what was observed is no
  surprise (inversion of a test; Carpenter 1999).
- A difference (`change`): from the two intervals and the correlation of the two figures (Zou and Donner 2008).

Columns and draws are those of `resampling`; questions count, not rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspo.confidence.calibration import equal_width_bin
from caspo.evaluate.estimates import Interval, score_interval
from caspo.evaluate.resampling import (
    Draws,
    resampled_aurc,
    resampled_auroc,
    resampled_gaps,
    resampled_ratio,
    sums_of_questions,
)

__all__ = ["Estimate", "change", "estimate_aurc", "estimate_auroc", "estimate_ece", "estimate_mean"]

Floats64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
Rows = NDArray[np.intp]

_UNDEFINED = 0.05
"""Share of resamples without a figure from which on there is no interval: it could not hold its 95%."""

_CAUTION = 4.0
"""Questions' worth of caution. Of a figure that hangs on few questions (a mean whose ones are rare, an AUROC with few wrong
rows) the resamples show too little variance; so a share c / (c + events) of it is taken to be the largest possible."""

_HALVINGS = 25
"""Of a bisection: the last digit of a calibration error is 1e-7."""


class Estimate(NamedTuple):
    """A figure, None where it is undefined."""

    value: float | None
    interval: Interval | None = None
    """None where too few questions hold what the figure is about."""
    resampled: Floats64 | None = None
    """The figure of every resample, (R,); None where resampling says nothing about it (a calibration error)."""

    @property
    def ci95(self) -> list[float] | None:
        """The interval as it stands in `metrics.json`."""
        return None if self.interval is None else list(self.interval)


def estimate_mean(above: Floats64, below: Floats64, question: Rows, draws: Draws) -> Estimate:
    """``sum(above) / sum(below)`` in [0, 1]; the columns as in `resampled_ratio`, ``0 <= above <= below``."""
    ones, whole = sums_of_questions(np.column_stack([above, below]), question, draws.shape[1]).T
    total = whole.sum()
    value = float(np.clip(ones.sum() / total, 0.0, 1.0)) if total else math.nan
    events = min(_count(ones), _count(whole - ones))
    return _bounded(value, resampled_ratio(above, below, question, draws), _count(whole), events)


def estimate_auroc(scores: Floats64, right: Bools, weights: Floats64, question: Rows, draws: Draws) -> Estimate:
    """`auroc`; columns as in `resampled_auroc`. No interval where hardly a question holds a right row, or a wrong one."""
    once = np.ones((1, draws.shape[1]), dtype=np.uint8)
    value = float(resampled_auroc(scores, right, weights, question, once)[0])
    both = sums_of_questions(np.column_stack([weights * right, weights * ~right]), question, draws.shape[1])
    fewer = min(map(_count, both.T))
    return _bounded(value, resampled_auroc(scores, right, weights, question, draws), fewer, fewer)


def estimate_aurc(confidence: Floats64, right: Bools, question: Rows, draws: Draws) -> Estimate:
    """Area under the risk-coverage curve; columns as in `resampled_aurc`.

    Its terms weigh answers unequally, the squares of their shares summing up to 2 / n: that of n / 2 questions.
    """
    once = np.ones((1, draws.shape[1]), dtype=np.uint8)
    value = float(resampled_aurc(confidence, right, question, once)[0])
    events = float(min(right.sum(), (~right).sum()))
    return _bounded(value, resampled_aurc(confidence, right, question, draws), len(right) / 2, events)


def estimate_ece(prob: Floats64, right: Bools, weights: Floats64, question: Rows, draws: Draws, bins: int = 10) -> Estimate:
    """The calibration error without the bias of `ece`, and its interval; columns as in `resampled_ece`.

    `ece` is ``sum_b |d_b|`` with d_b the gaps of the bins, and d = truth + noise. The noise is known from the resamples (it
    is that of d around its mean), so what `ece` would be under any true gaps is known as well. Of all true gaps that sum up
    to t, `ece` is largest on average where one bin has them all, and least where every bin has its share of the noise. So
    the interval reaches from the least t under which an `ece` as large as the observed is no surprise, one bin having it
    all, to the largest t under which one as small is none, all bins having their shares. It errs on the wide side. The
    estimate is the t under which the observed one is the median, with gaps of the shape that was observed; 0 where even
    t = 0 gives more.

    What is estimated is the error of these bins in the population, not that of infinitely fine ones. Where all rows are in
    one bin, `ece` is the distance of the mean confidence to a share, and the interval is that of the share.
    """
    if len(prob) == 0 or not weights.sum():
        return Estimate(None)
    once = np.ones((1, draws.shape[1]), dtype=np.uint8)
    gaps = resampled_gaps(prob, right, weights, question, once, bins)[0]
    observed = float(np.abs(gaps).sum())
    noise = resampled_gaps(prob, right, weights, question, draws, bins) - gaps
    noise = noise[~np.isnan(noise).any(axis=1)]
    if len(draws) == 0 or len(noise) < (1.0 - _UNDEFINED) * len(draws):
        return Estimate(observed)
    questions = len(np.unique(question[weights > 0]))
    noise *= math.sqrt(questions / max(1, questions - 1))
    spread, sign = noise.std(axis=0), np.where(gaps < 0, -1.0, 1.0)
    largest = int(np.abs(gaps).argmax())

    def surprise(t: float, shape: Floats64) -> Floats64:
        """By how much a resample's error exceeds the observed one if the true gaps are ``t`` times the shape; (R,)."""
        return np.asarray(np.abs(t * shape + noise).sum(axis=1) - observed)

    if len(np.unique(equal_width_bin(prob[weights > 0], bins))) == 1:
        interval = _of_one_bin(prob, right, weights, question, draws)
    elif spread.sum() == 0.0:
        return Estimate(observed)
    else:
        alone, shared = np.where(np.arange(bins) == largest, sign, 0.0), sign * spread / spread.sum()
        low = _least(lambda t: float((surprise(t, alone) >= 0).mean()) >= 0.025, 0.0, observed)
        high = _least(lambda t: float((surprise(t, shared) <= 0).mean()) < 0.025, 0.0, 1.0)
        interval = Interval(low, high)
    shape = gaps / observed if observed else np.zeros(bins)
    value = _least(lambda t: float(np.median(surprise(t, shape))) >= 0, 0.0, observed)
    return Estimate(value, interval and Interval(min(interval.low, value), max(interval.high, value)))


def change(a: Estimate, b: Estimate) -> tuple[float | None, Interval | None]:
    """``b - a`` and its interval, both of the same questions on the same draws; None where either is undefined.

    ``low = b - a - sqrt((b - low_b)^2 + (high_a - a)^2 - 2 r (b - low_b) (high_a - a))``, ``high`` likewise, r being the
    correlation of the two over the resamples (Zou and Donner 2008; of shares it is Newcombe's 1998). Calibration errors are
    taken to differ in the worst way, r = -1: their lowest and highest possible difference. Where the resamples of both are
    the same, nothing differs, and there is no interval.
    """
    if a.value is None or b.value is None:
        return None, None
    difference = b.value - a.value
    if a.interval is None or b.interval is None:
        return difference, None
    r = -1.0
    if a.resampled is not None and b.resampled is not None:
        known = ~np.isnan(a.resampled + b.resampled)
        one, two = a.resampled[known], b.resampled[known]
        if known.mean() < 1.0 - _UNDEFINED or np.ptp(two - one) == 0.0:
            return difference, None
        r = float(np.corrcoef(one, two)[0, 1]) if one.std() > 0 and two.std() > 0 else 0.0
    down, up = (b.value - b.interval.low, a.interval.high - a.value), (b.interval.high - b.value, a.value - a.interval.low)
    low, high = (math.sqrt(max(0.0, x * x + y * y - 2 * r * x * y)) for x, y in (down, up))
    return difference, Interval(difference - low, difference + high)


def _bounded(value: float, resampled: Floats64, questions: float, events: float) -> Estimate:
    """A figure in [0, 1] with its interval.

    Args:
        value: NaN where it is undefined.
        resampled: (R,), NaN where it is undefined.
        questions: so many independent 0s and 1s have the largest variance that the figure can have at its value.
        events: so many questions it hangs on.
    """
    if math.isnan(value):
        return Estimate(None)
    known = resampled[~np.isnan(resampled)]
    if known.size == 0 or known.size < (1.0 - _UNDEFINED) * resampled.size or questions < 1:
        return Estimate(value, None, resampled)
    largest = value * (1 - value) / questions
    caution = _CAUTION / (_CAUTION + events)
    variance = max(float(known.var()), (1 - caution) * float(known.var()) + caution * largest)
    effective = value * (1 - value) / variance if 0.0 < value < 1.0 and variance > 0.0 else questions
    return Estimate(value, score_interval(value, effective), resampled)


def _of_one_bin(prob: Floats64, right: Bools, weights: Floats64, question: Rows, draws: Draws) -> Interval | None:
    """What the distance of the mean probability to the share of right rows may be."""
    share = estimate_mean(weights * right, weights, question, draws).interval
    if share is None:
        return None
    at = float(np.average(prob, weights=weights))
    far = sorted((abs(at - share.low), abs(at - share.high)))
    return Interval(0.0 if share.low <= at <= share.high else far[0], far[1])


def _count(values: Floats64) -> float:
    """As how many equal ones the values count: (sum v)^2 / sum v^2 (Kish 1965); 0 if all are 0."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares else 0.0


def _least(reached: Callable[[float], bool], low: float, high: float) -> float:
    """The least t from ``low`` to ``high`` from which on ``reached`` holds; ``high`` if it nowhere does."""
    if reached(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
