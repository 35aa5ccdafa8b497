"""Math-Shepherd (Wang et al. 2024, arXiv:2312.08935): a step is ``+`` where completions from it reached the answer.

It is ``-`` where none did. ``input`` has a tag behind every step (and maybe ``?``); ``label`` is the same text with + or -
in the tag's place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, Record, question_of, steps_of, text_of
from caspo.records import Label

__all__ = ["MATH_SHEPHERD", "TAG"]

TAG = "ки"
"""Stands behind every step, for its reward models too."""


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    text, labelled = (text_of(row, key, where) for key in ("input", "label"))
    *parts, rest = re.split(rf"(?<!\S){TAG}(?!\S)", text)
    if not parts or rest.strip() not in ("", "?"):
        raise DataError(f"{where}: 'input' must end each of its steps with {TAG}; it ends with {text[-30:]!r}.")
    parts = [re.sub(r"^ *\?", "", part) if number else part for number, part in enumerate(parts)]
    problem, first_mark, first_step = parts[0].rpartition("Step 1:")
    if not first_mark:
        raise DataError(f"{where}: 'input' has no 'Step 1:', so its question cannot be told from its steps.")
    steps = [first_step, *(re.sub(r"^\s*Step [0-9]+:", "", part) for part in parts[1:])]
    labels: list[Label] = []
    position = 0
    for number, part in enumerate(parts, start=1):
        begins = labelled.find(part.strip(), position)
        position = begins + len(part.strip())
        sign = re.compile(rf"\s*(?:{TAG})?\s*([+-])").match(labelled, position)
        if begins < 0 or sign is None:
            raise DataError(f"{where}: 'label' does not end step {number} of 'input' ({part.strip()[-40:]!r}) with + or -.")
        labels.append("right" if sign[1] == "+" else "wrong")
        position = sign.end()
    if labelled[position:].strip():
        raise DataError(f"{where}: 'label' goes on after the {len(parts)} steps of 'input': {labelled[position:]!r:.60}.")
    cleaned = steps_of({"input": [step.strip() for step in steps]}, "input", where)
    question = question_of({"input": problem.strip()}, "input", default_id, where)
    return [LabelledSolution(default_id, question, cleaned, tuple(labels), str(row["task"]))]


def _write(solution: LabelledSolution, generator: str) -> Record:
    """Labels after the first error are -, as they are in Math-Shepherd: nothing reaches the answer from there."""
    texts = [text.strip() for text in solution.steps]
    unsafe = next((text for text in texts if TAG in text.split() or "Step 1:" in text), None)
    if unsafe is not None:
        raise DataError(f"The step {unsafe!r:.80} holds a mark of Math-Shepherd's format, so it cannot be written in it.")
    end = len(texts) if solution.first_error is None else solution.first_error
    signs = ["+" if place < end else "-" for place in range(len(texts))]
    body = [f"Step {number}: {text}" for number, text in enumerate(texts, start=1)]
    return {
        "input": f"{solution.question.text} " + "\n".join(f"{text} {TAG}" for text in body),
        "label": f"{solution.question.text} " + "\n".join(f"{t} {s}" for t, s in zip(body, signs, strict=True)),
        "task": solution.subset,
    }


MATH_SHEPHERD = Format("math_shepherd", "Math-Shepherd", ("input", "label", "task"), _read, _write)
