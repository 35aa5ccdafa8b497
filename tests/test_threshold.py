"""Conformal thresholds: the guarantees by simulation, exact p-values, properties, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import ConfigError, DataError
from caspo.search.threshold import (
    SCHEMA,
    Thresholds,
    abstention_grid,
    answers_needed,
    choose_abstention,
    choose_pruning,
    questions_needed,
)

GRID = np.linspace(0, 1, 201).tolist()
Rng = np.random.Generator

# --- pruning: each kind of question says at which thresholds of GRID the search still finds the right path


def late(rng: Rng, n: int) -> np.ndarray:
    """Lost above a threshold of its own: P(lost at t) = t, losses rise."""
    return rng.random((n, 1)) >= GRID


def some(rng: Rng, n: int) -> np.ndarray:
    """The same, but two of five are never solved: they have nothing to lose."""
    return late(rng, n) & (rng.random((n, 1)) < 0.6)


def comes_back(rng: Rng, n: int) -> np.ndarray:
    """Lost over a stretch of thresholds, found again above it, and not always found where nothing is pruned."""
    start = rng.random((n, 1))
    found = (np.array(GRID) <= start) | (np.array(GRID) > start + 0.3)
    found[:, 0] = rng.random(n) < 0.8
    return found


def by_luck(rng: Rng, n: int) -> np.ndarray:
    """Lost at one threshold in five, each by itself: whoever looks for the luckiest of 200 finds what does not last."""
    found = rng.random((n, len(GRID))) < 0.8
    found[:, 0] = True
    return found


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.1, 20), (0.1, 98), (0.3, 5)])
@pytest.mark.parametrize("kind", [late, some, comes_back, by_luck])
def test_pruning_keeps_the_risk(kind: Callable[[Rng, int], np.ndarray], alpha: float, n: int) -> None:
    """Over many calibration sets, a new question loses its last right path with a probability of at most alpha."""
    rng, times = np.random.default_rng(0), 1000
    fresh = kind(rng, 20_000)
    risk = (fresh[:, :1] & ~fresh).mean(axis=0)
    risks = np.array([risk[GRID.index(choose_pruning(GRID, kind(rng, n), alpha)[0])] for _ in range(times)])
    assert risks.mean() <= alpha + 3 * risks.std() / math.sqrt(times)
    if kind is late:
        assert risks.mean() >= alpha - 2 / (n + 1) - 0.005, "and not needlessly far below it (a grid step lower)"


ROWS = st.integers(2, 8).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 1), min_size=k, max_size=k), min_size=9, max_size=40)
)


@settings(deadline=None)
@given(ROWS, st.floats(0.1, 0.9), st.data())
def test_pruning_properties(rows: list[list[int]], alpha: float, data: st.DataObject) -> None:
    """The bound holds at the choice and not above; a higher alpha or fewer losses never prune less; order is nothing."""
    grid = [k / 10 for k in range(len(rows[0]))]
    chosen, risks = choose_pruning(grid, rows, alpha)
    assert [risk.below for risk in risks] == grid
    assert risks[0].lost == 0
    assert [risk.lost for risk in risks] == sorted(risk.lost for risk in risks)
    assert [risk.below for risk in risks if (risk.lost + 1) / (len(rows) + 1) <= alpha][-1] == chosen
    for k, risk in enumerate(risks):
        assert risk.lost >= sum(row[0] and not row[k] for row in rows)
    assert choose_pruning(grid, rows[::-1], alpha)[0] == chosen
    assert choose_pruning(grid, rows, min(0.99, 2 * alpha))[0] >= chosen
    place = data.draw(st.integers(0, len(rows) - 1))
    kept = [[row[0]] * len(row) if i == place else row for i, row in enumerate(rows)]
    assert choose_pruning(grid, kept, alpha)[0] >= chosen


def test_pruning_by_hand() -> None:
    """Nineteen questions at alpha 0.1: one loss is allowed, (1 + 1) / 20; a second one is not."""
    rows = [[1, 1, 1, 1]] * 17 + [[1, 0, 1, 1], [1, 1, 1, 0]]
    chosen, risks = choose_pruning([0, 0.1, 0.2, 0.5], rows, 0.1)
    assert chosen == 0.2
    assert [risk.lost for risk in risks] == [0, 1, 1, 2]
    assert [risk.bound for risk in risks] == [0.05, 0.1, 0.1, 0.15]
    unsolved = [*rows, *[[0, 0, 0, 1]] * 10]
    assert choose_pruning([0, 0.1, 0.2, 0.5], unsolved, 0.1)[0] == 0.5, "what was not found loses nothing: 3 / 30"


# --- abstention: confidences with their probability of being right


def uniform(rng: Rng, n: int) -> np.ndarray:
    return rng.random(n)


def votes(rng: Rng, n: int) -> np.ndarray:
    """As CaT's: half of the answers were never in doubt, the others are shares of a few paths."""
    return np.where(rng.random(n) < 0.5, 1.0, rng.integers(2, 8, n) / 8)


