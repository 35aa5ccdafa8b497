"""Intervals, paired tests and ranking figures for evaluations. Numpy and the standard library only; pure functions.

Steps and samples of one question are not independent, so every bootstrap here resamples *questions*. What is not here:
how well a score works as a probability (`calibration`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caspo.core.errors import ConfigError, DataError

__all__ = [
    "Interval", "PairedDifference", "auroc", "bootstrap_ci", "mean_interval", "paired_difference", "pairs_won",
    "score_interval", "sibling_pairs", "wilson",
]  # fmt: skip

Floats64 = NDArray[np.float64]
Statistic = Callable[[Floats64], float | None]


class Interval(NamedTuple):
    """A 95% confidence interval, low <= high, in the unit of the figure."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """How two methods differ on the same questions: ``b - a``, in the unit of the values."""

    difference: float
    low: float
    high: float
    p_value: float
    """Exact two-sided McNemar test: the questions only one of the two solves, against a fair coin."""
    only_a: int
    only_b: int
    n: int


def wilson(k: int, n: int) -> Interval:
    """Wilson's score interval of a proportion, ``k`` successes of ``n`` (Wilson 1927); holds its level for small n.

    Raises:
        DataError: n < 1, or k outside [0, n].
    """
    if n < 1 or not 0 <= k <= n:
        raise DataError(
            f"a proportion needs 0 <= k <= n and n >= 1, got k={k}, n={n}. Nothing was counted: check the inputs."
        )
    return score_interval(k / n, n)


def score_interval(share: float, n: float) -> Interval:
    """Wilson's interval of a share of ``n`` questions; ``n`` > 0 may be an effective number, a fraction."""
    z = NormalDist().inv_cdf(0.975)
    scale = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(0.0 if share == 0 else max(0.0, centre - half), 1.0 if share == 1 else min(1.0, centre + half))


