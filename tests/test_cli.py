"""The command line as a user meets it: what it prints, what it exits with, and that errors are one message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from caspo import __version__
from caspo.cli.solve import choose
from caspo.core.storage import read_json
from caspo.engines.models import resolve
from caspo.engines.opening import ModelSettings, _tell
from caspo.loop.thresholds import asked_as
from caspo.search import ConfidenceTreeSettings
from caspo.search.evidence import EvidenceModel
from caspo.search.threshold import Thresholds
from stories_run import pair_rows, timeless, write_recipe

Command = Callable[..., tuple[int, str, str]]


def failed(result: tuple[int, str, str]) -> str:
    """The message of a command that failed as it should: exit code 1, no traceback."""
    code, out, err = result
    assert code == 1
    assert not out
    assert err.startswith("Error: ")
    assert "Traceback" not in err
    return err


def test_help_and_version(caspo: Command) -> None:
    """Every command is listed; each has a help text of its own."""
    assert caspo("--version") == (0, f"caspo {__version__}\n", "")
    code, out, _ = caspo("--help")
    assert code == 0
    for command in ("run", "solve", "annotate", "judge", "export", "import", "pairs", "train", "evaluate", "report", "plan"):
        assert command in out
        assert caspo(command, "--help")[0] == 0


def test_help_loads_no_torch() -> None:
    """So it is there at once."""
    script = (
        "import sys; sys.argv = ['caspo', '--help']\nfrom caspo.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_wrong_recipes(caspo: Command, tmp_path: Path) -> None:
    """A misspelt key in the file or on the command line, a wrong kind, a file that is not there; no folder is made."""
    out = tmp_path / "out"
    misspelt = write_recipe(tmp_path / "a.yaml", anotate={"questions": 3})
    err = failed(caspo("run", misspelt, "--out", out))
    assert "anotate: unknown key; did you mean 'annotate'?" in err
    recipe = write_recipe(tmp_path / "b.yaml")
    for command in (("run", recipe), ("annotate", recipe), ("evaluate", recipe)):
        err = failed(caspo(*command, "train.learning_rat=1", "--out", out))
        assert "train.learning_rat: unknown key; did you mean 'learning_rate'?" in err
    assert "must be 'caspo' or 'supervised'" in failed(caspo("run", write_recipe(tmp_path / "c.yaml", kind="x")))
    assert "Cannot read the recipe" in failed(caspo("run", tmp_path / "none.yaml", "--out", out))
    assert "neither a finished run" in failed(caspo("evaluate", "--compare", tmp_path, tmp_path, "--out", out))
    for args in ((), (recipe, "--compare", "a", "b")):
        assert "either a RECIPE to evaluate, or --compare A B" in failed(caspo("evaluate", *args, "--out", out))
    assert not out.exists()
    assert caspo("run")[0] == 2, "how it is called is wrong: usage"


def test_solve_a_question(caspo: Command) -> None:
    """Each step with its confidence, and the answer."""
    question = "Tom has 5 apples. He buys 3 more apples. How many apples does Tom have now?"
    _tell.cache_clear()
    line = ("solve", question, "--model", "stories-tiny", "--device", "cpu", "--threads", 1, "paths=2", "max_tokens=96")
    code, out, err = caspo(*line)
    assert code == 0
    assert "stories-tiny: device cpu, float32 (a small model), 1 thread\n" in err, (
        "what was chosen, and no part of the result"
    )
    assert "device cpu" not in out
    assert "Tom has 5 apples" in out
    assert "\n  = " in out


def calibrated(model: str = "stories-tiny", **settings: Any) -> Thresholds:
    """A file in which every answer is withheld that is not certain."""
    asked = ModelSettings(name=model, dtype="float32", instruction="Think.")
    return Thresholds(
        model=asked_as(asked, ()),
        settings=ConfidenceTreeSettings(**settings).model_dump(exclude={"prune_below", "abstain_below"}),
        prune_below=0.0, abstain_below=1.0, alpha=0.1, delta=0.1, n_evidence=9, n_pruning=9, n_abstention=9, lost=0.0,
        kept=1.0, wrong=0.0, date="2026-11-24",
    )  # fmt: skip


def test_solve_with_calibrated_thresholds(caspo: Command, tmp_path: Path) -> None:
    """The settings of the file are taken, a withheld answer is said to be one; with another model they hold for nothing."""
    file = tmp_path / "thresholds.json"
    calibrated(max_tokens=96, paths=2, evidence=EvidenceModel(bias=30.0, slopes={}, common={}, falsehood=0.0)).save(file)
    out = tmp_path / "out.jsonl"
    line = ("solve", "stories", "--limit", 3, "--thresholds", file, "--out", out)
    assert caspo(*line, "--model", "stories-tiny")[0] == 0
    rows = [json.loads(text) for text in out.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [None] * 3, "no answer is certain"
    assert all(0.95 < row["confidence"] < 1 for row in rows), "by the evidence in the file all are believed"
    tiny = (*line, "--model", "stories-tiny")
    assert caspo(*tiny, "--instruction", "Think.")[0] == 0, "what is in the file may be said again"
    for other in (
        ("--model", "smollm2-135m"), (*tiny[-2:], "paths=2"), (*tiny[-2:], "--instruction", "Guess."),
        (*tiny[-2:], "--method", "beam"), (*tiny[-2:], "--engine", "llama_cpp"), (*tiny[-2:], "--dtype", "bfloat16"),
    ):  # fmt: skip
        assert "nothing is guaranteed" in failed(caspo(*line, *other))


@pytest.mark.parametrize("command", [("solve", "stories", "--limit", 1), ("serve",)])
def test_thresholds_of_a_model_that_was_trained_again(caspo: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    """In the same folder: its name says nothing of its weights. What else is kept in the folder is not the model."""
    folder = tmp_path / "model"
    shutil.copytree(resolve("stories-tiny"), folder)
    file = folder / "thresholds.json"
    calibrated(str(folder), max_tokens=48, paths=1).save(file)
    assert caspo("solve", "stories", "--limit", 1, "--model", folder, "--thresholds", file)[0] == 0
    weights = load_file(folder / "model.safetensors")
    first = min(weights)
    save_file({**weights, first: weights[first] * 1.5}, folder / "model.safetensors", {"format": "pt"})
    told = " ".join(failed(caspo(*command, "--model", folder, "--thresholds", file)).split())
    assert f"The files of the model {folder} are not those" in told
    assert "caspo calibrate" in told


def test_thresholds_of_a_served_model_know_no_weights(tmp_path: Path) -> None:
    """They are taken as they are; and the digest of a local model's is none of the settings that it is opened with."""
    asked = ModelSettings(name="served", engine="openai_compatible", urls=["http://127.0.0.1:9"], dtype="float32")
    replace(calibrated(), model=asked_as(asked, ())).save(tmp_path / "served.json")
    calibrated().save(tmp_path / "local.json")
    for file, name in (("served.json", "served"), ("local.json", "stories-tiny")):
        told = choose(tmp_path / file, "cat", None, name)[1]
        assert told.keys() == {"engine", "dtype", "instruction", "steps"}


