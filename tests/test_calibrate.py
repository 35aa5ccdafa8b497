"""The stage `calibrate` on a scripted model whose every loss and every wrong answer can be counted, and its command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.cli.solve import choose
from caspo.confidence.calibration import Calibrator
from caspo.core.errors import ConfigError, DataError, EngineError, ResumeError
from caspo.core.storage import read_json
from caspo.engines.models import model_digest
from caspo.engines.prompts import INSTRUCTION
from caspo.loop import thresholds as calibrate
from caspo.loop.recipe import CaspoRecipe, training_questions, validation_questions
from caspo.loop.thresholds import PRUNE_GRID, CalibrateSettings, Calibration, calibrate_stage, calibration_questions
from caspo.search import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence
from caspo.search.threshold import Thresholds
from caspo.tasks.base import grade
from caspo.testing.scripted import Scripted, ScriptedEngine
from stories_run import RECIPE, write_recipe
from tiny import Counting

N = 60
EVIDENCE = {"bias": 1.0, "slopes": {}, "spread": 1.0, "scatter": 7.0}
CAT: dict[str, Any] = {"level": 1.0, "paths": 6, "branches": False, "temperature": 1.0, "evidence": EVIDENCE}
"""All six paths, each from its beginning, and each counts the same: what a question costs and answers can be counted."""
FITTED = {key: value for key, value in CAT.items() if key != "evidence"} | {"level": 0.8}
"""What a path counts is to be learnt, and decides when the search ends."""


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


def perfect(text: str) -> list[Scripted]:
    """The same sums, all of them solved."""
    i = int(re.findall(r"\d+", text)[0])
    solved = text.count("\n") > 1
    return [Scripted(f"The answer is {i + 1}." if solved else f"{i} + 1 = {i + 1}\n", eos=solved)]


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
    # 0.12 allows up to 0.4, where nothing is ended yet; 0.25 allows all, and from 0.5 on they cost the same.
    assert thresholds.prune_below == (0.5 if alpha == 0.25 else 0.0)
    assert thresholds.lost == found.risks[PRUNE_GRID.index(thresholds.prune_below)].lost / solved
    lenient = found.tests[-1]
    assert (lenient.below, lenient.kept) == (0, 30)
    wrong = sevens[1] + (fives[1] if thresholds.prune_below > 0 else 0)
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


@pytest.mark.parametrize("cat", [CAT, FITTED], ids=["halves", "thirds"])
def test_the_thresholds_are_those_of_the_search(tmp_path: Path, cat: dict[str, Any]) -> None:
    """With the evidence that was fitted, if it was: on the part for pruning CaT at the chosen threshold costs what the table
    says; on the last part it answers as was tested."""
    recipe = recipe_of(tmp_path, N, evaluate={"cat": cat})
    found = stage(recipe, tmp_path / "out")
    questions = calibration_questions(recipe, N)
    pruning, last = (questions[:30], questions[30:]) if cat is CAT else (questions[20:40], questions[40:])
    settings = {**cat, "evidence": found.evidence}
    for below in (0.0, 0.4, found.thresholds.prune_below):
        method = ConfidenceTree(ConfidenceTreeSettings(**settings, prune_below=below))
        solutions = method.solve(pruning, ScriptedEngine(script))
        mean = sum(s.generated_tokens for s in solutions) / len(solutions)
        assert found.tokens[PRUNE_GRID.index(below)] == pytest.approx(mean)
    method, _ = choose(tmp_path / "out" / "thresholds.json", "cat", None, "stories-tiny")
    solutions = method.solve(last, ScriptedEngine(script))
    given = [(q, s) for q, s in zip(last, solutions, strict=True) if s.answer is not None]
    assert len(given) / len(last) == found.thresholds.kept
    assert sum(s.answer != q.answer for q, s in given) / len(given) == found.thresholds.wrong


def test_evidence_is_fitted_on_the_first_third(tmp_path: Path) -> None:
    """It stands in the file, and is what CaT is given by the commands that take the file."""
    recipe = recipe_of(tmp_path, N, evaluate={"cat": FITTED})
    found = stage(recipe, tmp_path / "out")
    first = calibration_questions(recipe, N)[:20]
    told = ConfidenceTree(ConfidenceTreeSettings(**FITTED)).told(first, ScriptedEngine(script), grade)
    assert found.evidence == fit_evidence(told) != EvidenceModel()
    loaded = Thresholds.load(tmp_path / "out" / "thresholds.json")
    assert loaded.settings["evidence"] == found.evidence.model_dump()
    assert loaded.n_evidence == 20
    assert loaded.n_pruning <= 20
    assert loaded.n_abstention <= 20
    method, _ = choose(tmp_path / "out" / "thresholds.json", "cat", None, "stories-tiny")
    assert method.settings.evidence == found.evidence


def test_evidence_that_the_recipe_sets_is_kept(tmp_path: Path) -> None:
    """Be it the defaults, written down. Then it is another calibration: parts of the one must not go into the other."""
    out, kept = tmp_path / "out", recipe_of(tmp_path, N, evaluate={"cat": {**FITTED, "evidence": {}}})
    found = stage(kept, out)
    assert found.evidence == EvidenceModel()
    assert found.thresholds.n_evidence == 0
    assert not (out / "calibration" / "evidence").exists()
    with pytest.raises(ResumeError, match=r"fits_evidence: False there, True now"):
        stage(recipe_of(tmp_path, N, evaluate={"cat": FITTED}), out)


def test_killed_while_evidence_is_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn is not drawn again, and the outcome is that of a stage that was left alone."""
    recipe = recipe_of(tmp_path, N, evaluate={"cat": FITTED})
    whole = stage(recipe, tmp_path / "whole")
    monkeypatch.setattr(calibrate, "_CHUNK", 7)
    out = tmp_path / "out"

    class Mortal(Counting):
        def generate(self, requests: Any, on_done: Any = None) -> Any:
            if self.requests:
                raise EngineError("killed")
            return super().generate(requests, on_done)

    with pytest.raises(EngineError, match="killed"):
        stage(recipe, out, Mortal)
    assert [file.name for file in (out / "calibration").glob("*/*")] == ["part-000.json"]
    engine = Counting(script)
    assert stage(recipe, out, lambda script: engine) == whole
    first = {q.text for q in calibration_questions(recipe, N)[:7]}
    assert engine.tokens
    assert first.isdisjoint(engine.tokens)


