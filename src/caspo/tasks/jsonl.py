"""Questions from any file of rows (`caspo.core.rows`) with ``question`` and ``answer``, above all JSONL.

Optional keys: ``id`` (default: file name and line number), ``solution``, ``choices``, ``meta`` (an object). ``choices``
and every other key are kept in ``Question.meta``. An answer may be a number. GSM8K's own format, where "answer" holds
the whole solution and ends in ``#### 18``, is understood: the solution is that text, the answer what follows the mark.

What is not covered: putting ``choices`` into the question's text, which is a prompt's business.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspo.core.errors import DataError
from caspo.core.rows import BadRows, read_rows, stem_of
from caspo.records import Question
from caspo.tasks.base import QuestionSet

__all__ = ["JsonlTask", "question_of"]

_OWN_KEYS = ("id", "question", "answer", "solution", "meta")


class JsonlTask(QuestionSet):
    """The questions of one file, which is one split. The whole file is checked when it is opened."""

    def __init__(
        self, path: str | Path, *, split: str = "test", name: str | None = None, bad: BadRows | None = None
    ) -> None:
        """``split`` is what the file is; asking for another one is an error, so that no test set is trained on. ``bad``
        takes the rows that cannot be used; without it the first of them is an error."""
        self.path = Path(path)
        super().__init__(name or stem_of(self.path), split, _read(self.path, bad), str(self.path))


def _read(path: Path, bad: BadRows | None) -> list[Question]:
    places: dict[str, str] = {}

    def use(row: Mapping[str, Any], where: str, default_id: str) -> list[Question]:
        question = question_of(row, where, default_id)
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
