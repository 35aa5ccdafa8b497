"""Signals point the right way, scores stay in (0, 1], and the bounds from top-k hold for any distribution."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caspo.confidence.signals import SIGNALS, entropy_bounds, signals, step_score
from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.records import TokenTrace


def trace_of(probs_TV, taken=None) -> TokenTrace:
    """The trace of T distributions, taking the most probable token unless told."""
    p = np.asarray(probs_TV, dtype=np.float64)
    p = p / p.sum(axis=1, keepdims=True)
    info = -np.log(np.maximum(p, 1e-300))
    entropy = (p * info).sum(axis=1)
    best = np.sort(p, axis=1)
    taken = p.argmax(axis=1) if taken is None else taken
    arrays = (
        entropy,
        np.log(p[np.arange(len(p)), taken]),
        np.log(best[:, -1]),
        best[:, -1] - best[:, -2],
        (p * info**2).sum(axis=1) - entropy**2,
    )
    return TokenTrace(*(np.asarray(a, dtype=np.float32) for a in arrays))


SURE = trace_of([[0.9998, 0.0001, 0.0001]] * 5)
UNSURE = trace_of([[0.5, 0.3, 0.2]] * 5)


def test_formulas_on_two_tokens():
    trace = trace_of([[0.5, 0.5], [0.9, 0.1]], taken=[0, 1])
    h1, h2 = math.log(2), -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    expected = {
        "entropy": -(h1 + h2) / 2,
        "entropy_sum": -(h1 + h2),
        "entropy_max": -h1,
        "entropy_tail": -h1,  # 20% of two tokens is one
        "perplexity": (math.log(0.5) + math.log(0.1)) / 2,
        "logprob_sum": math.log(0.5) + math.log(0.1),
        "max_probability": (math.log(0.5) + math.log(0.9)) / 2,
        "margin": (0.0 + 0.8) / 2,
        "varentropy": -(0.0 + (0.9 * math.log(0.9) ** 2 + 0.1 * math.log(0.1) ** 2 - h2**2)) / 2,
    }
    assert signals(trace) == pytest.approx(expected, rel=1e-5)
    assert step_score(trace) == pytest.approx(math.exp(-(h1 + h2) / 2), rel=1e-6)
    assert step_score(trace, "margin") == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("name", SIGNALS)
def test_higher_is_more_confident(name):
    assert SIGNALS[name](SURE) > SIGNALS[name](UNSURE)
    assert 0 < step_score(UNSURE, name) < step_score(SURE, name) <= 1


def test_tail_takes_a_fifth_rounded_up():
    entropy = np.array([3.0, 1.0, 2.0, 0.0, 0.0, 0.0], dtype=np.float32)
    assert SIGNALS["entropy_tail"](replace(SURE, entropy=entropy)) == -2.5  # ceil(0.2 * 6) = 2 tokens


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 12, width=32)))
def test_scores_are_in_the_half_open_unit_interval(entropy):
    trace = TokenTrace(entropy, -entropy, -entropy, np.exp(-entropy), entropy)
    for name in SIGNALS:
        assert 0 < step_score(trace, name) <= 1


def test_a_very_long_step_does_not_underflow():
    trace = replace(SURE, entropy=np.full(2000, 5.0, dtype=np.float32))
    assert step_score(trace, "entropy_sum") > 0
    assert step_score(replace(SURE, margin=np.zeros(5, dtype=np.float32)), "margin") > 0


def test_an_empty_step_is_an_error():
    empty = np.zeros(0, dtype=np.float32)
    with pytest.raises(DataError, match="without tokens"):
        step_score(TokenTrace(empty, empty, empty, empty, empty))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["entropy", "logprob", "max_logprob", "margin", "varentropy"])
def test_nan_and_inf_are_errors_for_the_signals_that_read_them(bad, field):
    values = np.array(getattr(SURE, field))
    values[3] = bad
    trace = replace(SURE, **{field: values})
    hit = {"logprob": "perplexity", "max_logprob": "max_probability"}.get(field, field)
    with pytest.raises(EngineError, match=f"{field} of token 3"):
        step_score(trace, hit)


def test_a_positive_logprob_is_an_error_but_rounding_is_not():
    with pytest.raises(EngineError, match="above its maximum"):
        step_score(replace(SURE, logprob=np.full(5, 0.01, dtype=np.float32)), "perplexity")
    assert step_score(replace(SURE, logprob=np.full(5, 5e-5, dtype=np.float32)), "perplexity") == 1.0
    with pytest.raises(EngineError, match="below its minimum"):
        step_score(replace(SURE, entropy=np.full(5, -0.01, dtype=np.float32)))


def test_unknown_signal_names_the_known_ones():
    with pytest.raises(ConfigError, match="logprob_sum"):
        step_score(SURE, "entropi")


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.data(), st.floats(-2.0, 2.5))
def test_the_entropy_lies_within_its_bounds(seed, vocab, data, log_spread):
    k = data.draw(st.integers(1, vocab))
    logits = np.random.default_rng(seed).normal(size=(4, vocab)) * 10**log_spread
    logps = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    probs = np.exp(logps)
    true = -(probs * np.maximum(logps, -1e300)).sum(axis=1)
    low, high = entropy_bounds(np.sort(logps, axis=1)[:, ::-1][:, :k], vocab)
    assert (low <= true + 1e-9).all()
    assert (true <= high + 1e-9).all()
    if k == vocab:
        np.testing.assert_allclose(low, true, atol=1e-9)
        np.testing.assert_allclose(high, true, atol=1e-9)


def test_bounds_of_the_figures_in_the_peers_page():
    """At V=49152, k=20 the plain sum understates the entropy by up to 0.15 nats for r=0.01 and 2.48 for r=0.2."""
    for rest, gap in ((0.01, 0.15), (0.2, 2.48)):
        probs = np.full((1, 20), (1 - rest) / 20)
        plain = -(probs * np.log(probs)).sum()
        low, high = entropy_bounds(np.log(probs), 49152)
        assert high[0] - plain == pytest.approx(gap, abs=0.01)
        assert plain < low[0] < high[0]


def test_bounds_of_a_uniform_distribution_and_of_float32():
    low, high = entropy_bounds(np.full((2, 8), -math.log(32), dtype=np.float32), 32)
    np.testing.assert_allclose(low, math.log(32), atol=1e-4)
    np.testing.assert_allclose(high, math.log(32), atol=1e-4)


def test_a_token_of_probability_zero_is_allowed():
    low, high = entropy_bounds([[math.log(0.5), math.log(0.5), -np.inf]], 10)
    assert low[0] == high[0] == pytest.approx(math.log(2))


def test_no_tokens_give_no_bounds():
    low, high = entropy_bounds(np.zeros((0, 5)), 10)
    assert low.shape == high.shape == (0,)


@pytest.mark.parametrize(
    ("logprobs", "vocab", "error", "match"),
    [
        ([[np.nan, -1.0]], 9, EngineError, "NaN"),
        ([[0.1, -1.0]], 9, EngineError, "logits"),
        ([[-0.1, -0.2]], 9, EngineError, "sum to"),
        ([[math.log(0.5), math.log(1e-6)]], 9, EngineError, "not the k most probable"),
        ([-1.0, -2.0], 9, DataError, "expected"),
        ([[-1.0, -2.0]], 1, DataError, "vocabulary"),
    ],
)
def test_bad_top_logprobs(logprobs, vocab, error, match):
    with pytest.raises(error, match=match):
        entropy_bounds(logprobs, vocab)
