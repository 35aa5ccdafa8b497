"""How well a score works as a probability of being right, and the map that makes it one. Numpy only.

`ece`, `brier` and `reliability` measure; `fit` makes a `Calibrator` from held-out steps, `calibrator.json` keeps it
beside the model. What is not here: ranking (`statistics.auroc`), which no calibrator changes but for ties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caspo.core.errors import ConfigError, DataError
from caspo.core.storage import read_json, write_json

__all__ = ["Calibrator", "ReliabilityBin", "brier", "ece", "equal_width_bin", "fit", "reliability"]

Floats64 = NDArray[np.float64]
BinKind = Literal["width", "mass"]
CalibratorKind = Literal["isotonic", "platt"]

SCHEMA = 1


class ReliabilityBin(NamedTuple):
    """One bin of a reliability diagram: rows whose probability lies between ``low`` and ``high``."""

    low: float
    high: float
    n: float
    """Rows (or their weight) in the bin; 0 leaves the two means None."""
    confidence: float | None
    """Mean probability in the bin."""
    accuracy: float | None
    """Share of right rows in the bin."""


def reliability(
    prob: ArrayLike, label: ArrayLike, bins: int = 10, kind: BinKind = "width", weights: ArrayLike | None = None
) -> list[ReliabilityBin]:
    """Confidence against accuracy in bins of equal width over [0, 1], or of equal mass (quantiles; ties stay together).

    With equal width every bin is returned, the empty ones with n = 0; with equal mass only bins that hold rows.

    Args:
        prob: (n,) probabilities of being right, in [0, 1].
        label: (n,) of 0/1.
        bins: number of bins.
        kind: ``width`` or ``mass``.
        weights: (n,) non-negative.

    Raises:
        DataError: empty input, NaN, probabilities outside [0, 1], labels other than 0/1, lengths that differ.
    """
    values, right, mass = _checked(prob, label, weights)
    _in_unit_interval(values)
    if bins < 1 or kind not in ("width", "mass"):
        raise ConfigError(f"bins must be at least 1 and kind 'width' or 'mass', got {bins} and {kind!r}.")
    edges = np.linspace(0.0, 1.0, bins + 1)
    if kind == "mass":
        inner = np.quantile(values, edges[1:-1], method="inverted_cdf", weights=mass)
        inner = np.unique(inner[(inner > 0.0) & (inner < values[mass > 0].max())])
        edges = np.concatenate(([0.0], inner, [1.0]))
        of = np.searchsorted(edges[1:-1], values, side="left")
    else:
        of = equal_width_bin(values, bins)
    count = len(edges) - 1
    n = np.bincount(of, weights=mass, minlength=count)
    confidence = np.bincount(of, weights=mass * values, minlength=count)
    accuracy = np.bincount(of, weights=mass * right, minlength=count)
    return [
        ReliabilityBin(float(low), float(high), float(size), float(c / size), float(a / size))
        if size > 0
        else ReliabilityBin(float(low), float(high), 0.0, None, None)
        for low, high, size, c, a in zip(edges[:-1], edges[1:], n, confidence, accuracy, strict=True)
        if size > 0 or kind == "width"
    ]


def equal_width_bin(prob: Floats64, bins: int) -> NDArray[np.intp]:
    """Which of ``bins`` bins of equal width over [0, 1] each probability (n,) is in.

    Right-open but for the last bin, as in Guo et al. 2017 up to the side of the edge; 1.0 joins the last one.
    """
    return np.minimum((prob * bins).astype(np.intp), bins - 1)


def ece(
    prob: ArrayLike, label: ArrayLike, bins: int = 10, kind: BinKind = "width", weights: ArrayLike | None = None
) -> float:
    """Expected calibration error: mean of |confidence - accuracy| over the bins, by their mass (Guo et al. 2017).

    Biased upwards for small n: a perfectly calibrated score of n rows has about sqrt(bins / n) times 0.3 of it.
    Arguments and errors as in `reliability`.
    """
    found = reliability(prob, label, bins, kind, weights)
    gaps = [b.n * abs(b.confidence - b.accuracy) for b in found if b.confidence is not None and b.accuracy is not None]
    return sum(gaps) / sum(b.n for b in found)


def brier(prob: ArrayLike, label: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared difference of probability and outcome (Brier 1950); errors as in `reliability`."""
    values, right, mass = _checked(prob, label, weights)
    _in_unit_interval(values)
    return float(np.average((values - right) ** 2, weights=mass))


