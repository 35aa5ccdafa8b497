"""Every figure of a resample is the plain figure of the rows gathered one by one; resamples are those of `bootstrap_ci`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from caspo.confidence.calibration import brier, ece
from caspo.evaluate import resampling
from caspo.evaluate.estimates import auroc, bootstrap_ci, pairs_won, sibling_pairs
from caspo.evaluate.resampling import Draws, draw_questions, resampled_auroc, resampled_gaps, resampled_ratio

Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Columns of n rows."""

    scores: Floats
    right: NDArray[np.bool_]
    weights: Floats
    question: NDArray[np.intp]

    def gathered(self, draw: NDArray[np.uint8]) -> Rows:
        """The rows as often as their question was drawn."""
        at = np.repeat(np.arange(len(self.scores)), draw[self.question])
        return Rows(*(column[at] for column in self))


def made(seed: int, questions: int, n: int, levels: int = 40) -> Rows:
    """Rows in random order; scores in [0, 1] with ties, of some use; question 0 and others may have no row."""
    rng = np.random.default_rng(seed)
    question = rng.integers(0, questions, n)
    right = rng.random(n) < rng.beta(2, 1, questions)[question]
    scores = np.round(np.clip(rng.normal(0.4 + 0.2 * right, 0.2), 0, 1) * levels) / levels
    return Rows(scores, right, rng.integers(0, 5, n).astype(float), question)


def auroc_of(rows: Rows) -> float | None:
    return auroc(rows.scores, rows.right, rows.weights)


def ece_of(rows: Rows) -> float | None:
    return ece(rows.scores, rows.right, weights=rows.weights) if rows.weights.sum() else None


def brier_of(rows: Rows) -> float | None:
    return brier(rows.scores, rows.right, rows.weights) if rows.weights.sum() else None


def resampled_brier(rows: Rows, draws: Draws) -> Floats:
    loss = rows.weights * (rows.scores - rows.right) ** 2
    return resampled_ratio(loss, rows.weights, rows.question, draws)


FIGURES: dict[str, tuple[Callable[[Rows], float | None], Callable[[Rows, Draws], Floats]]] = {
    "auroc": (auroc_of, lambda rows, draws: resampled_auroc(*rows, draws)),
    "ece": (ece_of, lambda rows, draws: np.abs(resampled_gaps(*rows, draws)).sum(axis=1)),
    "brier": (brier_of, resampled_brier),
}


@pytest.mark.parametrize("name", FIGURES)
@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 40), st.sampled_from([2, 5, 40]))
def test_a_resample_is_its_gathered_rows(name: str, seed: int, questions: int, n: int, levels: int) -> None:
    """With ties, weights (0 too), rows in any order, questions without rows, and resamples without a figure."""
    plain, resampled = FIGURES[name]
    rows, draws = made(seed, questions, n, levels), draw_questions(questions, seed, n_boot=8)
    found = resampled(rows, draws)
    assert found.shape == (8,)
    for figure, draw in zip(found, draws, strict=True):
        expected = plain(rows.gathered(draw))
        assert figure == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)
    (whole,) = resampled(rows, np.ones((1, questions), dtype=np.uint8))
    of_all = plain(rows)
    assert whole == pytest.approx(np.nan if of_all is None else of_all, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", FIGURES)
def test_resamples_are_those_of_the_naive_bootstrap(name: str) -> None:
    """The same seed draws the same questions; every question has rows, as `bootstrap_ci` knows no others."""
    plain, resampled = FIGURES[name]
    rows = made(3, 60, 600)
    assert len(np.unique(rows.question)) == 60
    table = np.column_stack(rows)

    def statistic(part: Floats) -> float | None:
        scores, right, weights, question = part.T
        return plain(Rows(scores, right.astype(bool), weights, question.astype(np.intp)))

    expected = bootstrap_ci(table, rows.question, statistic, seed=5, n_boot=200)
    found = np.quantile(resampled(rows, draw_questions(60, seed=5, n_boot=200)), [0.025, 0.975])
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[0] < float(plain(rows) or 0) < found[1]


def test_siblings_are_resampled_with_their_question() -> None:
    """Each resample's figure is the share of the pairs that its questions' groups order rightly, group by group."""
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 6, 400).astype(float), rng.random(400) < 0.6
    groups = np.split(np.arange(400), np.sort(rng.choice(np.arange(1, 400), 119, replace=False)))
    of_group = rng.integers(0, 30, len(groups))
    question = np.empty(400, dtype=np.intp)
    for rows, number in zip(groups, of_group, strict=True):
        question[rows] = number
    pairs = sibling_pairs(right, groups)
    won = pairs_won(scores, pairs)
    draws = draw_questions(30, n_boot=40)
    found = resampled_ratio(won, np.ones(len(won)), question[pairs[:, 0]], draws)
    for figure, draw in zip(found, draws, strict=True):
        gaps = [
            (scores[rows][right[rows]][:, None] - scores[rows][~right[rows]][None, :]).ravel()
            for rows, number in zip(groups, of_group, strict=True)
            for _ in range(draw[number])
        ]
        gap = np.concatenate(gaps)
        assert figure == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean(), abs=1e-12)


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few resamples are computed at once."""
    rows, draws = made(1, 20, 100), draw_questions(20, n_boot=7)
    whole = {name: resampled(rows, draws) for name, (_, resampled) in FIGURES.items()}
    monkeypatch.setattr(resampling, "_PART_VALUES", 250)
    for name, (_, resampled) in FIGURES.items():
        np.testing.assert_array_equal(resampled(rows, draws), whole[name])


def test_questions_not_steps_are_drawn() -> None:
    """Ten copies of every question's rows within the question tell nothing new: the resamples stay as they are."""
    rows, draws = made(2, 50, 300), draw_questions(50)
    copied = Rows(*(np.tile(column, 10) for column in rows))
    for _, resampled in FIGURES.values():
        assert resampled(copied, draws) == pytest.approx(resampled(rows, draws), abs=1e-12)


def test_draws() -> None:
    """As many questions as there are, each equally often in the long run; none of one question alone."""
    draws = draw_questions(300, seed=1, n_boot=500)
    assert (draws.sum(axis=1, dtype=int) == 300).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(300), abs=0.25)
    assert not np.array_equal(draws, draw_questions(300, seed=2, n_boot=500))
    for few in (0, 1):
        draws = draw_questions(few)
        assert draws.shape == (0, few)
        empty: Any = np.zeros(0)
        assert resampled_ratio(empty, empty, np.zeros(0, dtype=np.intp), draws).shape == (0,)
    rows = made(0, 1, 20)
    assert all(resampled(rows, draws).shape == (0,) for _, resampled in FIGURES.values())
