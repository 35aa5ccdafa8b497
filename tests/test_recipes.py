"""What is tracked besides code: every recipe is valid, and nothing names a path of the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from caspo.config import load_recipe
from caspo.engines.models import BUNDLED
from caspo.iterate import CaspoRecipe
from caspo.warm_start import SupervisedRecipe

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(ROOT.glob("recipes/*/recipe.yaml"))
MACHINE = re.compile(rb"(?<![\w.~])/(work|root|home/\w+|Users/\w+|tmp/\w+)/")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.parent.name)
def test_recipes_are_valid(file: Path) -> None:
    """Of the kind they name, on a model that everybody has."""
    kind = yaml.safe_load(file.read_text(encoding="utf-8")).get("kind")
    assert kind in ("caspo", "supervised")
    loaded = load_recipe(CaspoRecipe if kind == "caspo" else SupervisedRecipe, file)
    name = loaded.model.name if isinstance(loaded, CaspoRecipe) else loaded.model  # type: ignore[attr-defined]
    assert name is None or name in BUNDLED


def test_there_are_recipes() -> None:
    """The ones that the README and the bundled models name."""
    assert {file.parent.name for file in RECIPES} >= {"demo", "warm-start", "stories-tiny"}


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
