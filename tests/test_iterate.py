"""The loop on a real (small) model: what it writes, and that it survives being killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspo.confidence import SIGNALS
from caspo.confidence.calibration import Calibrator
from caspo.core.errors import ConfigError, DataError, ResumeError
from caspo.core.folders import claimed
from caspo.core.storage import read_json
from caspo.loop import stages
from caspo.loop.recipe import CaspoRecipe
from caspo.loop.run import run_recipe
from caspo.loop.task import TaskSettings, open_task
from stories_run import RECIPE, pair_rows, timeless, write_recipe

METHODS = {"chain_of_thought": 4, "self_consistency": 3, "cat": 4}


def recipe(**changes: Any) -> CaspoRecipe:
    return CaspoRecipe.model_validate({**RECIPE, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run; tests that write into it take a copy."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_recipe(recipe(), out)
    return out


def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def assert_same_run(out: Path, finished: Path) -> None:
    pairs = Path("round-1") / "pairs" / "pairs.parquet"
    assert pair_rows(out / pairs) == pair_rows(finished / pairs)
    assert timeless(read_json(out / "metrics.json")) == timeless(read_json(finished / "metrics.json"))
    left = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert left == {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}, "nothing is left behind"


def of(kind: type | tuple[type, ...], *, maybe: bool = False) -> Any:
    def check(value: Any) -> bool:
        return (maybe and value is None) or (isinstance(value, kind) and not isinstance(value, bool))

    return check


REAL = of((int, float))
SCHEMA: dict[str, Any] = {
    "schema": lambda v: v == 1, "recipe": of(str), "model": of(str), "seed": of(int), "seconds_total": of(float),
    "rounds": of(list),
}  # fmt: skip
METHOD: dict[str, Any] = {
    "n": of(int), "accuracy": REAL, "accuracy_ci95": of(list), "generated_tokens_per_question": REAL,
    "seconds_per_question": REAL, "abstained": REAL, "over_pruned": of((int, float), maybe=True), "over_pruned_n": of(int),
    "settings": of(dict),
    # docs/evaluate.md
    "pass_at_k": of(dict, maybe=True), "maj_at_k": of(dict, maybe=True), "answers": of(dict), "faithfulness": of(dict),
}  # fmt: skip
FRACTION = of(float, maybe=True)
ENDS = of(list, maybe=True)
ANSWERS: dict[str, Any] = {
    "n": of(int), "ece": FRACTION, "ece_mass": FRACTION, "ece_debiased": FRACTION, "brier": FRACTION, "auroc": FRACTION,
    "aurc": FRACTION, "ece_ci95": lambda v: v is None, "ece_debiased_ci95": ENDS,
    "brier_ci95": ENDS, "auroc_ci95": ENDS, "aurc_ci95": ENDS,
}  # fmt: skip
FAITHFULNESS: dict[str, Any] = {"n": of(int), "whole": of(int), "wrong_step": FRACTION, "wrong_step_ci95": ENDS}
STEPS: dict[str, Any] = {
    "n": of(int), "accuracy": of(float), "ece": of(float), "ece_debiased": of(float), "ece_debiased_ci95": of(list),
    "brier": of(float), "ece_calibrated": of(float, maybe=True),
    "brier_calibrated": of(float, maybe=True), "auroc": of(dict), "auroc_siblings": of(dict),
    "auroc_ci95": of(dict), "auroc_siblings_ci95": of(dict),
    "entropy_right": of(float), "entropy_wrong": of(float),
    "sibling_groups": of(int),  # how much `auroc_siblings` rests on
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "pairs": of(dict), "trees": of(int), "loss_first": of(float), "loss_last": of(float),
    "pair_accuracy_last": of(float), "unique_tokens": of(int), "pair_tokens": of(int), "seconds": of(float),
    "reference": of(str),
}  # fmt: skip


def check(value: dict[str, Any], schema: dict[str, Any]) -> None:
    assert value.keys() == schema.keys()
    for key, right in schema.items():
        assert right(value[key]), f"{key}: {value[key]!r}"


def test_metrics_follow_the_schema(finished: Path) -> None:
    """Every key with its type and no other, rounds 0 and 1, counts and intervals that fit."""
    metrics = read_json(finished / "metrics.json")
    check(metrics, SCHEMA)
    assert (metrics["recipe"], metrics["model"], metrics["seed"]) == ("small", "stories-tiny", 1)
    assert [entry["round"] for entry in metrics["rounds"]] == [0, 1]
    for entry in metrics["rounds"]:
        assert entry.keys() == {"round", "methods", "steps", "training"}
        assert {name: m["n"] for name, m in entry["methods"].items()} == METHODS
        for name, method in entry["methods"].items():
            check(method, METHOD)
            check(method["answers"], ANSWERS)
            check(method["faithfulness"], FAITHFULNESS)
            assert (method["pass_at_k"] is not None) == (name == "self_consistency")
            low, high = method["accuracy_ci95"]
            assert 0 <= low <= method["accuracy"] <= high <= 1
            assert (method["over_pruned"] is None) == (name != "cat")
            assert method["generated_tokens_per_question"] > 0
            assert method["settings"]["max_tokens"] == 96
        check(entry["steps"], STEPS)
        for family in ("auroc", "auroc_siblings"):
            figures, intervals = entry["steps"][family], entry["steps"][f"{family}_ci95"]
            assert figures.keys() == intervals.keys() == {*SIGNALS, "sibling_frequency"}
        for key in ("accuracy", "ece", "brier"):
            assert 0 <= entry["steps"][key] <= 1
    before, after = (entry["training"] for entry in metrics["rounds"])
    assert before is None
    check(after, TRAINING)
    assert after["pairs"].keys() == {"confident_wrong", "uncertain_right"}
    assert sum(after["pairs"].values()) == len(pair_rows(finished / "round-1" / "pairs" / "pairs.parquet")) > 0
    assert after["unique_tokens"] <= after["pair_tokens"]


def test_change_of_the_steps(finished: Path) -> None:
    """`report_data.json` holds how the steps of the last round differ from the first, as `metrics.json` has them."""
    before, after = (entry["steps"] for entry in read_json(finished / "metrics.json")["rounds"])
    changes = {change["figure"]: change for change in read_json(finished / "report_data.json")["step_changes"]}
    assert changes.keys() == {"accuracy", "ece_debiased", "brier", "auroc_entropy", "auroc_siblings_entropy"}
    for name in ("accuracy", "ece_debiased", "brier"):
        change = changes[name]
        assert (change["before"], change["after"]) == (0, 1)
        assert change["difference"] == pytest.approx(after[name] - before[name], abs=1e-12)
        if change["low"] is not None:  # None where the same steps are right before and after
            assert change["low"] <= change["difference"] <= change["high"]


def test_files_of_a_run(finished: Path) -> None:
    """The folder of a run, and each file is what it says."""
    round_1 = finished / "round-1"
    assert (finished / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")
    environment = read_json(finished / "environment.json")
    assert {"seed", "git_revision", "versions", "processor"} <= environment.keys()
    placement = {"device": "cpu", "dtype": "float32", "threads": 1}
    assert read_json(finished / "placement.json") == placement == {key: environment[key] for key in placement}
    asked = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert asked["train"]["beta"] == 2.0, "defaults are filled in"
    assert CaspoRecipe.model_validate(asked) == recipe()
    assert list((round_1 / "tree").glob("*.parquet"))
    log = [json.loads(line) for line in (round_1 / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, len(log) + 1))
    assert not (round_1 / "train").exists(), "checkpoints are removed"
    for name in ("model/model.safetensors", "model/tokenizer.json", "pairs/report.json"):
        assert (round_1 / name).is_file()
    for file in (finished / "round-0" / "calibrator.json", round_1 / "model" / "calibrator.json"):
        assert 0 <= Calibrator.load(file).predict([0.9])[0] <= 1


def test_model_loads_in_transformers(finished: Path) -> None:
    """Without us; and it was trained: its weights are not those of the model before."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from caspo.engines.models import load

    folder = finished / "round-1" / "model"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert AutoTokenizer.from_pretrained(folder).chat_template
    before = load("stories-tiny")[0].state_dict()
    shift = max(float((value.float() - before[name]).abs().max()) for name, value in model.state_dict().items())
    assert 0 < shift < 0.1


