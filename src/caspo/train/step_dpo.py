"""Step-wise preference training: trees in, loss out.

The unit of a batch is the tree, because all its pairs share prefixes; the unit of the loss is the pair: it is normalised
by the pairs of the whole optimiser step, so that splitting a step into micro-batches does not change the update.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from caspo.errors import DataError, EngineError
from caspo.storage import read_json, write_json
from caspo.train.loop import Loop, LoopSettings
from caspo.train.lora import LoraSettings, add_adapters
from caspo.train.losses import anchor_loss, confidence_loss, dpo_loss
from caspo.train.tree_packing import NodeKey, NodeScores, can_pack, pack, score_packed, score_separate, separate
from caspo.types import StepPair, Tree

__all__ = ["StepDPOSettings", "TrainingResult", "train_step_dpo"]

_TOLERANCE = 1e-3
"""Largest difference of a token's log p between two layouts that float32 rounding explains, with room to spare, nats."""


class StepDPOSettings(LoopSettings):
    """Step-wise DPO."""

    beta: float = Field(2.0, gt=0)
    """Strength of the pull towards the reference. A step is short: below 1, pairs push until the model is far away."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen steps (nats a token)."""
    confidence: float = Field(0.0, ge=0)
    """Weight of the confidence term: Brier score of the confidence of every judged step of the trees."""
    epochs: int = Field(1, ge=1)
    batch_pairs: int = Field(16, ge=1)
    """Pairs of one optimiser step, about: whole trees are taken until there are this many."""
    micro_tokens: int = Field(2048, ge=1)
    """Tokens of one forward pass, about; bounds the memory. A larger tree goes alone."""
    lora: LoraSettings | None = None
    """Adapters; without them all weights are trained."""


@dataclass(frozen=True)
class _Unit:
    """A tree with its pairs and what training reads of it."""

    tree: Tree
    pairs: tuple[StepPair, ...]
    judged: tuple[int, ...]
    """Nodes of the confidence term; empty without it."""

    @property
    def needed(self) -> set[int]:
        return {n for p in self.pairs for n in (p.chosen, p.rejected)} | set(self.judged)


