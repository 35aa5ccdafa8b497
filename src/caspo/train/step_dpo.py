"""Step-wise preference training: trees in, loss out.

The unit of a batch is the tree, because all its pairs share prefixes; the unit of the loss is the pair: it is normalised
by the pairs of the whole optimiser step, so that accumulation, packing and the number of processes do not change the update.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from caspo.core.errors import DataError, EngineError
from caspo.records import StepPair, Tree
from caspo.train import losses
from caspo.train.checks import check_pairs, check_tokens
from caspo.train.lora import LoraSettings, add_adapters, like, merged, without_adapters
from caspo.train.reference import score_passes
from caspo.train.scoring import Scorer, check_packing
from caspo.train.trainer import Job, LoopSettings, Metrics, fit
from caspo.train.tree_packing import NodeKey, packed_size
from caspo.train.units import Micro, Unit, make_units, micro_batches, plan_steps

__all__ = [
    "StepDPOSettings", "TrainingResult", "held_out", "pair_tokens", "reference_of", "step_loss", "train_step_dpo",
]  # fmt: skip

_SAMPLED = 1e-3
"""Difference of a token's log p up to which the trees' own traces are this model's, nats."""


class StepDPOSettings(LoopSettings):
    """Step-wise DPO."""

    loss: losses.PreferenceLoss = "sigmoid"
    """Formula of the preference. `ipo` and `hinge` are experimental: tested, but no recipe uses them, and nothing was
    measured with them."""
    beta: float = Field(2.0, gt=0)
    """Strength of the pull towards the reference. A step is short: below 1, pairs push until the model is far away."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Experimental: share of pairs whose verdicts are believed to be the wrong way round; of the sigmoid loss only."""
    length_normalised: bool = False
    """Experimental: margins of log p per token instead of per step."""
    pair_weights: losses.PairWeights = "none"
    """Experimental: whether pairs count more where the model is sure of the wrong step (`train.losses.pair_weights`)."""
    anchor: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen steps (nats a token)."""
    confidence: float = Field(0.0, ge=0)
    """Experimental: weight of the confidence term, over every judged step of the trees. It more than doubled the time of
    training, and lowered the ECE by 0.01 at best."""
    confidence_loss: losses.ConfidenceLoss = "brier"
    """Experimental, as the term itself: distance of a step's confidence from its verdict."""
    epochs: int = Field(1, ge=1)
    """Times that every pair is trained on."""
    batch_pairs: int = Field(16, ge=1)
    """Pairs of one optimiser step over all devices, about: whole trees are taken until there are this many."""
    micro_tokens: int = Field(2048, ge=1)
    """Tokens of one forward pass, at most; bounds the memory. A larger tree is cut at a node."""
    layout: Literal["packed", "separate"] = "packed"
    """`packed`: a tree in one row. `separate`: a path in a row, for models that cannot be packed."""
    lora: LoraSettings | None = None
    """Adapters; without them all weights are trained."""
    base: Literal["float32", "bfloat16", "4bit"] = "float32"
    """What the frozen weights under adapters are held in: 4, 2 or about half a byte each. `bfloat16` and `4bit` (NF4, by
    bitsandbytes) need `lora` and `precision: bf16`."""
    save: Literal["merged", "adapter", "both"] = "merged"
    """What is kept: a model with the adapters merged into its weights, the adapters alone (a folder that names its base), or
    the merged model with the adapters beside it in `adapter`."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the weights of the result are stored in; `auto`: in what the model came in. Adapters are float32."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the trees that is held out to measure on."""
    evaluate_every: int = Field(10, ge=1)
    """Optimiser steps between two measurements on them."""
    patience: int = Field(0, ge=0)
    """Measurements without a better one after which training stops; 0: never. The best weights are kept either way."""

    @model_validator(mode="after")
    def _makes_sense(self) -> StepDPOSettings:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError("label_smoothing belongs to loss: sigmoid")
        if self.patience and not self.validation:
            raise ValueError("patience needs validation, the share of the trees to measure on")
        if self.base != "float32" and (self.lora is None or self.precision != "bf16"):
            raise ValueError(
                f"base: {self.base} is for the frozen weights under adapters, and the forward pass over it is bfloat16: it "
                "needs lora and precision: bf16"
            )
        if self.save != "merged" and self.lora is None:
            raise ValueError(f"save: {self.save} needs lora: without it there are no adapters to keep")
        return self


