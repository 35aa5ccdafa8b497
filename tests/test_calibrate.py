"""The stage `calibrate` on a scripted model whose every loss and every wrong answer can be counted, and its command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caspo.confidence.calibration import Calibrator
from caspo.core.errors import ConfigError, DataError, EngineError, ResumeError
from caspo.core.storage import read_json
from caspo.engines.prompts import INSTRUCTION
from caspo.loop import thresholds as calibrate
from caspo.loop.recipe import CaspoRecipe, training_questions, validation_questions
from caspo.loop.thresholds import PRUNE_GRID, CalibrateSettings, Calibration, calibrate_stage, calibration_questions
from caspo.search import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.threshold import Thresholds
from caspo.testing.scripted import Scripted, ScriptedEngine
from stories_run import RECIPE, write_recipe
from tiny import Counting

N = 60
EVIDENCE = {"bias": 1.0, "slopes": {}, "spread": 1.0, "scatter": 7.0}
CAT: dict[str, Any] = {"level": 1.0, "paths": 6, "branches": False, "temperature": 1.0, "evidence": EVIDENCE}
"""All six paths, each from its beginning, and each counts the same: what a question costs and answers can be counted."""


def script(text: str) -> list[Scripted]:
    """Sums of i and 1. One in ten (i = 5, 15, ...) is solved by later paths only: the greedy one is wrong, and of the first
    steps that are drawn, of all of which the model is unsure, 49 in 50 are right. One in ten (7, 17, ...) is answered wrong
    and with certainty; the others are right and certain."""
    question, _, done = text.partition("\n")
    i = int(re.findall(r"\d+", question)[0])
    right, wrong = f"{i} + 1 = {i + 1}\n", f"{i} + 1 = {i + 2}\n"
    unsure = i % 10 == 5
    if done:
        if not done.endswith("\n"):
            return []  # inside of a step
        return [Scripted(f"The answer is {done.split()[-1]}.", entropy=0.5 if unsure else 0.0, eos=True)]
    if unsure:
        ways = [Scripted(f"{i} + 1 = {i} + {k} - {k - 1} = {i + 1}\n", 1.0, 0.7) for k in range(1, 50)]
        return [Scripted(wrong, 1.01, 0.7), *ways]
    return [Scripted(wrong if i % 10 == 7 else right, entropy=0.0)]


@pytest.fixture
def recipe(tmp_path: Path) -> CaspoRecipe:
    """A file of sums, of which no round and no validation takes any."""
    return recipe_of(tmp_path, N)


def recipe_of(folder: Path, n: int, **changes: Any) -> CaspoRecipe:
    rows = [{"id": f"q{i}", "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(n)]
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"name": "jsonl", "train": str(folder / "q.jsonl"), "test": str(folder / "none.jsonl")}
    return CaspoRecipe.model_validate({**RECIPE, "task": task, "rounds": 0, "evaluate": {"cat": CAT}, **changes})


def stage(recipe: CaspoRecipe, out: Path, make: Any = ScriptedEngine, **more: Any) -> Calibration:
    settings = CalibrateSettings(recipe=recipe, **{"alpha": 0.25, "delta": 0.2, "questions": N, **more})
    return calibrate_stage(settings, lambda model: make(script), out, lambda name, done, total: None)


@pytest.mark.parametrize("alpha", [0.25, 0.12])
def test_thresholds_of_a_counted_model(recipe: CaspoRecipe, tmp_path: Path, alpha: float) -> None:
    """Losses, wrong answers, tokens and the file: all as counted from the script."""
    out = tmp_path / "model"
    found = stage(recipe, out, alpha=alpha)
    halves = [calibration_questions(recipe, N)[part] for part in (slice(0, N // 2), slice(N // 2, N))]
    fives, sevens = ([sum(int(q.id[1:]) % 10 == digit for q in half) for half in halves] for digit in (5, 7))
    assert 0 < fives[0] < 6
    solved = 30 - sevens[0]
    for risk in found.risks:  # right paths are pruned after their first step, which scores exp(-0.7) = 0.497
        assert risk.lost == (fives[0] if risk.below > 0.497 else 0)
    thresholds = found.thresholds
    assert thresholds.prune_below == (1.0 if alpha == 0.25 else 0.4)
    assert thresholds.lost == found.risks[PRUNE_GRID.index(thresholds.prune_below)].lost / solved
    lenient = found.tests[-1]
    assert (lenient.below, lenient.kept) == (0, 30)
    wrong = sevens[1] + (fives[1] if thresholds.prune_below == 1.0 else 0)
    assert lenient.wrong == wrong
    assert thresholds.abstain_below in (None, *(test.below for test in found.tests))
    assert (thresholds.n_pruning, thresholds.n_abstention) == (solved, 30), "what has no right path loses none"
    assert found.tokens[0] > found.tokens[-1]
    assert Thresholds.load(out / "thresholds.json") == thresholds
    calibrator = Calibrator.load(out / "calibrator.json")
    assert calibrator == found.calibrator
    assert calibrator.predict([1.0])[0] == pytest.approx(1 - sevens[0] / (2 * 30 - sevens[0]), abs=0.1)
    assert 0.7 < calibrator.predict([0.4])[0] < 0.95, "of the unsure first steps about five in six are right"
    assert thresholds.settings == ConfidenceTreeSettings(**CAT).model_dump(exclude={"prune_below", "abstain_below"})


def test_the_thresholds_are_those_of_the_search(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """On the first half, CaT at the chosen threshold costs what the table says; on the second it answers as was tested."""
    found = stage(recipe, tmp_path / "out")
    questions = calibration_questions(recipe, N)
    for below in (0.0, 0.4, found.thresholds.prune_below):
        method = ConfidenceTree(ConfidenceTreeSettings(**CAT, prune_below=below))
        solutions = method.solve(questions[: N // 2], ScriptedEngine(script))
        mean = sum(s.generated_tokens for s in solutions) / len(solutions)
        assert found.tokens[PRUNE_GRID.index(below)] == pytest.approx(mean)
    chosen = {"prune_below": found.thresholds.prune_below, "abstain_below": found.thresholds.abstain_below or 0.0}
    settings = ConfidenceTreeSettings(**CAT, **chosen)
    solutions = ConfidenceTree(settings).solve(questions[N // 2 :], ScriptedEngine(script))
    given = [(q, s) for q, s in zip(questions[N // 2 :], solutions, strict=True) if s.answer is not None]
    assert len(given) / (N // 2) == found.thresholds.kept
    assert sum(s.answer != q.answer for q, s in given) / len(given) == found.thresholds.wrong


def test_the_recipes_own_thresholds_do_not_matter(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """They are what is sought."""
    other = recipe_of(tmp_path, N, evaluate={"cat": {**CAT, "prune_below": 0.9, "abstain_below": 0.5}})
    assert stage(other, tmp_path / "other") == stage(recipe, tmp_path / "out")


def test_killed_at_any_moment_it_goes_on(recipe: CaspoRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are whole are not searched again, and the outcome is that of a run that was left alone."""
    whole = stage(recipe, tmp_path / "whole")
    monkeypatch.setattr(calibrate, "_CHUNK", 7)
    out, calls, starts = tmp_path / "out", 0, 0
    decoded: list[str] = []

    class Mortal(Counting):
        def generate(self, requests: Any, on_done: Any = None) -> Any:
            nonlocal calls
            calls += 1
            if calls % 4 == 0:
                raise EngineError("killed")
            decoded.extend("".join(map(chr, r.prefix_ids)) for r in requests if r.watch is None)
            return super().generate(requests, on_done)

    while not (out / "thresholds.json").exists():
        starts += 1
        assert starts < 30
        try:
            found = stage(recipe, out, Mortal)
        except EngineError:
            calls = 0
    assert starts > 2
    assert found == whole
    assert len(list((out / "calibration").glob("*/part-*.json"))) == 10

    def refuse(script: Any) -> Any:
        raise AssertionError("a finished stage needs no model")

    assert stage(recipe, out, refuse) == whole


