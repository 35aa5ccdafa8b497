"""Fits an `EvidenceModel` to paths whose answers are known to be right or wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspo.core.errors import DataError
from caspo.search.evidence import EvidenceModel, log_beliefs

__all__ = ["Told", "fit_evidence", "log_loss"]

Floats64 = NDArray[np.float64]

_COUNTS = (1, 2, 4, 8, 16)
"""Of a question's paths the first so many are looked at: the model is to be right about few and about many."""
_ORDERS = 8
"""Orders of the later paths that are looked at: one would say little of few paths."""
_TO_EVEN = 0.01
"""How strongly each slope, for a standard deviation of its signal, is held to 0: to votes that count alike."""
_TO_START = 0.02
"""How strongly log spread and log scatter are held to where they start: few questions say little of them."""


class Told(NamedTuple):
    """The paths of one question, in the order in which they were drawn."""

    groups: Sequence[int | None]
    """(n,) of the answer of each path, as `belief` has it."""
    signals: Floats64
    """(n, S) of each path (`EvidenceModel.signals`)."""
    right: int | None
    """The group of the right answer; None if no path states it."""


class _Cases(NamedTuple):
    """What is looked at: B times some first paths of a question, n at most."""

    groups: NDArray[np.intp]
    """(B, n), -1 where there is no answer."""
    signals: Floats64
    """(B, n, S), NaN beyond the paths."""
    counts: Floats64
    """(B, n) of 0/1: whether there is a path."""
    right: NDArray[np.intp]
    """(B,) the group of the right answer; -1 where none of the paths states it."""


def log_loss(model: EvidenceModel, questions: Sequence[Told]) -> float:
    """Minus the mean log probability of what turned out to be right, nats, after 1, 2, 4, ... paths of each question, in
    several orders of the paths after the first."""
    return _loss(model, _cases(questions))


def _cases(questions: Sequence[Told]) -> _Cases:
    most = max(min(max(_COUNTS), len(told.groups)) for told in questions)
    groups, signals, counts, right = [], [], [], []
    for number, told in enumerate(questions):
        rng, n = np.random.default_rng(number), len(told.groups)
        named = np.array([-1 if group is None else group for group in told.groups], dtype=np.intp)
        for _ in range(_ORDERS):
            order = np.append(0, 1 + rng.permutation(n - 1))
            for count in sorted({min(count, n) for count in _COUNTS}):
                some, rest = order[:count], most - count
                groups.append(np.pad(named[some], (0, rest), constant_values=-1))
                signals.append(np.pad(told.signals[some], ((0, rest), (0, 0)), constant_values=math.nan))
                counts.append(np.pad(np.ones(count), (0, rest)))
                right.append(told.right if told.right is not None and told.right in named[some] else -1)
    return _Cases(np.array(groups), np.array(signals), np.array(counts), np.array(right, dtype=np.intp))


def _loss(model: EvidenceModel, cases: _Cases) -> float:
    found = log_beliefs(cases.groups, model.logits(cases.signals), cases.counts, model)
    return -float(np.maximum(found[np.arange(len(found)), cases.right], math.log(1e-12)).mean())


def fit_evidence(questions: Sequence[Told], start: EvidenceModel | None = None) -> EvidenceModel:
    """The model with the least log loss on these questions: bias, slopes and falsehood (not below 0), spread and scatter.

    Which signals it has is that of ``start``. By L-BFGS-B (Byrd et al. 1995), on `log_loss` and a pull towards votes that
    count alike.

    Raises:
        DataError: no questions, or none with a path that is right, or none with one that is wrong.
    """
    from scipy.optimize import minimize  # takes a while to load

    start = start or EvidenceModel()
    verdicts = {group is not None and group == told.right for told in questions for group in told.groups}
    if verdicts != {True, False}:
        raise DataError(
            f"Of the paths of {len(questions)} questions all are wrong, or all are right, or there are none: nothing tells "
            "what their confidence is worth. Give more questions, neither all too hard nor all too easy."
        )
    cases = _cases(questions)
    own, common = list(start.slopes), list(start.common)
    scale = np.nanstd(np.concatenate([told.signals for told in questions]), axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)  # what is always the same says nothing

    def model(at: Floats64) -> EvidenceModel:
        slopes = (at[3:] / scale).tolist()
        return EvidenceModel(
            bias=float(at[0]),
            spread=math.exp(at[1]),
            scatter=math.exp(at[2]),
            slopes=dict(zip(own, slopes, strict=False)),
            common=dict(zip(common, slopes[len(own) :], strict=False)),
            falsehood=slopes[-1],
        )

    def loss(at: Floats64) -> float:
        return _loss(model(at), cases) + _TO_START * float(((at[1:3] - held) ** 2).sum()) + _TO_EVEN * float(at[3:] @ at[3:])

    held = np.log([max(start.spread, 0.01), start.scatter])
    first = np.concatenate([[0.0], held, np.full(len(scale), 0.3)])
    bounds = [(None, None)] * 3 + [(0.0, None)] * len(scale)
    return model(minimize(loss, first, method="L-BFGS-B", bounds=bounds).x)
