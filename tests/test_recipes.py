"""What is tracked besides code: every recipe is valid, and nothing names a path of the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from caspo.core.config import load_recipe
from caspo.engines.models import BUNDLED
from caspo.loop.recipe import CaspoRecipe
from caspo.loop.warm_start import SupervisedRecipe
from caspo.train.step_dpo import train_step_dpo
from tiny import build, bushy_tree, pairs_of

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(ROOT.glob("recipes/*/recipe.yaml"))
MACHINE = re.compile(rb"(?<![\w.~])/(work|root|home/\w+|Users/\w+|tmp/\w+)/")


PAPER = {
    "qwen3-8b-base": ("Qwen/Qwen3-8B-Base", "qwen3"),
    "qwen2.5-math-7b": ("Qwen/Qwen2.5-Math-7B", "qwen2"),
    "qwen2.5-7b-instruct": ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", "llama"),
}
"""Recipes of the paper's models: name on the hub, and our tiny random model of the same architecture."""


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_recipes_are_valid(file: Path) -> None:
    """Of the kind they name, on a model that everybody has or that is named as on the hub; with a README."""
    kind = yaml.safe_load(file.read_text(encoding="utf-8")).get("kind")
    assert kind in ("caspo", "supervised")
    loaded = load_recipe(CaspoRecipe if kind == "caspo" else SupervisedRecipe, file)
    name = loaded.model.name if isinstance(loaded, CaspoRecipe) else loaded.model  # type: ignore[attr-defined]
    assert name is None or name in BUNDLED or name == PAPER[file.parent.name][0]
    assert (file.parent / "README.md").exists()


def test_there_are_recipes() -> None:
    """The ones that the README and the bundled models name, and those of the paper's models."""
    assert {file.parent.name for file in RECIPES} >= {"demo", "warm-start", "stories-tiny", *PAPER}


@pytest.mark.parametrize("name", PAPER)
def test_two_steps_of_the_papers_recipes(name: str, tmp_path: Path) -> None:
    """Every training setting of the recipe, on a tiny random model of its architecture: it learns, weights stay float32."""
    recipe = load_recipe(CaspoRecipe, ROOT / "recipes" / name / "recipe.yaml", ["train.validation=0.25"])
    trees = [bushy_tree(f"q{i}", i) for i in range(8)]
    pairs = [pair for tree in trees for pair in pairs_of(tree)]
    settings = recipe.train.model_copy(update={"batch_pairs": len(pairs) * 3 // 8, "evaluate_every": 1})
    model = build(PAPER[name][1])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained, result = train_step_dpo(model, trees, pairs, settings, recipe.seed, tmp_path / "train")
    assert len([line for line in result.log if "pair_accuracy" in line]) == 2
    assert result.validation_loss is not None
    after = trained.state_dict()
    assert all(after[key].dtype == torch.float32 for key in before)
    assert any(not torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/accelerate/*.yaml")), ids=lambda file: file.stem)
def test_accelerate_configurations(file: Path) -> None:
    """accelerate reads them, and they keep to what our trainer relies on."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    assert config.num_processes == 8
    assert config.mixed_precision == "bf16"
    if file.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT", "else nothing is saved"
        assert not config.fsdp_config["fsdp_cpu_ram_efficient_loading"], "else processes score the reference with zeros"
    if file.stem == "zero3":
        assert config.deepspeed_config["gradient_accumulation_steps"] == 1, "else DeepSpeed divides the loss"


def test_no_machine_paths() -> None:
    """Tracked text files name no folder of a developer's machine."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in listed.stdout.decode().split("\0"):
        file = ROOT / name
        if not name or not file.is_file() or file.suffix == ".safetensors" or file == Path(__file__).resolve():
            continue
        found += [f"{name}: {hit.group().decode()}" for hit in MACHINE.finditer(file.read_bytes())]
    assert not found
