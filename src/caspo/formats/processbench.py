"""ProcessBench (Zheng et al. 2024, arXiv:2412.06559): whole solutions, each with its first wrong step.

``label`` is the first wrong step, from 0, or -1. Steps before it are right, those after it are unknown. Steps are
paragraphs: a blank line stood between two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caspo.answers import extract_answer, right_answer
from caspo.formats.labelled import (
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

__all__ = ["PROCESSBENCH"]


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    steps = separated(steps_of(row, "steps", where), "\n\n")
    labels = labels_until(get(row, "label", where), len(steps), where, "label")
    identity = str(row.get("id") or default_id)
    # "gsm8k-12" is of gsm8k
    subset = str(row.get("subset") or re.sub(r"-[0-9]+$", "", identity))
    question = question_of(row, "problem", identity, where)
    meta = {key: value for key, value in row.items() if key not in ("id", "problem", "steps", "label")}
    return [LabelledSolution(identity, question, steps, labels, subset, meta=meta)]


def _write(solution: LabelledSolution, generator: str) -> Record:
    answer = extract_answer(solution.steps[-1]) if solution.ended else None
    return {
        "id": solution.id,
        "subset": solution.subset,
        "generator": solution.meta.get("generator", generator),
        "problem": solution.question.text,
        "steps": [bare(text) for text in solution.steps],
        "final_answer_correct": solution.meta.get(
            "final_answer_correct", answer is not None and right_answer(answer, solution.question.answer)
        ),
        "label": -1 if solution.first_error is None else solution.first_error,
    }


PROCESSBENCH = Format("processbench", "ProcessBench", ("problem", "steps", "label"), _read, _write)
