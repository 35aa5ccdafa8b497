"""Weights laid out for a CPU's matrix units: the same model, to the rounding of bfloat16."""

from __future__ import annotations

import pytest
import torch

from caspo.engines.local.layout import laid_out
from tiny import VOCABULARY, build

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="oneDNN does not multiply in bfloat16 on this CPU",
)


def named(model: torch.nn.Module) -> list[str]:
    return [type(module).__name__ for module in model.modules()]


@pytest.mark.parametrize(("kind", "gated"), [("llama", 2), ("qwen2", 2), ("gemma3", 0), ("phi3", 0)])
@torch.inference_mode()
def test_the_same_logits(kind: str, gated: int) -> None:
    """Biases included (Qwen2); the gated form only where the activation is silu and the layers are apart."""
    plain, ordered = build(kind).bfloat16(), laid_out(build(kind).bfloat16())
    ids = torch.arange(2, 42).view(2, 20) % VOCABULARY
    was, found = plain(input_ids=ids).logits.float(), ordered(input_ids=ids).logits.float()
    assert (found - was).norm() < 0.02 * was.norm()
    assert "Linear" not in named(ordered)
    assert named(ordered).count("_GatedMLP") == gated


@torch.inference_mode()
def test_an_mlp_of_another_formula_keeps_its_own() -> None:
    """The names of its parts are those of Llama's, and what it makes of them is not."""
    ordered = build("granite").bfloat16()
    mlp = type(ordered.model.layers[0].mlp)

    class Halved(mlp):  # type: ignore[misc,valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            half: torch.Tensor = super().forward(x) / 2
            return half

    for layer in ordered.model.layers:
        layer.mlp.__class__ = Halved
    assert "_GatedMLP" not in named(laid_out(ordered))


def test_float32_stays_as_it_is() -> None:
    assert "_Linear" not in named(laid_out(build("llama")))
