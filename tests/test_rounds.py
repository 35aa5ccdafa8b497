"""Rounds that build on each other, training under a launcher, and exact confidences for trees of any engine."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from caspo.cli import stages as commands
from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.core.storage import read_json
from caspo.engines.opening import open_engine
from caspo.formats.parquet import read_trees, write_trees
from caspo.loop import run as iterate
from caspo.loop.recipe import CaspoRecipe, training_questions, validation_questions
from caspo.loop.run import run_recipe
from caspo.loop.stages import annotate_stage, rescore_stage, train_stage
from caspo.loop.task import open_judge
from caspo.records import TokenTrace, Tree
from stories_run import RECIPE, write_recipe

SMALL = {
    "questions": 1, "self_consistency": None, "cat": None, "chain_of_thought": {"max_tokens": 48},
}  # fmt: skip


def recipe(**changes: Any) -> CaspoRecipe:
    return CaspoRecipe.model_validate({**RECIPE, "evaluate": SMALL, "annotate": {"questions": 4, "samples": 4}, **changes})


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every round's training was asked for; the training happens."""
    asked: list[dict[str, Any]] = []

    def watch(source: str, model: Any, data: Any, settings: Any, seed: int, out: Path, on_step: Any, reference: Any) -> Any:
        asked.append({"source": Path(source).parts[-2:], "data": [p.parts[-3] for _, p in data], "reference": reference})
        result = train_stage(source, model, data, settings, seed, out, on_step, reference)
        asked[-1]["result"] = result
        return result

    monkeypatch.setattr(iterate, "train_stage", watch)
    return asked


def test_rounds_build_on_each_other(tmp_path: Path, trainings: list[dict[str, Any]]) -> None:
    """The second round starts from the first one's model, with new questions and its own pairs and reference."""
    run_recipe(recipe(rounds=2), tmp_path)
    assert [t["source"] for t in trainings] == [("stories-tiny",), ("round-1", "model")]
    assert [t["data"] for t in trainings] == [["round-1"], ["round-2"]]
    assert [t["result"]["reference"] for t in trainings] == ["sampled", "sampled"]
    ids = [{t.question.id for t in read_trees(tmp_path / f"round-{k}" / "tree")} for k in (1, 2)]
    assert ids[0].isdisjoint(ids[1])


def test_rounds_of_adapters(tmp_path: Path, trainings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round trains the adapters of the one before further, on the first base; a calibrator beside them merges nothing
    again."""
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "cache"))
    train = {**RECIPE["train"], "lora": {"rank": 2}, "save": "adapter"}
    run_recipe(recipe(rounds=2, train=train), tmp_path / "run")
    assert [t["source"] for t in trainings] == [("stories-tiny",), ("round-1", "model")]
    for index in (1, 2):
        folder = tmp_path / "run" / f"round-{index}" / "model"
        assert not (folder / "config.json").exists()
        assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "stories-tiny"
        first_step = json.loads((folder.parent / "log.jsonl").read_text().splitlines()[0])
        assert first_step["dpo"] == pytest.approx(math.log(2), abs=1e-3)
    assert len(list((tmp_path / "cache").glob("model-*"))) == 2, "one merged model a round"


def test_first_reference_and_accumulated_pairs(tmp_path: Path, trainings: list[dict[str, Any]]) -> None:
    """The first model stays the reference, scored for the trees of all rounds; training sees the pairs of both."""
    run_recipe(recipe(rounds=2, reference="first", accumulate=True), tmp_path)
    assert [t["data"] for t in trainings] == [["round-1"], ["round-1", "round-2"]]
    assert [t["reference"] for t in trainings] == ["stories-tiny"] * 2
    assert [t["result"]["reference"] for t in trainings] == ["sampled", "given"]
    one, two = (sum(t["result"]["pairs"].values()) for t in trainings)
    assert two > one
    first_step = json.loads((tmp_path / "round-2" / "log.jsonl").read_text().splitlines()[0])
    assert abs(first_step["margin"]) > 1e-3, "the model has moved away from the first one before the second round"


def test_a_worse_round_is_not_built_upon(
    tmp_path: Path, trainings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the record, and the next round starts from the best before it."""
    accuracies = iter([0.5, 0.4, 0.5])
    monkeypatch.setattr(iterate, "_validate", lambda *args: {"n": 10, "accuracy": next(accuracies)})
    metrics = run_recipe(recipe(rounds=2, validation={"questions": 10}), tmp_path)
    assert [t["source"] for t in trainings] == [("stories-tiny",), ("stories-tiny",)]
    assert [entry["validation"]["kept"] for entry in metrics["rounds"]] == [True, False, True]
    assert [entry["validation"]["built_on"] for entry in metrics["rounds"]] == [None, 0, 0]
    assert (tmp_path / "round-1" / "model").is_dir()


def test_validation_is_measured_on_questions_of_its_own(tmp_path: Path) -> None:
    """Its questions are never sampled for trees; what is measured is written and not measured again."""
    asked = recipe(rounds=1, validation={"questions": 6})
    held = {q.id for q in validation_questions(asked)}
    assert len(held) == 6
    for index in (1, 2, 3):
        assert held.isdisjoint(q.id for q in training_questions(asked, index))
        assert len(training_questions(asked, index)) == 4
    lines = [json.dumps({"id": str(i), "question": f"{i} + 1?", "answer": str(i + 1)}) for i in range(10)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines) + "\n")
    own = recipe(validation={"questions": 5}, task={"name": "jsonl", "train": str(tmp_path / "q.jsonl")})
    held = {q.id for q in validation_questions(own)}
    drawn = {q.id for k in range(1, 6) for q in training_questions(own, k)}
    assert len(held) == 5
    assert held.isdisjoint(drawn)
    metrics = run_recipe(asked, tmp_path / "run")
    assert all(entry["validation"]["n"] == 6 for entry in metrics["rounds"])
    assert len(list((tmp_path / "run").glob("round-*/validation/chain_of_thought/*.parquet"))) == 2


