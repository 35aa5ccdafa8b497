"""The loop: annotate, build pairs, train, evaluate; joined by files, so that it can be killed and run again.

Round 0 is the model before training. Round k has, in ``round-<k>/``: the trees and pairs that made it (``tree/``,
``pairs/``), the model (``model/``), and what it was measured at (``evaluate/``). Every stage is skipped
where its files are whole. A round that makes the validation set worse stays in the record, and the next one is built on
the best before it.
"""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from caspo.core.errors import ConfigError, EngineError
from caspo.core.folders import claimed
from caspo.core.storage import read_json, write_json
from caspo.engines.base import Engine
from caspo.engines.models import read_tokenizer, resolve
from caspo.engines.opening import check_local, open_engine
from caspo.evaluate.estimates import paired_difference
from caspo.evaluate.metrics import round_metrics
from caspo.evaluate.run import EvaluateSettings, evaluate_methods, read_outcomes
from caspo.evaluate.step_figures import step_changes
from caspo.formats.parquet import read_trees
from caspo.judges.base import Judge
from caspo.loop.recipe import CaspoRecipe, check_rounds, recipe_inputs, training_questions
from caspo.loop.stages import annotate_stage, pairs_stage, train_stage
from caspo.loop.task import open_examples, open_judge, open_task
from caspo.report.page import write_report
from caspo.search import METHODS, ChainOfThought
from caspo.train.trainer import remove_checkpoints

__all__ = ["run_recipe"]

_WRITES = (
    "round-[0-9]*", "clock.json", "environment.json", "metrics.json", "report_data.json", "report.html", "verdicts.jsonl"
)  # fmt: skip
"""What a run writes into its folder."""

OnStage = Callable[[str, int, int], None]
"""Is told a stage, how much of it is done, and of how much."""


def run_recipe(recipe: CaspoRecipe, out: Path, show: OnStage = lambda name, done, total: None) -> dict[str, Any]:
    """Run the whole loop in ``out``; the content of ``metrics.json``. Killed and run again, it goes on.

    Raises:
        ResumeError: ``out`` belongs to another recipe, or to other questions or another model.
        StorageError, DataError, ModelError, EngineError: as the stages do.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "`caspo run` is one process that starts the others when it trains. Run it without a launcher, and name the file "
            "of `accelerate config` in the recipe: accelerate=FILE."
        )
    if recipe.rounds:
        check_local(recipe.model, "A run with rounds of training")
        _ = recipe.training  # that it is missing is said before anything is measured
        check_rounds(recipe)
    trains = recipe.rounds > 0 or recipe.validation.questions > 0
    with claimed(out, recipe, "run", _WRITES, recipe_inputs(recipe, ("train", "test") if trains else ("test",))):
        clock = _Clock(out, show)
        if not (out / "environment.json").exists():
            write_json(out / "environment.json", _environment(recipe))
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        entries: list[dict[str, Any]] = []
        drawn: list[dict[str, Any]] = []
        best = 0
        for index in range(recipe.rounds + 1):
            training = _make_round(recipe, out, index, best, clock) if index > 0 else None
            measured, figure = _measure_round(recipe, out, index, clock)
            entry = {"round": index, **measured}
            if recipe.validation.questions:
                found = _validate(recipe, out, index, clock)
                kept = index == 0 or found["accuracy"] >= entries[best]["validation"]["accuracy"]
                entry["validation"] = {**found, "built_on": best if index else None, "kept": kept}
            if not recipe.validation.questions or kept:
                best = index
            entries.append({**entry, "training": training})
            drawn.append({"round": index, **figure})
        return _finish(recipe, out, entries, drawn, clock)


def _make_round(recipe: CaspoRecipe, out: Path, index: int, base: int, clock: _Clock) -> dict[str, Any]:
    """Trees, pairs and model of round ``index``, made from round ``base``; the ``training`` entry of its metrics."""
    folder = out / f"round-{index}"
    source = _model_of(recipe, out, base)
    if (folder / "training.json").exists():
        remove_checkpoints(folder / "train")
        return dict(read_json(folder / "training.json"))
    questions = training_questions(recipe, index)
    with _lazy_engine(recipe, source) as engine:
        annotated = partial(clock.stage, f"round {index}: sample and judge")
        trees = annotate_stage(
            questions, engine, _judge(recipe, out), recipe.annotate, recipe.seed, folder / "tree", annotated
        )
        pairs_file = folder / "pairs" / "pairs.parquet"
        if not (pairs_file.exists() and (folder / "pairs" / "report.json").exists()):
            pairs_stage(trees, recipe.pairs, read_tokenizer(resolve(source)), folder / "pairs")

    stepped = partial(clock.stage, f"round {index}: train")
    used = range(1, index + 1) if recipe.accumulate else [index]
    folders = [out / f"round-{k}" for k in used]
    reference = recipe.model.name if recipe.reference == "first" else None
    if recipe.accelerate is not None:
        stepped(0, 1)
        return _launch(recipe, source, folders, folder, reference)
    return train_stage(
        source,
        recipe.model,
        [(read_trees(f / "tree"), f / "pairs" / "pairs.parquet") for f in folders],
        recipe.training,
        recipe.seed,
        folder,
        stepped,
        reference,
    )


def _launch(recipe: CaspoRecipe, source: str, data: Sequence[Path], out: Path, reference: str | None) -> dict[str, Any]:
    """`train_stage` as the processes of `accelerate launch`."""
    assert recipe.accelerate is not None
    if not recipe.accelerate.exists():
        raise ConfigError(f"accelerate: there is no file {recipe.accelerate}. Make one with `accelerate config`.")
    recipe_file = out.parent / "recipe.yaml"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipe.accelerate),
        "-m", "caspo.cli.main", "train", str(recipe_file), "--out", str(out),
        *(part for f in data for part in ("--trees", str(f / "tree"), "--pairs", str(f / "pairs" / "pairs.parquet"))),
        *(("--reference", reference) if reference else ()), f"model.name={source}",
    ]  # fmt: skip
    code = subprocess.run(command, check=False).returncode
    if code or not (out / "training.json").exists():
        raise EngineError(
            f"Training under accelerate ended with code {code}; its messages are above. What was finished is kept: run the "
            f"same command again. The command was: {' '.join(command)}"
        )
    return dict(read_json(out / "training.json"))


def _validate(recipe: CaspoRecipe, out: Path, index: int, clock: _Clock) -> dict[str, Any]:
    """Accuracy of round ``index`` on the questions that decide whether it is built upon."""
    method = ChainOfThought
    chosen = {**dict.fromkeys(METHODS), method.name: recipe.evaluate.of(method) or method.settings_type()}
    settings = EvaluateSettings.model_validate({"split": "train", "questions": recipe.validation.questions, **chosen})
    folder = out / f"round-{index}" / "validation"

    def solved(method: str, done: int, total: int) -> None:
        clock.stage(f"round {index}: validation", done, total)

    with _lazy_engine(recipe, _model_of(recipe, out, index)) as engine:
        evaluate_methods(open_task(recipe.task, "train"), engine, settings, recipe.seed - 1, folder, solved)
    outcomes, _ = read_outcomes(folder, method.name)
    return {"n": len(outcomes), "accuracy": sum(o.correct for o in outcomes) / len(outcomes)}


def _measure_round(recipe: CaspoRecipe, out: Path, index: int, clock: _Clock) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate round ``index`` and keep its calibrator; its entries for `metrics.json` and for the report."""
    folder = out / f"round-{index}"
    with _lazy_engine(recipe, _model_of(recipe, out, index)) as engine:

        def solved(method: str, done: int, total: int) -> None:
            clock.stage(f"round {index}: {method}", done, total)

        evaluate_methods(open_task(recipe.task, "test"), engine, recipe.evaluate, recipe.seed, folder / "evaluate", solved)
    entry, drawn, calibrator = round_metrics(folder / "evaluate", _judge(recipe, out), recipe.evaluate)
    if calibrator is not None:
        calibrator.save((folder / "model" if index > 0 else folder) / "calibrator.json")
    return entry, drawn


