"""Questions from any file of rows (`caspo.core.rows`) with ``question`` and ``answer``, above all JSONL.

Optional keys: ``id`` (default: file name and line number), ``solution``, ``choices``, ``meta`` (an object). ``choices``, a
list, are shown under the question and graded by letter (`choices`). Every other key is kept in ``Question.meta``. An answer
may be a number. GSM8K's own format, where "answer" holds the whole solution and ends in ``#### 18``, is understood: the
solution is that text, the answer what follows the mark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from caspo.core.errors import DataError
from caspo.core.rows import BadRows, read_rows, stem_of
from caspo.records import Question
from caspo.tasks.base import QuestionSet, grade
from caspo.tasks.choices import with_letters
from caspo.tasks.grading import grade_choice

__all__ = ["JsonlTask", "question_of", "read_questions"]

_OWN_KEYS = ("id", "question", "answer", "solution", "meta")


class JsonlTask(QuestionSet):
    """The questions of one file, which is one split. The whole file is checked when it is opened."""

    def __init__(
        self, path: str | Path, *, split: str = "test", name: str | None = None, bad: BadRows | None = None
    ) -> None:
        """``split`` is what the file is; asking for another one is an error, so that no test set is trained on. ``bad``
        takes the rows that cannot be used; without it the first of them is an error."""
        self.path = Path(path)
        super().__init__(name or stem_of(self.path), split, read_questions(self.path, bad, _asked), str(self.path), _grade)


def _asked(question: Question, where: str) -> Question:
    """A row as it is asked; one that says itself what kind its answer is of is asked as it stands."""
    return with_letters(question, where) if "choices" in question.meta and "answer_type" not in question.meta else question


def _grade(question: Question, answer: str | None) -> bool:
    return (grade_choice if question.meta.get("answer_type") == "choice" else grade)(question, answer)


def read_questions(
    path: Path, bad: BadRows | None = None, asked: Callable[[Question, str], Question] = lambda question, where: question
) -> list[Question]:
    """The rows of a file, each ``asked`` in its way, given where it stands; ``bad`` as `JsonlTask` has it."""
    places: dict[str, str] = {}

    def use(row: Mapping[str, Any], where: str, default_id: str) -> list[Question]:
        question = asked(question_of(row, where, default_id), where)
        first = places.setdefault(question.id, where)
        if first != where:
            place = first.rpartition(", ")[2]
            raise DataError(f"{where}: the id {question.id!r} is that of {place} too. Ids must be unique: change one.")
        return [question]

    rows = read_rows(path, "'question' and 'answer'", use, bad=bad)
    if not rows:
        raise DataError(f"{path}: the file is empty. It needs at least one line with a question and an answer.")
    return rows


def question_of(row: Mapping[str, Any], where: str, default_id: str) -> Question:
    """A checked row; ``where`` begins the message of what is wrong with it."""
    for key in ("question", "answer"):
        if key not in row:
            raise DataError(
                f"{where}: no {key!r}; it has {', '.join(map(repr, row)) or 'no keys'}. Add it or rename the key."
            )
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        what = "empty" if isinstance(text, str) else f"of type {type(text).__name__}, not text"
        raise DataError(f"{where}: the question is {what}. Give it a text or remove the line.")
    answer, solution = _answer(row["answer"], where), row.get("solution")
    if "####" in answer:
        before, _, answer = answer.rpartition("####")
        solution = solution or f"{before}####{answer}"
        answer = answer.strip()
    if not answer:
        raise DataError(f"{where}: the answer is empty. Nothing could be graded by it: give one or remove the line.")
    if solution is not None and not isinstance(solution, str):
        raise DataError(f"{where}: the solution is of type {type(solution).__name__}, not text. Make it a text or null.")
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{where}: 'meta' is of type {type(meta).__name__}, not an object. Make it an object or remove it.")
    extra = {key: value for key, value in row.items() if key not in _OWN_KEYS and value is not None}
    identity = row.get("id")
    return Question(
        text, answer, id=default_id if identity is None else str(identity), solution=solution, meta={**meta, **extra}
    )


def _answer(answer: object, where: str) -> str:
    if isinstance(answer, str):
        return answer.strip()
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, float) and math.isfinite(answer):
        return str(answer)
    raise DataError(f"{where}: the answer is {json.dumps(answer)[:60]}, neither text nor a number. Make it one of these.")