CASES: dict[str, tuple[Callable[[Rng, int], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    "just over the risk everywhere": (uniform, lambda c: np.full_like(c, 0.89)),
    "the surer the better": (uniform, lambda c: 0.6 + 0.4 * c),
    "sure and wrong, and unsure and wrong": (uniform, lambda c: np.where((c > 0.95) | (c < 0.3), 0.6, 0.98)),
    "the surer the worse": (uniform, lambda c: 1 - 0.3 * c),
    "votes, over the risk": (votes, lambda c: np.where(c == 1, 0.89, 0.7)),
    "votes, over it from below 1 on": (votes, lambda c: np.where(c == 1, 0.97, 0.7)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("alpha", "delta", "n"), [(0.1, 0.1, 100), (0.1, 0.2, 400)])
def test_abstention_keeps_the_risk(case: str, alpha: float, delta: float, n: int) -> None:
    """Over many calibration sets, the true risk at the chosen threshold is over alpha in a share of at most delta."""
    confidences, chance = CASES[case]
    rng, times = np.random.default_rng(0), 500
    fresh = np.sort(confidences(rng, 200_000))
    risk_of_most_confident = np.cumsum(1 - chance(fresh)[::-1]) / np.arange(1, fresh.size + 1)
    failed = 0
    for _ in range(times):
        other, c = confidences(rng, n), confidences(rng, n)
        grid = abstention_grid(other, rng.random(n) < chance(other), alpha)
        chosen, _ = choose_abstention(grid, c, rng.random(n) < chance(c), alpha, delta)
        if chosen is not None:
            failed += risk_of_most_confident[fresh.size - np.searchsorted(fresh, chosen) - 1] > alpha
    assert failed / times <= delta + 3 * math.sqrt(delta * (1 - delta) / times)


@pytest.mark.parametrize(
    ("chance", "least"),
    [
        (lambda c: np.full_like(c, 0.97), 0.99),
        (lambda c: np.where(c > 0.5, 0.98, 0.5), 0.4),
        (lambda c: np.where((c > 0.95) | (c < 0.3), 0.6, 0.98), 0.6),
    ],
)
def test_abstention_answers_where_it_can(chance: Callable[[np.ndarray], np.ndarray], least: float) -> None:
    """A guarantee that never answers would be worth nothing: mostly, so large a share of the answers is given."""
    rng = np.random.default_rng(0)
    given = []
    for _ in range(200):
        other, c = rng.random(200), rng.random(200)
        grid = abstention_grid(other, rng.random(200) < chance(other), 0.1)
        chosen, _ = choose_abstention(grid, c, rng.random(200) < chance(c), 0.1, 0.1)
        given.append(chosen is not None and (c >= chosen).mean() >= least)
    assert np.mean(given) >= 0.7


def exact_tail(k: int, n: int, p: float) -> float:
    share = Fraction(p)
    return float(sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k + 1)))


ANSWERS = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 1)), min_size=30, max_size=80)


@settings(deadline=None)
@given(ANSWERS, st.floats(0.1, 0.6), st.floats(0.1, 0.5), st.data())
def test_abstention_properties(answers: list[tuple[int, int]], alpha: float, delta: float, data: st.DataObject) -> None:
    """p-values are exact, the sequence ends at its first failure, and a right answer more never withholds more."""
    c, right = (np.array(column, dtype=float) for column in zip(*answers, strict=True))
    grid = [1.0, 0.8, 0.5, 0.2, 0.0]
    chosen, tests = choose_abstention(grid, c / 10, right, alpha, delta)
    assert [test.below for test in tests] == grid[: len(tests)]
    for test in tests:
        kept = right[c / 10 >= test.below]
        assert (test.kept, test.wrong) == (len(kept), int((1 - kept).sum()))
        assert test.p == pytest.approx(exact_tail(test.wrong, test.kept, alpha), rel=1e-9)
    passed = [test.p <= delta for test in tests]
    assert all(passed[:-1])
    assert passed[-1] or len(passed) < len(grid) or chosen != 0
    assert chosen == (None if not any(passed) else [t.below for t in tests if t.p <= delta][-1])
    place = data.draw(st.integers(0, len(answers) - 1))
    better = np.where(np.arange(len(c)) == place, 1.0, right)
    again = choose_abstention(grid, c / 10, better, alpha, delta)[0]
    assert chosen is None or (again is not None and again <= chosen)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1)), max_size=100), st.floats(0.05, 0.5))
