"""What a training run costs before it starts: memory of one device, and tokens.

Memory that follows from counts (weights, gradients, AdamW) is a formula; that of a micro-batch is found by going through one
without weights (`simulate`). So it holds for any architecture, mixtures of experts too, with gradient checkpointing,
adapters and autocast as they are, and takes seconds. tests/test_budget.py compares it with measured memory.

What it is not: an account of what the framework and the allocator hold beside the tensors (a CUDA context, fragmentation,
on a CPU half a gigabyte of libraries and in bfloat16 up to 0.3 GB of compiled kernels), nor of communication buffers under
full sharding: leave a tenth, and a gigabyte on a CPU. Nor of the merged model that is written in the end, from the memory
of the host: 2 or 4 bytes a parameter.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from caspo.core.errors import CaspoError, ConfigError, ModelError
from caspo.records import StepPair, Tree
from caspo.train.checks import check_pairs
from caspo.train.lora import add_adapters, without_adapters
from caspo.train.simulate import Forward, simulate
from caspo.train.step_dpo import StepDPOSettings, held_out, pair_tokens
from caspo.train.trainer import SHARDED_BASE
from caspo.train.tree_packing import packed_size, separate
from caspo.train.units import Micro, make_units, plan_steps

__all__ = ["Devices", "Memory", "ModelSize", "Tokens", "count_tokens", "largest_forward", "memory"]


_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: itself, a byte for each block of 64, a float32 for 256 of these."""


@dataclass(frozen=True)
class Devices:
    """Processes of the training, one device each."""

    number: int = 1
    sharding: Literal["none", "full"] = "none"
    """`none` (DDP): everything on every device. `full` (FSDP2, ZeRO-3): weights, gradients, AdamW's state are divided."""


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters."""

    total: int
    active: int
    """Parameters that a token goes through: of a mixture of experts those of the experts that it is sent to, else all."""
    trained: int
    """All, or those of the adapters."""
    layer: int
    """Parameters of the largest decoder layer."""
    layer_trained: int
    outside: int
    """Parameters that are in no layer: embedding, head, last norm."""
    outside_trained: int
    largest_trained: int
    """Parameters of the largest trained matrix."""
    rounded: int
    """Parameters that a base in 4 bits rounds: of linear layers, but for the output layer (and fused experts)."""
    largest_rounded: int
    """Parameters of the largest of these matrices."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. Working copies to logits are what is alive at the highest moment of a micro-batch."""

    weights: int
    """4 a parameter (float32 masters), of a frozen base 2 in bfloat16, and 0.516 of those that 4 bits round (half a byte and
    the scales of blocks of 64); divided by the devices under full sharding."""
    gradients: int
    """4 a trained parameter; divided likewise. DDP on several devices holds them twice (the buckets they are summed in)."""
    optimizer: int
    """8 a trained parameter (AdamW: two float32 moments); divided likewise."""
    working: int
    """Casts of weights that autocast holds under bf16 (2 a parameter; with checkpointing, or of frozen weights, a layer's).
    Under full sharding the gathered weights of two layers and of what is outside layers, and the gradients of one layer
    and of what is outside, in the precision of the forward pass. Over 4 bits the largest matrix in bfloat16."""
    activations: int
    """What the backward pass needs of a micro-batch, and what is held for a moment beside it. From the simulated pass."""
    logits: int
    """Matrices with the vocabulary as last dimension: logits and their gradient (8 a token and word, 4 in bfloat16) of a
    part of the tokens, and parts of them."""
    mask: int
    """Tree mask: 1 a pair of tokens, for each kind of attention. (The kernels' float copies of it are activations.)"""
    step: int
    """Held for a moment by AdamW's step, when the pass's memory is free again: 4 a trained parameter on a GPU (foreach),
    else 4 a parameter of the largest matrix."""
    reference: int
    """All of the phase before training: the whole model on every device, whatever the sharding, held as it is in training,
    and a forward pass without gradients."""

    @property
    def training(self) -> int:
        """The highest moment of the training."""
        held = self.weights + self.gradients + self.optimizer
        return held + max(self.working + self.activations + self.logits + self.mask, self.step)

    @property
    def peak(self) -> int:
        """The highest moment of all."""
        return max(self.training, self.reference)


