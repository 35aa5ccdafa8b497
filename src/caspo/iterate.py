"""The loop: annotate, build pairs, train, evaluate; joined by files, so that it can be killed and run again.

Round 0 is the model before training. Round k has, in ``round-<k>/``: the trees and pairs that made it (``tree/``,
``pairs/``), the model (``model/``), and what it was measured at (``evaluate/``). Every stage is skipped
where its files are whole.
"""

from __future__ import annotations

import gc
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from caspo.config import Config, claim_folder
from caspo.data.annotate import AnnotateSettings, annotate
from caspo.data.pairs import PairSettings, build_pairs, read_pairs, write_pairs
from caspo.data.store import read_trees, write_trees
from caspo.engines.hf import HFEngine
from caspo.engines.models import load
from caspo.engines.prompts import INSTRUCTION
from caspo.errors import ConfigError, DataError
from caspo.evaluate.metrics import round_metrics
from caspo.evaluate.run import EvaluateSettings, evaluate_methods, read_outcomes
from caspo.evaluate.statistics import paired_difference
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Judge
from caspo.judges.reference import ReferenceJudge
from caspo.report.page import write_report
from caspo.storage import read_json, write_directory, write_json, write_text
from caspo.tasks.base import Task
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from caspo.types import Question, Tree

__all__ = [
    "AnnotateStage", "CaspoRecipe", "ModelSettings", "Reporter", "TaskSettings", "annotate_stage", "open_engine",
    "open_judge", "open_task", "pairs_stage", "run_recipe", "train_stage", "training_questions",
]  # fmt: skip

_CHUNK = 40
"""Questions annotated between two files."""


