"""One decode step against numpy in float64: statistics, the draw, and that slices and neighbours change nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from caspo.confidence import logits as logits_module
from caspo.core.errors import EngineError
from caspo.engines import sampling
from caspo.engines.sampling import Draw, uniforms

LOGITS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(2, 30)),
    elements=st.one_of(st.floats(-50, 50, width=32), st.just(-np.inf)),
)


def draw(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor,
    ranks: Sequence[int] = (), top_ks: Sequence[int] = (),
) -> Draw:  # fmt: skip
    """One token a row; ranks and top k only where a test is about them."""
    rows = len(logits)
    return sampling.draw(logits, temperature, top_p, uniform, ranks or [1] * rows, top_ks or [0] * rows)


def one(value: float, rows: int) -> torch.Tensor:
    return torch.full((rows,), value)


@settings(max_examples=150, deadline=None)
@given(LOGITS, st.floats(0, 0.999), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([1.0, 0.7]))
def test_statistics(logits: np.ndarray, uniform: float, temperature: float, top_p: float) -> None:  # type: ignore[type-arg]
    """Entropy, log-probabilities, margin and varentropy are those of softmax(logits), masked tokens included."""
    logits[:, 0] = np.where(np.isneginf(logits).all(1), 0, logits[:, 0])
    rows = len(logits)
    got = draw(torch.tensor(logits), one(temperature, rows), one(top_p, rows), one(uniform, rows))
    wide = logits.astype(np.float64)
    p = np.exp(wide - wide.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    logp = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy = -(p * logp).sum(1)
    best = np.sort(p, axis=1)[:, ::-1]
    varentropy = (p * (logp + entropy[:, None]) ** 2).sum(1)
    tokens = got.tokens.numpy()
    taken = p[np.arange(rows), tokens]
    assert (taken > 0).all(), "a token of probability zero is never taken"
    expected = np.stack([entropy, np.log(taken), np.log(best[:, 0]), best[:, 0] - best[:, 1], varentropy], 1)
    np.testing.assert_allclose(got.statistics.numpy(), expected, atol=2e-4, rtol=2e-4)
    if temperature == 0:
        np.testing.assert_allclose(taken, best[:, 0], rtol=1e-6)
    elif top_p < 1:
        power = np.where(p > 0, p, 0) ** (1 / temperature)
        q = power / power.sum(1, keepdims=True)
        mine = q[np.arange(rows), tokens]
        above = np.where(q > mine[:, None] * (1 + 1e-4), q, 0).sum(1)
        assert (above < top_p + 1e-4).all(), "only tokens of the nucleus are taken"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.6)])
def test_frequencies(temperature: float, top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """40,000 draws follow softmax(logits / temperature) cut to its nucleus (chi-square below its 99.9% quantile)."""
    n = 40_000
    monkeypatch.setattr(logits_module, "_CPU_FLOATS", 6 * n)
    logits = torch.tensor([1.0, 0.0, -float("inf"), 2.0, -1.0, 0.5])
    uniform = uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.uint64))
    got = draw(
        logits.expand(n, -1), one(temperature, n), one(top_p, n), torch.tensor(uniform, dtype=torch.float32)
    ).tokens.numpy()
    q = (logits.double() / temperature).softmax(-1).numpy()
    order = np.argsort(-q)
    before = np.cumsum(q[order]) - q[order]
    q[order[before >= top_p]] = 0
    q /= q.sum()
    counts = np.bincount(got, minlength=len(q))
    assert counts[q == 0].sum() == 0
    chi_square = ((counts - n * q)[q > 0] ** 2 / (n * q)[q > 0]).sum()
    assert chi_square < 20.5  # 5 degrees of freedom at most


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in slices of a few rows is a matter of speed only."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(19, 50, generator=rng) * 3
    uniform = torch.rand(19, generator=rng)
    temperature = torch.tensor([0.0, 1.0, 0.7] * 7)[:19]
    top_p = torch.tensor([1.0, 0.9] * 10)[:19]
    results = []
    for rows in (1, 4, 100):
        monkeypatch.setattr(logits_module, "_CPU_FLOATS", 50 * rows)
        results.append(draw(logits, temperature, top_p, uniform))
    for other in results[1:]:
        assert torch.equal(results[0].tokens, other.tokens)
        torch.testing.assert_close(results[0].statistics, other.statistics)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.lists(st.integers(1, 12), min_size=9, max_size=9), st.lists(st.integers(0, 12), min_size=9, max_size=9))
def test_ranks_and_top_k(logits: np.ndarray, ranks: list[int], top_ks: list[int]) -> None:  # type: ignore[type-arg]
    """Each row's rank-th best token, whatever its temperature, and the mean log p of its own top k."""
    logits = np.where(np.isneginf(logits), -40, logits)
    rows, vocabulary = logits.shape
    ranks, top_ks = [min(r, vocabulary) for r in ranks[:rows]], [min(k, vocabulary) for k in top_ks[:rows]]
    got = draw(torch.tensor(logits), one(1.0, rows), one(1.0, rows), one(0.5, rows), ranks, top_ks)
    wide = logits.astype(np.float64)
    logp = wide - np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1, keepdims=True)) - wide.max(1, keepdims=True)
    best = np.sort(logp, axis=1)[:, ::-1]
    for row in range(rows):
        if ranks[row] > 1:
            assert logp[row, got.tokens[row]] == pytest.approx(best[row, ranks[row] - 1], abs=1e-4)
            assert got.statistics[row, 1] == pytest.approx(best[row, ranks[row] - 1], abs=1e-4)
        if top_ks[row]:
            assert got.statistics[row, 5] == pytest.approx(best[row, : top_ks[row]].mean(), abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_bad_rows(bad: float) -> None:
    """A row with NaN or +inf, or without any possible token, is an error."""
    logits = torch.zeros(2, 5)
    logits[1, :] = bad
    with pytest.raises(EngineError, match=r"rows \[1\]"):
        draw(logits, one(1.0, 2), one(1.0, 2), one(0.5, 2))


def test_uniforms() -> None:
    """Stateless, in [0, 1), even over seeds and over steps, and the two do not repeat each other."""
    seeds, steps = (grid.ravel().astype(np.uint64) for grid in np.meshgrid(np.arange(200), np.arange(100)))
    values = uniforms(seeds, steps)
    assert ((values >= 0) & (values < 1)).all()
    np.testing.assert_array_equal(values[::-1], uniforms(seeds[::-1], steps[::-1]))
    assert len(np.unique(values)) == len(values)
    for part in (values, uniforms(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, np.uint64))):
        counts = np.histogram(part, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # 99.9% of chi-square with 19 degrees of freedom
    grid = values.reshape(100, 200)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03
