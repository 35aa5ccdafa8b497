"""`completions` of a model: whatever is solved again decodes only what is new, and nothing is given for another model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from caspo.core.errors import ConfigError
from caspo.core.storage import read_json, write_directory
from caspo.engines.base import Completion, Engine, OnDone, Request
from caspo.engines.kept import CompletionFile
from caspo.engines.local.engine import HFEngine
from caspo.engines.memo import MemoEngine
from caspo.engines.models import model_digest, resolve
from caspo.engines.opening import ModelSettings, identity_of, model_settings, open_engine, open_serving, placed
from caspo.search import SelfConsistency, SelfConsistencySettings
from caspo.testing.scripted import ScriptedEngine
from fake_server import serving
from stories_run import timeless, write_recipe
from test_kept import QUESTIONS
from test_memo import script

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """All that `HFEngine` is asked to decode."""
    found: list[Request] = []
    generate = HFEngine.generate

    def noted(self: HFEngine, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        found.extend(requests)

        def more(place: int, completion: Completion) -> Sequence[Request]:
            new = on_done(place, completion) if on_done is not None else ()
            found.extend(new)
            return new

        return generate(self, requests, more)

    monkeypatch.setattr(HFEngine, "generate", noted)
    return found


def tiny(**settings: Any) -> ModelSettings:
    return model_settings("stories-tiny", **{"device": "cpu", "dtype": "float32", "threads": 1, **settings})


def identity(settings: ModelSettings, name: str | None = None) -> str:
    settings = placed(settings, name)
    return identity_of(settings, open_serving(settings, name), name)


def copied(folder: Path, change: Callable[[Path], object]) -> Path:
    """The model stories-tiny in another folder, changed."""

    def build(made: Path) -> None:
        for file in resolve("stories-tiny").iterdir():
            (made / file.name).write_bytes(file.read_bytes())
        change(made)

    write_directory(folder, build)
    return folder


def retrained(folder: Path) -> None:
    """A single weight moves."""
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[len(weights) // 2]
    weights[name] = weights[name] + torch.nn.functional.one_hot(torch.tensor(0), weights[name].shape[-1]) * 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_what_a_completion_depends_on(tmp_path: Path) -> None:
    """The model by its files and not by its name or place, the precision that was chosen, the rule of steps, the marks of
    thinking; not the machine's threads, rows at once, or the file itself."""
    moved = copied(tmp_path / "moved", lambda folder: None)
    trained = copied(tmp_path / "trained", retrained)
    base = identity(tiny())
    for same in (tiny(dtype="auto"), tiny(max_rows=3), tiny(completions=tmp_path / "a"), tiny(instruction="Think.")):
        assert identity(same) == base
    assert identity(tiny(), str(moved)) == base
    others = [
        identity(tiny(dtype="bfloat16")),
        identity(tiny(), str(trained)),  # as that of a round
        identity(tiny(steps="line")),
        identity(tiny(thinking=("<t>", "</t>"))),
    ]
    assert len({base, *others}) == 5


def test_nothing_is_given_for_another_model(tmp_path: Path, asked: list[Request]) -> None:
    """One file for a model in two precisions, and for what was trained of it: each decodes its own."""
    file = tmp_path / "completions.sqlite"
    trained = str(copied(tmp_path / "trained", retrained))
    sides: list[tuple[ModelSettings, str | None]] = [
        (tiny(completions=file), None),
        (tiny(completions=file, dtype="bfloat16"), None),
        (tiny(completions=file), trained),
    ]
    for decoded in (1, 0):
        for settings, name in sides:
            asked.clear()
            engine = open_engine(settings, name)
            engine.generate([Request(engine.prompt(QUESTIONS[0].text), 0, 4, 0.0)])
            assert len(asked) == decoded


def test_a_gguf_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    """Not by the folder that `hf` makes of it."""
    file = tmp_path / "model.gguf"
    digests = set()
    for content in (b"one", b"two"):
        file.write_bytes(content)
        digests.add(model_digest(str(file), gguf=True))
    assert len(digests) == 2


def test_a_server_without_ids_is_refused(tmp_path: Path) -> None:
    """Its pieces of text are numbered anew by every process: what was kept would mean something else."""
    with serving("sglang") as server:
        settings = model_settings("fake", url=server.url, vocab_size=1000, completions=tmp_path / "kept.sqlite")
        with pytest.raises(ConfigError, match="no token ids"):
            open_engine(settings)


class Killed(ScriptedEngine):
    """Is killed when it has given some completions."""

    def __init__(self, after: int | None) -> None:
        super().__init__(script)
        self.after, self.given = after, 0

    def play(self, request: Request) -> Completion:
        if self.given == self.after:
            raise KeyboardInterrupt
        self.given += 1
        return super().play(request)


def test_a_killed_run_goes_on_with_the_rest(tmp_path: Path) -> None:
    """What was finished when it was killed is not decoded again, and the solutions are those of a run that was not."""
    method = SelfConsistency(SelfConsistencySettings(samples=3))
    file = tmp_path / "completions.sqlite"
    killed, goes_on = Killed(after=5), Killed(after=None)

    def kept(engine: Engine) -> MemoEngine:
        return MemoEngine(engine, CompletionFile(file, "model"))

    with pytest.raises(KeyboardInterrupt):
        method.solve(QUESTIONS, kept(killed))
    found = method.solve(QUESTIONS, kept(goes_on))
    assert killed.given + goes_on.given == 3 * len(QUESTIONS)
    assert [s.answer for s in found] == [s.answer for s in method.solve(QUESTIONS, ScriptedEngine(script))]


def test_solve_decodes_nothing_twice(tmp_path: Path, caspo: Command, asked: list[Request]) -> None:
    """The same line again; more samples decode those alone; and the file is never written over by --out."""
    file = tmp_path / "completions.sqlite"
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": q.text, "answer": "1"}) + "\n" for q in QUESTIONS))

    def solved(samples: int) -> tuple[str, int]:
        asked.clear()
        model = ("--model", "stories-tiny", "--threads", 1, "--completions", file)
        code, out, err = caspo(
            "solve", questions, *model, "--method", "self_consistency", f"samples={samples}", "max_tokens=12"
        )
        assert code == 0, err
        return out, len(asked)

    first, decoded = solved(2)
    assert decoded == 2 * len(QUESTIONS)
    assert solved(2) == (first, 0)
    assert solved(3)[1] == len(QUESTIONS)
    assert "would be overwritten" in caspo("solve", questions, "--completions", file, "--out", file)[2]


def test_another_file_of_completions_is_no_other_run(tmp_path: Path, caspo: Command, asked: list[Request]) -> None:
    """An evaluation goes on with another file, or none; another folder with the same file decodes nothing, and comes to the
    same figures."""
    recipe, file = write_recipe(tmp_path / "recipe.yaml", task={"name": "stories", "levels": [1]}), tmp_path / "kept.sqlite"
    first, second = tmp_path / "first", tmp_path / "second"

    def evaluated(out: Path, *more: str) -> int:
        asked.clear()
        code, _, err = caspo("evaluate", recipe, "--out", out, *more)
        assert code == 0, err
        return len(asked)

    assert evaluated(first, f"model.completions={file}") > 0
    assert evaluated(second, f"model.completions={file}") == 0
    assert timeless(read_json(first / "metrics.json")) == timeless(read_json(second / "metrics.json"))
    for more in ([f"model.completions={tmp_path / 'other.sqlite'}"], []):
        assert evaluated(first, *more) == 0