class Reporter(Protocol):
    """Whoever shows the progress."""

    def stage(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished."""


class ModelSettings(Config):
    """The model and where it runs."""

    name: str
    """Bundled name, folder or hub name."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of sampling; training keeps float32 masters."""
    device: str = "cpu"
    instruction: str = INSTRUCTION
    """System message of the prompt; models trained on plain prompts ignore it."""
    trust_remote_code: bool = False
    max_rows: int = Field(256, ge=1)
    """Rows decoded at once."""


class TaskSettings(Config):
    """The questions."""

    name: Literal["stories", "jsonl"] = "stories"
    levels: tuple[int, ...] = (1, 2, 3)
    """`stories`: difficulty levels, 1 to 7; level L has L + 1 steps."""
    train: Path | None = None
    """`jsonl`: file of the questions to annotate."""
    test: Path | None = None
    """`jsonl`: file of the questions to evaluate on."""
    judge: Literal["reference", "arithmetic"] | None = None
    """By default `reference` for stories, `arithmetic` for files."""

    @model_validator(mode="after")
    def _files(self) -> TaskSettings:
        if self.name == "jsonl" and self.test is None and self.train is None:
            raise ValueError("a jsonl task needs test and train, the files of its questions")
        return self


class AnnotateStage(AnnotateSettings):
    """Sampling of the trees that pairs are made from."""

    questions: int = Field(200, ge=1)
    """Training questions in each round; every round takes new ones."""


class CaspoRecipe(Config):
    """A recipe with ``kind: caspo``."""

    kind: Literal["caspo"] = "caspo"
    name: str = "caspo"
    model: ModelSettings
    task: TaskSettings = TaskSettings()
    seed: int = 0
    threads: int | None = None
    """CPU threads; all by default."""
    rounds: int = Field(1, ge=0)
    annotate: AnnotateStage = AnnotateStage()
    pairs: PairSettings = PairSettings()
    train: StepDPOSettings
    evaluate: EvaluateSettings = EvaluateSettings()


class _Silent:
    def stage(self, name: str, done: int, total: int) -> None:
        pass


def run_recipe(recipe: CaspoRecipe, out: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Run the whole loop in ``out``; the content of ``metrics.json``. Killed and run again, it goes on.

    Raises:
        ResumeError: ``out`` belongs to another recipe.
        StorageError, DataError, ModelError, EngineError: as the stages do.
    """
    import torch

    show = reporter or _Silent()
    claim_folder(out, recipe)
    with _only_process(out):
        clock = _Clock(out)
        if not (out / "environment.json").exists():
            write_json(out / "environment.json", _environment(recipe))
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        entries, drawn = [], []
        for index in range(recipe.rounds + 1):
            training = None
            if index > 0:
                training = _make_round(recipe, out, index, show, clock)
            entry, figure = _measure_round(recipe, out, index, show, clock)
            entries.append({"round": index, **entry, "training": training})
            drawn.append({"round": index, **figure})
        return _finish(recipe, out, entries, drawn, clock)


def open_task(settings: TaskSettings, split: Literal["train", "test"]) -> Task:
    """The task of a recipe; for files, the one of the split."""
    if settings.name == "stories":
        return StoriesTask(settings.levels)
    path = settings.train if split == "train" else settings.test
    if path is None:
        raise ConfigError(f"The task needs a file for {split}: set task.{split} to a JSONL of question and answer.")
    return JsonlTask(path, split=split)


def training_questions(recipe: CaspoRecipe, index: int) -> list[Question]:
    """What round ``index`` (from 1) samples its trees on."""
    return open_task(recipe.task, "train").questions("train", recipe.annotate.questions, recipe.seed + 1000 * index)


def open_judge(settings: TaskSettings) -> Judge:
    """The judge of a recipe."""
    chosen = settings.judge or ("reference" if settings.name == "stories" else "arithmetic")
    return ReferenceJudge() if chosen == "reference" else ArithmeticJudge()


def open_engine(settings: ModelSettings, name: str | None = None) -> HFEngine:
    """The engine for a recipe's model, or for another model (a round's) with the same settings."""
    model, tokenizer = load(
        name or settings.name,
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    return HFEngine(model, tokenizer, name=settings.name, instruction=settings.instruction, max_rows=settings.max_rows)


def annotate_stage(
    questions: Sequence[Question],
    engine: Callable[[], HFEngine],
    judge: Judge,
    settings: AnnotateSettings,
    seed: int,
    folder: Path,
    on_chunk: Callable[[int, int], None],
) -> list[Tree]:
    """Annotated trees of the questions in ``folder``, chunk by chunk; chunks that are there already are read."""
    trees: list[Tree] = []
    for part, start in enumerate(range(0, len(questions), _CHUNK)):
        file = folder / f"part-{part:04d}.parquet"
        chunk = questions[start : start + _CHUNK]
        if not file.exists():
            write_trees(file, annotate(chunk, engine(), judge, settings, seed))
        trees += read_trees(file)
        on_chunk(start + len(chunk), len(questions))
    return trees


def pairs_stage(trees: Sequence[Tree], settings: PairSettings, tokenizer: Any, folder: Path) -> None:
    """Build the pairs of the trees into ``folder``: ``pairs.parquet``, and ``report.json`` with what was dropped."""
    pairs, report = build_pairs(trees, settings)
    if not pairs:
        raise DataError(
            f"The {len(trees)} trees give no pairs ({report.dropped}). Sample more, raise the temperature, or choose "
            "problems that the model solves sometimes but not always."
        )
    write_pairs(folder / "pairs.parquet", pairs, trees, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    write_json(folder / "report.json", asdict(report))


def train_stage(
    source: str,
    model: ModelSettings,
    trees: Sequence[Tree],
    pairs_file: Path,
    settings: StepDPOSettings,
    seed: int,
    out: Path,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train ``source`` on the pairs; ``out/model``, ``out/log.jsonl`` and ``out/training.json``, which is returned."""
    file = out / "training.json"
    if file.exists():
        shutil.rmtree(out / "train", ignore_errors=True)  # left where a kill came between the two
        return dict(read_json(file))
    loaded, tokenizer = load(source, device=model.device, trust_remote_code=model.trust_remote_code)
    trained, result = train_step_dpo(
        loaded,
        trees,
        read_pairs(pairs_file, trees),
        settings,
        seed,
        out / "train",
        lambda step, total, metrics: on_step(step, total),
    )

    def save(folder: Path) -> None:
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    if not (out / "model").exists():
        write_directory(out / "model", save)
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in result.log))
    write_json(file, result.as_json())
    shutil.rmtree(out / "train", ignore_errors=True)
    return result.as_json()