def test_refuses_a_folder_of_other_settings(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """The keys that differ are named; what is there stays."""
    stage(recipe, tmp_path / "out")
    before = (tmp_path / "out" / "thresholds.json").read_bytes()
    with pytest.raises(ResumeError, match=r"alpha: 0\.25 there, 0\.3 now"):
        stage(recipe, tmp_path / "out", alpha=0.3)
    other = recipe_of(tmp_path, N, evaluate={"cat": {**CAT, "paths": 2}})
    with pytest.raises(ResumeError, match=r"recipe\.evaluate\.cat\.paths: 6 there, 2 now"):
        stage(other, tmp_path / "out")
    assert (tmp_path / "out" / "thresholds.json").read_bytes() == before


@pytest.mark.parametrize("name", ["thresholds.json", "calibrator.json"])
def test_a_file_of_somebody_else(recipe: CaspoRecipe, tmp_path: Path, name: str) -> None:
    """It stays; results of an earlier calibration are replaced."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": 1}')
    with pytest.raises(ConfigError, match=f"{name} is there"):
        stage(recipe, tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == '{"mine": 1}'
    assert not (tmp_path / "out" / "calibration").exists()


def test_too_few_questions_say_how_many(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """Before anything is decoded or written; also where the rounds leave too few, and where too few are solved."""
    with pytest.raises(DataError, match=r"60 questions are too few for alpha 0\.01 .* at least 460 are needed"):
        stage(recipe, tmp_path / "out", alpha=0.01, delta=0.1)
    greedy = recipe_of(tmp_path, N, rounds=1, annotate={"questions": 50})
    with pytest.raises(DataError, match=r"10 questions .all that the rounds leave .* at least 12 are needed"):
        stage(greedy, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def silent(text: str) -> list[Scripted]:
        return [Scripted("I do not know.", eos=True)]

    with pytest.raises(DataError, match=r"Of the 30 questions .* 0 have a right path .* needs 3 of these"):
        stage(recipe, tmp_path / "out", lambda script: ScriptedEngine(silent))


def test_what_makes_no_sense(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """A recipe without CaT, a risk that is no probability."""
    with pytest.raises(ConfigError, match=r"evaluate\.cat"):
        stage(recipe_of(tmp_path, N, evaluate={"cat": None}), tmp_path / "out")
    for name in ("alpha", "delta"):
        with pytest.raises(ConfigError, match=f"{name} is a probability"):
            stage(recipe, tmp_path / "out", **{name: 1.0})


def test_steps_that_are_all_right_leave_no_calibrator(recipe: CaspoRecipe, tmp_path: Path) -> None:
    """But thresholds: nothing is lost and nothing is wrong."""

    def perfect(text: str) -> list[Scripted]:
        i = int(re.findall(r"\d+", text)[0])
        solved = text.count("\n") > 1
        return [Scripted(f"The answer is {i + 1}." if solved else f"{i} + 1 = {i + 1}\n", eos=solved)]

    found = stage(recipe, tmp_path, lambda script: ScriptedEngine(perfect))
    assert found.calibrator is None
    assert not (tmp_path / "calibrator.json").exists()
    assert (found.thresholds.prune_below, found.thresholds.abstain_below, found.thresholds.kept) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("kind", ["stories", "jsonl"])
def test_questions_are_held_out(tmp_path: Path, kind: str) -> None:
    """None that a round or validation uses, none of the test split, the same at every call."""
    changes: dict[str, Any] = {"rounds": 2, "annotate": {"questions": 20}, "validation": {"questions": 10}}
    asked = recipe_of(tmp_path, 300, **changes)
    if kind == "stories":
        asked = CaspoRecipe.model_validate({**RECIPE, **changes})
    held = calibration_questions(asked, 100)
    assert len({q.text for q in held}) == 100
    used = [*validation_questions(asked), *training_questions(asked, 1), *training_questions(asked, 2)]
    assert {q.text for q in held}.isdisjoint(q.text for q in used)
    assert [q.id for q in held] == [q.id for q in calibration_questions(asked, 100)]
    assert all(q.id.startswith("train-") for q in held) or kind == "jsonl"
    if kind == "jsonl":
        rest = calibration_questions(asked, 1000)
        assert len(rest) == 300 - len({q.id for q in used})
        assert [q.id for q in rest] != sorted((q.id for q in rest), key=lambda i: int(i[1:])), "in random order"


def test_the_command(caspo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """On a real model: both tables, both files, the same line again, and one message where it cannot be done."""
    file, out = write_recipe(tmp_path / "recipe.yaml"), tmp_path / "model"
    line = ("calibrate", file, "--out", out, "--alpha", 0.4, "--delta", 0.4, "--questions", 16)
    code, told, _ = caspo(*line)
    assert code == 0
    assert "Abstention, on" in told
    assert told.count("chosen") in (1, 2)
    assert "loses its last right path with a probability of at most 0.4" in " ".join(told.split())
    found = Thresholds.load(out / "thresholds.json")
    assert found.model == {
        "name": "stories-tiny",
        "engine": "hf",
        "dtype": "float32",
        "instruction": INSTRUCTION,
        "steps": "reasoning",
    }
    assert (found.alpha, found.delta) == (0.4, 0.4)
    assert 2 <= found.n_pruning <= 8
    assert f"Pruning, on {found.n_pruning} questions with a right path to lose" in told
    assert read_json(out / "calibrator.json")["date"] == found.date
    assert caspo(*line)[1] == told
    code, told, err = caspo(*line, "evaluate.cat.paths=4")
    assert (code, told) == (1, "")
    assert "recipe.evaluate.cat.paths: 3 there, 4 now" in err
    code, _, err = caspo("calibrate", file, "--out", tmp_path / "new", "--alpha", 0.01)
    assert code == 1
    assert "at least 460 are needed" in err
    assert not (tmp_path / "new").exists()
    assert caspo("calibrate", file, "--out", out, "--alpha", 2)[2].startswith("Error: alpha is a probability")
