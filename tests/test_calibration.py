"""ECE, Brier and calibrators: known values, scikit-learn as oracle, and properties."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.confidence.calibration import Calibrator, brier, ece, fit, reliability
from caspo.core.errors import ConfigError, DataError

ROWS = st.lists(
    st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.integers(0, 1), st.integers(1, 5)), min_size=2, max_size=60
).filter(lambda rows: len({label for _, label, _ in rows}) == 2)


def columns(rows):
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True))


def test_ece_and_brier_by_hand():
    prob, label = [0.95, 0.95, 0.15, 0.15], [1, 0, 0, 0]
    assert ece(prob, label) == pytest.approx(0.5 * 0.45 + 0.5 * 0.15)
    assert brier(prob, label) == pytest.approx((0.05**2 + 0.95**2 + 2 * 0.15**2) / 4)
    assert ece(prob, label, weights=[1, 0, 1, 0]) == pytest.approx((0.05 + 0.15) / 2)
    assert brier([1.0, 0.0], [1, 0]) == 0.0


def test_reliability_bins():
    bins = reliability([0.0, 0.05, 0.1, 1.0], [0, 1, 1, 1])
    assert [b.n for b in bins] == [2, 1] + [0] * 7 + [1]
    assert bins[0].confidence == pytest.approx(0.025)
    assert bins[0].accuracy == 0.5
    assert bins[5].confidence is None
    assert bins[9] == (0.9, 1.0, 1.0, 1.0, 1.0)


@settings(deadline=None)
@given(ROWS, st.integers(1, 12), st.sampled_from(["width", "mass"]))
def test_bins_hold_every_row_and_their_own_values(rows, bins, kind):
    prob, label, weight = columns(rows)
    found = reliability(prob, label, bins, kind, weight)
    assert sum(b.n for b in found) == pytest.approx(weight.sum())
    assert found[0].low == 0.0
    assert found[-1].high == 1.0
    for b in found:
        assert b.confidence is None or b.low - 1e-9 <= b.confidence <= b.high + 1e-9
    assert 0 <= ece(prob, label, bins, kind, weight) <= 1
    repeated = weight.astype(int)
    by_rows = ece(np.repeat(prob, repeated), np.repeat(label, repeated), bins, kind)
    assert ece(prob, label, bins, kind, weight) == pytest.approx(by_rows)


def test_mass_bins_hold_equal_shares():
    prob = np.random.default_rng(0).beta(5, 1, 1000)
    assert {b.n for b in reliability(prob, prob > 0.5, 10, "mass")} <= {99.0, 100.0, 101.0}


@pytest.mark.parametrize("kind", ["width", "mass"])
def test_ece_of_a_calibrated_score_tends_to_zero(kind):
    rng = np.random.default_rng(0)
    errors = []
    for n in (100, 10_000, 200_000):
        prob = rng.random(n)
        errors.append(ece(prob, rng.random(n) < prob, kind=kind))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.005


@settings(deadline=None)
@given(ROWS)
def test_isotonic_is_sklearns(rows):
    isotonic = pytest.importorskip("sklearn.isotonic")
    score, label, weight = columns(rows)
    oracle = isotonic.IsotonicRegression(out_of_bounds="clip").fit(score, label, weight)
    found = fit(score, label, weights=weight)
    grid = np.linspace(-0.5, 1.5, 401)
    np.testing.assert_allclose(found.predict(grid), oracle.predict(grid), atol=1e-9)


@settings(deadline=None)
@given(ROWS, st.sampled_from(["isotonic", "platt"]))
def test_calibrators_are_monotone_in_the_unit_interval_and_keep_the_mean(rows, kind):
    score, label, weight = columns(rows)
    found = fit(score, label, kind, weight)
    prob = found.predict(np.linspace(-3, 3, 500))
    assert (np.diff(prob) >= -1e-12).all()
    assert prob.min() >= 0
    assert prob.max() <= 1
    if kind == "isotonic":
        assert np.average(found.predict(score), weights=weight) == pytest.approx(np.average(label, weights=weight))
        assert ece(found.predict(score), label, weights=weight) < 1e-9


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_calibration_helps_on_fresh_data(kind):
    rng = np.random.default_rng(0)
    truth = rng.random(8000)
    score, label = np.exp(0.3 * np.log(truth)), rng.random(8000) < truth  # overconfident
    found = fit(score[:4000], label[:4000], kind)
    before, after = ece(score[4000:], label[4000:]), ece(found.predict(score[4000:]), label[4000:])
    assert before > 0.15
    assert after < (0.03 if kind == "isotonic" else 0.08)


def test_platt_is_sklearns_without_smoothing_to_speak_of():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    score = rng.normal(-80, 5, 20_000)
    label = rng.random(20_000) < 1 / (1 + np.exp(-(0.4 * score + 31)))
    oracle = linear.LogisticRegression(C=np.inf).fit(score[:, None], label)
    found = fit(score, label, "platt")
    assert found.x == pytest.approx((oracle.coef_[0, 0], oracle.intercept_[0]), rel=0.01)


def test_platt_on_separable_and_on_upside_down_data():
    sharp = fit([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], "platt").predict([0.1, 0.9])
    assert 0 < sharp[0] < 0.5 < sharp[1] < 1
    flat = fit([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], "platt").predict([0.1, 0.9])
    assert flat == pytest.approx([0.5, 0.5])
    assert np.isfinite(fit([0.5, 0.5], [0, 1], "platt").predict([0.5])).all()


@pytest.mark.parametrize("kind", ["isotonic", "platt"])
def test_save_and_load(tmp_path, kind):
    rng = np.random.default_rng(0)
    score = rng.random(100)
    found = fit(score, rng.random(100) < score, kind, signal="logprob_sum")
    path = tmp_path / "calibrator.json"
    found.save(path, date="2026-11-23")
    assert Calibrator.load(path) == found
    assert json.loads(path.read_text())["date"] == "2026-11-23"
    assert json.loads(path.read_text())["signal"] == "logprob_sum"


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "calibrator.json"
    with pytest.raises(DataError, match="does not exist"):
        Calibrator.load(path)
    good = {"schema": 1, "kind": "isotonic", "signal": "entropy", "n": 3, "x": [0.1, 0.2], "y": [0.3, 0.4]}
    for change in (
        {"schema": 2},
        {"kind": "other"},
        {"y": [0.4, 0.3]},
        {"y": [0.4]},
        {"x": [0.1, "a"]},
        {"y": [0.4, 1.3]},
        {"x": [], "y": []},
        {"n": None},
        {"kind": "platt", "x": [-1.0, 0.0], "y": []},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match="caspo calibrate"):
            Calibrator.load(path)
    path.write_text(json.dumps(good)[:-9])
    with pytest.raises(DataError, match="valid JSON"):
        Calibrator.load(path)


@pytest.mark.parametrize(
    ("scores", "labels", "match"),
    [
        ([], [], "no judged steps"),
        ([0.1, 0.2], [1, 1], "all 2 steps are right"),
        ([0.1, 0.2], [0, 0], "all 2 steps are wrong"),
        ([0.1, np.nan], [0, 1], "NaN"),
        ([0.1, np.inf], [0, 1], "infinite"),
        ([0.1, 0.2], [0, 0.5], "0 or 1"),
        ([0.1, 0.2], [0], "one of each"),
    ],
)
def test_fit_refuses_what_it_cannot_use(scores, labels, match):
    with pytest.raises(DataError, match=match):
        fit(scores, labels)


def test_other_mistakes_are_named():
    with pytest.raises(ConfigError, match="isotonic"):
        fit([0.1, 0.2], [0, 1], "beta")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        reliability([0.5], [1], bins=0)
    with pytest.raises(DataError, match="log-probabilities"):
        ece([-0.5, 0.5], [0, 1])
    with pytest.raises(DataError, match="non-negative"):
        brier([0.5, 0.5], [0, 1], [-1, 2])
    with pytest.raises(DataError, match="NaN"):
        fit([0.1, 0.2], [0, 1]).predict([np.nan])
