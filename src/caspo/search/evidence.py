"""What several paths say about the answer: how probable each answer is, and how many independent paths they amount to.

`belief` is Bayesian. One answer is right: one of those that were stated, or none of them. A path states it with the chance
that its own confidence gives, moved for all paths of a question alike by how hard the question turns out to be; otherwise it
states a wrong answer. Wrong answers agree as guests of a Chinese restaurant do (Aldous 1985): one is given again in
proportion to how often it was, a new one to `scatter`. So five paths that agree outvote one that is sure, paths
that all disagree tell of a hard question, and what nobody has stated keeps its probability. Now and then (`_ELSEWHERE`) the
numbers do not know how hard a question is, and any share of right paths is as likely: so paths that they take for hopeless,
of another model say, vote by majority.

Which path to believe, and whether any, are two questions, and other signals answer the second one (docs/search.md): long
and laborious paths tell of a hard question, and of two paths to one question the longer one is no worse. So a signal may
count path by path (`slopes`), or by its mean over the paths of the question (`common`).

`shares` is for paths that have their beginnings in common. Numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, Field

from caspo.confidence import SIGNALS
from caspo.core.config import Config
from caspo.records import TokenTrace

__all__ = ["Belief", "EvidenceModel", "Origin", "belief", "log_beliefs", "share", "shares"]

Floats64 = NDArray[np.float64]

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
"""Quadrature over how hard a question is: exact for polynomials of degree 17 in it."""

_SHARES, _SHARE_WEIGHTS = np.polynomial.legendre.leggauss(9)
_ANY = np.log1p(_SHARES) - np.log1p(-_SHARES)
_LOG_ANY = np.log(_SHARE_WEIGHTS / 2)
"""The same over the log odds of any share of right paths from 0 to 1, each as likely."""
_ELSEWHERE = 0.05
"""Probability that the numbers say nothing of how hard a question is: a model, a task or a length that they were not fitted
to. Without it, of paths that are all taken for hopeless the rarest answer wins: wrong ones agree sooner than right ones."""

_UNSEEN = 4
"""Answers among which the probability of those that nobody has stated is divided, each against the leading one (LOG.md)."""

_NEVER = -700.0
"""Log odds of what cannot be right, finite."""

_NUMBERS = "numbers."
_LENGTH = "length"


def _known_signal(name: str) -> str:
    if name != _LENGTH and name.removeprefix(_NUMBERS) not in SIGNALS:
        raise ValueError(
            f"no signal of a path is called {name!r}; choose of {_LENGTH}, {', '.join(SIGNALS)}, or of {_NUMBERS}* of these"
        )
    return name


Slopes: TypeAlias = dict[Annotated[str, AfterValidator(_known_signal)], float]
"""By the name of a signal of a path: log odds for each unit of it."""


class EvidenceModel(Config):
    """What the confidence of paths is worth. The numbers here are those of Qwen2.5-Coder-0.5B on GSM8K and MultiArith
    (docs/search.md)."""

    bias: float = 0.95
    """Log odds that a path is right whose signals are all 0."""
    slopes: Slopes = Field(default_factory=lambda: {"entropy": 7.8, f"{_NUMBERS}entropy": 9.2})
    """What they rise by, for each unit of a signal of the path: one of `caspo.confidence.SIGNALS`; of ``numbers.`` and such
    a one, that of its tokens with a digit alone, where it has any; ``length``, minus the number of its tokens."""
    common: Slopes = Field(default_factory=lambda: {_LENGTH: 0.0})
    """What they rise by for all paths of a question, for each unit of the mean of a signal over these. How long is long
    differs too much between tasks and models to come with a number: `caspo calibrate` finds yours."""
    falsehood: float = Field(1.8, ge=0)
    """What they fall by if the path states an equation that is false beyond doubt, where equations are checked."""
    spread: float = Field(1.5, ge=0)
    """Standard deviation over questions of what else all paths of one have in common, in log odds."""
    scatter: float = Field(5.7, gt=0)
    """Concentration of wrong answers: paths are about 1 / (1 + scatter) likely to err alike the first time."""

    def signals(self, trace: TokenTrace, pieces: Sequence[bytes], *, false: bool, whole: bool) -> list[float]:
        """What a path's log odds are made of: the signals of `slopes`, of `common`, and whether it states a falsehood.

        Args:
            trace: of its T >= 1 tokens.
            pieces: the bytes of these.
            false: whether it states a false equation.
            whole: whether it was let go on to its end; where not, it says nothing of what is common (NaN).
        """
        own = [_signal(name, trace, pieces) for name in self.slopes]
        common = [_signal(name, trace, pieces) if whole else math.nan for name in self.common]
        return [*own, *common, float(false)]

    def logits(self, signals: ArrayLike) -> Floats64:
        """(..., n) log odds that each of a question's paths is right, by their (..., n, S) `signals`.

        NaN where a path has none leaves it out of what the paths have in common. A row of NaN is a path without tokens: it
        is taken to be wrong.
        """
        rows = np.asarray(signals, dtype=np.float64)
        ends = len(self.slopes), len(self.slopes) + len(self.common)
        own, common, false = np.split(rows, ends, axis=-1)
        known = ~np.isnan(common)
        mean = np.where(known, common, 0.0).sum(-2, keepdims=True) / np.maximum(1, known.sum(-2, keepdims=True))
        logits = self.bias + own @ np.array(list(self.slopes.values()), dtype=np.float64)
        logits = logits + mean @ np.array(list(self.common.values()), dtype=np.float64) - self.falsehood * false[..., 0]
        return np.where(np.isnan(logits), -np.inf, logits)


def _signal(name: str, trace: TokenTrace, pieces: Sequence[bytes]) -> float:
    if name == _LENGTH:
        return -float(len(trace))
    if not name.startswith(_NUMBERS):
        return SIGNALS[name](trace)
    digits = np.array([any(48 <= byte <= 57 for byte in piece) for piece in pieces], dtype=bool)
    return SIGNALS[name.removeprefix(_NUMBERS)](trace[digits] if digits.any() else trace)


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

        The next best may be one that nobody has stated: what is left for these is counted as that of `_UNSEEN` answers.
        """
        if self.leader is None:
            return 0.0
        first, *others = sorted(self.right.values(), reverse=True)
        return first / (first + max([*others, self.unseen / _UNSEEN]))


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
    answers = list(dict.fromkeys(group for group in groups if group is not None))
    told = np.array([-1 if group is None else answers.index(group) for group in groups], dtype=np.intp)
    counts = np.ones(len(told)) if share is None else np.asarray(share, dtype=np.float64)
    chances = np.exp(log_beliefs(told[None], np.asarray(logits, dtype=np.float64)[None], counts[None], model)[0])
    return Belief(dict(zip(answers, chances.tolist(), strict=False)), float(chances[-1]))


