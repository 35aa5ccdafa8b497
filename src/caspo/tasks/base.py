"""What a task is: questions with known answers, and a way to grade an answer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from caspo.answers import same_answer
from caspo.types import Question

__all__ = ["Task", "grade"]


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
    """The grader of most tasks: equal in value to the reference answer."""
    return same_answer(answer, question.answer)
