"""Fits an `EvidenceModel` to paths whose answers are known to be right or wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caspo.core.errors import DataError
from caspo.search.evidence import EvidenceModel, belief

__all__ = ["Told", "fit_evidence", "log_loss"]

Floats64 = NDArray[np.float64]

_COUNTS = (1, 2, 4, 8, 16)
"""Of a question's paths the first so many are looked at: the model is to be right about few and about many."""
_PULL = 0.01
"""How strongly the fit is held to where it starts, for each unit of log spread and log scatter: few questions say little of
them."""


class Told(NamedTuple):
    """The paths of one question, in the order in which they were drawn."""

    groups: Sequence[int | None]
    """(n,) of the answer of each path, as `belief` has it."""
    signals: Floats64
    """(n, S) of each path, in the order of the model's ``slopes`` (`EvidenceModel.signals`)."""
    right: int | None
    """The group of the right answer; None if no path states it."""


def log_loss(model: EvidenceModel, questions: Sequence[Told]) -> float:
    """Minus the mean log probability of what turned out to be right, nats, after 1, 2, 4, ... paths of each question."""
    slopes = np.array(list(model.slopes.values()))
    losses = []
    for told in questions:
        logits = model.bias + told.signals @ slopes
        for count in sorted({min(count, len(logits)) for count in _COUNTS}):
            groups = told.groups[:count]
            found = belief(groups, logits[:count].tolist(), model)
            chance = found.right[told.right] if told.right is not None and told.right in groups else found.unseen
            losses.append(-math.log(max(chance, 1e-12)))
    return float(np.mean(losses))


def fit_evidence(questions: Sequence[Told], start: EvidenceModel | None = None) -> EvidenceModel:
    """The model with the least log loss on these questions: bias, slopes (not below 0), spread and scatter.

    By Nelder and Mead's simplex (1965); some hundred evaluations of all questions.

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
    names = list(start.slopes)
    scale = np.concatenate([told.signals for told in questions]).std(axis=0) + 1e-9

    def model(at: Floats64) -> EvidenceModel:
        slopes = {name: abs(float(value)) for name, value in zip(names, at[3:] / scale, strict=True)}
        return EvidenceModel(bias=float(at[0]), spread=math.exp(at[1]), scatter=math.exp(at[2]), slopes=slopes)

    def loss(at: Floats64) -> float:
        return log_loss(model(at), questions) + _PULL * float(((at[1:3] - first[1:3]) ** 2).sum())

    slopes = np.array([start.slopes[name] for name in names]) * scale
    first = np.array([start.bias, math.log(max(start.spread, 0.01)), math.log(start.scatter), *slopes])
    simplex = np.stack([first, *(first + 0.5 * np.eye(len(first)))])
    found = minimize(loss, first, method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-4})
    return model(found.x)
