"""From logits to what a distribution says: pure functions on (B, V) tensors.

The engine that samples and the trainer that scores a finished tree both measure here, so their numbers are the same.
Passes over the vocabulary are what this costs. So there are few, they work on a few rows at a time in memory that stays in
a core's cache, and all else is done once for the whole batch, on one number a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from caspo.core.errors import EngineError

__all__ = ["BLOCK", "Distribution"]

BLOCK = 256
"""Tokens of a block, whose weights are summed for drawing."""

_CPU_FLOATS = 1 << 17
"""Logits measured together on a CPU; three arrays of this size are made of them. More would go through memory at every
pass, single rows of a small vocabulary would cost more calls than arithmetic."""

_SMALLEST = -1e4
"""A token with a logit so far below the highest (a masked one at -inf) has weight 0, and 0 times this is 0."""


class Distribution(NamedTuple):
    """softmax(logits) of B rows, in float32, by a few numbers a row.

    With y the logits minus the row's highest, w = exp(y) and Z = sum(w): p = w / Z and log p = y - ln Z.
    """

    best_B: torch.Tensor
    """The most probable token, of equals the first."""
    highest_B: torch.Tensor
    """Its logit."""
    total_B: torch.Tensor
    """Z."""
    mean_B: torch.Tensor
    """Sum of p y."""
    square_B: torch.Tensor
    """Sum of p y^2."""
    second_B: torch.Tensor
    """w of the second most probable token (that of the first is 1)."""
    blocks_BN: torch.Tensor | None
    """Sums of exp(y / temperature) over blocks of `BLOCK` tokens, the last one shorter, if temperatures were given."""

    @classmethod
    def of(cls, logits_BV: torch.Tensor, temperature_B: torch.Tensor | None = None) -> Distribution:
        """Measure the rows; with temperatures (above 0), for drawing too.

        Raises:
            EngineError: a row has NaN or +inf logits, or -inf everywhere.
        """
        size = logits_BV.shape[-1]
        step = max(1, _CPU_FLOATS // size if logits_BV.device.type == "cpu" else len(logits_BV))
        room = torch.empty(3, min(step, len(logits_BV)), size, device=logits_BV.device)
        tempered = temperature_B is not None and bool((temperature_B != 1).any())
        parts = [
            _measure(
                logits_BV[at : at + step],
                room,
                temperature_B[at : at + step, None] if tempered and temperature_B is not None else None,
                blocks=temperature_B is not None,
            )
            for at in range(0, len(logits_BV), step)
        ]
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        best_B, highest_B, total_B, mean_B, square_B, second_B = joined[:6]
        good_B = torch.isfinite(total_B + highest_B)
        if not bool(good_B.all()):
            raise EngineError(
                f"The model returned NaN or infinite logits (rows {(~good_B).nonzero()[:, 0].tolist()} of the batch). Its "
                "weights are damaged, or its precision is too low for it: load it in float32, or check the checkpoint."
            )
        blocks_BN = joined[6] if temperature_B is not None else None
        return cls(best_B, highest_B, total_B, mean_B / total_B, square_B / total_B, second_B, blocks_BN)

    def statistics(self, logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
        """(B, 5): entropy, log p of the token, max log p, margin, varentropy, as in `TokenTrace`.

        The entropy -sum_v p_v ln p_v (Shannon, nats) is ln Z - sum(p y), the varentropy sum(p y^2) - sum(p y)^2, the
        highest log p is -ln Z.
        """
        log_total_B = self.total_B.log()
        entropy_B = (log_total_B - self.mean_B).clamp_min(0)
        taken_B = self.shifted(logits_BV, tokens_B[:, None])[:, 0] - log_total_B
        margin_B = (1 - self.second_B) / self.total_B
        varentropy_B = (self.square_B - self.mean_B.square()).clamp_min(0)
        return torch.stack([entropy_B, taken_B, -log_total_B, margin_B, varentropy_B], dim=-1)

    def shifted(self, logits_BV: torch.Tensor, tokens_BK: torch.Tensor) -> torch.Tensor:
        """(B, K) y of some tokens of every row."""
        return (logits_BV.gather(-1, tokens_BK).float() - self.highest_B[:, None]).clamp_min_(_SMALLEST)


def _measure(
    logits_RV: torch.Tensor, room: torch.Tensor, temperature_R1: torch.Tensor | None, *, blocks: bool
) -> tuple[torch.Tensor, ...]:
    """The fields of `Distribution` for some rows, mean and square not yet divided by the total; ``room`` is overwritten."""
    shifted_RV, weight_RV, other_RV = room[:, : len(logits_RV)]
    shifted_RV.copy_(logits_RV)
    best_R1 = _best(shifted_RV)
    highest_R1 = shifted_RV.gather(-1, best_R1)
    shifted_RV.sub_(highest_R1).clamp_(min=_SMALLEST)
    torch.exp(shifted_RV, out=weight_RV)
    drawn = []
    if blocks and temperature_R1 is None:
        drawn = [_block_sums(weight_RV)]
    elif temperature_R1 is not None:
        drawn = [_block_sums(torch.div(shifted_RV, temperature_R1, out=other_RV).exp_())]
    total_R = weight_RV.sum(-1)
    mean_R = torch.mul(weight_RV, shifted_RV, out=other_RV).sum(-1)
    square_R = other_RV.mul_(shifted_RV).sum(-1)
    second_R = weight_RV.scatter_(-1, best_R1, 0.0).amax(-1)
    return best_R1[:, 0], highest_R1[:, 0], total_R, mean_R, square_R, second_R, *drawn


def _block_sums(weight_RV: torch.Tensor) -> torch.Tensor:
    rows, size = weight_RV.shape
    whole = size // BLOCK * BLOCK
    sums_RN = weight_RV[:, :whole].reshape(rows, -1, BLOCK).sum(-1) if whole else weight_RV.new_empty(rows, 0)
    return sums_RN if whole == size else torch.cat([sums_RN, weight_RV[:, whole:].sum(-1, keepdim=True)], dim=-1)


def _best(logits_BV: torch.Tensor) -> torch.Tensor:
    """(B, 1) argmax. On a CPU numpy's is vectorised and torch's is not: 4 against 42 microseconds for 49,152 tokens."""
    plain = type(logits_BV) is torch.Tensor  # not a stand-in without numbers, as `caspo plan` uses
    if plain and logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32:
        return torch.from_numpy(logits_BV.detach().numpy().argmax(-1))[:, None]
    return logits_BV.argmax(-1, keepdim=True)
