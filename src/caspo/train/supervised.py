"""Supervised training on written solutions: the warm start of a model that does not write steps by itself.

The loss is the cross-entropy of the solution's tokens (EOS included), averaged over the tokens of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence

from caspo.train.trainer import LoopSettings, Metrics

__all__ = ["Example", "SupervisedSettings", "plan_batches", "supervised_loss"]

Example = tuple[tuple[int, ...], tuple[int, ...]]
"""Prompt tokens and solution tokens; only the second are learnt."""


class SupervisedSettings(LoopSettings):
    """Supervised training."""

    batch_size: int = Field(16, ge=1)
    """Solutions per optimiser step."""


def plan_batches(examples: Sequence[Example], batch_size: int, seed: int) -> list[list[list[Example]]]:
    """Batches of examples of similar length, in random order; a pure function of its arguments.

    Similar lengths are put together within windows of 16 batches, so that little is padding.
    """
    rng = random.Random(seed)
    order = list(examples)
    rng.shuffle(order)
    batches = []
    window = 16 * batch_size
    for start in range(0, len(order), window):
        near = sorted(order[start : start + window], key=lambda e: len(e[0]) + len(e[1]))
        batches += [[near[i : i + batch_size]] for i in range(0, len(near), batch_size)]
    rng.shuffle(batches)
    return batches


def supervised_loss(model: Any, batch: Sequence[Example]) -> tuple[torch.Tensor, Metrics]:
    """Mean cross-entropy over the solution tokens of ``batch``, nats."""
    device = next(model.parameters()).device
    rows = [torch.tensor(prompt + solution) for prompt, solution in batch]
    ids_BT = pad_sequence(rows, batch_first=True)
    mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = [torch.tensor((-100,) * len(prompt) + solution) for prompt, solution in batch]
    labels_BT = pad_sequence(labels, batch_first=True, padding_value=-100)
    first, width = min(len(prompt) for prompt, _ in batch) - 1, ids_BT.shape[1]
    # Logits only from where something is learnt: at V = 49,152 they cost more than several layers do.
    logits_BTV = model(
        input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), logits_to_keep=width - first, use_cache=False
    ).logits
    targets_BT = labels_BT[:, first + 1 :].to(device)
    loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), targets_BT.flatten())
    learnt = targets_BT != -100
    return loss, {"tokens": (float(learnt.sum()), 1.0)}