@dataclass(frozen=True)
class TrainingResult:
    """Figures for `metrics.json`."""

    pairs: dict[str, int]
    trees: int
    reference: Literal["sampled", "scored", "given"]
    """Where the reference log-probabilities came from: `sampled` are the trees' own."""
    loss_first: float
    """Mean over the first tenth of the steps."""
    loss_last: float
    """Mean over the last tenth of the steps."""
    pair_accuracy_last: float
    """Share of pairs in the last tenth of the steps whose margin is positive."""
    validation_loss: float | None
    """The best that was measured."""
    unique_tokens: int
    """Tokens computed in an epoch when every tree is packed."""
    pair_tokens: int
    """Tokens of an epoch when every pair is two rows of its own."""
    seconds: float
    log: list[dict[str, float]]

    def as_json(self) -> dict[str, Any]:
        """The ``training`` entry of a round."""
        return {key: value for key, value in vars(self).items() if key != "log" and value is not None}


def train_step_dpo(
    model: Any,
    trees: Sequence[Tree],
    pairs: Sequence[StepPair],
    settings: StepDPOSettings,
    seed: int,
    out: Path,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None,
    *,
    tokenizer: Any = None,
    reference: Mapping[NodeKey, float] | None = None,
    calibration: tuple[float, float] | None = None,
    cache: Path | None = None,
    merge: bool = True,
) -> tuple[Any, TrainingResult]:
    """Align ``model`` (in place) with the pairs. What is trained of it must be float32.

    Goes on from ``out`` if a run of the same settings was killed there. Runs as one process or under `accelerate launch`.

    Args:
        model: a causal language model of transformers, not wrapped; with adapters of peft to train these further.
        trees, pairs: the trees and the pairs that point into them.
        settings, seed: what to do.
        out: folder for checkpoints.
        on_step: called with step, number of steps and metrics.
        tokenizer: if given, the text of the trees' steps is compared with it.
        reference: log p of the steps under another model (`reference_of`), nats; the model as it comes in by default.
        calibration: slope and intercept of the confidence term (see `losses.calibrated_confidence`).
        cache: folder for reference scores, ``out`` by default.
        merge: whether adapters are merged into the weights in the end; else the model comes back with them.

    Returns:
        the trained model (None on all processes but the first where weights were sharded), the figures.

    Raises:
        DataError: no pairs, pairs without their nodes, trees that are not this model's, paths longer than its context.
        EngineError: packed and separate rows disagree on this model, or training diverged.
    """
    check_pairs(trees, pairs)
    used = {pair.question_id for pair in pairs}
    check_tokens([tree for tree in trees if tree.question.id in used], model, tokenizer)
    packed = settings.layout == "packed"
    plain = without_adapters(model)
    scorer = Scorer(plain, packed=packed)
    units = make_units(trees, pairs, judged=settings.confidence > 0, packed=packed)
    if packed:
        # A few branches of one tree: enough that a mask which is not honoured shows, little enough to be cheap.
        smallest = min(units, key=lambda unit: unit.size)
        ends = (smallest.pairs[0], smallest.pairs[-1])
        check_packing(plain, smallest.tree, {node for pair in ends for node in (pair.chosen, pair.rejected)})
    source: Literal["sampled", "scored", "given"] = "given"
    if reference is None:
        sampled = all(_sampled_by(plain, scorer, unit, settings) for unit in (units[0], units[-1]))
        source = "sampled" if sampled else "scored"
        reference = (
            {(t.question.id, n.id): float(n.step.trace.logprob.sum()) for t in trees for n in t.nodes}
            if sampled
            else reference_of(plain, trees, pairs, settings, seed, cache or out)
        )
    if settings.lora is not None and model is plain:
        model = add_adapters(model, settings.lora, seed)
    training, held = held_out(units, settings.validation, seed)
    job = Job(
        plan=plan_steps(
            training, epochs=settings.epochs, batch_pairs=settings.batch_pairs, micro_tokens=settings.micro_tokens,
            seed=seed,
        ),
        loss=lambda wrapped, micro: step_loss(wrapped, scorer, micro, reference, settings, calibration),
        epochs=settings.epochs,
        validation=micro_batches(held, settings.micro_tokens),
        evaluate_every=settings.evaluate_every if held else 0,
        patience=settings.patience,
    )  # fmt: skip
    adapted = model is not plain

    def rebuild() -> Any:
        fresh = type(plain)(plain.config)
        return like(model, fresh) if adapted else fresh

    fitted = fit(model, job, settings, out, seed, on_step, rebuild)
    trained = merged(fitted.model) if merge and adapted and fitted.model is not None else fitted.model
    steps = [line for line in fitted.log if "pair_accuracy" in line]
    measured = [line["eval_loss"] for line in fitted.log if "eval_loss" in line]
    tenth = max(1, len(steps) // 10)
    kinds = [pair.kind for pair in pairs]

    def mean(key: str, lines: Sequence[dict[str, float]]) -> float:
        return sum(line[key] for line in lines) / len(lines)

    return trained, TrainingResult(
        pairs={kind: kinds.count(kind) for kind in ("confident_wrong", "uncertain_right")},
        trees=len(units),
        reference=source,
        loss_first=mean("loss", steps[:tenth]),
        loss_last=mean("loss", steps[-tenth:]),
        pair_accuracy_last=mean("pair_accuracy", steps[-tenth:]),
        validation_loss=min(measured, default=None),
        unique_tokens=sum(packed_size(unit.tree, unit.needed) for unit in units),
        pair_tokens=sum(map(pair_tokens, units)),
        seconds=fitted.seconds,
        log=fitted.log,
    )


def reference_of(
    model: Any, trees: Sequence[Tree], pairs: Sequence[StepPair], settings: StepDPOSettings, seed: int, cache: Path
) -> dict[NodeKey, float]:
    """log p under ``model`` of every step that a pair needs, nats, in the layout and precision of the training.

    In the very passes of its first epoch: in bfloat16 a token's log p changes with what else is in the row, and a model
    would begin away from itself. Kept below ``cache`` by a hash of model and data; a killed call goes on. Under `accelerate
    launch` every process scores its share.
    """
    from accelerate import PartialState

    packed = settings.layout == "packed"
    units = make_units(trees, pairs, judged=settings.confidence > 0, packed=packed)
    training, held = held_out(units, settings.validation, seed)
    steps = plan_steps(training, epochs=1, batch_pairs=settings.batch_pairs, micro_tokens=settings.micro_tokens, seed=seed)
    micros = [micro for step in (*steps, micro_batches(held, settings.micro_tokens)) for micro in step]
    state = PartialState(cpu=model.device.type == "cpu")
    scores = score_passes(
        model,
        Scorer(model, packed=packed),
        [[(unit.tree, unit.needed) for unit in micro.units] for micro in micros],
        cache,
        bf16=settings.precision == "bf16",
        rank=state.process_index,
        world=state.num_processes,
        wait=state.wait_for_everyone,
    )
    return {key: float(found[:, 1].sum()) for key, found in scores.items()}


def step_loss(
    model: Any,
    scorer: Scorer,
    micro: Micro,
    reference: Mapping[NodeKey, float],
    settings: StepDPOSettings,
    calibration: tuple[float, float] | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """A micro-batch's share of its step's loss, and its metrics as sums and counts, by pair kind and by depth too."""
    scores = scorer.score(model, [row for unit in micro.units for row in scorer.rows(unit.tree, unit.needed)])
    loss: torch.Tensor = torch.zeros(())
    metrics: Metrics = {}
    pairs = [(unit, pair) for unit in micro.units for pair in unit.pairs]
    if pairs:
        pair_part, metrics = _pair_loss(scores, pairs, reference, settings)
        loss = pair_part / micro.step_pairs
    nodes = [(unit.tree, n) for unit in micro.units for n in unit.judged]
    if nodes:
        entropies = torch.stack([scores[tree.question.id, n].entropies.mean() for tree, n in nodes])
        right = entropies.new_tensor([float(tree.nodes[n].right) for tree, n in nodes])
        believed = losses.calibrated_confidence(entropies, *(calibration or (None, 0.0)))
        distance = losses.confidence_loss(believed, right, settings.confidence_loss)
        _refuse_nan(distance.detach(), [tree.question.id for tree, _ in nodes])
        loss = loss + settings.confidence * distance.sum() / micro.step_judged
        metrics["confidence"] = (float(distance.detach().sum()), float(len(nodes)))
    return loss, metrics


def _pair_loss(
    scores: Mapping[NodeKey, Any], pairs: Sequence[tuple[Unit, StepPair]], reference: Mapping[NodeKey, float],
    settings: StepDPOSettings,
) -> tuple[torch.Tensor, Metrics]:  # fmt: skip
    """Sum of the losses of the pairs, and their metrics."""
    keys = {side: [(pair.question_id, getattr(pair, side)) for _, pair in pairs] for side in ("chosen", "rejected")}
    sums = {side: torch.stack([scores[key].logprobs.sum() for key in found]) for side, found in keys.items()}
    like = sums["chosen"]
    lengths = {side: like.new_tensor([len(scores[key].logprobs) for key in found]) for side, found in keys.items()}
    ratios = {side: sums[side] - like.new_tensor([reference[key] for key in keys[side]]) for side in keys}
    normal = {side: ratios[side] / lengths[side] if settings.length_normalised else ratios[side] for side in keys}
    margin = losses.margins(normal["chosen"], normal["rejected"])
    preference = losses.preference_loss(margin, settings.beta, settings.loss, settings.label_smoothing)
    anchors = losses.anchor_loss(like, lengths["chosen"])
    _refuse_nan((preference + anchors).detach(), [pair.question_id for _, pair in pairs])
    weights = losses.pair_weights(
        like.new_tensor([pair.weight for _, pair in pairs]),
        like.new_tensor([pair.chosen_confidence for _, pair in pairs]),
        like.new_tensor([pair.rejected_confidence for _, pair in pairs]),
        settings.pair_weights,
    )
    with torch.no_grad():
        entropies = {
            name: torch.stack([scores[key].entropies.mean() for key in keys[side]])
            for side, name in (("chosen", "entropy_right"), ("rejected", "entropy_wrong"))
        }
        values = {
            "dpo": preference, "anchor": anchors, "margin": settings.beta * margin, "pair_accuracy": (margin > 0).float(),
            "chosen_shift": ratios["chosen"], "rejected_shift": ratios["rejected"], **entropies,
        }  # fmt: skip
        table = torch.stack(list(values.values())).double().cpu().numpy()
    metrics: Metrics = {}
    groups = {"": range(len(pairs))} | {
        f"/{name}": [i for i, found in enumerate(names) if found == name]
        for names in ([pair.kind for _, pair in pairs], [f"depth_{u.tree.nodes[p.chosen].depth}" for u, p in pairs])
        for name in dict.fromkeys(names)
    }
    for suffix, members in groups.items():
        for name, row in zip(values, table, strict=True):
            if not suffix or name in ("margin", "pair_accuracy", "entropy_right", "entropy_wrong"):
                metrics[name + suffix] = (float(row[list(members)].sum()), float(len(members)))
    return (weights * (preference + settings.anchor * anchors)).sum(), metrics


def held_out(units: Sequence[Unit], share: float, seed: int) -> tuple[list[Unit], list[Unit]]:
    """Units to train on and units to measure on."""
    places = list(range(len(units)))
    random.Random(f"held out {seed}").shuffle(places)
    held = set(places[: round(share * len(units))])
    training = [unit for i, unit in enumerate(units) if i not in held]
    if share and (not held or not training):
        raise DataError(
            f"{len(units)} trees with pairs are too few to hold out {share:.0%}. Sample more, or set train.validation=0."
        )
    return training, [units[i] for i in sorted(held)]


def _refuse_nan(values: torch.Tensor, questions: Sequence[str]) -> None:
    """Stop where a loss is not a number, and say at which tree."""
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if bad:
        raise EngineError(
            f"The loss at the tree of question {questions[bad[0]]} is {float(values[bad[0]])}: training diverged, or the "
            "model gives a token of that tree no probability at all. Nothing of this step was kept; lower the learning rate "
            "and run again, or leave the tree out."
        )


def _sampled_by(model: Any, scorer: Scorer, unit: Unit, settings: StepDPOSettings) -> bool:
    """Whether the log-probabilities that the tree was sampled with are this model's: then the reference is there already."""
    bf16 = settings.precision == "bf16"
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
        found = scorer.traces(model, scorer.rows(unit.tree, unit.needed))
    for (_, node), trace in found.items():
        sampled = unit.tree.nodes[node].step.trace
        if sampled.kind != "full" or not (abs(trace[:, 1].numpy() - sampled.logprob) < _SAMPLED).all():
            return False
    return True


def pair_tokens(unit: Unit) -> int:
    """Tokens of the unit's pairs when each is two rows of its own."""
    total = 0
    for pair in unit.pairs:
        prefix = len(unit.tree.prefix_ids(pair.parent))
        total += sum(prefix + len(unit.tree.nodes[n].step.token_ids) for n in (pair.chosen, pair.rejected))
    return total
