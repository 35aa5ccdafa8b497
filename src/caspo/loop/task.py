"""What is solved and who judges it: the section ``task`` of a recipe, and the task and the judge that it means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from caspo.core.config import Config
from caspo.core.errors import ConfigError
from caspo.core.rows import BadRows
from caspo.engines.opening import ModelSettings, open_local
from caspo.engines.prompts import Example
from caspo.judges.base import Judge
from caspo.judges.choose import ArithmeticSettings, JudgeSettings, LabelsSettings, ReferenceSettings, make_judge
from caspo.tasks.base import Task
from caspo.tasks.benchmarks import TABLE, benchmark_files, open_benchmark
from caspo.tasks.examples import solved_examples
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask

if TYPE_CHECKING:
    from caspo.engines.local.engine import HFEngine

__all__ = ["TaskSettings", "open_examples", "open_judge", "open_task", "task_files"]


class TaskSettings(Config):
    """The questions."""

    name: str = "stories"
    """`stories`, `jsonl`, or a benchmark of `caspo.tasks.BENCHMARKS`."""
    data: Path | None = None
    """Benchmarks: folder of their files (JSONL, packed or not, or Parquet); the hub by default."""
    run_code: bool = False
    """Benchmarks of code: run what the model writes, in the sandbox (`docs/benchmarks.md` says what that covers)."""
    levels: tuple[int, ...] = (1, 2, 3)
    """`stories`: difficulty levels, 1 to 7; level L has L + 1 steps."""
    train: Path | None = None
    """`jsonl`, and benchmarks that have no training split: file of the questions to annotate. One JSON object a line, packed
    with gzip or not, or Parquet."""
    test: Path | None = None
    """`jsonl`: file of the questions to evaluate on, as `train`."""
    examples: int = Field(0, ge=0)
    """Few-shot: so many questions of the training split stand before the one that is asked, with their solutions: the first
    that have one. Marks of GSM8K's are taken out, and each ends in "The answer is X."."""
    skip_bad: bool = False
    """Leave out rows of these files that cannot be used, and tell which; by default the first of them is an error."""
    judge: JudgeSettings | None = None
    """Who judges steps: a kind, or keys with ``kind`` among them. By default `reference` for stories, `arithmetic` for
    files."""

    @model_validator(mode="after")
    def _files(self) -> TaskSettings:
        if self.name not in ("stories", "jsonl", *TABLE):
            raise ValueError(f"there is no task {self.name!r}; choose one of stories, jsonl, {', '.join(TABLE)}")
        if self.name in TABLE and TABLE[self.name].answer_type == "code" and not self.run_code:
            raise ValueError(f"{self.name} is graded by running what the model writes; allow it by run_code: true")
        if self.name == "jsonl" and self.test is None and self.train is None:
            raise ValueError("a jsonl task needs test and train, the files of its questions")
        return self


def open_task(settings: TaskSettings, split: Literal["train", "test"], bad: BadRows | None = None) -> Task:
    """The task of a recipe; for files, the one of the split. ``bad`` is told the rows that ``skip_bad`` leaves out.

    Raises:
        ConfigError: there is nothing to train on: benchmarks are test sets, and most have no training split.
    """
    left_out = (BadRows() if bad is None else bad) if settings.skip_bad else None
    if settings.name == "stories":
        return StoriesTask(settings.levels)
    if settings.name in TABLE and (split == "test" or settings.train is None):
        return open_benchmark(settings.name, data=settings.data, split=split, run_code=settings.run_code, bad=left_out)
    path = settings.train if split == "train" else settings.test
    if path is None:
        raise ConfigError(f"The task needs a file for {split}: set task.{split} to a JSONL of question and answer.")
    return JsonlTask(path, split=split, bad=left_out)


def open_examples(settings: TaskSettings) -> tuple[Example, ...]:
    """What an engine shows before every question of the task; none where the recipe asks for none.

    Raises:
        ConfigError, DataError: the task has no training split, or not so many questions with a solution.
    """
    if not settings.examples:
        return ()
    try:
        task = open_task(settings, "train")
    except ConfigError as error:
        raise ConfigError(
            f"task.examples is {settings.examples}: they are of the training split, which {settings.name} lacks. Set "
            "task.train to a JSONL of question, answer and solution, or task.examples to 0."
        ) from error
    return solved_examples(task, settings.examples)


def task_files(settings: TaskSettings, splits: Sequence[Literal["train", "test"]]) -> dict[str, list[Path]]:
    """The files that the questions of these splits and the labels of the judge are read from, by their keys."""
    found: dict[str, list[Path]] = {}
    for split in [*splits, *(["train"] if settings.examples and "train" not in splits else [])]:
        if settings.name in TABLE and (split == "test" or settings.train is None):
            if settings.data is not None:
                found.setdefault("task.data", []).extend(benchmark_files(settings.name, settings.data, split))
        elif settings.name != "stories" and (path := settings.train if split == "train" else settings.test) is not None:
            found[f"task.{split}"] = [path]
    if isinstance(settings.judge, LabelsSettings):
        found["task.judge.files"] = list(settings.judge.files)
    return found


def open_judge(settings: TaskSettings, model: ModelSettings | None = None, cache: Path | None = None) -> Judge:
    """The judge of a recipe. ``model`` is the recipe's, for judges that sample from it; it stays the same in all rounds, so
    that they are measured by one yardstick. Verdicts that take time are kept in ``cache``.

    Raises:
        ConfigError: the judge needs a model, and there is none (when it is first asked).
    """
    chosen = settings.judge or (ReferenceSettings() if settings.name == "stories" else ArithmeticSettings())

    def engine(name: str | None, instruction: str | None) -> HFEngine:
        if model is None and name is None:
            raise ConfigError(f"The judge {chosen.kind!r} samples from the model of a recipe. Use it in a recipe.")
        base = model or ModelSettings(name=name or "")
        if instruction is None:  # it goes on where solutions were sampled: by the same prompts
            return open_local(base, name, open_examples(settings))
        return open_local(base.model_copy(update={"instruction": instruction}), name)

    return make_judge(chosen, engine, model.name if model else "", cache)
