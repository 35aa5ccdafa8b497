"""Solved questions of a task, to be shown before the one that is asked (few-shot prompts)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from caspo.answers import stated_answer
from caspo.core.errors import DataError
from caspo.records import Question
from caspo.tasks.base import QuestionSet, Task

__all__ = ["fingerprint", "solved_examples", "worked"]

_CALCULATION = re.compile(r"<<[^<>]*>>")
"""GSM8K notes every calculation: 48/2 = <<48/2=24>>24."""


def worked(question: Question) -> str:
    """The question's solution as a model is to write one: it ends in "The answer is X.", and has no marks of GSM8K's.

    >>> worked(Question("How many?", "24", solution="He has 48/2 = <<48/2=24>>24.\\n#### 24"))
    'He has 48/2 = 24.\\nThe answer is 24.'
    """
    text = _CALCULATION.sub("", question.solution or "").strip()
    before, mark, _ = text.rpartition("####")
    text = before.strip() if mark else text
    last = text.rpartition("\n")[2]
    if question.meta.get("answer_type") == "code" or stated_answer(question, last) == question.answer:
        return text
    return f"{text}\nThe answer is {question.answer}."


def solved_examples(task: Task, number: int) -> tuple[tuple[str, str], ...]:
    """The first ``number`` questions of the training split that have a solution, and one more to take the place of one that
    is asked: each a question and its solution.

    Raises:
        DataError: there are not so many.
    """
    wanted = number + 1
    rows = task.questions("train", len(task) if isinstance(task, QuestionSet) else wanted, 0)
    found: dict[str, str] = {}
    for question in rows:
        if (question.solution or "").strip():
            found.setdefault(question.text.strip(), worked(question))
    if len(found) < wanted:
        raise DataError(
            f"task.examples is {number}, and the training split of {task.name} has {len(found)} questions with a solution; "
            f"{wanted} are needed, as no question is shown with its own solution. Give task.train a file whose rows have a "
            "'solution', or set task.examples lower."
        )
    return tuple(found.items())[:wanted]


def fingerprint(examples: Sequence[tuple[str, str]]) -> str:
    """What tells examples from others, in a line."""
    return hashlib.sha256(repr(tuple(examples)).encode()).hexdigest()[:16]