def _make_round(recipe: CaspoRecipe, out: Path, index: int, show: Reporter, clock: _Clock) -> dict[str, Any]:
    """Trees, pairs and model of round ``index``; the ``training`` entry of its metrics."""
    folder = out / f"round-{index}"
    source = _model_of(recipe, out, index - 1)
    if (folder / "training.json").exists():
        shutil.rmtree(folder / "train", ignore_errors=True)
        return dict(read_json(folder / "training.json"))
    questions = training_questions(recipe, index)
    with _lazy_engine(recipe, source) as engine:

        def annotated(done: int, total: int) -> None:
            clock.tick()
            show.stage(f"round {index}: sample and judge", done, total)

        trees = annotate_stage(
            questions, engine, open_judge(recipe.task), recipe.annotate, recipe.seed, folder / "tree", annotated
        )
        pairs_file = folder / "pairs" / "pairs.parquet"
        if not (pairs_file.exists() and (folder / "pairs" / "report.json").exists()):
            pairs_stage(trees, recipe.pairs, engine().tokenizer, folder / "pairs")

    def stepped(done: int, total: int) -> None:
        clock.tick()
        show.stage(f"round {index}: train", done, total)

    return train_stage(source, recipe.model, trees, pairs_file, recipe.train, recipe.seed, folder, stepped)


def _measure_round(
    recipe: CaspoRecipe, out: Path, index: int, show: Reporter, clock: _Clock
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evaluate round ``index`` and keep its calibrator; its entries for `metrics.json` and for the report."""
    folder = out / f"round-{index}"
    with _lazy_engine(recipe, _model_of(recipe, out, index)) as engine:

        def solved(method: str, done: int, total: int) -> None:
            clock.tick()
            show.stage(f"round {index}: {method}", done, total)

        evaluate_methods(
            open_task(recipe.task, "test"), engine, recipe.evaluate, recipe.seed, folder / "evaluate", solved
        )
    entry, drawn, calibrator = round_metrics(folder / "evaluate", open_judge(recipe.task), recipe.evaluate)
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
        before, after = (
            [o.correct for o in read_outcomes(out / f"round-{k}" / "evaluate", method)[0]] for k in (0, last)
        )
        paired.append({"method": method, "before": 0, "after": last, **asdict(paired_difference(before, after))})
    write_json(
        out / "report_data.json",
        {"schema": 1, "rounds": drawn, "paired": paired, "trees": [t for t in trees if t["round"] == last]},
    )
    write_json(out / "metrics.json", metrics)
    write_report(out)
    return metrics


def _model_of(recipe: CaspoRecipe, out: Path, index: int) -> str:
    return recipe.model.name if index == 0 else str(out / f"round-{index}" / "model")


@contextmanager
def _lazy_engine(recipe: CaspoRecipe, name: str) -> Iterator[Callable[[], HFEngine]]:
    """An engine that is loaded when first used (a resumed stage may need none) and freed at the end."""
    held: list[HFEngine] = []

    def get() -> HFEngine:
        if not held:
            held.append(open_engine(recipe.model, name))
        return held[0]

    try:
        yield get
    finally:
        held.clear()
        gc.collect()


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    """Refuse to work in a folder that another process works in; sweep up what a killed one left."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")
    try:
        with lock.acquire(timeout=0):
            for stale in [*out.glob(".*.*"), *out.glob("round-*/**/.*")]:
                if stale.name != ".lock" and stale.is_dir():
                    shutil.rmtree(stale, ignore_errors=True)
                elif stale.name != ".lock":
                    stale.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise ConfigError(
            f"Another process is running in {out}. Wait for it or stop it; or choose another --out."
        ) from error


class _Clock:
    """Seconds spent on a run over all its starts; time lost to a kill since the last tick is not counted."""

    def __init__(self, out: Path) -> None:
        self.file = out / "clock.json"
        self.spent = float(read_json(self.file)["seconds"]) if self.file.exists() else 0.0
        self.started = time.monotonic()

    def tick(self) -> float:
        """Note the time; the seconds so far."""
        seconds = self.spent + time.monotonic() - self.started
        write_json(self.file, {"seconds": seconds})
        return seconds


def _environment(recipe: CaspoRecipe) -> dict[str, Any]:
    import torch

    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        revision = ""
    packages = ("caspo-llm", "torch", "transformers", "peft", "numpy", "pyarrow")
    return {
        "command": " ".join(["caspo", *sys.argv[1:]]),
        "seed": recipe.seed,
        "git_revision": revision or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": recipe.threads or torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in packages if _installed(name)},
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()
