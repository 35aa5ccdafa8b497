"""Recipes: what a user can get wrong, and what the message says then."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from caspo.core.config import Config, load_recipe, parse_yaml, settings_from
from caspo.core.errors import ConfigError


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nlevels: [1]\nname: b\n", "the key 'name' is written twice, in line 1 and line 3"),
        ("train:\n  learning_rate: 1\n  lora:\n    rank: 2\n    rank: 3\n", "'rank' is written twice, in line 4 and line 5"),
        ("train: {learning_rate: 1, learning_rate: 2}", "'learning_rate' is written twice, in line 1;"),
        ("- a: 1\n  a: 2\n", "'a' is written twice"),
    ],
)
def test_a_key_written_twice(tmp_path: Path, text: str, message: str) -> None:
    """YAML forbids it, and its usual readers take the last one without a word: the key and both lines are named."""
    with pytest.raises(ConfigError, match=message):
        load_recipe(Recipe, recipe(tmp_path, text))


def test_a_key_twice_in_an_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'rank' is written twice"):
        load_recipe(Recipe, recipe(tmp_path), ["train.lora={rank: 1, rank: 2}"])


def test_what_yaml_allows_to_stand_twice() -> None:
    """Keys of different mappings, aliases and merged mappings."""
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: *a\nd: [{x: 1}, {x: 1}]\n"
    same = {"x": 1, "y": 2}
    assert parse_yaml(text) == {"a": same, "b": {"x": 3, "y": 2}, "c": same, "d": [{"x": 1}, {"x": 1}]}
    assert parse_yaml("") is None


def test_half_a_character_in_a_recipe(tmp_path: Path) -> None:
    """No file could hold it: said before anything is done."""
    with pytest.raises(ConfigError, match=r"\\ud83d, half of a character"):
        load_recipe(Recipe, recipe(tmp_path, 'name: "a \\ud83d"\n'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: &a {b: *a}", "holds itself"),
        ("levels: &a [1, *a]", "holds itself"),
        ("levels: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("name: " + "9" * 5000, "digits"),
        ("name: 2020-13-41", "month"),
    ],
)
def test_yaml_that_no_value_can_be_made_of(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(Recipe, recipe(tmp_path, text))
    with pytest.raises(ConfigError, match=message):
        load_recipe(Recipe, recipe(tmp_path), [text.replace(": ", "=", 1)])
