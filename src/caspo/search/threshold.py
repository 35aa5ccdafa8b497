"""Thresholds with a guarantee, chosen on held-out questions: where CaT prunes, and where it withholds its answer.

Both guarantees need no model of the confidence; they need questions that are exchangeable with those to come: drawn alike
and asked alike. Questions that the model saw in training (a public training split) are answered better than new ones.

- `choose_pruning`: a new question that has a right path loses its last one to pruning with a probability of at most alpha,
  on average over the questions it was chosen on, all of which have one (conformal risk control, Angelopoulos et al. 2022,
  arXiv 2208.02814).
- `choose_abstention`: with a probability of at least 1 - delta over the answers it was chosen on, at most a share alpha
  of the answers that are given is wrong (fixed-sequence testing of Learn then Test, Angelopoulos et al. 2021,
  arXiv 2110.01052). Its grid must come from other questions than those answers: `abstention_grid`.

Both hold for the search as it was set when its answers were calibrated. Numpy only; `caspo.loop.thresholds` runs the search.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caspo.core.errors import ConfigError, DataError
from caspo.core.storage import read_json, write_json

__all__ = [
    "AbstentionTest", "PruningRisk", "Thresholds", "abstention_grid", "answers_needed", "choose_abstention",
    "choose_pruning", "questions_needed",
]  # fmt: skip

Floats64 = NDArray[np.float64]

SCHEMA = 4

_LEVELS = 20
"""Thresholds that abstention tries. More of them are finer, and each is one more test that may end the sequence."""


class PruningRisk(NamedTuple):
    """What pruning below one threshold cost."""

    below: float
    lost: int
    """Questions that lost their last right path here or at a lower threshold of the grid."""
    bound: float
    """(lost + 1) / (n + 1): what is held against alpha."""


class AbstentionTest(NamedTuple):
    """One test of "more than alpha of the answers with this confidence or more are wrong"."""

    below: float
    kept: int
    wrong: int
    p: float
    """The chance of so few wrong ones, or fewer, if a share alpha were wrong; rejected at delta or less."""


def choose_pruning(grid: Sequence[float], found: ArrayLike, alpha: float) -> tuple[float, list[PruningRisk]]:
    """The largest threshold whose risk is under control, and the risk at every threshold of the grid.

    A question's loss at t is 1 if the search reached the right answer without pruning (t = 0) and did not at t. A search
    that prunes more may by chance find what one that prunes less did not; conformal risk control wants losses that never
    fall as t rises, so each is replaced by its maximum up to t, which is no less. Then for the largest t with
    ``(sum of losses + 1) / (n + 1) <= alpha`` the expected loss of one more question is at most alpha. That t exists: no
    question loses anything at 0.

    Args:
        grid: (K,) rising thresholds, the first one 0, settled before the questions were looked at.
        found: (n, K) of 0/1: whether the search of question i finished a path with the right answer at threshold k.

    Raises:
        DataError: too few questions for this alpha (it says how many are needed), or not 0/1.
        ConfigError: alpha outside (0, 1), or a grid that does not rise from 0.
    """
    needed = questions_needed(alpha)
    if not len(grid) or grid[0] != 0 or not (np.diff(grid) > 0).all():
        raise ConfigError(f"the thresholds to try must rise from 0 (no pruning), got {list(grid)}.")
    reached = np.asarray(found, dtype=np.float64)
    if reached.size and (reached.ndim != 2 or reached.shape[1] != len(grid) or not np.isin(reached, (0.0, 1.0)).all()):
        raise DataError(
            f"one 0 or 1 is needed for each question and each of the {len(grid)} thresholds, got an array of shape "
            f"{reached.shape}. Search again what was not measured."
        )
    n = len(reached)
    if n < needed:
        raise DataError(
            f"{n} questions are too few to choose a pruning threshold at alpha {alpha:g}: even if none lost its right path, "
            f"the bound 1 / (n + 1) would be over it. At least {needed} are needed; ask for more, or for a higher alpha."
        )
    loss_NK = np.maximum.accumulate(reached[:, :1] - reached, axis=1)  # 0 at first, so what is found late is no gain
    lost = [int(total) for total in loss_NK.sum(axis=0)]
    risks = [PruningRisk(float(t), total, (total + 1) / (n + 1)) for t, total in zip(grid, lost, strict=True)]
    return max(risk.below for risk in risks if risk.bound <= alpha), risks


def questions_needed(alpha: float) -> int:
    """The smallest n with 1 / (n + 1) <= alpha: ceil(1 / alpha) - 1 but for rounding."""
    _probability(alpha=alpha)
    return next(n for n in count(max(1, int(1 / alpha) - 2)) if 1 / (n + 1) <= alpha)


def abstention_grid(confidence: ArrayLike, right: ArrayLike, alpha: float) -> list[float]:
    """Thresholds for `choose_abstention` to try, from strict to lenient, the last one 0 (every answer is given).

    They are quantiles of ``confidence`` (n,) of answers to *other* questions than those that will be tested, from the one
    on at which these answers speak most clearly against a risk of alpha. A sequence from the strictest one on would
    mostly end at once: so few answers are kept there that one wrong one among them is too many, and none may be too few.
    To look at the answers that are tested for a better start, even at their confidences only, would make their number
    above it depend on them, and the tests inexact; so others are looked at.

    Raises:
        DataError, ConfigError: as in `choose_abstention`.
    """
    _probability(alpha=alpha)
    score, label = _answers(confidence, right)
    ranks = np.linspace(1, score.size, _LEVELS).round().astype(np.intp) - 1
    levels = sorted({*np.sort(score)[::-1][ranks].tolist(), 0.0}, reverse=True) if score.size else [0.0]
    tests = [_test(t, score, label, alpha) for t in levels]
    return levels[tests.index(min(tests, key=lambda test: test.p)) :]


def choose_abstention(
    grid: Sequence[float], confidence: ArrayLike, right: ArrayLike, alpha: float, delta: float
) -> tuple[float | None, list[AbstentionTest]]:
    """The most lenient threshold that is shown to keep the risk, and the tests up to where they ended.

    The risk at t is the probability that an answer is wrong, given that its confidence is t or more; it need not fall as t
    rises. So each threshold in turn, from strict to lenient, is tested against "the risk is over alpha": of the
    answers it keeps, the wrong ones are then binomial, and the chance of as few as there are is at most that for alpha
    itself (Clopper and Pearson 1934, one-sided). The first threshold at which this chance is over delta ends the sequence;
    the one before is taken. For it to be wrong, the first in the sequence with a risk over alpha must have been rejected:
    a probability of at most delta, however many are tested.

    Args:
        grid: falling thresholds that do not depend on these answers (`abstention_grid`).
        confidence: (n,) in [0, 1], of the questions that were answered.
        right: (n,) of 0/1.

    Returns:
        None as the threshold if not even the strictest one passes: the answers are wrong too often for this alpha.

    Raises:
        DataError: too few answers for this alpha and delta (it says how many are needed), NaN, values out of range.
        ConfigError: alpha or delta outside (0, 1), or a grid that does not fall.
    """
    needed = answers_needed(alpha, delta)
    if not len(grid) or not (np.diff(grid) < 0).all():
        raise ConfigError(f"the thresholds to try must fall, from strict to lenient, got {list(grid)}.")
    score, label = _answers(confidence, right)
    if score.size < needed:
        raise DataError(
            f"{score.size} answers are too few to choose a threshold for abstention at alpha {alpha:g} and delta {delta:g}: "
            f"even if all were right, that could be luck. At least {needed} are needed; ask for more, or for a higher alpha."
        )
    tests: list[AbstentionTest] = []
    for t in grid:
        tests.append(_test(t, score, label, alpha))
        if tests[-1].p > delta:
            break
    passed = [test.below for test in tests if test.p <= delta]
    return (passed[-1] if passed else None), tests


def answers_needed(alpha: float, delta: float) -> int:
    """The smallest m with (1 - alpha)^m <= delta: so many answers, all of them right, show a risk of at most alpha."""
    _probability(alpha=alpha, delta=delta)
    about = int(math.log(delta) / math.log1p(-alpha))
    return next(m for m in count(max(1, about)) if _binomial_tail(0, m, alpha) <= delta)


@dataclass(frozen=True)
class Thresholds:
    """What `caspo calibrate` found, kept beside the model as ``thresholds.json``."""

    model: Mapping[str, str]
    """What decides which texts are written and where their steps end: the model's name, engine, dtype, instruction and rule
    for steps; ``weights``, the digest of its files, but of a server's model; a fingerprint of the examples in the prompt
    where there are any. With others nothing is guaranteed."""
    settings: Mapping[str, Any]
    """Settings of the search, all but the two thresholds: also the evidence. With others nothing is guaranteed."""
    prune_below: float
    abstain_below: float | None
    """None: no threshold was shown to keep the risk of a wrong answer."""
    alpha: float
    """The risk: of losing the last right path, and of a wrong one among the answers given."""
    delta: float
    """The probability that the risk of a wrong answer is higher all the same."""
    n_evidence: int
    """Questions that the evidence in ``settings`` was fitted on; 0 where it was given."""
    n_pruning: int
    """Other questions that chose ``prune_below``: those with a right path when nothing is pruned."""
    n_abstention: int
    """Still other questions, answered with that, that chose ``abstain_below``; those without an answer are not counted."""
    lost: float
    """Share of those that chose ``prune_below`` that lost their last right path."""
    kept: float | None
    """Share of those that chose ``abstain_below`` whose answer is given; None without a threshold."""
    wrong: float | None
    """Share of wrong ones among these."""
    date: str
    """YYYY-MM-DD."""

    def save(self, path: Path) -> None:
        """Write ``thresholds.json`` atomically."""
        write_json(path, {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Thresholds:
        """Read ``thresholds.json``.

        Raises:
            DataError: missing, truncated, of another schema, or with values out of range.
        """
        raw = read_json(path)
        advice = "Make it again with `caspo calibrate`."
        if not isinstance(raw, Mapping) or raw.get("schema") != SCHEMA:
            raise DataError(f"{path} holds no thresholds of schema {SCHEMA}. {advice}")
        try:
            found = cls(**{key: value for key, value in raw.items() if key != "schema"})
            datetime.date.fromisoformat(found.date)
            valid = _valid(found)
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} does not hold complete thresholds ({error}). {advice}") from error
        if not valid:
            raise DataError(f"{path} holds values out of their range: it was edited or damaged. {advice}")
        return found


def _valid(found: Thresholds) -> bool:
    abstention = [share for share in (found.abstain_below, found.kept, found.wrong) if share is not None]
    return (
        all(0 <= share <= 1 for share in (found.prune_below, found.lost, *abstention))
        and len(abstention) in (0, 3)
        and all(0 < probability < 1 for probability in (found.alpha, found.delta))
        and min(found.n_pruning, found.n_abstention) > 0
        and found.n_evidence >= 0
        and isinstance(found.model, Mapping)
        and found.model.keys() - {"base", "examples", "weights"} == {"name", "engine", "dtype", "instruction", "steps"}
        and ("weights" in found.model) == (found.model["engine"] != "openai_compatible")
        and isinstance(found.settings, Mapping)
    )


def _test(t: float, score: Floats64, label: Floats64, alpha: float) -> AbstentionTest:
    kept = label[score >= t]
    wrong = int((kept == 0).sum())
    return AbstentionTest(float(t), kept.size, wrong, _binomial_tail(wrong, kept.size, alpha))


def _binomial_tail(k: int, n: int, p: float) -> float:
    """P(X <= k) for X binomial of n trials with probability ``p`` in (0, 1)."""
    from scipy.special import bdtr

    return float(bdtr(k, n, p))


def _probability(**named: float) -> None:
    for name, value in named.items():
        if not 0 < value < 1:
            raise ConfigError(f"{name} is a probability between 0 and 1, got {value}.")


def _answers(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats64, Floats64]:
    """(n,) confidences in [0, 1] and (n,) of 0/1, checked."""
    score, label = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if score.ndim != 1 or not ((score >= 0) & (score <= 1)).all():
        raise DataError(
            f"the confidence of every answer must be in [0, 1], one number each (n,); got an array of shape {score.shape}"
            f"{', with NaN' if np.isnan(score).any() else ''}. Leave out questions without an answer."
        )
    if label.shape != score.shape or not np.isin(label, (0.0, 1.0)).all():
        raise DataError(
            f"one 0 or 1 (wrong or right) is needed for each of the {score.size} answers, got an array of shape "
            f"{label.shape}. Leave out what could not be graded."
        )
    return score, label