def _finish(
    recipe: CaspoRecipe, out: Path, entries: list[dict[str, Any]], drawn: list[dict[str, Any]], clock: _Clock
) -> dict[str, Any]:
    metrics = {
        "schema": 1,
        "recipe": recipe.name,
        "model": recipe.model.name,
        "seed": recipe.seed,
        "seconds_total": clock.tick(),
        "rounds": entries,
    }
    trees = [tree | {"round": figure["round"]} for figure in drawn for tree in figure.pop("trees")]
    last = len(entries) - 1
    paired = []
    for method in entries[0]["methods"] if last else ():
        before, after = ([o.correct for o in read_outcomes(out / f"round-{k}" / "evaluate", method)[0]] for k in (0, last))
        paired.append({"method": method, "before": 0, "after": last, **asdict(paired_difference(before, after))})
    first_folder, last_folder = (out / f"round-{k}" / "evaluate" for k in (0, last))
    changes = step_changes(first_folder, last_folder, _judge(recipe, out), recipe.evaluate) if last else []
    write_json(
        out / "report_data.json",
        {
            "schema": 1,
            "rounds": drawn,
            "paired": paired,
            "step_changes": [{"before": 0, "after": last, **change} for change in changes],
            "trees": [t for t in trees if t["round"] == last],
        },
    )
    write_json(out / "metrics.json", metrics)
    write_report(out)
    return metrics


def _judge(recipe: CaspoRecipe, out: Path) -> Judge:
    return open_judge(recipe.task, recipe.model, out / "verdicts.jsonl")


def _model_of(recipe: CaspoRecipe, out: Path, index: int) -> str:
    return recipe.model.name if index == 0 else str(out / f"round-{index}" / "model")


@contextmanager
def _lazy_engine(recipe: CaspoRecipe, name: str) -> Iterator[Callable[[], Engine]]:
    """An engine that is loaded when first used (a resumed stage may need none) and freed at the end."""
    engine = cache(lambda: open_engine(recipe.model, name, open_examples(recipe.task)))
    try:
        yield engine
    finally:
        engine.cache_clear()
        gc.collect()


class _Clock:
    """Seconds spent on a run over all its starts; time lost to a kill since the last tick is not counted."""

    def __init__(self, out: Path, show: OnStage) -> None:
        self.show = show
        self.file = out / "clock.json"
        self.spent = float(read_json(self.file)["seconds"]) if self.file.exists() else 0.0
        self.started = time.monotonic()

    def tick(self) -> float:
        """Note the time; the seconds so far."""
        seconds = self.spent + time.monotonic() - self.started
        write_json(self.file, {"seconds": seconds})
        return seconds

    def stage(self, name: str, done: int, total: int) -> None:
        """Note the time, then tell how far a stage is."""
        self.tick()
        self.show(name, done, total)


def _environment(recipe: CaspoRecipe) -> dict[str, Any]:
    import torch

    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        revision = ""
    versions = {}
    for name in ("caspo-llm", "torch", "transformers", "peft", "numpy", "pyarrow"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "command": " ".join(["caspo", *sys.argv[1:]]),
        "seed": recipe.seed,
        "git_revision": revision or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": recipe.threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()