@dataclass(frozen=True)
class Tokens:
    """What is trained on, counted from trees and pairs; numbers of one epoch except where said."""

    trees: int
    pairs: int
    unique: int
    """Tokens of all trees with pairs, each packed once (`TrainingResult.unique_tokens`)."""
    separate: int
    """Tokens when every pair is two rows of its own (`TrainingResult.pair_tokens`)."""
    trained: int
    """Unique tokens of the trees that are not held out for validation."""
    computed: int
    """Tokens of all micro-batches: more than ``trained`` in separate rows, and where a tree is cut, whose paths to the cut
    are computed twice."""
    steps: int
    """Optimiser steps, all epochs."""
    micro_batches: int
    """Forward and backward passes, all epochs."""
    longest_path: int
    """Tokens of the longest path, prompt included: what the model's context must hold."""


def memory(
    config: Any,
    settings: StepDPOSettings,
    forward: Forward,
    devices: Devices = Devices(),
    *,
    gpu: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Memory, ModelSize]:
    """Bytes on one device, and the model's size.

    Args:
        config: of transformers; no weights are read.
        settings: precision, gradient checkpointing, adapters, layout.
        forward: the largest forward pass (`largest_forward`).
        devices: how many processes share the work.
        gpu: whether they are GPUs, which reduce logits in larger parts.
        trust_remote_code: whether the model's own Python may be run.

    Raises:
        ConfigError: a base that is held in less is to be divided.
        ModelError: the model cannot be built or run without weights.
        EngineError: packed rows cannot be exact with this model.
    """
    bf16, full = settings.precision == "bf16", devices.sharding == "full"
    packed = settings.layout == "packed"
    frozen = None if settings.base == "float32" else torch.bfloat16
    if full and frozen is not None:
        raise ConfigError(SHARDED_BASE)
    with _explained(config):
        model = _without_weights(config, settings, trust_remote_code)
        size = _size(model)
        found = simulate(
            model,
            forward,
            packed=packed,
            train=True,
            checkpointing=settings.gradient_checkpointing,
            # Gathered weights have the precision of the pass already: nothing is cast.
            autocast=bf16 and not full,
            dtype=torch.bfloat16 if bf16 and full else None,
            frozen=frozen,
            gpu=gpu,
        )
        model = _without_weights(config, settings.model_copy(update={"lora": None}), trust_remote_code)
        whole = _bytes(_size(model), settings.base, 0)
        scoring = simulate(model, forward, packed=packed, train=False, autocast=bf16, dtype=frozen, gpu=gpu)
    unpacked = 2 * size.largest_rounded if settings.base == "4bit" else 0
    gathered = size.outside + 2 * size.layer + size.outside_trained + size.layer_trained
    shared = devices.number if full else 1
    copies = 2 if devices.number > 1 and not full else 1
    return Memory(
        weights=math.ceil(_bytes(size, settings.base, size.trained) / shared),
        gradients=math.ceil(4 * size.trained * copies / shared),
        optimizer=math.ceil(8 * size.trained / shared),
        working=(2 if bf16 else 4) * gathered if full else found.working + unpacked,
        activations=found.activations,
        logits=found.logits,
        mask=found.mask,
        step=math.ceil(4 * (size.trained if gpu else size.largest_trained) / shared),
        reference=whole + scoring.total + unpacked,
    ), size


def _bytes(size: ModelSize, base: str, masters: int) -> int:
    """Of the weights as training holds them, ``masters`` of them in float32 over any base."""
    if base == "float32":
        return 4 * size.total
    rounded = size.rounded if base == "4bit" else 0
    return 4 * masters + 2 * (size.total - masters - rounded) + math.ceil(_NF4 * rounded)


