"""Known values, scipy and scikit-learn as oracles, and the coverage of the intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import ConfigError, DataError
from caspo.evaluate.estimates import auroc, bootstrap_ci, paired_difference, pairs_won, sibling_pairs, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (50, 200), (1, 1), (0, 1)])
def test_wilson_is_scipys(k, n):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_refuses_nonsense():
    for k, n in ((0, 0), (5, 4), (-1, 4)):
        with pytest.raises(DataError):
            wilson(k, n)


def test_bootstrap_of_a_mean_is_near_the_normal_interval_and_deterministic():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = bootstrap_ci(values, seed=1)
    half = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert interval == bootstrap_ci(values, seed=1)
    assert interval != bootstrap_ci(values, seed=2)
    assert bootstrap_ci(values, statistic=lambda v: float(v.mean()), seed=1) == pytest.approx(interval, abs=1e-12)


def test_clustering_widens_the_interval():
    """50 questions with 10 identical samples each are 50 observations, not 500."""
    per_question = np.random.default_rng(0).integers(0, 2, 50)
    values, groups = np.repeat(per_question, 10), np.repeat([f"q{i}" for i in range(50)], 10)
    clustered, naive, few = bootstrap_ci(values, groups), bootstrap_ci(values), bootstrap_ci(per_question)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)
    assert clustered.high - clustered.low == pytest.approx(few.high - few.low, rel=0.1)


def test_groups_may_be_interleaved_and_the_statistic_may_be_undefined():
    rows = np.array([[0.9, 1], [0.1, 0], [0.8, 1], [0.3, 0], [0.2, 1], [0.4, 0]])
    interval = bootstrap_ci(rows, ["a", "b", "a", "c", "b", "c"], statistic=lambda r: auroc(r[:, 0], r[:, 1]))
    assert 0 <= interval.low <= auroc(rows[:, 0], rows[:, 1]) <= interval.high <= 1


def test_bootstrap_refuses_nonsense():
    for values, groups in (([], None), ([1.0, np.nan], None), ([1.0, 2.0], ["a"])):
        with pytest.raises(DataError):
            bootstrap_ci(values, groups)
    with pytest.raises(DataError, match="undefined"):
        bootstrap_ci([1.0, 2.0], statistic=lambda v: None, n_boot=5)
    with pytest.raises(ConfigError):
        bootstrap_ci([1.0], n_boot=0)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_scipys_binomial_test(only_a, only_b):
    stats = pytest.importorskip("scipy.stats")
    a = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(3)]
    b = np.r_[np.zeros(only_a), np.ones(only_b), np.ones(3)]
    found = paired_difference(a, b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert (found.only_a, found.only_b, found.n) == (only_a, only_b, only_a + only_b + 3)


def test_paired_difference_of_many_questions():
    rng = np.random.default_rng(0)
    a = rng.random(3000) < 0.4
    b = a ^ (~a & (rng.random(3000) < 0.2))
    found = paired_difference(a, b)
    assert found.p_value < 0.05
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert 0 < found.low < found.difference < found.high
    assert paired_difference(a, a).p_value == 1
    with pytest.raises(DataError, match="same questions"):
        paired_difference([1, 0], [1])
    with pytest.raises(DataError, match="0 or 1"):
        paired_difference([0.5], [1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 4)), min_size=1, max_size=40))
def test_auroc_is_the_share_of_ordered_pairs_and_sklearns(rows):
    scores, labels, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = auroc(scores, labels)
    if labels.min() == labels.max():
        assert found is None
        return
    gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert found == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean())
    metrics = pytest.importorskip("sklearn.metrics")
    assert found == pytest.approx(metrics.roc_auc_score(labels, scores))
    expected = metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert auroc(scores, labels, weights) == pytest.approx(expected)
    repeated = auroc(np.repeat(scores, weights.astype(int)), np.repeat(labels, weights.astype(int)))
    assert repeated == pytest.approx(expected)


def test_auroc_of_too_little_is_none_and_of_nonsense_an_error():
    assert auroc([], []) is None
    assert auroc([0.3, 0.4], [1, 1]) is None
    assert auroc([0.3, 0.4], [1, 0], [1, 0]) is None
    assert auroc([-np.inf, 0.4], [0, 1]) == 1.0
    for scores, labels, weights in (
        ([np.nan, 1], [0, 1], None),
        ([1, 2], [0], None),
        ([1, 2], [0, 0.5], None),
        ([1, 2], [0, 1], [1, -1]),
    ):
        with pytest.raises(DataError):
            auroc(scores, labels, weights)


def test_siblings():
    groups = [
        ([0.9, 0.1], [1, 0]),  # ordered rightly
        ([0.5, 0.5, 0.2], [1, 0, 0]),  # a tie and one right
        ([0.1, 0.2], [1, 1]),  # says nothing
        ([0.3], [0]),
        ([], []),
    ]
    scores, right = (np.array([x for group in groups for x in group[i]], dtype=kind) for i, kind in ((0, float), (1, bool)))
    rows = np.split(np.arange(len(scores)), np.cumsum([len(labels) for _, labels in groups])[:-1])
    pairs = sibling_pairs(right, rows)
    assert pairs.tolist() == [[0, 1], [2, 3], [2, 4]]
    assert pairs_won(scores, pairs).tolist() == [1, 0.5, 1]
    assert pairs_won(-scores, pairs).tolist() == [0, 0.5, 0]
    assert sibling_pairs(right, rows[2:]).shape == (0, 2)
    assert pairs_won(scores, sibling_pairs(right, [])).shape == (0,)
    with pytest.raises(DataError, match="NaN"):
        pairs_won([np.nan, 1.0], np.array([[0, 1]]))


def test_one_group_of_siblings_is_the_plain_auroc():
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 6, 50), rng.random(50) < 0.5
    won = pairs_won(scores, sibling_pairs(right, [np.arange(50)]))
    assert won.mean() == pytest.approx(auroc(scores, right))
