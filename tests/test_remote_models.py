"""Models on servers, in recipes and on the command line; and what refuses them because it needs weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from caspo.cli.main import main
from caspo.core.config import load_recipe
from caspo.core.errors import ConfigError
from caspo.core.storage import read_json
from caspo.engines.opening import ModelSettings, check_local, open_local
from caspo.loop.recipe import CaspoRecipe
from fake_server import serving


def caspo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["caspo", *map(str, arguments)])
    try:
        main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def recipe(folder: Path, url: str, **more: Any) -> Path:
    """A recipe whose model is on a server."""
    model = {"engine": "openai_compatible", "name": "fake", "urls": [url], "concurrency": 8}
    evaluate = {
        "questions": 2, "self_consistency_questions": 2, "chain_of_thought": {"max_tokens": 20},
        "self_consistency": {"samples": 2, "max_tokens": 20}, "cat": {"max_tokens": 20},
    }  # fmt: skip
    annotate = {"questions": 2, "samples": 3, "max_step_tokens": 20, "max_depth": 2}
    file = folder / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({"name": "remote", "model": model, "evaluate": evaluate, "annotate": annotate, "rounds": 0} | more)
    )
    return file


@pytest.mark.parametrize(
    "wrong",
    [
        {"engine": "openai_compatible"},
        {"engine": "hf", "urls": ["http://localhost"]},
        {"engine": "openai_compatible", "urls": ["localhost:8000"]},
        {"engine": "openai_compatible", "urls": ["http://user:secret@localhost"]},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelSettings.model_validate({"name": "m"} | wrong)


def test_what_needs_weights_says_so() -> None:
    settings = ModelSettings(engine="openai_compatible", name="m", urls=("http://localhost:1",))
    with pytest.raises(ConfigError, match=r"Training needs the model's weights.*model\.engine=hf"):
        check_local(settings, "Training")
    with pytest.raises(ConfigError, match="needs the model's weights"):
        open_local(settings)


def test_solve_takes_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "solutions.jsonl"
    with serving("llama.cpp") as one, serving("llama.cpp") as two:
        urls = ["--url", one.url, "--url", two.url]
        assert caspo(monkeypatch, "solve", "How many?", "max_tokens=30", "--model", "fake", *urls, "--out", out) == 0
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["generated_tokens"] > 0


def test_solve_without_a_server_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert caspo(monkeypatch, "solve", "How many?", "--engine", "openai_compatible") == 1
    assert "needs urls" in capsys.readouterr().err


def test_evaluate_and_annotate_work_on_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("llama.cpp") as server:
        file = recipe(tmp_path, server.url)
        assert caspo(monkeypatch, "evaluate", file, "--out", tmp_path / "run") == 0
        assert caspo(monkeypatch, "annotate", file, "--out", tmp_path / "trees") == 0
    methods = read_json(tmp_path / "run" / "metrics.json")["rounds"][0]["methods"]
    assert methods["cat"]["n"] == 2
    assert list((tmp_path / "trees" / "tree").glob("*.parquet"))


def test_rounds_of_training_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    from caspo.loop.run import run_recipe

    loaded = load_recipe(CaspoRecipe, recipe(tmp_path, "http://127.0.0.1:9/v1", rounds=1))
    with pytest.raises(ConfigError, match="needs the model's weights"):
        run_recipe(loaded, tmp_path / "run")
    assert not (tmp_path / "run").exists()
