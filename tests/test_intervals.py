"""What the documents call a 95% interval holds the truth about so often: a small part of `benchmarks/coverage.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.confidence.calibration import ece
from caspo.evaluate.estimates import Interval, mean_interval, paired_difference, score_interval, wilson
from caspo.evaluate.intervals import Estimate, change, estimate_aurc, estimate_auroc, estimate_ece, estimate_mean
from caspo.evaluate.resampling import draw_questions

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "parts" / "populations.py"


def populations() -> Any:
    """The module of the benchmark."""
    spec = importlib.util.spec_from_file_location("populations", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SIMULATED = populations()


HELD = (
    "ece_calibrated", "ece_over_05", "ece_over_10", "ece_over_20", "ece_always_1_of_98", "ece_steps_over_05",
    "ece_change_over_10_to_calibrated", "ece_change_steps_over_05_to_steps_calibrated", "pass_at_1_2", "pass_at_4_98",
    "brier_98_right", "auroc_90_right_sharp", "aurc_2_right", "steps_share_98_right", "steps_siblings_90_right_sharp",
    "auroc_change_90_right_to_90_right_sharp", "steps_share_change_half_right_to_90_right", "accuracy_change_1_4",
    "judge_f1_5_98",
)  # fmt: skip
OF_MORE = ("ece_over_05", "ece_over_10", "ece_change_over_10_to_calibrated", "pass_at_1_2", "aurc_2_right")


@pytest.mark.parametrize(("name", "questions"), [*((name, 50) for name in HELD), *((name, 200) for name in OF_MORE)])
def test_intervals_hold_the_truth(name: str, questions: int) -> None:
    """In nine of ten samples at least: so few of sixty have a chance of 3% if it is 95%."""
    found = SIMULATED.simulate(SIMULATED.CASES[name], questions, trials=60, resamples=300)
    assert found.intervals >= 30
    assert found.held / found.intervals >= 0.9


def test_a_percentile_bootstrap_of_the_calibration_error_does_not() -> None:
    """What stood here before: it adds the bias a second time. So the simulation tells good intervals from bad ones."""
    population, rng, held = SIMULATED._ECE["over_05"], np.random.default_rng(0), 0
    for _ in range(40):
        rows = population.draw(rng, 50)
        right = rng.random(50) < rows.chance
        drawn = rng.integers(0, 50, (300, 50))
        low, high = np.quantile([ece(rows.confidence[d], right[d]) for d in drawn], [0.025, 0.975])
        held += low <= 0.05 <= high
    assert held < 10


def test_the_debiased_error_is_nearer_the_truth() -> None:
    """Less than half of the bias of the plain one is left, with few answers and with many; and its interval holds it."""
    for name, truth, questions in (
        ("calibrated", 0.0, 50),
        ("over_05", 0.05, 50),
        ("over_10", 0.1, 50),
        ("over_05", 0.05, 400),
    ):
        rng, plain, debiased = np.random.default_rng(1), [], []
        for trial in range(60):
            rows = SIMULATED._ECE[name].draw(rng, questions)
            right = rng.random(questions) < rows.chance
            found = estimate_ece(
                rows.confidence, right, np.ones(questions), rows.question, draw_questions(questions, trial, 200)
            )
            assert found.value is not None
            assert found.interval is not None
            assert 0 <= found.interval.low <= found.value <= found.interval.high
            plain.append(ece(rows.confidence, right))
            debiased.append(found.value)
        assert abs(np.mean(debiased) - truth) < 0.5 * (np.mean(plain) - truth)


def test_independent_ones_and_zeros_have_wilsons_interval() -> None:
    """The resamples' variance is that of a binomial then."""
    for k, n in ((10, 50), (100, 200), (3, 60)):
        values = np.zeros(n)
        values[:k] = 1
        found = estimate_mean(values, np.ones(n), np.arange(n), draw_questions(n)).interval
        assert found == pytest.approx(wilson(k, n), abs=0.01)
        assert score_interval(k / n, n) == wilson(k, n)


def test_copies_within_a_question_are_no_evidence() -> None:
    """Ten equal rows of each question instead of one: every interval stays."""
    rng = np.random.default_rng(0)
    confidence, right, once = rng.random(80).round(1), rng.random(80) < 0.7, np.arange(80)
    draws, ten = draw_questions(80, n_boot=300), np.repeat(once, 10)
    for estimate in (estimate_ece, estimate_auroc):
        alone = estimate(confidence, right, np.ones(80), once, draws)
        copies = estimate(confidence[ten], right[ten], np.ones(800), ten, draws)
        assert copies.interval == pytest.approx(alone.interval, abs=1e-6)
        weighed = estimate(confidence, right, np.full(80, 10.0), once, draws)
        assert weighed.interval == pytest.approx(alone.interval, abs=1e-6)


def test_what_cannot_be_told_has_no_interval() -> None:
    """No row, one question, one class; a figure that no resample moves is still no certainty."""
    none, nothing = np.zeros(0), np.zeros(0, dtype=np.intp)
    empty = np.zeros(0, dtype=np.bool_)
    draws = draw_questions(20, n_boot=200)
    assert estimate_ece(none, empty, none, nothing, draws) == Estimate(None)
    assert estimate_auroc(none, empty, none, nothing, draws).value is None
    assert estimate_aurc(none, empty, nothing, draws).value is None
    assert estimate_mean(none, none, nothing, draws).value is None
    one = np.ones(1)
    assert estimate_mean(one, one, np.zeros(1, dtype=np.intp), draw_questions(1)).interval is None
    assert estimate_ece(one, one > 0, one, np.zeros(1, dtype=np.intp), draw_questions(1)).interval is None
    all_right = estimate_mean(np.ones(20), np.ones(20), np.arange(20), draws)
    assert (all_right.value, all_right.interval) == (1.0, wilson(20, 20))
    perfect = estimate_auroc(np.arange(20.0), np.arange(20) >= 10, np.ones(20), np.arange(20), draws)
    assert perfect.value == 1
    assert perfect.interval == pytest.approx(wilson(10, 10))
    # always certain and always right: as Wilson's of the share of right answers
    certain = estimate_ece(np.ones(20), np.ones(20) > 0, np.ones(20), np.arange(20), draws)
    assert certain.interval == pytest.approx((0, 1 - wilson(20, 20).low))


def test_a_difference_of_shares_is_newcombes() -> None:
    """Independent: the square root of the sum of the squared distances (Newcombe 1998, method 10: 56/70 and 48/80)."""
    a, b = (
        Estimate(k / n, wilson(k, n), np.array(figures))
        for k, n, figures in ((48, 80, [1.0, 2, 1, 2]), (56, 70, [1.0, 1, 2, 2]))
    )
    difference, interval = change(a, b)
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert change(a, a) == (0, None), "nothing differs in any resample"
    assert change(a, Estimate(None)) == (None, None)
    worst = change(a._replace(resampled=None), b)[1]
    assert a.interval is not None
    assert b.interval is not None
    assert worst == pytest.approx((b.interval.low - a.interval.high, b.interval.high - a.interval.low))


def test_a_paired_difference_without_a_flip_is_not_certain() -> None:
    """Bonett and Price 2012: one question more of each kind. A bootstrap had [0, 0]."""
    found = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    half = 1.959964 * np.sqrt((1 / 6 + 1 / 6) / 6)
    assert (found.low, found.high) == pytest.approx((-half, half), abs=1e-6)
    assert mean_interval([1.0]) is None
    assert mean_interval([1.0, 3.0]) == pytest.approx(Interval(2 - 12.7062, 2 + 12.7062), abs=1e-3)
