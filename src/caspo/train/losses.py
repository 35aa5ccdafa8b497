"""The objectives: pure functions of step log-probabilities, entropies and confidences.

The recipes use `preference_loss` of kind ``sigmoid`` and `anchor_loss`; the rest is experimental (docs/training.md).
All log-probabilities are sums of log p over the tokens of one step given the same prefix, in nats.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

__all__ = [
    "ConfidenceLoss", "PairWeights", "PreferenceLoss", "anchor_loss", "calibrated_confidence", "confidence_loss",
    "margins", "pair_weights", "preference_loss",
]  # fmt: skip

PreferenceLoss = Literal["sigmoid", "ipo", "hinge"]
PairWeights = Literal["none", "rejected_confidence", "margin"]
ConfidenceLoss = Literal["brier", "cross_entropy"]


def margins(chosen_ratio: torch.Tensor, rejected_ratio: torch.Tensor) -> torch.Tensor:
    """How much further the chosen step rose against the reference than the rejected one, nats, (P,).

    A ratio is ``log p - log p_reference`` of one step (or that a token: length normalisation, as in Lambert et al. 2024,
    Tulu 3, section 5.1.2). Step-DPO (Lai et al. 2024, eq. 3) is DPO on these.
    """
    return chosen_ratio - rejected_ratio


def preference_loss(
    margin: torch.Tensor, beta: float, kind: PreferenceLoss = "sigmoid", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss per pair, (P,), of margins in nats, (P,).

    - ``sigmoid``: ``-log s(beta m)`` (Rafailov et al. 2023, DPO, eq. 7). With ``label_smoothing`` e, the share of pairs
      whose sides are believed to be swapped, ``-(1 - e) log s(beta m) - e log s(-beta m)`` (Mitchell 2023, cDPO).
    - ``ipo``: ``(m - 1 / (2 beta))^2`` (Azar et al. 2023, eq. 17).
    - ``hinge``: ``max(0, 1 - beta m)`` (Zhao et al. 2023, SLiC-HF; Liu et al. 2024, RSO).
    """
    if kind == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if kind == "hinge":
        return F.relu(1 - beta * margin)
    return -(1 - label_smoothing) * F.logsigmoid(beta * margin) - label_smoothing * F.logsigmoid(-beta * margin)


def pair_weights(
    weights: torch.Tensor, chosen_confidence: torch.Tensor, rejected_confidence: torch.Tensor, kind: PairWeights
) -> torch.Tensor:
    """Weights of pairs, (P,), from those they came with and the confidences (0, 1] their steps were sampled with (ours).

    After the paper's aim (wrong but confident, right but unsure) and the instance weights of Park et al. 2024 and
    of Wu et al. 2024 (beta-DPO): what the model has more wrong counts more.

    - ``rejected_confidence``: by how sure the model was of the wrong step;
    - ``margin``: by ``(1 + rejected - chosen) / 2``: 1 for a wrong step it was sure of against a right one it was not,
      1/2 for equals, 0 where the model is right already.
    """
    if kind == "rejected_confidence":
        return weights * rejected_confidence
    if kind == "margin":
        return weights * (1 + rejected_confidence - chosen_confidence) / 2
    return weights


def anchor_loss(chosen: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of the chosen steps, (P,): keeps DPO from lowering both sides (Pang et al. 2024)."""
    return -chosen / lengths


def calibrated_confidence(mean_entropies: torch.Tensor, slope: float | None, intercept: float) -> torch.Tensor:
    """Probability that a step is right, (S,), differentiable, from its mean token entropy in nats, (S,).

    ``sigmoid(slope * -H + intercept)`` (Platt 1999) with the map fitted before training; without a ``slope`` the raw
    step confidence ``exp(-H)``.
    """
    if slope is None:
        return (-mean_entropies).exp()
    return torch.sigmoid(intercept - slope * mean_entropies)


def confidence_loss(confidence: torch.Tensor, right: torch.Tensor, kind: ConfidenceLoss = "brier") -> torch.Tensor:
    """Distance of step confidences in [0, 1] from their verdicts (0 or 1), (S,) each (ours).

    Plain DPO sharpens right and wrong steps alike; this term lets the entropy of wrong steps rise and that of right ones
    fall. ``brier`` is the squared difference (Brier 1950), ``cross_entropy`` the log score; both are proper.
    """
    if kind == "cross_entropy":
        return F.binary_cross_entropy(confidence.clamp(1e-6, 1 - 1e-6), right, reduction="none")
    return (confidence - right).square()
