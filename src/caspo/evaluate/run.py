"""Solving a question set by several methods, in chunks that survive a kill, each chunk two files.

``<folder>/<method>/part-000.parquet`` holds the trees, ``part-000.json`` (written last: it says the chunk is whole) what
each question came to. `metrics.py` reads them, without the task: every answer is graded here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import Field, create_model

from caspo.core.config import Config
from caspo.core.errors import ConfigError
from caspo.core.shards import Shard
from caspo.core.storage import read_json, write_json
from caspo.engines.base import Engine
from caspo.formats.parquet import read_trees, write_trees
from caspo.records import Question, Solution, Tree
from caspo.search import METHODS, Method, PathSettings
from caspo.tasks.base import Task

__all__ = ["EvaluateSettings", "Outcome", "Sample", "evaluate_methods", "join_evaluations", "read_outcomes"]

_CHUNK_ROWS = 500
"""Rows that a chunk puts into the engine, about: enough to fill its batch, little to lose."""


S = TypeVar("S", bound=PathSettings)


class _Asked(Config):
    """What is measured in every round; a method set to null is left out."""

    split: str = "test"
    """Part of the task that is measured on."""
    questions: int = Field(200, ge=1)
    """Questions for the methods that decode little more than one solution of each: chain of thought and CaT."""
    self_consistency_questions: int = Field(100, ge=1)
    """Questions, the first of these, that all other methods solve too: they cost several solutions each."""

    def of(self, method: type[Method[S]]) -> S | None:
        """The settings of a method; None if it is left out."""
        settings: S | None = getattr(self, method.name)
        return settings

    def methods(self) -> list[Method[Any]]:
        """The methods asked for."""
        chosen = ((name, getattr(self, name)) for name in METHODS)
        return [METHODS[name](settings) for name, settings in chosen if settings is not None]


if TYPE_CHECKING:

    class EvaluateSettings(_Asked):
        """Every method of `METHODS` is a field of its own; null leaves it out."""
else:
    EvaluateSettings = create_model(
        "EvaluateSettings",
        __base__=_Asked,
        __doc__=_Asked.__doc__,
        **{
            name: (method.settings_type | None, method.settings_type() if method.measured else None)
            for name, method in METHODS.items()
        },
    )


class Sample(NamedTuple):
    """One of several sampled solutions."""

    answer: str | None
    correct: bool


@dataclass(frozen=True)
class Outcome:
    """What one method made of one question."""

    question_id: str
    answer: str | None
    correct: bool
    confidence: float
    tokens: int
    seconds: float
    """This question's share of its chunk's time."""
    abstained: bool
    samples: tuple[Sample, ...] = ()
    """What each sampled solution came to, in their order; none for methods that do not draw several alike."""


def evaluate_methods(
    task: Task,
    engine: Callable[[], Engine],
    settings: EvaluateSettings,
    seed: int,
    folder: Path,
    on_chunk: Callable[[str, int, int], None] = lambda method, done, total: None,
    shard: Shard | None = None,
) -> None:
    """Run every method on the task's questions, or on those of a shard; chunks that are there already are kept.

    ``engine`` is called when there is something to solve: a run that only resumes loads no model.
    """
    for method, asked in _with_questions(task, settings, seed):
        mine = asked if shard is None else shard.take(asked)
        for start, chunk, file in _chunks(method, mine, folder):
            if not _is_whole(file):
                _solve_chunk(task, engine, method, chunk, seed, file)
            on_chunk(method.name, start + len(chunk), len(mine))


def join_evaluations(task: Task, settings: EvaluateSettings, seed: int, shards: Mapping[Shard, Path], folder: Path) -> None:
    """Write the files of `evaluate_methods` in ``folder`` from the folders of all shards.

    Raises:
        ConfigError: a shard is not finished.
    """
    for method, asked in _with_questions(task, settings, seed):
        records: list[Any] = [None] * len(asked)
        trees: dict[int, Tree] = {}
        for shard, home in shards.items():
            places = shard.take(range(len(asked)))
            files = sorted((home / method.name).glob("part-*.json"))
            found = [record for file in files for record in read_json(file)]
            if [record["question_id"] for record in found] != [asked[place].id for place in places]:
                raise ConfigError(
                    f"{home} is not finished: of {method.name} it holds {len(found)} of the {len(places)} questions of "
                    f"shard {shard}. Run its command again; killed, it goes on where it was."
                )
            grown = {tree.question.id: tree for file in files for tree in read_trees(file.with_suffix(".parquet"))}
            for place, record in zip(places, found, strict=True):
                records[place] = record
                if tree := grown.get(asked[place].id):
                    trees[place] = tree
        for start, chunk, file in _chunks(method, asked, folder):
            if not _is_whole(file):
                here = range(start, start + len(chunk))
                write_trees(file.with_suffix(".parquet"), [trees[place] for place in here if place in trees])
                write_json(file, [records[place] for place in here])


def read_outcomes(folder: Path, method: str) -> tuple[list[Outcome], list[Tree]]:
    """All outcomes of a method, in order, and their trees; a blank answer leaves no tree."""
    outcomes: list[Outcome] = []
    trees: list[Tree] = []
    for file in sorted((folder / method).glob("part-*.json")):
        outcomes += [
            Outcome(**{**record, "samples": tuple(Sample(*pair) for pair in record.get("samples", ()))})
            for record in read_json(file)
        ]
        trees += read_trees(file.with_suffix(".parquet"))
    return outcomes, trees


def _with_questions(task: Task, settings: EvaluateSettings, seed: int) -> Iterator[tuple[Method[Any], list[Question]]]:
    """Every method with its questions, in order."""
    questions = task.questions(settings.split, settings.questions, seed)
    for method in settings.methods():
        yield method, questions if method.thrifty else questions[: settings.self_consistency_questions]


def _chunks(
    method: Method[Any], questions: Sequence[Question], folder: Path
) -> Iterator[tuple[int, Sequence[Question], Path]]:
    """Where each chunk begins, its questions and its file; a shard without a question has an empty one."""
    size = max(1, _CHUNK_ROWS // method.settings.rows)
    for part, start in enumerate(range(0, len(questions), size) or range(1)):
        yield start, questions[start : start + size], folder / method.name / f"part-{part:03d}.json"


def _is_whole(file: Path) -> bool:
    return file.exists() and file.with_suffix(".parquet").exists()


def _solve_chunk(
    task: Task, engine: Callable[[], Engine], method: Method[Any], questions: Sequence[Question], seed: int, file: Path
) -> None:
    solutions: list[Solution] = []
    seconds = 0.0
    if questions:
        opened = engine()
        opened.forget()  # every method pays for its own prompts
        started = time.perf_counter()
        solutions = method.solve(questions, opened, seed)
        seconds = (time.perf_counter() - started) / len(questions)
    records: list[dict[str, Any]] = []
    for question, solution in zip(questions, solutions, strict=True):
        grade = cache(partial(task.grade, question))  # running code takes seconds, and samples agree often
        drawn = solution.answers if method.alike else ()
        outcome = Outcome(
            question.id,
            solution.answer,
            grade(solution.answer),
            solution.confidence,
            solution.generated_tokens,
            seconds,
            solution.abstained,
            tuple(Sample(answer, grade(answer)) for answer in drawn),
        )
        records.append(vars(outcome))
    write_trees(file.with_suffix(".parquet"), [s.tree for s in solutions])
    write_json(file, records)