def test_thresholds_with_settings_of_nobody(caspo: Command, tmp_path: Path) -> None:
    """Edited by hand, or of another version; and a folder is no file."""
    file = tmp_path / "thresholds.json"
    replace(calibrated(), settings={"path": 2}).save(file)
    line = ("solve", "stories", "--model", "stories-tiny", "--thresholds")
    assert "path: unknown key; did you mean 'paths'?" in failed(caspo(*line, file))
    assert "cannot be read: Is a directory" in failed(caspo(*line, tmp_path))


@pytest.mark.parametrize("command", [("solve", "stories"), ("serve",)])
def test_no_threshold_that_could_be_shown_answers_nothing(caspo: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Calibration showed that wrong answers cannot be kept to the share: to give every answer would be the contrary."""
    file = tmp_path / "thresholds.json"
    replace(calibrated(), prune_below=0.3, abstain_below=None, kept=None, wrong=None).save(file)
    told = " ".join(failed(caspo(*command, "--model", "stories-tiny", "--thresholds", file)).split())
    assert "no threshold for abstention: none was shown to keep wrong answers to a share of 0.1" in told
    assert "prune_below=0.3" in told


def test_solve_a_file(caspo: Command, tmp_path: Path) -> None:
    """The first questions by ``--limit``, graded; one JSON line each in ``--out``."""
    file, out = tmp_path / "questions.jsonl", tmp_path / "solved" / "out.jsonl"
    rows = [{"id": f"q{i}", "question": f"Mia has {i} pens and buys 2 pens. How many pens?", "answer": f"#### {i + 2}"}
            for i in range(3, 7)]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    line = ("solve", file, "--model", "stories-tiny", "--limit", 2, "--out", out, "max_tokens=64")
    code, told, _ = caspo(*line, "--method", "self_consistency", "samples=3")
    assert code == 0
    assert " of 2 right" in told
    assert "2 of the 4 questions in " in told
    solved = [json.loads(text) for text in out.read_text().splitlines()]
    assert len(solved) == 2
    for row in solved:
        assert row["id"] in {r["id"] for r in rows}
        assert isinstance(row["correct"], bool)
        assert row["gold"] == str(int(row["id"][1:]) + 2)
        assert 0 <= row["confidence"] <= 1
        assert row["generated_tokens"] > 0
        assert row["steps"]
    code, told, _ = caspo("solve", file, "--model", "stories-tiny", "abstain_below=1", "paths=1", "max_tokens=64")
    assert "= withheld" in told
    assert "0 of 4 right, 4 withheld" in told
    assert "wrong" not in told, "what is not given is not wrong"
    assert "(--limit)" not in told


def test_solve_a_benchmark(caspo: Command, tmp_path: Path) -> None:
    """From a folder, graded as its field does: the letter of the option, not the words of the answer."""
    row = {"id": "a", "question": "Tom has 5 apples and buys 3. How many?", "answer": "B", "choices": ["7", "8"]}
    (tmp_path / "race.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    line = ("solve", "race", "--model", "stories-tiny", "--data", tmp_path, "--method", "chain_of_thought", "max_tokens=32")
    code, told, _ = caspo(*line, "--out", out)
    assert code == 0
    assert "(A) 7\n(B) 8" in told
    assert " of 1 right" in told
    assert json.loads(out.read_text())["gold"] == "B"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("humaneval", "--model", "stories-tiny"), "graded by running what the model writes. Allow it: --run-code."),
        (("race", "--data", "nowhere"), "nowhere does not hold race_test.jsonl or race.jsonl"),
        (("1 + 1?", "--data", "nowhere"), "'1 + 1?' is none. They are math500"),
        (("  ", "--model", "stories-tiny"), "The question is empty"),
        (("1 + 1?", "--method", "magic"), "no method 'magic'. Choose one of chain_of_thought, self_consistency, cat"),
        (("1 + 1?", "pahts=3"), "did you mean 'paths'?"),
        (("none.jsonl", "--model", "stories-tiny"), "none.jsonl: no such file"),
        (("1 + 1?", "--model", "./none"), "There is no model folder './none'"),
        (("1 + 1?", "--model", "stories-tiny", "--device", "toaster"), "'toaster' is not a device"),
        (("1 + 1?", "--model", "stories-tiny", "--device", "cuda:7"), "no device 'cuda:7' here: torch"),
        (("1 + 1?", "--model", "stories-tiny", "--dtype", "int8"), "dtype: Input should be 'auto', 'float32', 'bfloat16'"),
    ],
)
def test_solve_says_what_is_wrong(caspo: Command, args: tuple[str, ...], message: str) -> None:
    """In one message."""
    assert message in failed(caspo("solve", *args))


def test_unknown_model_offline() -> None:
    """The message names models that need no hub."""
    done = subprocess.run(
        [sys.executable, "-m", "caspo.cli.main", "solve", "1 + 1?", "--model", "caspo-tests/none"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "smollm2-135m" in done.stderr
    assert "stories-tiny" in done.stderr


def test_stages_make_what_run_makes(caspo: Command, tmp_path: Path) -> None:
    """`annotate`, `pairs` and `train` one after the other: the pairs and the figures of `run`'s first round."""
    recipe, run, out = write_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", tmp_path / "stages"
    code, told, _ = caspo("run", recipe, "--out", run)
    assert code == 0
    assert "chain_of_thought" in told, "the table is a result: it goes to stdout, progress does not"
    assert "AUROC of the signals, before training" in told
    assert "AUROC of the signals, round 1" in told
    assert "sibling_frequency" in told
    assert caspo("annotate", recipe, "--out", out)[0] == 0
    assert caspo("pairs", recipe, "--trees", out / "tree", "--out", out / "pairs")[0] == 0
    line = ("train", recipe, "--trees", out / "tree", "--pairs", out / "pairs" / "pairs.parquet", "--out", out)
    assert caspo(*line)[0] == 0
    first = run / "round-1"
    assert pair_rows(out / "pairs" / "pairs.parquet") == pair_rows(first / "pairs" / "pairs.parquet")
    assert read_json(out / "pairs" / "report.json") == read_json(first / "pairs" / "report.json")
    assert timeless(read_json(out / "training.json")) == timeless(read_json(first / "training.json"))
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, first)]
    assert weights[0] == weights[1]
    for args in (("annotate", recipe, "--out", out), line):
        assert caspo(*args)[0] == 0, "the same line again goes on from what is there"
    assert "seed: 1 there, 2 now" in failed(caspo("annotate", recipe, "seed=2", "--out", out))
    code, told, _ = caspo("evaluate", "--compare", run / "round-0", f"{run}:cat", "--out", tmp_path / "compared")
    assert code == 0
    assert "McNemar" in told
    compared = read_json(tmp_path / "compared" / "comparison.json")
    assert [(c["method_a"], c["method_b"], c["n"]) for c in compared["comparisons"]] == [("cat", "cat", 4)]
    assert (compared["a"]["round"], compared["b"]["round"]) == (0, 1)
    page = run / "report.html"
    before = page.read_bytes()
    page.unlink()
    assert caspo("report", run)[0] == 0
    assert page.read_bytes() == before
    assert "metrics.json" in failed(caspo("report", tmp_path))