def test_the_grid_falls_from_its_clearest_threshold(answers: list[tuple[int, int]], alpha: float) -> None:
    """To 0, whatever the answers; the first threshold has the smallest p-value on them."""
    confidence, right = [c / 20 for c, _ in answers], [r for _, r in answers]
    grid = abstention_grid(confidence, right, alpha)
    assert grid == sorted(set(grid), reverse=True)
    assert grid[-1] == 0
    assert set(grid) <= {0.0, *confidence}

    def p(t: float) -> float:
        kept = [r for c, r in zip(confidence, right, strict=True) if c >= t]
        return exact_tail(kept.count(0), len(kept), alpha)

    assert p(grid[0]) <= min(p(t) for t in grid) + 1e-12


# --- how many are needed


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_how_many_are_needed(alpha: float, delta: float) -> None:
    """As many as are said to be needed are enough, one less is not."""
    n, m = questions_needed(alpha), answers_needed(alpha, delta)
    assert 1 / (n + 1) <= alpha
    assert n == 1 or 1 / n > alpha
    assert exact_tail(0, m, alpha) <= delta * (1 + 1e-9)
    assert m == 1 or exact_tail(0, m - 1, alpha) > delta * (1 - 1e-9)


def test_too_few_say_how_many() -> None:
    """The message names the number that is needed, and with it there is a threshold."""
    assert [questions_needed(a) for a in (0.5, 0.2, 0.1, 0.05, 0.01, 1 / 49)] == [1, 4, 9, 19, 99, 48]
    assert [answers_needed(a, 0.1) for a in (0.5, 0.1, 0.05, 0.01)] == [4, 22, 45, 230]
    with pytest.raises(DataError, match=r"18 questions are too few .* alpha 0\.05.*At least 19 are needed"):
        choose_pruning([0, 1], [[1, 1]] * 18, 0.05)
    assert choose_pruning([0, 1], [[1, 1]] * 19, 0.05)[0] == 1
    with pytest.raises(DataError, match=r"44 answers are too few .* delta 0\.1.*At least 45 are needed"):
        choose_abstention([0.5, 0], [1.0] * 44, [1] * 44, 0.05, 0.1)
    assert choose_abstention([0.5, 0], [1.0] * 45, [1] * 45, 0.05, 0.1)[0] == 0
    for nothing in ([], np.zeros((0, 2))):
        with pytest.raises(DataError, match="0 questions are too few"):
            choose_pruning([0, 1], nothing, 0.5)
    with pytest.raises(DataError, match="0 answers are too few"):
        choose_abstention([0.5, 0], [], [], 0.5, 0.5)


