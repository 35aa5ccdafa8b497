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
from caspo.core.folders import claimed, shards_in
from caspo.core.shards import Shard
from caspo.core.storage import read_json, write_json
from caspo.engines.base import Engine
from caspo.engines.models import read_tokenizer, resolve
from caspo.engines.opening import check_local, open_engine
from caspo.evaluate.estimates import paired_difference
from caspo.evaluate.metrics import judge_round, round_metrics
from caspo.evaluate.run import evaluate_methods, read_outcomes
from caspo.evaluate.step_figures import step_changes
from caspo.formats.parquet import read_trees
from caspo.judges.base import Judge
from caspo.loop.recipe import CaspoRecipe, check_rounds, recipe_inputs, training_questions
from caspo.loop.settled import settled
from caspo.loop.shards import SHARD_COMMAND, join_shards, shard_files, validation_settings
from caspo.loop.stages import annotate_stage, pairs_stage, train_stage
from caspo.loop.task import open_examples, open_judge, open_task
from caspo.report.page import write_report
from caspo.search import ChainOfThought
from caspo.train.trainer import remove_checkpoints

__all__ = ["run_recipe", "run_shard"]

_WRITES = (
    "round-[0-9]*", "clock.json", "environment.json", "metrics.json", "report_data.json", "report.html", "verdicts.jsonl"
)  # fmt: skip
"""What a run writes into its folder."""

OnStage = Callable[[str, int, int], None]
"""Is told a stage, how much of it is done, and of how much."""


def run_recipe(
    recipe: CaspoRecipe, out: Path, show: OnStage = lambda name, done, total: None, joined: Sequence[Path] = ()
) -> dict[str, Any]:
    """Run the whole loop in ``out``; the content of ``metrics.json``. Killed and run again, it goes on.

    With ``joined``, the folders of all shards of `run_shard`, a recipe without rounds is measured by what they solved.

    Raises:
        ResumeError: ``out`` belongs to another recipe, or to other questions or another model.
        ConfigError: shards that are missing, not finished, or not of this recipe.
        StorageError, DataError, ModelError, EngineError: as the stages do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "`caspo run` is one process that starts the others when it trains. Run it without a launcher, and name the file "
            "of `accelerate config` in the recipe: accelerate=FILE."
        )
    if recipe.rounds:
        check_local(recipe.model, "A run with rounds of training")
        _ = recipe.training  # that it is missing is said before anything is measured
        check_rounds(recipe)
    shards = shards_in(joined, SHARD_COMMAND) if joined else {}
    inputs = _inputs(recipe) | {f"--join (shard {shard})": shard_files(folder) for shard, (folder, _) in shards.items()}
    with claimed(out, recipe, "run", _WRITES, inputs, joined=shards):
        if shards:
            join_shards(recipe, {shard: folder for shard, (folder, _) in shards.items()}, out)
        recipe, clock = _begin(recipe, out, show)
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


def run_shard(recipe: CaspoRecipe, out: Path, shard: Shard, show: OnStage = lambda name, done, total: None) -> int:
    """Solve a shard of the questions that a recipe without rounds is measured on, and judge their steps; how many they are.

    What figures are made of when all shards are joined (`run_recipe`); of a part there are none.
    """
    with claimed(out, recipe, SHARD_COMMAND, _WRITES, _inputs(recipe), shard):
        recipe, clock = _begin(recipe, out, show)
        _solve_round(recipe, out, 0, clock, shard)
        if recipe.validation.questions:
            _solve_validation(recipe, out, 0, clock, shard)
        folder, judge = out / "round-0" / "evaluate", _judge(recipe, out)
        if not judge.instant:
            judge_round(folder, judge, recipe.evaluate)
        return max((len(read_outcomes(folder, method.name)[0]) for method in recipe.evaluate.methods()), default=0)


def _inputs(recipe: CaspoRecipe) -> dict[str, list[Path]]:
    trains = recipe.rounds > 0 or recipe.validation.questions > 0
    return recipe_inputs(recipe, ("train", "test") if trains else ("test",))


def _begin(recipe: CaspoRecipe, out: Path, show: OnStage) -> tuple[CaspoRecipe, _Clock]:
    """The recipe with nothing of its model left open, and the clock of a run; where it runs is noted."""
    recipe = recipe.model_copy(update={"model": settled(recipe.model, out, recipe.threads)})
    if not (out / "environment.json").exists():
        write_json(out / "environment.json", _environment(recipe))
    return recipe, _Clock(out, show)


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
            pairs_stage(
                trees, recipe.pairs, read_tokenizer(resolve(source, base=recipe.model.base_of(source))), folder / "pairs"
            )

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
    base = recipe.model.base_of(source)
    if reference not in (None, source) and recipe.model.base_of(reference):
        # Merged here: the base that what is launched is told of is that of its source.
        reference = str(resolve(reference, base=recipe.model.base))
    recipe_file = out.parent / "recipe.yaml"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(recipe.accelerate),
        "-m", "caspo.cli.main", "train", str(recipe_file), "--out", str(out),
        *(part for f in data for part in ("--trees", str(f / "tree"), "--pairs", str(f / "pairs" / "pairs.parquet"))),
        *(("--reference", reference) if reference else ()), f"model.name={source}", f"model.base={base or 'null'}",
        f"model.device={recipe.model.device}",
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
    outcomes, _ = read_outcomes(_solve_validation(recipe, out, index, clock), ChainOfThought.name)
    return {"n": len(outcomes), "accuracy": sum(o.correct for o in outcomes) / len(outcomes)}


def _solve_validation(recipe: CaspoRecipe, out: Path, index: int, clock: _Clock, shard: Shard | None = None) -> Path:
    folder = out / f"round-{index}" / "validation"

    def solved(method: str, done: int, total: int) -> None:
        clock.stage(f"round {index}: validation", done, total)

    with _lazy_engine(recipe, _model_of(recipe, out, index)) as engine:
        settings = validation_settings(recipe)
        evaluate_methods(open_task(recipe.task, "train"), engine, settings, recipe.seed - 1, folder, solved, shard)
    return folder


def _measure_round(recipe: CaspoRecipe, out: Path, index: int, clock: _Clock) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate round ``index`` and keep its calibrator; its entries for `metrics.json` and for the report."""
    folder = out / f"round-{index}"
    _solve_round(recipe, out, index, clock)
    entry, drawn, calibrator = round_metrics(folder / "evaluate", _judge(recipe, out), recipe.evaluate)
    if calibrator is not None:
        calibrator.save((folder / "model" if index > 0 else folder) / "calibrator.json")
    return entry, drawn


def _solve_round(recipe: CaspoRecipe, out: Path, index: int, clock: _Clock, shard: Shard | None = None) -> None:
    folder = out / f"round-{index}" / "evaluate"

    def solved(method: str, done: int, total: int) -> None:
        clock.stage(f"round {index}: {method}", done, total)

    with _lazy_engine(recipe, _model_of(recipe, out, index)) as engine:
        evaluate_methods(open_task(recipe.task, "test"), engine, recipe.evaluate, recipe.seed, folder, solved, shard)


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
        # A server's are its own.
        "device": None if recipe.model.device == "auto" else recipe.model.device,
        "dtype": None if recipe.model.dtype == "auto" else recipe.model.dtype,
        "threads": torch.get_num_threads(),
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