@dataclass(frozen=True)
class Calibrator:
    """A monotone map from a score to the probability of being right.

    ``isotonic``: ``x`` (K,) strictly rising scores and ``y`` (K,) probabilities, never falling; between two knots
    linear, outside constant. The knots are the ends of the blocks of pool-adjacent-violators, so the map equals the PAV
    fit on every training score (as scikit-learn's does) and blocks stay flat.

    ``platt``: ``y = 1 / (1 + exp(-(slope * score + intercept)))``, with ``x = (slope, intercept)`` and no ``y``. Its
    slope is never negative.
    """

    kind: CalibratorKind
    signal: str
    """Which score it was fitted on; the caller compares, a calibrator of one signal is wrong for another."""
    n: int
    """Rows it was fitted on."""
    x: tuple[float, ...]
    y: tuple[float, ...] = ()

    def predict(self, scores: ArrayLike) -> Floats64:
        """Probabilities in [0, 1], same shape as ``scores``.

        Raises:
            DataError: NaN scores.
        """
        values = np.asarray(scores, dtype=np.float64)
        if np.isnan(values).any():
            raise DataError("a score to calibrate is NaN. Score the step again; do not replace it by a number.")
        if self.kind == "platt":
            return _sigmoid(self.x[0] * values + self.x[1])
        return np.asarray(np.clip(np.interp(values, self.x, self.y), 0.0, 1.0), dtype=np.float64)

    def save(self, path: Path, **extra: Any) -> None:
        """Write ``calibrator.json`` atomically; ``extra`` (a date, a model name) is kept in the file for people."""
        write_json(path, {**extra, "schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Calibrator:
        """Read ``calibrator.json``.

        Raises:
            DataError: missing, truncated, of another schema, or not a monotone map into [0, 1].
        """
        raw = read_json(path)
        advice = "Fit it again with `caspo calibrate`."
        if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA:
            raise DataError(f"{path} is not a calibrator of schema {SCHEMA}. {advice}")
        try:
            x, y = tuple(float(v) for v in raw["x"]), tuple(float(v) for v in raw["y"])
            found = cls(cast(CalibratorKind, raw["kind"]), str(raw["signal"]), int(raw["n"]), x, y)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a complete calibrator ({error!r}). {advice}") from error
        if not _valid(found):
            raise DataError(f"{path} holds no monotone map into [0, 1]: it was edited or damaged. {advice}")
        return found


def fit(
    scores: ArrayLike,
    labels: ArrayLike,
    kind: CalibratorKind = "isotonic",
    weights: ArrayLike | None = None,
    signal: str = "entropy",
) -> Calibrator:
    """Fit a calibrator on held-out steps; never on those it is then measured on.

    Args:
        scores: (n,) finite, higher means more probably right.
        labels: (n,) of 0/1; leave unknown verdicts out.
        kind: ``isotonic`` (any monotone shape; wants some hundred steps) or ``platt`` (two parameters).
        weights: (n,) non-negative, for instance how many equal samples a row stands for.
        signal: the name of the score, kept in the file.

    Raises:
        DataError: empty, NaN, lengths that differ, or only right or only wrong steps.
        ConfigError: no such kind.
    """
    values, right, mass = _checked(scores, labels, weights)
    seen, ruined = values[mass > 0], right[mass > 0]
    if not np.isfinite(seen).all():
        raise DataError("a score is infinite. Clip scores (step_score() does) before calibrating.")
    if ruined.min() == ruined.max():
        only = "right" if ruined.max() else "wrong"
        raise DataError(f"all {ruined.size} steps are {only}: nothing to calibrate on. Judge more, or harder, questions.")
    if kind == "isotonic":
        x, y = _isotonic(seen, ruined, mass[mass > 0])
        return Calibrator(kind, signal, int(seen.size), tuple(x), tuple(y))
    if kind == "platt":
        return Calibrator(kind, signal, int(seen.size), _platt(seen, ruined, mass[mass > 0]))
    raise ConfigError(f"no calibrator is called {kind!r}. Choose 'isotonic' or 'platt'.")


def _isotonic(values: Floats64, right: Floats64, mass: Floats64) -> tuple[Sequence[float], Sequence[float]]:
    """Pool adjacent violators (Ayer et al. 1955): knots (ends of each block) and their heights."""
    levels, of = np.unique(values, return_inverse=True)
    weight = np.bincount(of, weights=mass)
    height = np.bincount(of, weights=mass * right) / weight
    blocks: list[tuple[float, float, int]] = []  # mean, weight, index of the block's last level
    for last, (own, mass_of_level) in enumerate(zip(height.tolist(), weight.tolist(), strict=True)):
        mean, size = own, mass_of_level
        while blocks and blocks[-1][0] >= mean:
            before, size_before, _ = blocks.pop()
            mean = (before * size_before + mean * size) / (size_before + size)
            size += size_before
        blocks.append((mean, size, last))
    x: list[float] = []
    y: list[float] = []
    first = 0
    for mean, _, last in blocks:
        ends = (first,) if first == last else (first, last)
        x += [float(levels[end]) for end in ends]
        y += [min(1.0, max(0.0, mean))] * len(ends)
        first = last + 1
    return x, y


def _platt(values: Floats64, right: Floats64, mass: Floats64) -> tuple[float, float]:
    """Logistic regression on one score with Platt's (1999) smoothed targets, by Newton steps with backtracking.

    The targets (n+ + 1) / (n+ + 2) and 1 / (n- + 2) keep it finite on separable data. A score that ranks the wrong way
    gets slope 0 and the base rate: turning it round would be another signal.
    """
    positive, negative = float(mass[right > 0].sum()), float(mass[right == 0].sum())
    target = np.where(right > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, scale = float(np.average(values, weights=mass)), float(values.std()) or 1.0
    design_N2 = np.stack([(values - centre) / scale, np.ones_like(values)], axis=1)
    weights_2 = np.zeros(2)

    def loss(at: Floats64) -> float:
        z = design_N2 @ at
        return float(np.sum(mass * (np.logaddexp(0.0, z) - target * z)))

    for _ in range(100):
        prob = _sigmoid(design_N2 @ weights_2)
        gradient = design_N2.T @ (mass * (prob - target))
        hessian = (design_N2 * (mass * prob * (1 - prob))[:, None]).T @ design_N2 + 1e-10 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while loss(weights_2 - size * step) > loss(weights_2) and size > 1e-8:
            size /= 2
        weights_2 = weights_2 - size * step
        if float(np.abs(gradient).max()) < 1e-9 * float(mass.sum()):
            break
    slope = float(weights_2[0]) / scale
    if slope <= 0.0:
        base = float(np.average(target, weights=mass))
        return 0.0, math.log(base / (1 - base))
    return slope, float(weights_2[1]) - slope * centre


def _sigmoid(z: Floats64) -> Floats64:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)), dtype=np.float64)


