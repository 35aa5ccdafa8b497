"""What a task is: questions with known answers, and a way to grade an answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from caspo.answers import right_answer
from caspo.core.errors import ConfigError
from caspo.records import Question

__all__ = ["QuestionSet", "Task", "grade"]


@runtime_checkable
class Task(Protocol):
    """A set of questions, one file each in this room."""

    @property
    def name(self) -> str:
        """Stands in recipes, metrics and run folders."""

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        """``n`` questions of a split (fewer where it has fewer); the same arguments give the same questions."""
        ...

    def grade(self, question: Question, answer: str | None) -> bool:
        """Whether ``answer`` is right; None (no answer) never is."""
        ...


def grade(question: Question, answer: str | None) -> bool:
    """The grader of most tasks: right where the reference answer is, see `caspo.answers.right_answer`."""
    return right_answer(answer, question.answer)


class QuestionSet:
    """A fixed list of questions, which is one split."""

    def __init__(
        self,
        name: str,
        split: str,
        rows: Sequence[Question],
        source: str,
        grader: Callable[[Question, str | None], bool] = grade,
    ) -> None:
        """``source`` says in messages where the rows came from; ``grader`` whether an answer to one is right."""
        self.name = name
        self.split = split
        self.source = source
        self._rows = tuple(rows)
        self._grader = grader

    def __len__(self) -> int:
        return len(self._rows)

    def questions(self, split: str, n: int | None = None, seed: int = 0) -> list[Question]:
        """``n`` questions drawn with ``seed``; all of them, in their order, for None or ``n >= len(self)``.

        The draw for a smaller n is the beginning of that for a larger one.
        """
        if split != self.split:
            raise ConfigError(
                f"task {self.name!r} has no split {split!r}: {self.source} was given as {self.split!r}. "
                f"Ask for that one, or make a second task of the file that holds {split!r}."
            )
        if n is not None and n < 0:
            raise ConfigError(f"task {self.name!r}: cannot give {n} questions. Ask for 0 or more, or None for all.")
        if n is None or n >= len(self._rows):
            return list(self._rows)
        order = list(range(len(self._rows)))
        random.Random(seed).shuffle(order)
        return [self._rows[i] for i in order[:n]]

    def grade(self, question: Question, answer: str | None) -> bool:
        """Whether ``answer`` is right, as the set's field grades it."""
        return self._grader(question, answer)
