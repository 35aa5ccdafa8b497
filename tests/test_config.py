"""Recipes: what a user can get wrong, and what the message says then."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import Field

from caspo.core.config import Config, claim_folder, load_recipe, settings_from
from caspo.core.errors import ConfigError, ResumeError


class Adapter(Config):
    rank: int = 16


class Train(Config):
    learning_rate: float = Field(1e-4, gt=0)
    lora: Adapter | None = None


class Recipe(Config):
    name: str = "x"
    levels: tuple[int, ...] = (1, 2)
    train: Train = Train()


def recipe(tmp_path: Path, text: str = "name: demo\ntrain:\n  learning_rate: 1.0e-5\n") -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_defaults_and_overrides(tmp_path: Path) -> None:
    """File over defaults, command line over file; 1e-5 without a dot is a number; null and lists are YAML."""
    found = load_recipe(Recipe, recipe(tmp_path), ["levels=[3, 4]", "train.lora.rank=2", "train.learning_rate=1e-6"])
    assert found == Recipe(name="demo", levels=(3, 4), train=Train(learning_rate=1e-6, lora=Adapter(rank=2)))
    assert load_recipe(Recipe, recipe(tmp_path)).train.learning_rate == 1e-5
    assert load_recipe(Recipe, recipe(tmp_path), ["train.lora=null"]).train.lora is None
    assert settings_from(Train, ["learning_rate=2"]).learning_rate == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", r"train\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("trian.lora=1", r"trian: unknown key; did you mean 'train'\?"),
        ("train.lora.rnak=1", r"train\.lora\.rnak: unknown key; did you mean 'rank'\?"),
        ("train.zzz=1", r"known keys: learning_rate, lora"),
        ("train.learning_rate=fast", r"train\.learning_rate: .*number.*got 'fast'"),
        ("train.learning_rate=-1", r"train\.learning_rate: .*greater than 0.*got -1"),
        ("train.learning_rate=.nan", r"train\.learning_rate: "),
        ("train=3", r"train: "),
        ("name.part=3", r"'name' holds a value, not keys"),
        ("learning_rate", r"is not an override\. Write key=value"),
        ("=3", r"is not an override"),
        ("name=[", r"not valid YAML"),
    ],
)
def test_wrong_keys_and_values(tmp_path: Path, override: str, message: str) -> None:
    """Each mistake is named by its key, with the nearest known one where there is one."""
    with pytest.raises(ConfigError, match=message):
        load_recipe(Recipe, recipe(tmp_path), [override])


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- 1", "holds list"), ("", "holds NoneType")])
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    """Broken YAML, a list and an empty file are named as such."""
    with pytest.raises(ConfigError, match=message):
        load_recipe(Recipe, recipe(tmp_path, text))


def test_no_file_or_no_text(tmp_path: Path) -> None:
    """A missing file, a folder and a binary file."""
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        load_recipe(Recipe, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        load_recipe(Recipe, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(Recipe, tmp_path / "binary")


def test_folder_of_the_same_recipe(tmp_path: Path) -> None:
    """The first run writes the recipe with its defaults filled in; the same recipe goes on."""
    asked = Recipe(train=Train(learning_rate=1e-5, lora=Adapter()))
    claim_folder(tmp_path / "run", asked)
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8"))
    assert written["train"] == {"learning_rate": 1e-5, "lora": {"rank": 16}}
    claim_folder(tmp_path / "run", asked)
    assert load_recipe(Recipe, tmp_path / "run" / "recipe.yaml") == asked


def test_folder_of_another_recipe(tmp_path: Path) -> None:
    """Each differing key is named with both values, and nothing is overwritten."""
    claim_folder(tmp_path, Recipe())
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(ResumeError) as error:
        claim_folder(tmp_path, Recipe(name="y", levels=(1,), train=Train(lora=Adapter(rank=4))))
    message = str(error.value)
    assert "name: x there, y now" in message
    assert "levels: [1, 2] there, [1] now" in message
    assert "train.lora.rank: (absent) there, 4 now" in message
    assert "learning_rate" not in message
    assert (tmp_path / "recipe.yaml").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"name: [", b"- 1", b"\xff\xfe\x00\x01", b"\x00"])
def test_damaged_recipe_in_the_folder(tmp_path: Path, content: bytes) -> None:
    """A recipe.yaml that cannot be read back stops the run instead of being mistaken for another or overwritten."""
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ResumeError, match="is damaged"):
        claim_folder(tmp_path, Recipe())
