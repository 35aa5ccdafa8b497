"""From logits to a token and what the distribution said: pure functions on (B, V) tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caspo.logits import Distribution

__all__ = ["Draw", "draw", "uniforms"]

_CPU_ROWS = 4


class Draw(NamedTuple):
    """One decode step. All of shape (B,), on the logits' device."""

    tokens: torch.Tensor
    statistics: torch.Tensor
    """(B, 5): entropy, logprob of the token, max logprob, margin, varentropy, as in `TokenTrace`."""


def draw(logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor) -> Draw:
    """Take one token per row and measure the row's raw distribution.

    A token is drawn by inverting the cumulative distribution at ``uniform_B``; rows of temperature 0 take the most
    probable one. Entropy is -sum_v p_v ln p_v (Shannon, nats) of softmax(logits), whatever the temperature.

    Raises:
        EngineError: a row has NaN or +inf logits, or -inf everywhere.
    """
    if logits_BV.device.type == "cpu" and len(logits_BV) > _CPU_ROWS:
        # In slices that stay in the processor's cache: the whole batch at once would go through memory at every pass.
        parts = [
            draw(logits, temperature, top_p, uniform)
            for logits, temperature, top_p, uniform in zip(
                *(torch.split(t, _CPU_ROWS) for t in (logits_BV, temperature_B, top_p_B, uniform_B)), strict=True
            )
        ]
        return Draw(torch.cat([p.tokens for p in parts]), torch.cat([p.statistics for p in parts]))
    of = Distribution.of(logits_BV)
    tokens_B = of.index_B2[:, 0].clone()
    sampled = temperature_B > 0
    if bool(sampled.any()):
        rows = sampled.nonzero().flatten()
        whole = bool(sampled.all())
        if bool((temperature_B[rows] == 1).all()):
            q_RV = of.p_BV if whole else of.p_BV[rows]
        else:
            q_RV = (of.logp_BV[rows] / temperature_B[rows, None]).softmax(-1)
        tokens_B[rows] = _invert(q_RV, top_p_B[rows], uniform_B[rows])
    return Draw(tokens_B, of.statistics(tokens_B))


def _invert(q_RV: torch.Tensor, top_p_R: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Tokens at which the cumulative distribution passes ``uniform_R``, among the smallest set of mass >= top_p."""
    nucleus_R = top_p_R < 1
    if not bool(nucleus_R.any()):
        return _search(q_RV, uniform_R)
    sorted_RV, order_RV = q_RV.sort(dim=-1, descending=True, stable=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    chosen_R = _search(torch.where(before_RV < top_p_R[:, None], sorted_RV, 0.0), uniform_R)
    token_R = order_RV.gather(-1, chosen_R[:, None])[:, 0]
    # Rows without top-p keep to the order of the vocabulary, whatever their neighbours ask for.
    return token_R if bool(nucleus_R.all()) else torch.where(nucleus_R, token_R, _search(q_RV, uniform_R))


def _search(weights_RV: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    cdf_RV = weights_RV.cumsum(-1)
    target_R1 = (uniform_R * cdf_RV[:, -1])[:, None]
    index_R = torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0]
    index_R = index_R.clamp_max(weights_RV.shape[-1] - 1)
    # Rounding can put the target on an edge, beside a token of probability zero: take the most probable one then.
    impossible_R = weights_RV.gather(-1, index_R[:, None])[:, 0] == 0
    if bool(impossible_R.any()):
        index_R = torch.where(impossible_R, weights_RV.argmax(-1), index_R)
    return index_R


def uniforms(seeds: NDArray[np.uint64], steps: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) per row from its seed and its step: splitmix64 (Steele et al. 2014) of the two.

    Stateless, so a row draws the same numbers wherever in a batch it sits and whenever it was admitted.
    """
    with np.errstate(over="ignore"):
        z = seeds * np.uint64(0x9E3779B97F4A7C15) + (steps + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        for _ in range(2):
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)