def test_pairs_load_in_datasets(finished: Path) -> None:
    """As TRL wants them; chosen and rejected continue the prompt and differ."""
    from datasets import Dataset

    pairs = Dataset.from_parquet(str(finished / "round-1" / "pairs" / "*.parquet"), cache_dir=str(finished.parent))
    assert {"prompt", "chosen", "rejected", "kind", "question_id"} <= set(pairs.column_names)
    for row in pairs:
        assert row["prompt"].startswith("Question: ")
        assert row["chosen"] != row["rejected"]
        assert row["chosen"]
        assert row["rejected"]


class Killed(BaseException):
    pass


class KillsOnce:
    """Stops a run at every report that it has not seen before."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int]] = set()

    def stage(self, name: str, done: int, total: int) -> None:
        if (name, done) not in self.seen:
            self.seen.add((name, done))
            raise Killed


def test_stopped_after_every_stage(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each chunk and each optimiser step, and between the model and its log: the same run comes out."""
    killer, out = KillsOnce(), tmp_path / "out"
    write_text = stages.write_text

    def write_or_die(path: Path, text: str) -> None:
        if ("log", 0) not in killer.seen:
            killer.seen.add(("log", 0))
            raise Killed
        write_text(path, text)

    monkeypatch.setattr(stages, "write_text", write_or_die)
    stops = 0
    while not (out / "metrics.json").exists():
        try:
            run_recipe(recipe(), out, killer.stage)
        except Killed:
            stops += 1
        assert stops < 50
    assert stops == len(killer.seen) >= 8
    assert_same_run(out, finished)


