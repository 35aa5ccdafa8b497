"""Weights of linear layers in the order in which a CPU's matrix units read them.

In plain order oneDNN reorders a bfloat16 matrix at every product, which for the few rows of a decode step costs a fifth of
it (docs/engines.md has figures). The products are the same.

What it is not: quantisation. Eight bits are read in half the time, but move entropies by 0.02 nats in the mean (LOG.md).
"""

from __future__ import annotations

import platform
from typing import Any

import torch

__all__ = ["laid_out"]

_ROWS = 64
"""Rows of a product that the order is chosen for; others are computed in it too."""
_X86 = ("x86_64", "amd64")
_SCALES = tuple(4.0**n for n in range(-2, 6))
"""Sizes of the inputs an MLP is tried with: activations differ where they are bent, and limits show far out only."""


class _Linear(torch.nn.Module):
    """`torch.nn.Linear` without gradients and without its plain weights."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weights = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), in plain order again: a copy, for models that do not only call their layers."""
        plain: torch.Tensor = self.weights.to_dense()
        return plain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weights, self.bias, "none", [], "")
        return y


class _GatedMLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)), the MLP of Llama and its many relatives: rounded after silu and product."""

    def __init__(self, gate: _Linear, up: _Linear, down: _Linear) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., D)."""
        multiply = torch.ops.mkldnn._linear_pointwise
        gate, up = self.gate_proj, self.up_proj
        gated = multiply(x, gate.weights, gate.bias, "swish", [], "")
        y: torch.Tensor = self.down_proj(multiply.binary(x, gated, up.weights, up.bias, "mul"))
        return y


@torch.inference_mode()
def laid_out(model: Any) -> Any:
    """The model, good for nothing but forward passes afterwards, if it is one in bfloat16 on a CPU that gains by it.

    Layers that are more than a linear map (adapters, quantised ones) stay as they are.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not _supported():
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child.weight.dtype == torch.bfloat16:
                setattr(parent, name, _Linear(child))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            gated = _gated(child)
            if gated is not None:
                setattr(parent, name, gated)
    return model


def _gated(module: torch.nn.Module) -> _GatedMLP | None:
    """The same function of the same layers, if ``module`` is that function: known by its parts, and tried."""
    parts = dict(module.named_children())
    gate, up, down = (parts.pop(name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (isinstance(gate, _Linear) and isinstance(up, _Linear) and isinstance(down, _Linear)) or len(parts) > 1:
        return None
    gated = _GatedMLP(gate, up, down)
    directions = torch.sin(torch.arange(len(_SCALES) * gate.in_features)).view(1, len(_SCALES), gate.in_features)
    x = (torch.tensor(_SCALES)[:, None] * directions).bfloat16()
    was, found = module(x).float(), gated(x).float()
    return gated if bool(((found - was).norm(dim=-1) <= 0.02 * was.norm(dim=-1)).all()) else None


def _supported() -> bool:
    """Whether oneDNN multiplies in bfloat16 here. The operations are those that torch's compiler lays weights out with.

    On x86: elsewhere oneDNN hands products to other libraries (ARM's), in whose order and fused forms this was not tried.
    """
    ops = torch.ops.mkldnn
    return platform.machine().lower() in _X86 and bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
        and ops._is_mkldnn_bf16_supported()
    )
