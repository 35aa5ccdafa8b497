"""``steps``, the plain format of this project: ``question``, ``steps``, and ``first_error`` from 0 or -1.

Where every step has a label (PRMBench), ``labels`` holds 1 or -1 for each. ``meta.ended: false`` marks the beginning of a
solution; ``meta.joined: true`` steps that hold what stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import (
    RATINGS,
    Format,
    LabelledSolution,
    Record,
    bare,
    get,
    labels_until,
    question_of,
    separated,
    steps_of,
)

__all__ = ["STEPS"]


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    steps = steps_of(row, "steps", where)
    until = labels_until(get(row, "first_error", where), len(steps), where, "first_error")
    identity = str(row.get("id") or default_id)
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{where}: 'meta' is of type {type(meta).__name__}, not an object. Make it one or remove it.")
    steps = steps if meta.get("joined") is True else separated(steps)
    named = (meta.get(key) for key in ("subset", "subject", "task", "classification", "question_type"))
    subset = str(next((name for name in named if name), row.get("source") or "all"))
    question = question_of(row, "question", identity, where)
    ended = meta.get("ended") is not False
    solution = LabelledSolution(identity, question, steps, until, subset, ended, meta)
    labels = row.get("labels")
    if labels is None:
        return [solution]
    if not isinstance(labels, list) or len(labels) != len(steps) or any(x not in (1, -1) for x in labels):
        raise DataError(f"{where}: 'labels' must hold 1 or -1 for each of the {len(steps)} steps; it is {labels!r:.80}.")
    full = replace(solution, labels=tuple(RATINGS[x] for x in labels))
    if full.first_error != solution.first_error:
        raise DataError(f"{where}: 'first_error' is {row['first_error']}, which 'labels' do not say. Correct one of them.")
    return [full]


def _write(solution: LabelledSolution, generator: str) -> Record:
    texts = tuple(bare(text) for text in solution.steps)
    meta = {"subset": solution.subset, "generator": generator, **solution.meta}
    if separated(texts)[:-1] != solution.steps[:-1]:  # a reader would put something else between them
        texts, meta = solution.steps, meta | {"joined": True}
    return {
        "id": solution.id,
        "question": solution.question.text,
        "steps": list(texts),
        "first_error": -1 if solution.first_error is None else solution.first_error,
        "answer": solution.question.answer or None,
        "source": generator,
        "meta": meta if solution.ended else meta | {"ended": False},
    }


STEPS = Format("steps", "steps", ("question", "steps", "first_error"), _read, _write, partial=True)
