"""The objectives: pure functions of step log-probabilities and entropies."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["anchor_loss", "confidence_loss", "dpo_loss"]


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Direct preference optimisation with the sigmoid loss (Rafailov et al. 2023, eq. 7), per pair.

    Applied to steps (Lai et al. 2024, Step-DPO): all arguments are sums of log p over the tokens of one step given the
    same prefix, nats, (P,). Returns the losses and the margins ``beta * ((chosen - reference) - (rejected - reference))``,
    both (P,).
    """
    margins = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -F.logsigmoid(margins), margins


def anchor_loss(chosen: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of the chosen steps, (P,): keeps DPO from lowering both sides (Pang et al. 2024)."""
    return -chosen / lengths


def confidence_loss(mean_entropies: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Brier score of the step confidence ``exp(-mean_t H_t)`` against the verdict, per step (ours).

    Plain DPO sharpens right and wrong steps alike; this term lets the entropy of wrong steps rise and that of right ones
    fall. ``mean_entropies`` in nats, ``right`` of 0/1, both (S,).
    """
    return ((-mean_entropies).exp() - right).square()
