"""From logits to what a distribution says of one token: pure functions on (B, V) tensors.

The engine that samples and the trainer that scores a finished tree both measure here, so their numbers are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from caspo.errors import EngineError

__all__ = ["Distribution"]


class Distribution(NamedTuple):
    """softmax(logits) of B rows, in float32."""

    logp_BV: torch.Tensor
    p_BV: torch.Tensor
    best_B2: torch.Tensor
    """log p of the two most probable tokens, nats."""
    index_B2: torch.Tensor
    """The two most probable tokens."""

    @classmethod
    def of(cls, logits_BV: torch.Tensor) -> Distribution:
        """Normalise.

        Raises:
            EngineError: a row has NaN or +inf logits, or -inf everywhere.
        """
        logits_BV = logits_BV.float()
        logz_B = logits_BV.logsumexp(-1)
        if not bool(torch.isfinite(logz_B).all()):
            bad = (~torch.isfinite(logz_B)).nonzero().flatten().tolist()
            raise EngineError(
                f"The model returned NaN or infinite logits (rows {bad} of the batch). Its weights are damaged, or its "
                "precision is too low for it: load it in float32, or check the checkpoint."
            )
        logp_BV = logits_BV - logz_B[:, None]
        return cls(logp_BV, logp_BV.exp(), *logp_BV.topk(2, dim=-1))

    def statistics(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """(B, 5): entropy, log p of the token, max log p, margin, varentropy, as in `TokenTrace`.

        Entropy is -sum_v p_v ln p_v (Shannon, nats).
        """
        # -inf logits (masked vocabulary) have p = 0 and contribute nothing; clamping keeps 0 * -inf out of the sums.
        finite_BV = self.logp_BV.clamp_min(-1e4)
        weighted_BV = self.p_BV * finite_BV
        entropy_B = -weighted_BV.sum(-1)
        second_moment_B = torch.linalg.vecdot(weighted_BV, finite_BV)
        varentropy_B = (second_moment_B - entropy_B.square()).clamp_min(0)
        margin_B = self.best_B2[:, 0].exp() - self.best_B2[:, 1].exp()
        taken_B = self.logp_BV.gather(-1, tokens_B[:, None])[:, 0]
        return torch.stack([entropy_B.clamp_min(0), taken_B, self.best_B2[:, 0], margin_B, varentropy_B], dim=-1)
