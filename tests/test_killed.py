"""SIGKILL at random moments of every stage, beside files of somebody else: what comes out is what an unbroken run makes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caspo.core.storage import PARTIAL, write_text
from caspo.tasks.stories import StoriesTask
from stories_run import RECIPE, timeless, write_recipe

SUPERVISED = {
    "kind": "supervised", "problems": 128, "levels": [1], "threads": 1,
    "architecture": {"vocabulary": 320, "hidden": 32, "layers": 2, "heads": 2, "feed_forward": 48},
    "train": {"learning_rate": 1e-3, "checkpoint_seconds": 0.05},
}  # fmt: skip

FOREIGN = (
    ".pre-commit-config.yaml", ".env.local", ".old.backup/deep/x", ".model.abc/x", ".tree.1/part-0000.parquet", "notes.txt",
    ".log.jsonl.swp", "data/.questions.1", "checkpoint-7/x",
)  # fmt: skip
"""Beside the results before anything is begun; some look like our temporary files of old."""
INSIDE = ("round-1", "round-1/pairs", "round-2", "tree", "train", "calibration", "calibration/pruning")
"""Folders of ours that somebody keeps a file in, as soon as they are there."""
VOLATILE = {".caspo.lock", "clock.json", "environment.json", "report.html", ".notes", *FOREIGN}


@dataclass
class Stage:
    """A command line, how often it is killed, and what is wanted of it."""

    command: tuple[str, ...]
    kills: int


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    """Every command that works in a folder, on small inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    for split, number in (("train", 90), ("test", 10)):
        questions = StoriesTask([1]).questions(split, number)
        lines = (json.dumps({"question": q.text, "answer": q.answer}) for q in questions)
        write_text(folder / f"{split}.jsonl", "\n".join(lines) + "\n")
    task = {"name": "jsonl", "train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    annotate = {"questions": 10, "samples": 4}
    evaluate = {**RECIPE["evaluate"], "questions": 3, "self_consistency": None}
    file = str(
        write_recipe(
            folder / "run.yaml", task=task, evaluate=evaluate, rounds=2, annotate=annotate, validation={"questions": 4}
        )
    )
    stories = str(write_recipe(folder / "stories.yaml"))
    more = str(write_recipe(folder / "more.yaml", annotate={"questions": 45, "samples": 3}))
    write_text(folder / "supervised.yaml", yaml.safe_dump(SUPERVISED))
    trees, pairs = str(folder / "made" / "tree"), str(folder / "made" / "pairs.parquet")
    labelled = str(folder / "labelled.jsonl")
    long = json.dumps({**RECIPE["train"], "epochs": 5, "batch_pairs": 4})
    for command in (
        ("annotate", stories, "--out", str(folder / "made")),
        ("pairs", stories, "--trees", trees, "--out", str(folder / "made")),
        ("export", trees, "--format", "steps", "--out", labelled),
        *(("evaluate", file, "--shard", f"{k}/2", "--out", str(folder / "shards" / str(k))) for k in (1, 2)),
    ):
        assert start(command).wait(300) == 0, command
    return {
        "run": Stage(("run", file), 14),
        "annotate": Stage(("annotate", more), 8),
        "rescore": Stage(("annotate", stories, "--rescore", trees), 5),
        "annotate a shard": Stage(("annotate", more, "--shard", "2/2", "annotate.questions=90"), 6),
        "evaluate a shard": Stage(("evaluate", file, "--shard", "1/2"), 6),
        "pairs": Stage(("pairs", stories, "--trees", trees), 4),
        "train": Stage(("train", stories, "--trees", trees, "--pairs", pairs, f"train={long}"), 9),
        "supervised": Stage(("run", str(folder / "supervised.yaml")), 7),
        "judge": Stage(("judge", labelled), 5),
        "judge a shard": Stage(("judge", labelled, "--shard", "1/2"), 5),
        "join": Stage(("evaluate", file, "--join", str(folder / "shards" / "1"), "--join", str(folder / "shards" / "2")), 4),
        "calibrate": Stage(("calibrate", stories, "--alpha", "0.45", "--delta", "0.45", "--questions", "60"), 4),
    }


def start(command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "caspo.cli.main", *command]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, **quiet)


def results(out: Path) -> dict[str, Any]:
    """All that was made in a folder, without what depends on the clock."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        if name in VOLATILE or path.name in VOLATILE:
            continue
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.suffix in (".json", ".jsonl") and path.name != "tokenizer.json":
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            found[name] = [timeless(json.loads(line)) for line in lines]
        else:
            found[name] = path.read_bytes()
    return found


def put_inside(out: Path) -> None:
    for name in INSIDE:
        if (out / name).is_dir():
            write_text(out / name / ".notes", name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["run", "annotate", "rescore", "annotate a shard", "evaluate a shard", "pairs", "train", "supervised", "judge",
     "judge a shard", "join", "calibrate"],
)  # fmt: skip
def test_killed_anywhere(stages: dict[str, Stage], name: str, tmp_path: Path) -> None:
    """Whenever it is killed and however often, the same line ends with the same result, and foreign files are untouched."""
    stage, rng = stages[name], random.Random(name)
    whole, out = tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    assert start((*stage.command, "--out", str(whole))).wait(600) == 0
    seconds = time.monotonic() - began
    wanted = results(whole)
    kills = finished = 0
    for foreign in FOREIGN:
        write_text(out / foreign, foreign)
    while kills < stage.kills or not finished:
        process = start((*stage.command, "--out", str(out)))
        try:
            # The first part is imports, and a run that goes on has less to do than one that begins.
            code = process.wait(rng.uniform(0.2, 0.8) * seconds if kills < stage.kills else 600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            put_inside(out)
            continue
        assert code == 0
        finished += 1
        seconds *= 0.9  # on a busier machine the first time was long: aim earlier
        assert results(out) == wanted
        assert {n: (out / n).read_text() for n in FOREIGN} == {n: n for n in FOREIGN}
        assert all((out / n / ".notes").read_text() == n for n in INSIDE if (out / n / ".notes").exists())
        assert not list(out.rglob(f"{PARTIAL}*"))
        if kills < stage.kills:  # once more from the beginning
            shutil.rmtree(out)
            for foreign in FOREIGN:
                write_text(out / foreign, foreign)
    print(f"{stage.command[0]}: {kills} kills, {finished} times to the end")
