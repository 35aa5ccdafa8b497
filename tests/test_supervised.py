"""Supervised training: the loss against its definition, the plan of batches, and the two kinds of recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open

from caspo.core.errors import ResumeError
from caspo.engines.models import load
from caspo.engines.prompts import PLAIN_TEMPLATE, prompt_ids, solution_ids
from caspo.loop.warm_start import Architecture, SupervisedRecipe, run_supervised
from caspo.train.supervised import Example, plan_batches, supervised_loss
from tiny import build, tokenizer

EXAMPLES: list[Example] = [
    (tuple(range(2, 2 + p)), (*range(50, 50 + s), 0)) for p, s in [(5, 4), (3, 9), (8, 1), (4, 4), (6, 2), (3, 3)]
]


def oracle(model: Any, batch: list[Example]) -> torch.Tensor:
    """Each row alone, every token in turn."""
    losses = []
    for prompt, solution in batch:
        logits = model(input_ids=torch.tensor([prompt + solution])).logits[0].log_softmax(-1)
        losses += [-logits[len(prompt) + i - 1, token] for i, token in enumerate(solution)]
    return torch.stack(losses).mean()


def test_loss_is_the_cross_entropy_of_the_solution() -> None:
    """Prompts and padding count for nothing, every solution token and EOS once; the gradients agree too."""
    model = build("llama")
    loss, metrics = supervised_loss(model, EXAMPLES)
    expected = oracle(model, EXAMPLES)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    assert metrics == {"tokens": (float(sum(len(solution) for _, solution in EXAMPLES)), 1.0)}
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_eos_is_learnt_at_the_end_only() -> None:
    """One EOS, after the last line, with no line break before it."""
    ids = solution_ids(tokenizer(), "2 + 3 = 5\nThe answer is 5.\n")
    assert ids.index(tokenizer().eos_token_id) == len(ids) - 1
    assert tokenizer().decode(ids[:-1]) == "2 + 3 = 5\nThe answer is 5."


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_plan_covers_every_example_once(batch_size: int) -> None:
    """Whatever the size; the same seed gives the same plan, another one another."""
    examples: list[Example] = [((1,) * (i % 9 + 1), (i, 0)) for i in range(150)]
    plan = plan_batches(examples, batch_size, seed=3)
    assert sorted(e for step in plan for batch in step for e in batch) == sorted(examples)
    assert all(1 <= len(batch) <= batch_size for step in plan for batch in step)
    assert plan == plan_batches(examples, batch_size, seed=3) != plan_batches(examples, batch_size, seed=4)


def recipe(**more: Any) -> SupervisedRecipe:
    small = {"vocabulary": 400, "hidden": 32, "layers": 1, "heads": 2, "feed_forward": 48}
    return SupervisedRecipe.model_validate(
        {
            "kind": "supervised", "architecture": small, "levels": [1], "problems": 64, "threads": 1,
            "train": {"learning_rate": 1e-2, "batch_size": 8}, **more,
        }
    )  # fmt: skip


def test_from_scratch(tmp_path: Path) -> None:
    """It learns, and the folder loads as any model does, with single digits and our chat template."""
    losses: list[float] = []
    folder = run_supervised(recipe(), tmp_path, lambda step, total, metrics: losses.append(metrics["loss"]))
    assert folder == tmp_path / "model"
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.5
    model, own = load(str(folder))
    assert own.chat_template == PLAIN_TEMPLATE
    assert own.decode(prompt_ids(own, "How many?")) == "Question: How many?\nAnswer:\n"
    assert len(own("123", add_special_tokens=False)["input_ids"]) == 3
    assert model.config.eos_token_id == own.eos_token_id
    assert model.config.vocab_size == len(own)
    again: list[float] = []
    assert run_supervised(recipe(), tmp_path, lambda *at: again.append(0)) == folder
    assert not again, "a finished recipe trains nothing"
    with pytest.raises(ResumeError, match="problems: 64 there, 65 now"):
        run_supervised(recipe(problems=65), tmp_path)


class Killed(Exception):
    pass


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """A run killed in between gives the same weights, and goes on where its checkpoint was."""
    train = {"learning_rate": 1e-2, "batch_size": 8, "checkpoint_seconds": 1e-9}
    seen: list[tuple[int, int, float]] = []
    whole = run_supervised(
        recipe(train=train), tmp_path / "a", lambda step, total, m: seen.append((step, total, m["learning_rate"]))
    )
    assert [(step, total) for step, total, _ in seen] == [(i, 8) for i in range(1, 9)]
    assert seen[0][2] == pytest.approx(1e-2), "the first step of the warm-up is not lost"
    assert seen[-1][2] < 0.2e-2

    def stop(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        run_supervised(recipe(train=train), tmp_path / "b", stop)
    steps: list[int] = []
    resumed = run_supervised(recipe(train=train), tmp_path / "b", lambda step, *rest: steps.append(step))
    assert steps == [3, 4, 5, 6, 7, 8]
    with safe_open(whole / "model.safetensors", "pt") as a, safe_open(resumed / "model.safetensors", "pt") as b:
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert not (folder / "train").exists(), "checkpoints are removed"


def test_adapter(tmp_path: Path) -> None:
    """A LoRA recipe writes the adapter and the tokenizer, nothing of the base, and no path of this machine."""
    folder = run_supervised(
        recipe(architecture=None, model="stories-tiny", lora={"rank": 2, "alpha": 4}, problems=16), tmp_path
    )
    assert {file.name for file in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "stories-tiny"
    assert (folder / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert all("lora_" in name for name in file.keys())  # noqa: SIM118
        assert any(bool(file.get_tensor(name).any()) for name in file.keys() if "lora_B" in name)  # noqa: SIM118
    for file in folder.iterdir():
        if file.suffix in (".json", ".md"):
            assert str(tmp_path) not in file.read_text()
            assert "/bundled/" not in file.read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "stories-tiny"},
        {"lora": {"rank": 2}},
        {"model": "stories-tiny", "lora": {"rank": 2}},
        {"architecture": None},
        {"architecture": None, "model": "stories-tiny"},
        {"architecture": None, "lora": {"rank": 2}},
    ],
)
def test_either_from_scratch_or_an_adapter(changes: dict[str, Any]) -> None:
    """Any other combination of the three keys is refused."""
    with pytest.raises(ValidationError, match="give either architecture"):
        recipe(**changes)


@pytest.mark.parametrize("shape", [{"heads": 0}, {"layers": 0}, {"hidden": 100, "heads": 3}, {"hidden": 12, "heads": 4}])
def test_shapes_that_cannot_be_built(shape: dict[str, int]) -> None:
    """Refused with the recipe, not in the middle of building the model."""
    with pytest.raises(ValidationError, match=r"greater than|multiple of twice the heads"):
        Architecture(**shape)  # type: ignore[arg-type]