def test_no_threshold_is_no_error() -> None:
    """Answers that are wrong too often at their most confident: nothing is certified, not even further down."""
    c = np.repeat([1.0, 0.5], 50)
    chosen, tests = choose_abstention([1.0, 0.5, 0.0], c, c == 0.5, 0.1, 0.1)
    assert chosen is None
    assert len(tests) == 1
    assert (tests[0].kept, tests[0].wrong) == (50, 50)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: choose_pruning([0, 1], [[1, math.nan]] * 20, 0.1), DataError, "0 or 1"),
        (lambda: choose_pruning([0, 1], [[1, 0.5]] * 20, 0.1), DataError, "0 or 1"),
        (lambda: choose_pruning([0, 1], [[1, 1, 1]] * 20, 0.1), DataError, r"2 thresholds.*\(20, 3\)"),
        (lambda: choose_pruning([0.1, 1], [[1, 1]] * 20, 0.1), ConfigError, "rise from 0"),
        (lambda: choose_pruning([0, 1, 1], [[1, 1, 1]] * 20, 0.1), ConfigError, "rise from 0"),
        (lambda: choose_pruning([], [], 0.1), ConfigError, "rise from 0"),
        (lambda: choose_pruning([0], [[1]] * 20, 0.0), ConfigError, "alpha is a probability"),
        (lambda: choose_pruning([0], [[1]] * 20, math.nan), ConfigError, "alpha is a probability"),
        (lambda: choose_abstention([1, 0], [math.nan] * 50, [1] * 50, 0.1, 0.1), DataError, "with NaN"),
        (lambda: choose_abstention([1, 0], [1.5] * 50, [1] * 50, 0.1, 0.1), DataError, r"in \[0, 1\]"),
        (lambda: choose_abstention([1, 0], [1.0] * 50, [math.nan] * 50, 0.1, 0.1), DataError, "0 or 1"),
        (lambda: choose_abstention([1, 0], [1.0] * 50, [1] * 49, 0.1, 0.1), DataError, r"50 answers.*\(49,\)"),
        (lambda: choose_abstention([0, 1], [1.0] * 50, [1] * 50, 0.1, 0.1), ConfigError, "must fall"),
        (lambda: choose_abstention([1, 0], [1.0] * 50, [1] * 50, 0.1, 1.0), ConfigError, "delta is a probability"),
        (lambda: abstention_grid([math.nan], [1], 0.1), DataError, "with NaN"),
        (lambda: abstention_grid([1.0], [1], 1.1), ConfigError, "alpha is a probability"),
    ],
)
def test_what_cannot_be_used(call: Callable[[], Any], error: type[Exception], match: str) -> None:
    """Each mistake is named."""
    with pytest.raises(error, match=match):
        call()


# --- the file

FOUND = Thresholds(
    model={
        "name": "stories-tiny", "engine": "hf", "dtype": "float32", "instruction": "Think.", "steps": "line",
        "weights": "5a",
    },
    settings={"paths": 4, "prune_signal": "entropy"}, prune_below=0.1, abstain_below=0.6,
    alpha=0.1, delta=0.05, n_evidence=200, n_pruning=200, n_abstention=190, lost=0.08, kept=0.7, wrong=0.05,
    date="2026-11-24",
)  # fmt: skip


SERVED = {**{key: value for key, value in FOUND.model.items() if key != "weights"}, "engine": "openai_compatible"}


@pytest.mark.parametrize(
    "found", [FOUND, replace(FOUND, abstain_below=None, kept=None, wrong=None), replace(FOUND, n_evidence=0, model=SERVED)]
)
def test_save_and_load(tmp_path: Path, found: Thresholds) -> None:
    """What was saved is what is loaded."""
    found.save(tmp_path / "model" / "thresholds.json")
    assert Thresholds.load(tmp_path / "model" / "thresholds.json") == found


@pytest.mark.parametrize(
    "change",
    [
        {"schema": SCHEMA - 1}, {"prune_below": 1.5}, {"prune_below": None}, {"prune_below": math.nan}, {"alpha": 0},
        {"delta": "0.1"}, {"n_pruning": 0}, {"kept": None}, {"date": "yesterday"}, {"date": 3}, {"extra": 1},
        {"settings": None}, {"model": 7}, {"model": {"name": "stories-tiny"}}, {"n_evidence": -1},
        {"model": {**SERVED, "engine": "hf"}}, {"model": {**SERVED, "weights": "5a"}},
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A value out of range, of another kind, or one too many; another schema; the files of a model that were not seen, or
    could not be."""
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"schema": SCHEMA, **asdict(FOUND), **change}))
    with pytest.raises(DataError, match=r"thresholds\.json .*caspo calibrate"):
        Thresholds.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    """Not there, cut off, a calibrator, no object, or a value missing."""
    path = tmp_path / "thresholds.json"
    with pytest.raises(DataError, match="does not exist"):
        Thresholds.load(path)
    whole = json.dumps({"schema": SCHEMA, **asdict(FOUND)})
    path.write_text(whole[:-9])
    with pytest.raises(DataError, match="not valid JSON"):
        Thresholds.load(path)
    for text in ('{"schema": 1, "kind": "platt", "x": [1, 0]}', "[1]", f'{{"schema": {SCHEMA}}}'):
        path.write_text(text)
        with pytest.raises(DataError, match="caspo calibrate"):
            Thresholds.load(path)