def bootstrap_ci(
    values: ArrayLike, groups: ArrayLike | None = None, statistic: Statistic | None = None, seed: int = 0, n_boot: int = 2000
) -> Interval:
    """Percentile bootstrap interval of ``statistic`` (default: the mean), resampling whole groups.

    For statistics that have no interval of their own here: it is about 95% for smooth ones of some hundred groups, and much
    less where few groups hold what the statistic is about (a share near 0 or 1), or where it is biased (`ece`).

    Args:
        values: (n,) or (n, columns); the statistic sees the resampled rows.
        groups: (n,) labels, the question each row belongs to; None: every row by itself.
        statistic: rows -> figure; a resample for which it gives None or NaN (one class missing) is
            left out.
        seed: of the resampling; the same input gives the same interval.
        n_boot: number of resamples.

    Raises:
        DataError: no rows, NaN among them, groups of another length, or no resample with a defined statistic.
    """
    rows = _finite("values", values)
    if n_boot < 1:
        raise ConfigError(f"n_boot must be at least 1, got {n_boot}.")
    members = _members(rows, groups)
    rng = np.random.default_rng(seed)
    if statistic is None and rows.ndim == 1:
        # The mean of a resample needs only each group's sum and size: a thousand times faster than gathering rows.
        sums = np.array([rows[m].sum() for m in members])
        sizes = np.array([m.size for m in members], dtype=np.float64)
        figures = np.empty(n_boot)
        for i in range(n_boot):
            drawn = rng.integers(0, len(members), len(members))
            figures[i] = sums[drawn].sum() / sizes[drawn].sum()
    else:
        of = statistic or (lambda array: float(array.mean()))
        drawn_rows = (
            rows[np.concatenate([members[g] for g in rng.integers(0, len(members), len(members))])] for _ in range(n_boot)
        )
        figures = np.array([of(resample) for resample in drawn_rows], dtype=np.float64)
        figures = figures[~np.isnan(figures)]
    if figures.size == 0:
        raise DataError("the statistic is undefined on every resample: there is too little data for an interval.")
    tail = (1.0 - 0.95) / 2.0  # differs from 0.025 in its last digit, which published intervals have
    low, high = np.quantile(figures, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


def mean_interval(values: ArrayLike) -> Interval | None:
    """Student's interval of the mean of (n,) values without bounds, such as differences in tokens; None of fewer than two.

    Less than 95% where a rare, far value decides the mean: one in fifty questions, say, that runs into the token limit.
    """
    from scipy.special import stdtrit

    rows = _finite("values", values)
    if rows.size < 2:
        return None
    half = float(stdtrit(rows.size - 1, 0.975)) * float(rows.std(ddof=1)) / math.sqrt(rows.size)
    return Interval(float(rows.mean()) - half, float(rows.mean()) + half)


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Compare two methods on the same n questions; ``a`` and ``b`` are 0/1 (solved or not), one per question, aligned.

    The interval is that of Bonett and Price 2012: of the shares of questions that only a and only b solves, one question
    more of each kind counted, with the normal quantile. A bootstrap of few such questions knows too few values; of none it
    would have no width.

    Raises:
        DataError: lengths differ, no questions, or values other than 0 and 1.
    """
    first, second = _labels("a", a), _labels("b", b)
    if first.shape != second.shape:
        raise DataError(
            f"a paired comparison needs the same questions, got {first.size} and {second.size}. Align them by id."
        )
    only_a, only_b, n = int((first & ~second).sum()), int((second & ~first).sum()), first.size
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_b - share_a
    half = NormalDist().inv_cdf(0.975) * math.sqrt((share_a + share_b - centre**2) / (n + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return PairedDifference((only_b - only_a) / n, low, high, _mcnemar(only_a, only_b), only_a, only_b, n)


def auroc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """Probability that a random positive has the higher score than a random negative, a tie counting one half.

    Args:
        scores: (n,), higher means positive; only their order matters.
        labels: (n,) of 0/1 or bool.
        weights: (n,) non-negative, for instance how many equal samples a row stands for.

    Returns:
        The area under the ROC curve; None where one class is missing (or has no weight).

    Raises:
        DataError: lengths differ, NaN scores, labels other than 0/1, negative weights.
    """
    values, positive, mass = _ranked(scores, labels, weights)
    if values.size == 0:
        return None
    _, level = np.unique(values, return_inverse=True)
    up = np.bincount(level, weights=mass * positive)
    down = np.bincount(level, weights=mass * ~positive)
    total = float(up.sum() * down.sum())
    if total == 0.0:
        return None
    below = np.cumsum(down) - down
    return float(np.dot(up, below + 0.5 * down)) / total


def sibling_pairs(right: NDArray[np.bool_], groups: Iterable[NDArray[np.intp]]) -> NDArray[np.intp]:
    """The rows (right child, wrong child) of every pair of siblings that a score should order, (P, 2).

    This is the question a tree search asks ("which continuation?"); groups without both kinds say nothing about it.

    Args:
        right: (n,) whether each row is right; leave unknown verdicts out.
        groups: for every parent the rows of its children.
    """
    found = [np.empty((0, 2), dtype=np.intp)]
    for rows in groups:
        good, bad = rows[right[rows]], rows[~right[rows]]
        found.append(np.column_stack([np.repeat(good, bad.size), np.tile(bad, good.size)]))
    return np.concatenate(found)


def pairs_won(scores: ArrayLike, pairs: NDArray[np.intp]) -> Floats64:
    """Whether the score puts the first row of each pair above the second: 1 or 0, a tie 0.5; (P,).

    Its mean over `sibling_pairs` is the AUROC among siblings: every pair counts once.
    """
    values = _finite("scores", scores)
    first, second = values[pairs[:, 0]], values[pairs[:, 1]]
    return np.where(first == second, 0.5, first > second)


def _mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact binomial test of ``only_a`` against ``only_b`` at one half; in integers, so that the last digit of a
    published p-value hangs on no library's version."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _members(rows: Floats64, groups: ArrayLike | None) -> Sequence[NDArray[np.intp]]:
    """The row indices of every group."""
    if groups is None:
        return list(np.arange(len(rows))[:, None])
    labels = np.asarray(groups)
    if labels.shape != (len(rows),):
        raise DataError(f"there are {len(rows)} values and {labels.size} group labels. Give one label per value.")
    _, of = np.unique(labels, return_inverse=True)
    order = np.argsort(of, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of[order])) + 1)


def _finite(name: str, array: ArrayLike) -> Floats64:
    values = np.asarray(array, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise DataError(f"{name} is empty: there is nothing to estimate. Evaluate at least one question.")
    if np.isnan(values).any():
        raise DataError(f"{name} holds NaN. Leave out what was not measured instead of counting it.")
    return values


def _labels(name: str, array: ArrayLike) -> NDArray[np.bool_]:
    values = _finite(name, array)
    if values.ndim != 1 or not np.isin(values, (0.0, 1.0)).all():
        raise DataError(f"{name} must be one 0 or 1 per row (wrong or right). Leave unknown verdicts out first.")
    return values.astype(np.bool_)


def _ranked(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> tuple[Floats64, NDArray[np.bool_], Floats64]:
    """Scores, labels and weights of n rows, checked; n may be 0."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 and np.size(labels) == 0:
        return values.reshape(0), np.zeros(0, dtype=np.bool_), np.zeros(0)
    values, right = _finite("scores", values), _labels("labels", labels)
    mass = np.ones(values.shape) if weights is None else _finite("weights", weights)
    if not values.shape == right.shape == mass.shape:
        raise DataError(f"{values.size} scores, {right.size} labels and {mass.size} weights. Give one of each per row.")
    if float(mass.min()) < 0.0:
        raise DataError("a weight is negative. Weights count how often a row was seen.")
    return values, right, mass
