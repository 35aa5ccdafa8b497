"""Training without noise: what models add to their forward pass in training mode is off, however they are written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import checkpoint as torch_checkpoint

from caspo.core.errors import ConfigError
from caspo.train import trainer
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from caspo.train.supervised import Example, SupervisedSettings, plan_batches, supervised_loss
from caspo.train.trainer import Job, fit
from tiny import build, bushy_tree, pairs_of

NOISY: dict[str, dict[str, float]] = {
    "llama": {"attention_dropout": 0.5},  # a number handed to the attention kernel
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},  # a number handed to F.dropout; layers left out
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},  # the same, and a module
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},  # modules
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "phi": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "qwen3_moe": {"attention_dropout": 0.5},
}
LAYOUTS = [(kind, layout) for kind in NOISY for layout in ("packed", "separate") if (kind, layout) != ("bloom", "packed")]
"""BLOOM cannot be packed."""
TREES = [bushy_tree(f"q{i}", i) for i in range(3)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]
EXAMPLES: list[Example] = [((5, 6, 7), (8, 9, 0)), ((5, 6), (10, 11, 12, 0)), ((9,), (3, 0))]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("kind", "layout"), LAYOUTS)
def test_the_first_loss_is_that_of_equal_models(kind: str, layout: str, checkpointing: bool, tmp_path: Path) -> None:
    """Before the first update the model is its own reference: every margin is 0, and the loss log 2."""
    told = {"learning_rate": 1e-3, "layout": layout, "gradient_checkpointing": checkpointing}
    settings = StepDPOSettings.model_validate(told)
    model = build(kind, **NOISY[kind])
    _, result = train_step_dpo(model, TREES, PAIRS, settings, seed=0, out=tmp_path)
    assert result.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", NOISY)
def test_a_supervised_start_has_no_noise(kind: str, tmp_path: Path) -> None:
    """The loss of the first step is that of the model as it came."""
    model = build(kind, **NOISY[kind])
    with torch.no_grad():
        expected, _ = supervised_loss(model, EXAMPLES)
    job = Job(plan=[[EXAMPLES]], loss=supervised_loss)
    fitted = fit(model, job, SupervisedSettings(learning_rate=1e-3), tmp_path, seed=0)
    assert fitted.log[0]["loss"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "opt", "bloom"])
def test_activations_are_computed_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `gradient_checkpointing` every layer runs twice a step and the weights come out the same; afterwards the model is
    as any other."""
    results: list[Any] = []
    for on in (False, True):
        layers = 0

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal layers
            layers += 1
            return torch_checkpoint.checkpoint(*args, **more)

        monkeypatch.setattr(trainer, "checkpoint", counted)
        settings = SupervisedSettings(learning_rate=1e-2, gradient_checkpointing=on)
        plan = plan_batches(EXAMPLES, 2, seed=0)
        model = build(kind, **NOISY[kind])
        fitted = fit(model, Job(plan=plan, loss=supervised_loss), settings, tmp_path / str(on), seed=0)
        assert layers == (2 * len(plan) if on else 0)
        assert not any("forward" in vars(module) for module in fitted.model.modules())
        results.append({name: p.detach() for name, p in fitted.model.named_parameters()})
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, atol=1e-6, rtol=1e-5)


def test_a_model_whose_layers_cannot_be_computed_again(tmp_path: Path) -> None:
    """It is said before training, with what to do instead."""
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"gradient_checkpointing to false"), trainer._checkpointed(model):
        pass