def count_tokens(
    trees: Sequence[Tree], pairs: Sequence[StepPair], settings: StepDPOSettings, seed: int
) -> tuple[Tokens, list[Micro]]:
    """Tokens, steps and passes exactly as `train_step_dpo` with these arguments takes them; and its micro-batches.

    Raises:
        DataError: no pairs, pairs without their nodes, or too few trees for the validation.
    """
    check_pairs(trees, pairs)
    units = make_units(trees, pairs, judged=settings.confidence > 0, packed=settings.layout == "packed")
    training, _ = held_out(units, settings.validation, seed)
    plan = plan_steps(
        training, epochs=settings.epochs, batch_pairs=settings.batch_pairs, micro_tokens=settings.micro_tokens, seed=seed
    )
    micros = [micro for step in plan for micro in step]
    return Tokens(
        trees=len(units),
        pairs=sum(len(unit.pairs) for unit in units),
        unique=sum(packed_size(unit.tree, unit.needed) for unit in units),
        separate=sum(pair_tokens(unit) for unit in units),
        trained=sum(packed_size(unit.tree, unit.needed) for unit in training),
        computed=round(sum(unit.size for micro in micros for unit in micro.units) / settings.epochs),
        steps=len(plan),
        micro_batches=len(micros),
        longest_path=max(len(unit.tree.prefix_ids(node)) for unit in units for node in unit.needed),
    ), micros


def largest_forward(settings: StepDPOSettings, micros: Sequence[Micro] | None = None) -> Forward:
    """The largest pass of these micro-batches; without them, a packed row as full as it may be.

    Raises:
        ConfigError: separate rows without micro-batches: how many paths a tree has is not known.
    """
    if settings.layout == "packed":
        sizes = [sum(unit.size for unit in micro.units) for micro in micros or ()]
        return Forward(1, max(sizes, default=settings.micro_tokens))
    if not micros:
        raise ConfigError(
            "train.layout=separate makes a row of every path, and how many paths there are is not known without trees. Give "
            "--trees and --pairs, or plan train.layout=packed."
        )
    rows = [[row for unit in micro.units for row in separate(unit.tree, unit.needed)] for micro in micros]
    shapes = [Forward(len(found), max(len(row) for row in found)) for found in rows]
    return max(shapes, key=lambda shape: shape.tokens)


@contextlib.contextmanager
def _explained(config: Any) -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # it writes a traceback of what is caught here
    try:
        yield
    except CaspoError:
        raise
    except Exception as error:  # whatever an architecture's code trips over
        raise ModelError(
            f"The memory of a {config.model_type} cannot be planned: running it without weights failed "
            f"({type(error).__name__}: {str(error).partition('. ')[0]}). Measure the first step of a run instead."
        ) from error
    finally:
        log.disabled = before


def _without_weights(config: Any, settings: StepDPOSettings, trust_remote_code: bool) -> Any:
    """The model to be trained on the meta device."""
    from transformers import AutoModelForCausalLM

    # As a model is loaded: SDPA, or eager where the class has no other, or its scores are capped.
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager" if capped else None, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        return model if settings.lora is None else add_adapters(model, settings.lora, 0)


def _size(model: Any) -> ModelSize:
    def count(modules: Sequence[Any], *, trained: bool) -> int:
        found = {id(p): p.numel() for module in modules for p in module.parameters() if p.requires_grad or not trained}
        return sum(found.values())

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = list(max(lists, key=lambda found: count([found], trained=False), default=()))
    total, trained = count([model], trained=False), count([model], trained=True)
    rounded = [m.weight.numel() for m in without_adapters(model).modules() if _is_rounded(m, model)]
    return ModelSize(
        total=total,
        active=total - _idle(model),
        trained=trained,
        layer=max((count([layer], trained=False) for layer in layers), default=0),
        layer_trained=max((count([layer], trained=True) for layer in layers), default=0),
        outside=total - count(layers, trained=False),
        outside_trained=trained - count(layers, trained=True),
        largest_trained=max((p.numel() for p in model.parameters() if p.requires_grad), default=0),
        rounded=sum(rounded),
        largest_rounded=max(rounded, default=0),
    )


def _is_rounded(module: Any, model: Any) -> bool:
    """Whether a base in 4 bits rounds this module: a linear layer, not the output layer, not an adapter's."""
    linear = isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    adapter = any(p.requires_grad for p in module.parameters()) and without_adapters(model) is not model
    return linear and not adapter


def _idle(model: Any) -> int:
    """Parameters of the experts that a token is not sent to."""
    config = model.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k", None)
    experts = {
        id(p): p
        for module in model.modules()
        if hasattr(module, "num_experts")
        for p in module.parameters(recurse=False)
        if p.dim() == 3 and len(p) == module.num_experts
    }
    if not isinstance(chosen, int):
        return 0
    return sum(p.numel() * (len(p) - min(chosen, len(p))) // len(p) for p in experts.values())
