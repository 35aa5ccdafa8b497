"""What several paths say about the answer: how probable each answer is, and how many independent paths they amount to.

`belief` is Bayesian. One answer is right: one of those that were stated, or none of them. A path states it with the chance
that its own confidence gives, moved for all paths of a question alike by how hard the question turns out to be; otherwise it
states a wrong answer. Wrong answers agree as guests of a Chinese restaurant do (Aldous 1985): one is given again in
proportion to how often it was, a new one to `scatter`. So five paths that agree outvote one that is sure, paths
that all disagree tell of a hard question, and what nobody has stated keeps its probability.

`shares` is for paths that have their beginnings in common. Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from caspo.confidence import SIGNALS
from caspo.core.config import Config
from caspo.records import TokenTrace

__all__ = ["Belief", "EvidenceModel", "Origin", "belief", "share", "shares"]

Floats64 = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
"""Quadrature over how hard a question is: exact for polynomials of degree 17 in it."""


_NUMBERS = "numbers."


def _known_signal(name: str) -> str:
    if name.removeprefix(_NUMBERS) not in SIGNALS:
        raise ValueError(
            f"no confidence signal is called {name!r}; choose of {', '.join(SIGNALS)}, or of {_NUMBERS}* of these"
        )
    return name


class EvidenceModel(Config):
    """What the confidence of paths is worth. The numbers here are those of Qwen2.5-Coder-0.5B on GSM8K (docs/search.md)."""

    bias: float = 1.2
    """Log odds that a path is right that is certain of every token (signals 0)."""
    slopes: dict[Annotated[str, AfterValidator(_known_signal)], float] = Field(
        default_factory=lambda: {"entropy_sum": 0.035, "numbers.entropy": 9.3}
    )
    """What they rise by, for each unit of a signal of the path (`caspo.confidence.SIGNALS`); of ``numbers.`` and a signal,
    that of its tokens with a digit alone, where it has any: what the others leave open is mostly wording."""
    spread: float = Field(1.3, ge=0)
    """Standard deviation over questions of what all paths of one have in common, in log odds."""
    scatter: float = Field(3.0, gt=0)
    """Concentration of wrong answers: paths are about 1 / (1 + scatter) likely to err alike the first time."""

    def signals(self, trace: TokenTrace, pieces: Sequence[bytes]) -> list[float]:
        """What `slopes` are of, in their order; ``pieces`` are the bytes of the path's T >= 1 tokens."""
        digits = np.array([any(48 <= byte <= 57 for byte in piece) for piece in pieces], dtype=bool)
        numbers = trace[digits] if digits.any() else trace
        return [
            SIGNALS[name.removeprefix(_NUMBERS)](numbers if name.startswith(_NUMBERS) else trace) for name in self.slopes
        ]

    def logit(self, trace: TokenTrace, pieces: Sequence[bytes]) -> float:
        """Log odds that a path is right, by its own confidence alone."""
        found = self.signals(trace, pieces)
        return self.bias + sum(slope * signal for slope, signal in zip(self.slopes.values(), found, strict=True))


class Belief(NamedTuple):
    """How probable it is that each answer is the right one."""

    right: Mapping[int, float]
    """By the group of equal answers; groups in the order in which they came."""
    unseen: float
    """That none of them is."""

    @property
    def leader(self) -> int | None:
        """The most probable group, on a tie the one that came first; None without any."""
        return max(self.right, key=lambda group: self.right[group], default=None)

    @property
    def lead(self) -> float:
        """Probability of the leading answer, given that it or the next best one is right; 0 without any answer.

        Where one answer is all there is, one that nobody has stated is the next best.
        """
        if self.leader is None:
            return 0.0
        first, *others = sorted(self.right.values(), reverse=True)
        return first / (first + (others[0] if others else self.unseen))


def belief(
    groups: Sequence[int | None], logits: Sequence[float], model: EvidenceModel, share: Sequence[float] | None = None
) -> Belief:
    """The probability of each answer after n paths.

    Args:
        groups: (n,) of the answer of each path, equal numbers for equal answers; None for a path that states none, which is
            taken for a wrong one that agrees with nobody.
        logits: (n,) log odds that each path is right, by its own confidence.
        model: how hard questions differ, and how wrong answers scatter.
        share: (n,) of an independent path that each is (`shares`); 1 by default.
    """
    counts = np.ones(len(groups)) if share is None else np.asarray(share, dtype=np.float64)
    odds = np.asarray(logits, dtype=np.float64)[None, :] + model.spread * _NODES[:, None]
    says_right = -np.logaddexp(0.0, -odds) * counts
    says_wrong = -np.logaddexp(0.0, odds) * counts
    answers = list(dict.fromkeys(group for group in groups if group is not None))
    sizes = {answer: float(sum(c for c, group in zip(counts, groups, strict=True) if group == answer)) for answer in answers}
    logs = []
    for answer in (*answers, None):
        agrees = np.array([answer is not None and group == answer for group in groups], dtype=bool)
        told = (says_right[:, agrees].sum(axis=1) + says_wrong[:, ~agrees].sum(axis=1)) + _LOG_WEIGHTS
        wrong = [sizes[other] for other in answers if other != answer]
        logs.append(float(np.logaddexp.reduce(told)) + _seating(wrong, model.scatter))
    chances = np.exp(np.array(logs) - np.logaddexp.reduce(logs))
    return Belief(dict(zip(answers, chances.tolist(), strict=False)), float(chances[-1]))


def _seating(sizes: Sequence[float], scatter: float) -> float:
    """Log probability that a Chinese restaurant process seats its guests at tables of these sizes."""
    guests = sum(sizes)
    if guests == 0:
        return 0.0
    tables = len(sizes) * math.log(scatter) + sum(math.lgamma(size) for size in sizes)
    return tables + math.lgamma(scatter) - math.lgamma(scatter + guests)


class Origin(NamedTuple):
    """Where a path was begun."""

    path: int | None = None
    """The path that it leaves; None for a beginning of its own."""
    at: int = 0
    """Tokens that it shares with that one."""


def shares(origins: Sequence[Origin]) -> list[float]:
    """How much of an independent path each path is: its `share` at its end.

    The sum is the number of beginnings, and a vote with these weights is an unbiased estimate of what independent paths
    would vote (nested sampling).
    """
    return [share(origins, path) for path in range(len(origins))]


def share(origins: Sequence[Origin], path: int, at: float = math.inf) -> float:
    """How much of an independent path a path is, after ``at`` tokens of it.

    A beginning of its own is one. Where others leave it, what it is there is divided among it and them: they tell more of
    what follows that place, and nothing new of what stands before.
    """
    origin = origins[path]
    found = 1.0
    if origin.path is not None:
        found = share(origins, origin.path, origin.at) / (1 + origins.count(origin))
    for place in {other.at for other in origins if other.path == path and other.at < at}:
        found /= 1 + origins.count(Origin(path, place))
    return found
