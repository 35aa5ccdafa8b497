"""A forward and backward pass on fake tensors: what of it is alive at the highest moment, in bytes, by kind.

Fake tensors have shapes, types and lifetimes and nothing else. All that makes them is as in training: the model, gradient
checkpointing, adapters, autocast, the tree mask. Only what depends on numbers (the reduction of the logits) is replaced by
something of the same memory.

What it is not: an account of what kernels and allocators hold beside the tensors. The kernels are those of a CPU; the fused
attention of a GPU keeps the same (queries, keys, values, output, a float copy of the mask).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

# torch documents these three, and has no public path to them.
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caspo.train.attention import TreeAttention
from caspo.train.lora import without_adapters
from caspo.train.output_layer import OutputLayer
from caspo.train.scoring import CPU_ROWS, GPU_ROWS

__all__ = ["Forward", "Highest", "simulate"]

_SCORED = 3
"""(rows, V) float32 matrices that `_TokenScores` holds for a moment beside the logits: log p, p, their product."""
_MEASURED = 6
"""The same of `Distribution`, which measures the reference: logits, log p, p, clamped, weighted, sorted."""


@dataclass(frozen=True)
class Forward:
    """Shape of a forward pass."""

    rows: int
    """1 in the packed layout: a micro-batch is one row."""
    width: int
    """Tokens of a row."""

    @property
    def tokens(self) -> int:
        """All tokens. Each may predict, so there are at most as many logits."""
        return self.rows * self.width


@dataclass(frozen=True)
class Highest:
    """Bytes alive at the highest moment of a pass; weights and gradients that were there before it are not counted."""

    working: int
    """Casts of weights."""
    logits: int
    """Matrices with the vocabulary as their last dimension."""
    mask: int
    activations: int
    """All else."""

    @property
    def total(self) -> int:
        """Bytes."""
        return self.working + self.logits + self.mask + self.activations


def simulate(
    model: Any,
    forward: Forward,
    *,
    packed: bool,
    train: bool,
    checkpointing: bool = False,
    autocast: bool = False,
    dtype: torch.dtype | None = None,
    frozen: torch.dtype | None = None,
    gpu: bool = False,
) -> Highest:
    """Memory of one pass.

    Args:
        model: on the meta device. It is used up: its weights are replaced.
        forward: the pass.
        packed: whether rows are packed trees.
        train: with a backward pass, or as the reference is scored.
        checkpointing: whether activations are computed again in the backward pass.
        autocast: whether weights are cast to bfloat16 as they are used.
        dtype: of the weights; as they are by default.
        frozen: of those that are not trained, likewise.
        gpu: whether logits are reduced in the parts of a GPU.

    Raises:
        EngineError: packed rows cannot be exact with this model.
    """
    # Which keys a block of queries needs depends on the trees: the whole square is counted.
    attention = replace(TreeAttention.of(model), by_block=False) if packed else None
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    each = np.arange(forward.tokens)
    model.train(train)
    if checkpointing:
        new = hasattr(model, "activation_checkpointing_enable")  # transformers 5.19 has the other
        enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    with FakeTensorMode(), torch.set_grad_enabled(train):
        live = _Live(vocabulary, _fake_weights(model, dtype, frozen))
        with live:
            output = OutputLayer.of(without_adapters(model))
        positions_T = torch.arange(forward.width)
        ids_BT = torch.zeros(forward.rows, forward.width, dtype=torch.long)

        def reduce(logits_PV: torch.Tensor, places_N: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
            part = (min(len(logits_PV), GPU_ROWS if gpu else CPU_ROWS), vocabulary)
            if train:
                # What is not reduced within the model comes out of it in float32, as accelerate makes it under autocast.
                whole = logits_PV.float() if output.module is None else logits_PV
                return _Scores.apply(whole, part)  # type: ignore[no-any-return, no-untyped-call]
            torch.empty(_MEASURED, *part)
            return torch.empty(len(places_N), 5)

        with live:
            if attention is not None:
                mask = attention.mask(positions_T, torch.full_like(positions_T, forward.width), torch.float32)
            else:
                mask = torch.ones(forward.rows, 1, forward.width, forward.width, dtype=torch.bool)
            inputs = {
                "input_ids": ids_BT, "position_ids": positions_T.expand_as(ids_BT), "attention_mask": mask,
                "logits_to_keep": positions_T,
            }  # fmt: skip
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=train):
                found = output.reduce(model, inputs, each, each, each, reduce)
            if train:
                found.sum().backward()
        masks = sum(one.untyped_storage().nbytes() for one in tree_leaves(mask))
    most = live.highest
    return Highest(most["working"], most["logits"], masks, most["activations"] - masks)


def _fake_weights(model: Any, dtype: torch.dtype | None, frozen: torch.dtype | None) -> list[torch.Tensor]:
    """Put fake tensors in the place of those on the meta device, with a gradient where they are trained; all of them."""
    made: dict[torch.Tensor, torch.Tensor] = {}

    def fake(old: torch.Tensor) -> torch.Tensor:
        if old not in made:
            other = frozen if isinstance(old, torch.nn.Parameter) and not old.requires_grad else dtype
            new = torch.empty(old.shape, dtype=other if other is not None and old.is_floating_point() else old.dtype)
            if isinstance(old, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                if old.requires_grad:
                    new.grad = torch.empty_like(new)
            made[old] = new
        return made[old]

    for module in model.modules():
        own = [*module.named_parameters(recurse=False, remove_duplicate=False)]
        own += module.named_buffers(recurse=False, remove_duplicate=False)
        for name, old in own:
            setattr(module, name, fake(old))
    return [t for new in made.values() for t in (new, new.grad) if t is not None]


class _Scores(torch.autograd.Function):
    """The memory of `_TokenScores`: keeps the logits, makes a gradient of their size and a few matrices of ``part``."""

    @staticmethod
    def forward(ctx: Any, logits_UV: torch.Tensor, part: tuple[int, int]) -> torch.Tensor:
        ctx.save_for_backward(logits_UV)
        ctx.part = part
        return torch.empty(len(logits_UV), 2)

    @staticmethod
    def backward(ctx: Any, _: torch.Tensor) -> Any:
        (logits_UV,) = ctx.saved_tensors
        grad_UV = torch.empty_like(logits_UV)
        torch.empty(_SCORED, *ctx.part)
        return grad_UV, None


def _experts(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, *_: Any) -> torch.Tensor:
    """The shape of a product by experts, whose rows end at ``ends``: torch's own check of shapes takes bfloat16 only."""
    each = a.dim() == b.dim() == 2  # the gradient of the experts' weights
    return a.new_empty((len(ends),) * each + (a.shape[-2], b.shape[-1]))


class _Live(TorchDispatchMode):
    """Adds up the storages that are made under it and are still alive, by kind; a view is no storage of its own."""

    def __init__(self, vocabulary: int, before: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary = vocabulary
        self._before = {t.untyped_storage()._cdata for t in before}
        self._held: dict[int, tuple[str, int]] = {}
        self._now = {"activations": 0, "logits": 0, "working": 0}
        self.highest = dict(self._now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _experts(*args) if func is torch.ops.aten._grouped_mm.default else func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, func, args)
        return result

    def _add(self, tensor: torch.Tensor, func: Any, args: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._before or key in self._held:
            return
        cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._before
        kind = "working" if cast else "logits" if tensor.shape[-1:] == (self._vocabulary,) else "activations"
        self._held[key] = (kind, storage.nbytes())
        self._now[kind] += storage.nbytes()
        weakref.finalize(storage, self._free, key)
        if sum(self._now.values()) > sum(self.highest.values()):
            self.highest = dict(self._now)

    def _free(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self._now[kind] -= size