@dataclass(frozen=True)
class TrainingResult:
    """Figures for `metrics.json`."""

    pairs: dict[str, int]
    trees: int
    loss_first: float
    """Mean over the first tenth of the steps."""
    loss_last: float
    """Mean over the last tenth of the steps."""
    pair_accuracy_last: float
    """Share of pairs in the last tenth of the steps whose margin is positive."""
    unique_tokens: int
    """Tokens computed in an epoch when every tree is packed."""
    pair_tokens: int
    """Tokens of an epoch when every pair is two rows of its own."""
    seconds: float
    log: list[dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """The ``training`` entry of a round."""
        return {key: value for key, value in vars(self).items() if key != "log"}


def train_step_dpo(
    model: Any,
    trees: Sequence[Tree],
    pairs: Sequence[StepPair],
    settings: StepDPOSettings,
    seed: int,
    out: Path,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None,
) -> tuple[Any, TrainingResult]:
    """Align ``model`` (float32, in place) with the pairs; the reference is the model as it comes in.

    Goes on from ``out`` if a run of the same settings was killed there. Returns the trained model (adapters merged) and
    the figures.

    Raises:
        DataError: no pairs.
        EngineError: packed and separate rows disagree on this model, or training diverged.
    """
    if not pairs:
        raise DataError(
            "There are no pairs to train on: no prefix had both a right and a wrong continuation. Sample more (more "
            "questions, more samples, a higher temperature), or choose problems of another difficulty."
        )
    units = _units(trees, pairs, settings)
    packed = can_pack(model)
    if packed:
        _check_packing(model, units[0])
    reference = _reference(model, units, packed, settings, out / "reference.json")
    if settings.lora is not None:
        model = add_adapters(model, settings.lora, seed)
    plan = _plan(units, settings, seed)
    totals = [
        (sum(len(u.pairs) for m in step for u in m), sum(len(u.judged) for m in step for u in m)) for step in plan
    ]
    items = [[(m, *total) for m in step] for step, total in zip(plan, totals, strict=True)]
    loop = Loop(model, settings, out)
    log = loop.run(items, lambda item: _loss(model, *item, reference, settings, packed), on_step)
    if settings.lora is not None:
        model = model.merge_and_unload()
    tenth = max(1, len(log) // 10)
    kinds = [pair.kind for pair in pairs]

    def mean(key: str, steps: Sequence[dict[str, float]]) -> float:
        return sum(s[key] for s in steps) / len(steps)

    return model, TrainingResult(
        pairs={kind: kinds.count(kind) for kind in ("confident_wrong", "uncertain_right")},
        trees=len(units),
        loss_first=mean("loss", log[:tenth]),
        loss_last=mean("loss", log[-tenth:]),
        pair_accuracy_last=mean("pair_accuracy", log[-tenth:]),
        unique_tokens=sum(len(pack(u.tree, u.needed)) for u in units),
        pair_tokens=sum(_pair_tokens(u) for u in units),
        seconds=loop.seconds,
        log=log,
    )


def _units(trees: Sequence[Tree], pairs: Sequence[StepPair], settings: StepDPOSettings) -> list[_Unit]:
    by_question: dict[str, list[StepPair]] = {}
    for pair in pairs:
        by_question.setdefault(pair.question_id, []).append(pair)
    units = []
    for tree in trees:
        mine = by_question.pop(tree.question.id, [])
        if mine:
            judged = (
                tuple(
                    n.id for n in tree.nodes if n.verdict and n.verdict.label != "unknown" and tree.prefix_right(n.id)
                )
                if settings.confidence
                else ()
            )
            units.append(_Unit(tree, tuple(mine), judged))
    if by_question:
        raise DataError(f"Pairs of question {next(iter(by_question))} have no tree. Build the pairs from these trees.")
    return units


def _plan(units: Sequence[_Unit], settings: StepDPOSettings, seed: int) -> list[list[list[_Unit]]]:
    """Optimiser steps of micro-batches of trees, for all epochs; a pure function of its arguments."""
    plan: list[list[list[_Unit]]] = []
    for epoch in range(settings.epochs):
        order = list(units)
        random.Random(f"{seed} {epoch}").shuffle(order)
        step: list[_Unit] = []
        for i, unit in enumerate(order):
            step.append(unit)
            rest = sum(len(u.pairs) for u in order[i + 1 :])
            if (
                sum(len(u.pairs) for u in step) >= settings.batch_pairs and rest >= settings.batch_pairs // 2
            ) or not rest:
                plan.append(_micro(step, settings.micro_tokens))
                step = []
    return plan


def _micro(step: Sequence[_Unit], tokens: int) -> list[list[_Unit]]:
    batches: list[list[_Unit]] = [[]]
    used = 0
    for unit in step:
        size = len(pack(unit.tree, unit.needed))
        if batches[-1] and used + size > tokens:
            batches.append([])
            used = 0
        batches[-1].append(unit)
        used += size
    return batches


def _score(model: Any, units: Sequence[_Unit], packed: bool, *, entropies: bool) -> dict[NodeKey, NodeScores]:
    if packed:
        return score_packed(model, [pack(u.tree, u.needed) for u in units], entropies=entropies)
    return score_separate(model, [row for u in units for row in separate(u.tree, u.needed)], entropies=entropies)


def _loss(
    model: Any,
    units: Sequence[_Unit],
    step_pairs: int,
    step_judged: int,
    reference: dict[NodeKey, float],
    settings: StepDPOSettings,
    packed: bool,
) -> tuple[torch.Tensor, dict[str, float]]:
    """This micro-batch's share of the step's loss, and of its metrics."""
    scores = _score(model, units, packed, entropies=settings.confidence > 0)
    sums = {key: score.logprobs.sum() for key, score in scores.items()}

    def side(which: Literal["chosen", "rejected"]) -> tuple[torch.Tensor, torch.Tensor, list[NodeKey]]:
        keys = [(p.question_id, getattr(p, which)) for u in units for p in u.pairs]
        values = torch.stack([sums[key] for key in keys])
        return values, values.new_tensor([reference[key] for key in keys]), keys

    chosen, reference_chosen, keys = side("chosen")
    rejected, reference_rejected, _ = side("rejected")
    weights = chosen.new_tensor([p.weight for u in units for p in u.pairs])
    losses, margins = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, settings.beta)
    anchors = anchor_loss(chosen, chosen.new_tensor([len(scores[key].logprobs) for key in keys]))
    loss = (weights * (losses + settings.anchor * anchors)).sum() / step_pairs
    metrics = {
        "dpo": float(losses.detach().sum()) / step_pairs,
        "anchor": float(anchors.detach().sum()) / step_pairs,
        "margin": float(margins.detach().sum()) / step_pairs,
        "pair_accuracy": float((margins.detach() > 0).sum()) / step_pairs,
        "chosen_shift": float((chosen.detach() - reference_chosen).sum()) / step_pairs,
        "rejected_shift": float((rejected.detach() - reference_rejected).sum()) / step_pairs,
    }
    if settings.confidence:
        nodes = [(u.tree, n) for u in units for n in u.judged]
        entropies = torch.stack([scores[tree.question.id, n].entropies.mean() for tree, n in nodes])
        right = entropies.new_tensor([_is_right(tree, n) for tree, n in nodes])
        brier = confidence_loss(entropies, right)
        loss = loss + settings.confidence * brier.sum() / step_judged
        metrics["confidence"] = float(brier.detach().sum()) / step_judged
    return loss, metrics


def _is_right(tree: Tree, node: int) -> float:
    verdict = tree.nodes[node].verdict
    return float(verdict is not None and verdict.label == "right")


@torch.no_grad()
def _reference(
    model: Any, units: Sequence[_Unit], packed: bool, settings: StepDPOSettings, file: Path
) -> dict[NodeKey, float]:
    """log p of every needed node under the model before training, nats.

    The trees hold it already where this very model sampled them: then it costs nothing. Whether that is so is checked
    on the first and the last tree. Otherwise it is computed, and kept in ``file`` for a resumed run.
    """
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bf16"):
        if all(_sampled_by(model, unit, packed) for unit in (units[0], units[-1])):
            return {
                (unit.tree.question.id, node.id): float(node.step.trace.logprob.sum())
                for unit in units
                for node in unit.tree.nodes
            }
        if not file.exists():
            found: list[tuple[str, int, float]] = []
            for batch in _micro(units, settings.micro_tokens):
                scores = _score(model, batch, packed, entropies=False)
                found += [(question, node, float(s.logprobs.sum())) for (question, node), s in scores.items()]
            write_json(file, found)
    return {(question, node): value for question, node, value in read_json(file)}


def _sampled_by(model: Any, unit: _Unit, packed: bool) -> bool:
    """Whether the log-probabilities that the tree was sampled with are this model's."""
    for (_, node), score in _score(model, [unit], packed, entropies=False).items():
        trace = unit.tree.nodes[node].step.trace
        sampled = score.logprobs.new_tensor(trace.logprob)
        if trace.kind != "full" or not bool(((score.logprobs - sampled).abs() < _TOLERANCE).all()):
            return False
    return True


@torch.no_grad()
def _check_packing(model: Any, unit: _Unit) -> None:
    """Refuse to train a model for which the packed layout gives other numbers than separate rows."""
    packed = _score(model, [unit], True, entropies=False)
    apart = _score(model, [unit], False, entropies=False)
    worst = max(float((packed[key].logprobs - apart[key].logprobs).abs().max()) for key in packed)
    if not worst < _TOLERANCE * (1 if next(model.parameters()).dtype == torch.float32 else 100):
        raise EngineError(
            f"Packed and separate rows disagree on this model by {worst:.3g} nats a token: its attention does not honour "
            "the tree mask. Please report the model's type; nothing was trained."
        )


def _pair_tokens(unit: _Unit) -> int:
    total = 0
    for pair in unit.pairs:
        prefix = len(unit.tree.prefix_ids(pair.parent))
        total += sum(prefix + len(unit.tree.nodes[n].step.token_ids) for n in (pair.chosen, pair.rejected))
    return total