def log_beliefs(groups: NDArray[np.intp], logits: Floats64, counts: Floats64, model: EvidenceModel) -> Floats64:
    """`belief` of B questions at once: (B, A + 1) log probabilities of their answers, and that none of these is right.

    Args:
        groups: (B, n) from 0 to A - 1; -1 for a path that states no answer.
        logits: (B, n).
        counts: (B, n) of an independent path that each is; 0 for one that is not there.
        model: how hard questions differ, and how wrong answers scatter.
    """
    finite = np.isfinite(logits)
    odds, known = np.where(finite, logits, _NEVER), counts * finite
    level = (known * odds).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1e-9)
    moved = odds[..., None] + model.spread * _NODES, (odds - level)[..., None] + _ANY
    odds = np.concatenate(moved, axis=2)  # (B, n, nodes)
    wrong = -(np.logaddexp(0.0, odds) * counts[..., None]).sum(1)
    states = (groups[..., None] == np.arange(groups.max(initial=-1) + 1)) * counts[..., None]  # (B, n, A)
    sizes = states.sum(1)
    gain = states.swapaxes(1, 2) @ odds  # what a path's being right adds to its being wrong
    weights = np.append(_LOG_WEIGHTS + math.log1p(-_ELSEWHERE), _LOG_ANY + math.log(_ELSEWHERE))
    told = np.concatenate([wrong[:, None] + gain, wrong[:, None]], axis=1) + weights
    logs = np.logaddexp.reduce(told, axis=2) + _seating(sizes, model.scatter)
    logs[:, :-1][sizes == 0] = -np.inf
    return np.asarray(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))


_lgamma = np.vectorize(math.lgamma, otypes=[np.float64])


def _seating(sizes: Floats64, scatter: float) -> Floats64:
    """(B, A + 1) log probabilities that a Chinese restaurant process seats its guests at tables of these (B, A) sizes, each
    of them left out in turn, and none."""
    taken = sizes > 0
    tables = np.where(taken, _lgamma(np.where(taken, sizes, 1.0)) + math.log(scatter), 0.0)
    guests = sizes.sum(1, keepdims=True) - np.append(sizes, np.zeros((len(sizes), 1)), axis=1)
    seated = tables.sum(1, keepdims=True) - np.append(tables, np.zeros((len(sizes), 1)), axis=1)
    return np.asarray(seated + math.lgamma(scatter) - _lgamma(scatter + guests))


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