CPU = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": True, "num_processes": 2,
    "num_machines": 1, "machine_rank": 0, "mixed_precision": "no", "main_training_function": "main", "debug": False,
    "downcast_bf16": "no", "rdzv_backend": "static", "same_network": True, "enable_cpu_affinity": False,
    "main_process_port": 0,
}  # fmt: skip


def test_training_under_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that names a configuration trains as its processes, to the figures of one process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    configuration = tmp_path / "two.yaml"
    configuration.write_text(yaml.safe_dump(CPU))
    spread = run_recipe(recipe(accelerate=str(configuration)), tmp_path / "two")
    alone = run_recipe(recipe(), tmp_path / "one")
    (two, one) = (metrics["rounds"][1]["training"] for metrics in (spread, alone))
    assert two["pairs"] == one["pairs"]
    assert two["loss_last"] == pytest.approx(one["loss_last"], rel=1e-3)
    assert {p.name for p in (tmp_path / "two" / "round-1" / "model").iterdir()} == {
        p.name for p in (tmp_path / "one" / "round-1" / "model").iterdir()
    }


def test_an_adapter_under_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is launched trains the adapter itself, with the base that is given. A later round's model has none, and then the
    adapter is merged where it is the reference."""
    configuration = tmp_path / "two.yaml"
    configuration.touch()
    commands: list[list[str]] = []

    def launched(command: list[str], check: bool) -> Any:
        commands.append(command)
        (tmp_path / "round-1").mkdir(exist_ok=True)
        (tmp_path / "round-1" / "training.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", launched)
    monkeypatch.setattr(iterate, "resolve", lambda name, base: Path(f"/merged/{name}/{base}"))
    asked = recipe(accelerate=str(configuration), model={"name": "adapter", "base": "whole"})
    iterate._launch(asked, "adapter", [], tmp_path / "round-1", None)
    iterate._launch(asked, "adapter", [], tmp_path / "round-1", "adapter")
    iterate._launch(asked, "round-1/model", [], tmp_path / "round-1", "adapter")
    first, held_to_itself, later = commands
    assert held_to_itself[-5:-3] == ["--reference", "adapter"]
    assert first[-3:] == ["model.name=adapter", "model.base=whole", "model.device=auto"]
    assert "--reference" not in first
    assert later[-5:-1] == ["--reference", "/merged/adapter/whole", "model.name=round-1/model", "model.base=null"]


def test_launcher_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, a training that fails, and `caspo run` under a launcher: each says what to do."""
    with pytest.raises(ConfigError, match=r"no file .*none\.yaml"):
        run_recipe(recipe(accelerate="none.yaml"), tmp_path / "a")
    broken = tmp_path / "broken.yaml"
    broken.write_text("not: [a configuration\n")
    with pytest.raises(EngineError, match="What was finished is kept"):
        run_recipe(recipe(accelerate=str(broken)), tmp_path / "b")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="without a launcher"):
        run_recipe(recipe(), tmp_path / "c")


def without_traces(tree: Tree) -> Tree:
    """As an engine without log-probabilities would have left it."""

    def silent(n: int) -> TokenTrace:
        return TokenTrace(*(np.full(n, math.nan, dtype=np.float32) for _ in range(5)), kind="none")

    return dataclasses.replace(
        tree,
        nodes=tuple(
            dataclasses.replace(n, step=dataclasses.replace(n.step, trace=silent(len(n.step.token_ids)))) for n in tree.nodes
        ),
    )


def test_rescore_gives_exact_confidences(tmp_path: Path) -> None:
    """Trees that lost every number get those back that the model had when it sampled them; from then on they train."""
    asked = recipe()
    questions = training_questions(asked, 1)
    sampled = annotate_stage(
        questions, lambda: open_engine(asked.model), open_judge(asked.task), asked.annotate, 1, tmp_path / "own",
        lambda done, total: None,
    )  # fmt: skip
    bare = tmp_path / "bare"
    write_trees(bare / "part-0000.parquet", [without_traces(tree) for tree in sampled])
    assert read_trees(bare)[0].nodes[0].step.trace.kind == "none"
    file = write_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(DataError, match="--rescore"):
        commands.pairs(file, [bare], tmp_path / "pairs", None)
    commands.annotate(file, tmp_path / "out", bare)
    scored = read_trees(tmp_path / "out" / "tree")
    assert len(scored) == len(sampled)
    for tree, original in zip(scored, sampled, strict=True):
        for a, b in zip(tree.nodes, original.nodes, strict=True):
            assert a.step.trace.kind == "full"
            assert (a.verdict, a.step.token_ids) == (b.verdict, b.step.token_ids)
            for name in ("entropy", "logprob", "max_logprob", "margin", "varentropy"):
                np.testing.assert_allclose(getattr(a.step.trace, name), getattr(b.step.trace, name), atol=1e-3)
    commands.pairs(file, [tmp_path / "out" / "tree"], tmp_path / "pairs-again", None)
    assert read_json(tmp_path / "pairs-again" / "report.json")["pairs"]


def test_rescore_refuses_what_is_not_there(tmp_path: Path) -> None:
    """An empty folder is not an empty success."""
    with pytest.raises(DataError, match=r"no \*\.parquet"):
        rescore_stage(recipe().model, recipe().train, tmp_path, tmp_path / "out")