def start(out: Path, file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caspo.cli.main", "run", str(file), "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, **quiet)  # type: ignore[call-overload,no-any-return]


def kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_while_it_trains(finished: Path, tmp_path: Path) -> None:
    """SIGKILL to `caspo run` (its first checkpoint is there), then the same run again."""
    out = tmp_path / "out"
    process = start(out, write_recipe(tmp_path / "recipe.yaml"))
    until = time.monotonic() + 120
    while process.poll() is None and not (out / "round-1" / "train").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    kill(process)
    assert not (out / "metrics.json").exists()
    run_recipe(recipe(), out)
    assert_same_run(out, finished)


@pytest.mark.slow
def test_killed_at_ten_random_moments(finished: Path, tmp_path: Path) -> None:
    """Ten times anywhere, in one folder; what is asked for last finishes it."""
    out, file = tmp_path / "out", write_recipe(tmp_path / "recipe.yaml")
    rng = random.Random(0)
    for _ in range(10):
        process = start(out, file)
        # most of the first seconds are imports: the later moments are where there is something to lose
        try:
            process.wait(rng.uniform(3, 14))
        except subprocess.TimeoutExpired:
            kill(process)
    assert start(out, file).wait(300) == 0
    assert_same_run(out, finished)


def test_run_again_does_nothing_anew(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run loads no model; what was left between two writes is swept up."""
    out = copy(finished, tmp_path)
    (out / "round-1" / "train" / "checkpoint-3").mkdir(parents=True)
    (out / "round-1" / "train" / "checkpoint-3" / "model.safetensors").write_text("left")
    (out / "round-1" / ".caspo-partial.model.abc").mkdir()
    (out / "round-1" / "pairs" / ".caspo-partial.pairs.parquet.abc").write_text("half")
    (out / ".caspo-partial.metrics.json.abc").write_text("half")
    monkeypatch.setattr(stages, "load", None)
    run_recipe(recipe(), out)
    assert_same_run(out, finished)


def test_another_recipe_in_the_same_folder(finished: Path, tmp_path: Path) -> None:
    """Refused, naming what differs, and nothing is touched."""
    out = copy(finished, tmp_path)
    other = recipe(seed=2, train={**RECIPE["train"], "beta": 0.1})
    with pytest.raises(ResumeError, match=r"(?s)seed: 1 there, 2 now.*train\.beta: 2\.0 there, 0\.1 now"):
        run_recipe(other, out)
    assert_same_run(out, finished)


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    """The second is told so, and by which process."""
    with claimed(tmp_path, recipe(), "run", [], {}), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        run_recipe(recipe(), tmp_path)


def test_truncated_trees(finished: Path, tmp_path: Path) -> None:
    """The message names the file and says to delete it; that helps."""
    out = copy(finished, tmp_path)
    file = out / "round-1" / "tree" / "part-0000.parquet"
    os.truncate(file, file.stat().st_size // 2)
    (out / "round-1" / "training.json").unlink()  # as of a run that was killed before training
    with pytest.raises(DataError, match=r"part-0000\.parquet is not a readable Parquet file .*truncated"):
        run_recipe(recipe(), out)
    file.unlink()
    (out / "round-1" / "pairs" / "pairs.parquet").unlink()
    run_recipe(recipe(), out)
    assert_same_run(out, finished)


def test_a_task_without_a_file(tmp_path: Path) -> None:
    """A file task needs a file for each split it is asked for."""
    questions = tmp_path / "test.jsonl"
    questions.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    task = TaskSettings(name="jsonl", test=questions)
    assert len(open_task(task, "test").questions("test", 5, 0)) == 1
    with pytest.raises(ConfigError, match=r"set task\.train"):
        open_task(task, "train")


def test_measuring_needs_no_training_section(tmp_path: Path) -> None:
    """A recipe without `train` is refused at once where a round would train, and is no obstacle to measuring."""
    recipe = {key: value for key, value in RECIPE.items() if key != "train"}
    with pytest.raises(ConfigError, match="nothing of training"):
        run_recipe(CaspoRecipe.model_validate({**recipe, "rounds": 1}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert CaspoRecipe.model_validate({**recipe, "rounds": 0}).train is None
