"""What methods made of questions, kept in a file that is committed: figures are computed again from it without a model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caspo.core.storage import write_text
from caspo.engines.base import Engine
from caspo.records import Question
from caspo.search import Method
from caspo.tasks.base import Task

__all__ = ["Outcomes", "Ran"]

CHUNK = 32
"""Questions between two writes."""


class Ran(NamedTuple):
    """One method on n questions, in their order."""

    right: np.ndarray[Any, Any]
    """(n,) of 0/1."""
    tokens: np.ndarray[Any, Any]
    """(n,) generated, those of pruned paths included."""
    confidence: np.ndarray[Any, Any]
    """(n,) 0 where there is no answer."""


class Outcomes:
    """A file with a line for each method with its settings: order of samples; of each question right, tokens, confidence."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._known: dict[str, dict[str, list[float]]] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._known[row["method"]] = row["questions"]

    def of(
        self, method: Method[Any], task: Task, questions: Sequence[Question], engine: Callable[[], Engine], order: int = 0
    ) -> Ran:
        """What the method made of the questions with seed 0 by an engine whose samples stand in this order; those that are
        not known yet are solved, and kept."""
        name = _name(method, order)
        known = self._known.setdefault(name, {})
        missing = [question for question in questions if question.id not in known]
        for start in range(0, len(missing), CHUNK):
            part, began = missing[start : start + CHUNK], time.monotonic()
            for question, solution in zip(part, method.solve(part, engine()), strict=True):
                right = task.grade(question, solution.answer)
                known[question.id] = [int(right), solution.generated_tokens, round(solution.confidence, 5)]
            self._write()
            print(f"  {name[:70]} {start + len(part)}/{len(missing)}, {time.monotonic() - began:.0f} s", flush=True)
        table = np.array([known[question.id] for question in questions], dtype=np.float64).reshape(-1, 3)
        return Ran(table[:, 0], table[:, 1], table[:, 2])

    def _write(self) -> None:
        if self.path is not None:
            rows = ({"method": name, "questions": self._known[name]} for name in sorted(self._known))
            write_text(self.path, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


def _name(method: Method[Any], order: int) -> str:
    """The method with all of its settings."""
    settings = method.settings.model_dump(mode="json")
    return f"{method.name} {json.dumps(settings, separators=(',', ':'))} order {order}"
