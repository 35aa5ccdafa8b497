"""Solving a question set by several methods, in chunks that survive a kill, each chunk two files.

``<folder>/<method>/part-000.parquet`` holds the trees, ``part-000.json`` (written last: it says the chunk is whole) what
each question came to. `metrics.py` reads them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from caspo.config import Config
from caspo.data.store import read_trees, write_trees
from caspo.engines.base import Engine
from caspo.search import (
    METHODS,
    BeamSettings,
    BestOfNSettings,
    ChainOfThoughtSettings,
    ConfidenceTreeSettings,
    DeepConfOfflineSettings,
    DeepConfOnlineSettings,
    DiPTSettings,
    Method,
    SelfConsistencySettings,
)
from caspo.storage import read_json, write_json
from caspo.tasks.base import Task
from caspo.types import Question, Tree

__all__ = ["EvaluateSettings", "Outcome", "evaluate_methods", "read_outcomes"]

_CHUNK_ROWS = 500
"""Rows that a chunk puts into the engine, about: enough to fill its batch, little to lose."""

_ON_ALL_QUESTIONS = ("chain_of_thought", "cat")


class EvaluateSettings(Config):
    """What is measured in every round; a method set to null is left out."""

    split: str = "test"
    questions: int = Field(200, ge=1)
    """Questions for chain of thought and CaT."""
    self_consistency_questions: int = Field(100, ge=1)
    """Of these, the first that self-consistency and all other methods solve too: they cost several solutions each."""
    chain_of_thought: ChainOfThoughtSettings | None = ChainOfThoughtSettings()
    self_consistency: SelfConsistencySettings | None = SelfConsistencySettings()
    cat: ConfidenceTreeSettings | None = ConfidenceTreeSettings()
    best_of_n: BestOfNSettings | None = None
    beam: BeamSettings | None = None
    deepconf_offline: DeepConfOfflineSettings | None = None
    deepconf_online: DeepConfOnlineSettings | None = None
    dipt: DiPTSettings | None = None

    def methods(self) -> list[Method[Any]]:
        """The methods asked for."""
        chosen = ((name, getattr(self, name)) for name in METHODS)
        return [METHODS[name](settings) for name, settings in chosen if settings is not None]


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


def evaluate_methods(
    task: Task,
    engine: Callable[[], Engine],
    settings: EvaluateSettings,
    seed: int,
    folder: Path,
    on_chunk: Callable[[str, int, int], None] = lambda method, done, total: None,
) -> None:
    """Run every method on the task's questions; chunks that are there already are kept.

    ``engine`` is called when there is something to solve: a run that only resumes loads no model.
    """
    questions = task.questions(settings.split, settings.questions, seed)
    for method in settings.methods():
        mine = questions if method.name in _ON_ALL_QUESTIONS else questions[: settings.self_consistency_questions]
        size = max(1, _CHUNK_ROWS // method.settings.rows)
        for part, start in enumerate(range(0, len(mine), size)):
            chunk = mine[start : start + size]
            file = folder / method.name / f"part-{part:03d}.json"
            if not (file.exists() and file.with_suffix(".parquet").exists()):
                _solve_chunk(task, engine(), method, chunk, seed, file)
            on_chunk(method.name, start + len(chunk), len(mine))


def read_outcomes(folder: Path, method: str) -> tuple[list[Outcome], list[Tree]]:
    """All outcomes of a method, in order, with their trees."""
    outcomes: list[Outcome] = []
    trees: list[Tree] = []
    for file in sorted((folder / method).glob("part-*.json")):
        outcomes += [Outcome(**record) for record in read_json(file)]
        trees += read_trees(file.with_suffix(".parquet"))
    return outcomes, trees


def _solve_chunk(
    task: Task, engine: Engine, method: Method[Any], questions: Sequence[Question], seed: int, file: Path
) -> None:
    engine.forget()  # every method pays for its own prompts
    started = time.perf_counter()
    solutions = method.solve(questions, engine, seed)
    share = (time.perf_counter() - started) / len(questions)
    records: list[dict[str, Any]] = [
        vars(Outcome(q.id, s.answer, task.grade(q, s.answer), s.confidence, s.generated_tokens, share, s.abstained))
        for q, s in zip(questions, solutions, strict=True)
    ]
    write_trees(file.with_suffix(".parquet"), [s.tree for s in solutions])
    write_json(file, records)