def test_what_was_told_is_kept_as_it_was() -> None:
    """Through JSON: paths without an answer, and signals that there are none of."""
    told = Told([0, None, 1], np.array([[0.1, math.nan], [1 / 3, -7.0], [math.nan, math.nan]]), None)
    again = calibrate._told(json.loads(json.dumps(calibrate._plain(told), allow_nan=False)))
    assert (again.groups, again.right) == (told.groups, told.right)
    np.testing.assert_array_equal(again.signals, told.signals)


def test_evidence_needs_right_and_wrong_paths(tmp_path: Path) -> None:
    """Where all are right nothing can be fitted; the message says what to do, and that does."""
    with pytest.raises(DataError, match=r"of 20 questions all .* --questions.* evaluate\.cat\.evidence=\{\}"):
        stage(recipe_of(tmp_path, N, evaluate={"cat": FITTED}), tmp_path / "out", lambda script: ScriptedEngine(perfect))
    kept = recipe_of(tmp_path, N, evaluate={"cat": {**FITTED, "evidence": {}}})
    assert stage(kept, tmp_path / "other", lambda script: ScriptedEngine(perfect)).thresholds.kept == 1.0


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
    """Before anything is decoded or written; also where the rounds leave too few, and where too few are solved. Evidence
    that is to be fitted needs questions of its own."""
    with pytest.raises(DataError, match=r"60 questions are too few for alpha 0\.01 .* at least 460 are needed"):
        stage(recipe, tmp_path / "out", alpha=0.01, delta=0.1)
    fitted = recipe_of(tmp_path, N, evaluate={"cat": FITTED})
    with pytest.raises(DataError, match=r"17 questions are too few .* at least 18 are needed, as they are cut in 3 parts"):
        stage(fitted, tmp_path / "out", questions=17)
    greedy = recipe_of(tmp_path, N, rounds=1, annotate={"questions": 50})
    with pytest.raises(DataError, match=r"10 questions .all that rounds and validation leave .* at least 12 are needed"):
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
    """But thresholds: nothing is lost, nothing is wrong, and there is nothing that pruning saves."""
    found = stage(recipe, tmp_path, lambda script: ScriptedEngine(perfect))
    assert found.calibrator is None
    assert not (tmp_path / "calibrator.json").exists()
    assert (found.thresholds.prune_below, found.thresholds.abstain_below, found.thresholds.kept) == (0.0, 0.0, 1.0)


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
    line = ("calibrate", file, "--out", out, "--alpha", 0.4, "--delta", 0.4, "--questions", 24)
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
        "weights": model_digest("stories-tiny"),
    }
    assert (found.alpha, found.delta) == (0.4, 0.4)
    assert 2 <= found.n_pruning <= 8
    assert f"Pruning, on {found.n_pruning} questions with a right path to lose" in told
    assert "Evidence, fitted on 8 questions: bias" in told
    calibrator = read_json(out / "calibrator.json")
    assert (calibrator["date"], calibrator["model"]) == (found.date, found.model)
    assert caspo(*line)[1] == told
    code, told, err = caspo(*line, "evaluate.cat.paths=4")
    assert (code, told) == (1, "")
    assert "recipe.evaluate.cat.paths: 3 there, 4 now" in err
    code, _, err = caspo("calibrate", file, "--out", tmp_path / "new", "--alpha", 0.01)
    assert code == 1
    assert "at least 690 are needed" in err
    assert not (tmp_path / "new").exists()
    assert caspo("calibrate", file, "--out", out, "--alpha", 2)[2].startswith("Error: alpha is a probability")
