"""Weights laid out for a CPU's matrix units: the same model, to the rounding of bfloat16."""

from __future__ import annotations

import platform

import pytest
import torch

from caspo.engines.local.layout import laid_out
from tiny import VOCABULARY, build

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64")
    or not torch.backends.mkldnn.is_available()
    or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
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


@pytest.mark.parametrize("bent", ["gelu of small inputs", "a limit far out"])
@torch.inference_mode()
def test_an_mlp_that_differs_for_some_inputs_only_keeps_its_own(bent: str) -> None:
    """Gelu and silu are alike near 0 and far from it; limits on gate and up (DeepSeek-V4, GLM-5) are seldom met."""
    ordered = build("llama").bfloat16()
    mlp = type(ordered.model.layers[0].mlp)

    class Limited(mlp):  # type: ignore[misc,valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x).clamp(max=7)) * self.up_proj(x).clamp(-7, 7))
            return out

    for layer in ordered.model.layers:
        if bent == "a limit far out":
            layer.mlp.__class__ = Limited
        else:
            layer.mlp.act_fn = torch.nn.GELU()
            layer.mlp.gate_proj.weight.mul_(1e-2)
    assert "_GatedMLP" not in named(laid_out(ordered))


@torch.inference_mode()
def test_weights_can_still_be_read() -> None:
    """Some models look at the weights of their layers, or compute with them, beside calling these."""
    plain, ordered = build("llama").bfloat16(), laid_out(build("llama").bfloat16())
    assert torch.equal(plain.lm_head.weight, ordered.lm_head.weight)
    assert (ordered.lm_head.out_features, ordered.lm_head.in_features) == plain.lm_head.weight.shape


def test_other_processors_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ARM server has oneDNN too, on another library."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "_Linear" not in named(laid_out(build("llama").bfloat16()))


def test_float32_stays_as_it_is() -> None:
    assert "_Linear" not in named(laid_out(build("llama")))