def labelled(path: Path) -> Path:
    """Two solutions of one question, the second with a false sum."""
    rows = [
        {"id": f"toy-{i}", "generator": "g", "problem": "Mia has 2 pens and buys 3 pens. How many pens?",
         "steps": [f"2 + 3 = {total}", f"The answer is {total}."], "final_answer_correct": total == 5, "label": label}
        for i, (total, label) in enumerate([(5, -1), (6, 0)])
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_judge_against_labels(caspo: Command, tmp_path: Path) -> None:
    """A table and scores.json; again from what is there; without --score-against the verdicts alone."""
    file, out = labelled(tmp_path / "x.jsonl"), tmp_path / "out"
    line = ("judge", file, "--judge", "arithmetic", "--score-against", "labels", "--out", out)
    for _ in range(2):
        code, told, _ = caspo(*line)
        assert code == 0
        assert "Judge arithmetic against labels" in told
    scores = read_json(out / "scores.json")["sets"]["all"]
    assert scores["f1_unknown_as_right"]["value"] == 1
    assert scores["processbench_f1"]["value"] == 0, "without a known answer it cannot tell the last step"
    again = failed(caspo("judge", file, "--model", "stories-tiny", "--base", "elsewhere", "--out", out))
    assert "base: None there, elsewhere now" in again, "what completes the steps is another model"
    assert "judge.kind: arithmetic there, labels now" in failed(
        caspo("judge", file, "--judge", "labels", f"files=[{file}]", "--out", out)
    )
    code, told, _ = caspo("judge", file, "--judge", "labels", f"files=[{file}]", "--out", tmp_path / "other")
    assert code == 0
    assert "steps: 2 right, 1 wrong, 0 unknown" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--score-against", "people"), "the only truth there is are the labels"),
        (("--judge", "rollouts"), "name it with --model"),
        (("--judge", "oracle"), "does not match any of the expected tags"),
        (("sampels=3", "--judge", "rollouts"), "did you mean 'samples'?"),
        (("--device", "cuda"), "arithmetic samples from no model here, so --device has no meaning"),
        (("--judge", "reward_model", "model=x", "layout=qwen", "--dtype", "bfloat16"), "settings of its own (device=cuda"),
    ],
)
def test_judge_says_what_is_wrong(caspo: Command, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    """Before anything is judged."""
    assert message in failed(caspo("judge", labelled(tmp_path / "x.jsonl"), *args, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_judges_own_model_is_where_it_is_told(caspo: Command, tmp_path: Path) -> None:
    """Device, precision and threads are of the model that a judge samples from, and the folder keeps them."""
    line = ("judge", labelled(tmp_path / "x.jsonl"), "--judge", "language_model", "model=stories-tiny", "max_tokens=4")
    placed = ("--dtype", "bfloat16", "--device", "cpu", "--threads", "1")
    assert caspo(*line, *placed, "--limit", "1", "--out", tmp_path / "out")[0] == 0
    assert read_json(tmp_path / "out" / "placement.json") == {"device": "cpu", "dtype": "bfloat16", "threads": 1}


def test_import_rescore_pair_and_export(caspo: Command, tmp_path: Path) -> None:
    """Labelled solutions become trees, get a model's entropies, are paired, and go out again in every format."""
    recipe, trees, out = write_recipe(tmp_path / "r.yaml"), tmp_path / "trees.parquet", tmp_path / "scored"
    file = labelled(tmp_path / "x.jsonl")
    assert caspo("import", file, "--model", "stories-tiny", "--out", trees)[0] == 0
    assert caspo("annotate", recipe, "--rescore", trees, "--out", out)[0] == 0
    assert caspo("pairs", recipe, "--trees", out / "tree", "--out", out / "pairs")[0] == 0
    pairs = out / "pairs" / "pairs.parquet"
    (row,) = pair_rows(pairs)
    assert (row["chosen"], row["rejected"]) == ("2 + 3 = 5\n\n", "2 + 3 = 6\n\n"), "paragraphs, as in ProcessBench"
    for name in ("processbench", "prm800k", "math_shepherd", "trl_stepwise", "steps"):
        target = tmp_path / f"{name}.jsonl"
        code, told, _ = caspo("export", out / "tree", "--format", name, "--out", target)
        assert code == 0
        assert " records in " in told
        code, told, _ = caspo("judge", target, "--score-against", "labels", "--out", tmp_path / name)
        assert code == 0, "what was written is read"
    target = tmp_path / "dpo.jsonl"
    assert caspo("export", out / "tree", "--format", "step_dpo", "--pairs", pairs, "--out", target)[0] == 0
    assert json.loads(target.read_text())["rejected"] == "2 + 3 = 6"
    assert caspo("export", out / "tree", "--format", "dataset", "--out", tmp_path / "d.parquet")[0] == 0
    assert "no format 'trl'" in failed(caspo("export", out / "tree", "--format", "trl", "--out", target))
    assert "give it with --pairs" in failed(caspo("export", out / "tree", "--format", "step_dpo", "--out", target))
