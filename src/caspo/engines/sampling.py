"""From logits to a token and what the distribution said: pure functions on (B, V) tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caspo.confidence.logits import BLOCK, Distribution
from caspo.core.errors import EngineError
from caspo.engines.rows import Row
from caspo.records import Measured

__all__ = ["Draw", "draw", "draw_rows", "uniforms"]


class Draw(NamedTuple):
    """One decode step. All of shape (B,), on the logits' device."""

    tokens: torch.Tensor
    statistics: torch.Tensor
    """(B, 5): entropy, logprob of the token, max logprob, margin, varentropy, as in `TokenTrace`; (B, 6) if a row has a
    ``top_k``: the mean log p of its top k."""

    def measured(self) -> list[Measured]:
        """The statistics, row by row."""
        return [Measured(*row) for row in self.statistics.tolist()]


def draw_rows(logits_BV: torch.Tensor, rows: Sequence[Row]) -> tuple[Draw, dict[int, EngineError]]:
    """One token for every row; the rows whose logits are not numbers, with what is wrong."""
    device = logits_BV.device
    uniform = uniforms(
        np.array([row.request.seed & 0xFFFFFFFFFFFFFFFF for row in rows], dtype=np.uint64),
        np.array([len(row.tokens) for row in rows], dtype=np.uint64),
    )
    arguments = (
        torch.tensor([row.request.temperature for row in rows], device=device),
        torch.tensor([row.request.top_p for row in rows], device=device),
        torch.tensor(uniform, dtype=torch.float32, device=device),
        [1 if row.tokens else row.request.rank for row in rows],
        [row.request.top_k for row in rows],
    )
    try:
        return draw(logits_BV, *arguments), {}
    except EngineError as error:
        # Only the rows that it is true of fail: others are other people's.
        highest_B = logits_BV.float().amax(-1)
        bad = (~highest_B.isfinite()).nonzero().flatten().tolist()
        logits_BV[bad] = 0.0
        return draw(logits_BV, *arguments), dict.fromkeys(bad, error)


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
    rows_R = (temperature_B > 0).nonzero().flatten()
    of = Distribution.of(logits_BV, torch.where(temperature_B > 0, temperature_B, 1.0) if len(rows_R) else None)
    tokens_B = of.best_B.clone()
    if len(rows_R):
        tokens_B[rows_R] = _drawn(of, logits_BV, rows_R, temperature_B, uniform_B)
        for row in (top_p_B[rows_R] < 1).nonzero().flatten():
            at = rows_R[row]
            weights_V = ((logits_BV[at].float() - of.highest_B[at]) / temperature_B[at]).exp()
            tokens_B[at] = _nucleus(weights_V, top_p_B[at], uniform_B[at])
    for place, rank in enumerate(ranks):
        if rank > 1:
            tokens_B[place] = logits_BV[place].topk(rank).indices[-1]
    statistics = of.statistics(logits_BV, tokens_B)
    if any(top_ks):
        best_BK = logits_BV.topk(max(top_ks), dim=-1).indices
        sums_BK = (of.shifted(logits_BV, best_BK) - of.total_B.log()[:, None]).cumsum(-1)
        last_B = torch.tensor([max(k, 1) for k in top_ks], device=sums_BK.device)
        means_B1 = sums_BK.gather(-1, last_B[:, None] - 1) / last_B[:, None]
        statistics = torch.cat([statistics, means_B1], dim=-1)
    return Draw(tokens_B, statistics)


def _drawn(
    of: Distribution, logits_BV: torch.Tensor, rows_R: torch.Tensor, temperature_B: torch.Tensor, uniform_B: torch.Tensor
) -> torch.Tensor:
    """Tokens at which the running sum of the weights passes its share: first the block, then the place in it.

    A running sum over the whole vocabulary is one addition after the other; sums of blocks are not.
    """
    assert of.blocks_BN is not None
    logits_RV, size = logits_BV[rows_R] if len(rows_R) < len(logits_BV) else logits_BV, logits_BV.shape[-1]
    cdf_RN = of.blocks_BN[rows_R].cumsum(-1)
    target_R1 = (uniform_B[rows_R] * cdf_RN[:, -1])[:, None]
    block_R1 = torch.searchsorted(cdf_RN, target_R1, right=True).clamp_max(cdf_RN.shape[-1] - 1)
    before_R1 = torch.where(block_R1 > 0, cdf_RN.gather(-1, (block_R1 - 1).clamp_min(0)), 0.0)
    places_RK = block_R1 * BLOCK + torch.arange(BLOCK, device=block_R1.device)
    shifted_RK = logits_RV.gather(-1, places_RK.clamp_max(size - 1)).float() - of.highest_B[rows_R, None]
    inside_RK = torch.where(places_RK < size, (shifted_RK / temperature_B[rows_R, None]).exp(), 0.0)
    place_R1 = torch.searchsorted(inside_RK.cumsum(-1), target_R1 - before_R1, right=True).clamp_max(BLOCK - 1)
    # Rounding can put the target on an edge, beside a token of probability zero: take the most probable one then.
    possible_R = inside_RK.gather(-1, place_R1)[:, 0] > 0
    return torch.where(possible_R, places_RK.gather(-1, place_R1)[:, 0], of.best_B[rows_R])


def _nucleus(weights_V: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulative weight passes its share, among the smallest set of mass >= ``top_p``."""
    sorted_V, order_V = weights_V.sort(descending=True, stable=True)
    before_V = (sorted_V.cumsum(-1) - sorted_V) / sorted_V.sum()
    cdf_V = torch.where(before_V < top_p, sorted_V, 0.0).cumsum(-1)
    place = torch.searchsorted(cdf_V, uniform * cdf_V[-1], right=True).clamp_max((before_V < top_p).sum() - 1)
    return order_V[place]


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
