"""Adapters over a base in 4 bits; bitsandbytes does that on a CPU too, which is where these run."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caspo.core.config import settings_from
from caspo.engines.models import load
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from test_bases import LORA, PAIRS, TREES, angle, dtypes, gradients, logits, stored, trained

pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored(tmp_path / "start", torch.bfloat16)


def test_gradients_are_those_of_the_rounded_weights(folder: Path) -> None:
    """Also after a pass without gradients, in which bitsandbytes would repack the weights for the CPU."""
    model, _ = load(str(folder), dtype="bfloat16", four_bit=True)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert type(model.lm_head).__name__ == "Linear"
    plain = copy.deepcopy(model).dequantize()
    assert float((logits(model) - logits(plain)).abs().max()) < 0.2
    assert float((logits(model) - logits(load(str(folder))[0])).abs().mean()) > 0.05, "it was rounded"
    rounded, exact = gradients(model), gradients(plain)
    assert angle(exact, rounded) > 0.99
    for name, grad in exact.items():
        assert float((rounded[name] - grad).norm()) < 0.2 * float(grad.norm()) + 1e-3, name


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_training(save: str, folder: Path, tmp_path: Path) -> None:
    """Adapters are trained over 4 bits, and merged into the weights that were stored, in their precision."""
    trained(folder, tmp_path, base="4bit", save=save, gradient_checkpointing=True)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=0.05)
    assert log[-1]["dpo"] < 0.6
    if save == "merged":
        assert dtypes(tmp_path / "model") == {torch.bfloat16}
        assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
        before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "model"))
        assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
        assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
        load(str(tmp_path / "model"))
    else:
        second = trained(tmp_path / "model", tmp_path / "2", base="4bit")
        assert second["reference"] == "scored"
        assert dtypes(tmp_path / "2" / "model") == {torch.bfloat16}


def test_the_first_loss_is_log_2(folder: Path, tmp_path: Path) -> None:
    """Over the weights as they were rounded: the reference is the same base without adapters."""
    model, _ = load(str(folder), dtype="bfloat16", four_bit=True)
    settings = settings_from(StepDPOSettings, {**LORA, "base": "4bit", "batch_pairs": 1000, "micro_tokens": 1000})
    pairs = [pair for pair in PAIRS if pair.question_id == TREES[0].question.id]
    _, result = train_step_dpo(model, TREES[:1], pairs, settings, 0, tmp_path, merge=False)
    assert result.log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-6)