def _valid(found: Calibrator) -> bool:
    x, y = np.asarray(found.x), np.asarray(found.y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return False
    if found.kind == "platt":
        return x.size == 2 and y.size == 0 and bool(x[0] >= 0)
    monotone = bool((np.diff(x) > 0).all() and (np.diff(y) >= 0).all())
    return found.kind == "isotonic" and x.size == y.size > 0 and monotone and bool(((y >= 0) & (y <= 1)).all())


def _in_unit_interval(values: Floats64) -> None:
    if float(values.min()) < 0.0 or float(values.max()) > 1.0:
        raise DataError(
            f"probabilities must be in [0, 1], got {values.min():.6g} to {values.max():.6g}. "
            "Pass step scores or calibrated probabilities, not log-probabilities."
        )


def _checked(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> tuple[Floats64, Floats64, Floats64]:
    """(n,) values, 0/1 labels and weights in float64, n >= 1, no NaN."""
    score, right = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    mass = np.ones(score.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if score.ndim != 1 or not score.shape == right.shape == mass.shape:
        raise DataError(
            f"scores {score.shape}, labels {right.shape}, weights {mass.shape}: give one of each per step, (n,)."
        )
    if score.size == 0:
        raise DataError("there are no judged steps. Annotate some questions first, with a judge that can tell.")
    if np.isnan(score).any() or np.isnan(right).any() or np.isnan(mass).any():
        raise DataError("scores, labels or weights hold NaN. Leave out what was not measured or judged.")
    if not np.isin(right, (0.0, 1.0)).all():
        raise DataError("labels must be 0 or 1 (wrong or right). Leave unknown verdicts out first.")
    if float(mass.min()) < 0.0 or float(mass.sum()) <= 0.0:
        raise DataError("weights must be non-negative and not all 0. They count how often a step was seen.")
    return score, right, mass
