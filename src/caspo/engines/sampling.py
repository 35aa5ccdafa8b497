"""From logits to a token and what the distribution said: pure functions on (B, V) tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caspo.logits import Distribution

__all__ = ["Draw", "draw", "uniforms"]

_CPU_ROWS = 4
_BLOCK = 256


class Draw(NamedTuple):
    """One decode step. All of shape (B,), on the logits' device."""

    tokens: torch.Tensor
    statistics: torch.Tensor
    """(B, 5): entropy, logprob of the token, max logprob, margin, varentropy, as in `TokenTrace`; (B, 6) if a row has a
    ``top_k``: the mean log p of its top k."""


def draw(
    logits_BV: torch.Tensor,
    temperature_B: torch.Tensor,
    top_p_B: torch.Tensor,
    uniform_B: torch.Tensor,
    ranks: Sequence[int],
    top_ks: Sequence[int],
) -> Draw:
    """Take one token per row and measure the row's raw distribution.

    A token is drawn by inverting the cumulative distribution at ``uniform_B``; rows of temperature 0 take the most
    probable one, rows of a rank above 1 the rank-th most probable one. Entropy is -sum_v p_v ln p_v (Shannon, nats) of
    softmax(logits), whatever the temperature.

    Raises:
        EngineError: a row has NaN or +inf logits, or -inf everywhere.
    """
    if logits_BV.device.type == "cpu" and len(logits_BV) > _CPU_ROWS:
        if any(top_ks):
            top_ks = [max(k, 1) for k in top_ks]  # every slice has the column then, or none has
        # In slices that stay in the processor's cache: the whole batch at once would go through memory at every pass.
        parts = [
            draw(logits, temperature, top_p, uniform, ranks[at : at + _CPU_ROWS], top_ks[at : at + _CPU_ROWS])
            for at, (logits, temperature, top_p, uniform) in zip(
                range(0, len(logits_BV), _CPU_ROWS),
                zip(*(torch.split(t, _CPU_ROWS) for t in (logits_BV, temperature_B, top_p_B, uniform_B)), strict=True),
                strict=True,
            )
        ]
        return Draw(torch.cat([p.tokens for p in parts]), torch.cat([p.statistics for p in parts]))
    of = Distribution.of(logits_BV)
    tokens_B = of.best_B1[:, 0].clone()
    rows_R = (temperature_B > 0).nonzero().flatten()
    if len(rows_R):
        weights_RV, temperature_R = of.weight_BV, temperature_B[rows_R]
        if bool((temperature_R != 1).any()):
            shifted_RV = of.shifted_BV if len(rows_R) == len(tokens_B) else of.shifted_BV[rows_R]
            weights_RV = (shifted_RV / temperature_R[:, None]).exp_()
        elif len(rows_R) < len(tokens_B):
            weights_RV = weights_RV[rows_R]
        tokens_B[rows_R] = _invert(weights_RV, top_p_B[rows_R], uniform_B[rows_R])
    for row, rank in enumerate(ranks):
        if rank > 1:
            tokens_B[row] = of.shifted_BV[row].topk(rank).indices[-1]
    statistics = of.statistics(tokens_B)
    if any(top_ks):
        sums_BK = (of.shifted_BV.topk(max(top_ks), dim=-1).values - of.total_B1.log()).cumsum(-1)
        last_B = torch.tensor([max(k, 1) for k in top_ks], device=sums_BK.device)
        means_B1 = sums_BK.gather(-1, last_B[:, None] - 1) / last_B[:, None]
        statistics = torch.cat([statistics, means_B1], dim=-1)
    return Draw(tokens_B, statistics)


def _invert(weights_RV: torch.Tensor, top_p_R: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Tokens at which the cumulative weight passes its share ``uniform_R``, among the smallest set of mass >= top_p."""
    nucleus_R = top_p_R < 1
    if not bool(nucleus_R.any()):
        return _search(weights_RV, uniform_R)
    sorted_RV, order_RV = weights_RV.sort(dim=-1, descending=True, stable=True)
    before_RV = (sorted_RV.cumsum(-1) - sorted_RV) / sorted_RV.sum(-1, keepdim=True)
    chosen_R = _search(torch.where(before_RV < top_p_R[:, None], sorted_RV, 0.0), uniform_R)
    token_R = order_RV.gather(-1, chosen_R[:, None])[:, 0]
    # Rows without top-p keep to the order of the vocabulary, whatever their neighbours ask for.
    return token_R if bool(nucleus_R.all()) else torch.where(nucleus_R, token_R, _search(weights_RV, uniform_R))


def _search(weights_RV: torch.Tensor, uniform_R: torch.Tensor) -> torch.Tensor:
    """Where the running sum passes its share: first the block, by the blocks' sums, then the place in it.

    A running sum over the whole vocabulary is one addition after the other; sums of blocks are not.
    """
    size = weights_RV.shape[-1]
    whole = size // _BLOCK * _BLOCK
    sums_RN = weights_RV[:, :whole].reshape(len(weights_RV), size // _BLOCK, _BLOCK).sum(-1)
    cdf_RN = torch.cat([sums_RN, weights_RV[:, whole:].sum(-1, keepdim=True)], dim=-1).cumsum(-1)
    target_R1 = (uniform_R * cdf_RN[:, -1])[:, None]
    block_R1 = torch.searchsorted(cdf_RN, target_R1, right=True).clamp_max(cdf_RN.shape[-1] - 1)
    before_R1 = torch.where(block_R1 > 0, cdf_RN.gather(-1, (block_R1 - 1).clamp_min(0)), 0.0)
    places_RK = block_R1 * _BLOCK + torch.arange(_BLOCK, device=block_R1.device)
    inside_RK = torch.where(places_RK < size, weights_RV.gather(-1, places_RK.clamp_max(size - 1)), 0.0)
    cdf_RK = inside_RK.cumsum(-1)
    place_R1 = torch.searchsorted(cdf_RK, target_R1 - before_R1, right=True)
    index_R = (block_R1 * _BLOCK + place_R1.clamp_max(_BLOCK - 1)).clamp_max(size - 1)[:, 0]
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
