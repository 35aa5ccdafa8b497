"""Math-Shepherd (Wang et al. 2024, arXiv:2312.08935): a step is ``+`` where completions from it reached the answer.

It is ``-`` where none did. ``input`` has a tag behind every step (and maybe ``?``); ``label`` is the same text with + or -
in the tag's place. Where the last step has no tag, and ``label`` no sign, it is unknown. A step keeps its header
(``Step 1:``): the model wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, Record, question_of, steps_of, text_of
from caspo.records import Label

__all__ = ["MATH_SHEPHERD", "TAG", "with_headers"]

TAG = "ки"
"""Stands behind every step, for its reward models too."""

_TAG = re.compile(rf"(?<!\S){TAG}(?!\S)")
_HEADER = re.compile(r"\s*step [0-9]+\s*:", re.IGNORECASE)
_FIRST = re.compile(r"\bstep 1\s*:", re.IGNORECASE)


def with_headers(steps: Sequence[str]) -> list[str]:
    """The steps as the format has them: the first begins with ``Step 1:``, each other one with a header too."""
    return [
        step if (_HEADER if number > 1 else _FIRST).match(step) else f"Step {number}: {step}"
        for number, step in enumerate(steps, start=1)
    ]


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    text, labelled = (text_of(row, key, where) for key in ("input", "label"))
    *parts, rest = _TAG.split(text)
    if not parts:
        raise DataError(f"{where}: 'input' must end each of its steps with {TAG}; it ends with {text[-30:]!r}.")
    if rest.strip() not in ("", "?"):
        parts.append(rest)
    parts = [re.sub(r"^ *\?", "", part) if number else part for number, part in enumerate(parts)]
    labels = _labels(parts, labelled, where, tagged=len(_TAG.findall(text)))
    problem, first = _question(parts, where)
    found = [*([] if first is None else [first]), *parts[1:]]
    breaks = [step[: len(step) - len(step.lstrip())].count("\n") or 1 for step in found[1:]]
    texts = steps_of({"input": [step.strip() for step in found]}, "input", where)
    steps = (*(step + "\n" * count for step, count in zip(texts, breaks, strict=False)), texts[-1])
    question = question_of({"input": problem.strip()}, "input", default_id, where)
    return [LabelledSolution(default_id, question, steps, labels[-len(steps) :], str(row.get("task") or "all"))]


def _labels(parts: Sequence[str], labelled: str, where: str, tagged: int) -> tuple[Label, ...]:
    """What stands behind each part in ``label``; a last one without a tag may have nothing there."""
    labels: list[Label] = []
    position = 0
    for number, part in enumerate(parts, start=1):
        begins = labelled.find(part.strip(), position)
        position = begins + len(part.strip())
        sign = re.compile(rf"\s*(?:{TAG})?\s*([+-])").match(labelled, position)
        if begins >= 0 and sign is None and number > tagged:
            labels.append("unknown")
            break
        if begins < 0 or sign is None:
            raise DataError(f"{where}: 'label' does not end step {number} of 'input' ({part.strip()[-40:]!r}) with + or -.")
        labels.append("right" if sign[1] == "+" else "wrong")
        position = sign.end()
    if labelled[position:].strip():
        raise DataError(f"{where}: 'label' goes on after the {len(parts)} steps of 'input': {labelled[position:]!r:.60}.")
    return tuple(labels)


def _question(parts: Sequence[str], where: str) -> tuple[str, str | None]:
    """The question and the first step, which one part holds; no step where that part is the question, tagged by mistake.

    The last "Step 1:" begins the step. Rows without one have it after the last question mark; others have no text there,
    or are numbered on from 2, as if the question were step 1.
    """
    marks = list(_FIRST.finditer(parts[0]))
    if marks:
        return parts[0][: marks[-1].start()], parts[0][marks[-1].start() :]
    following = _HEADER.match(parts[1]) if len(parts) > 1 else None
    asked = re.match(r"(.*\?[\"'”’)\]$]*)(.*\w.*)", parts[0], re.DOTALL)
    if asked and not (following and _FIRST.match(following[0].strip())):
        return asked[1], asked[2]
    if len(parts) > 1 and (following or parts[0].rstrip().endswith("?")):
        return parts[0], None
    raise DataError(
        f"{where}: 'input' has neither 'Step 1:' nor a question mark before its first step, so its question cannot be told "
        "from its steps. Write 'Step 1:' before the first one."
    )


def _write(solution: LabelledSolution, generator: str) -> Record | None:
    """Labels after the first error are -, as they are in Math-Shepherd: nothing reaches the answer from there."""
    question, texts = solution.question.text, [text.strip() for text in solution.steps]
    body = with_headers(texts)
    if any(_TAG.search(text) for text in (question, *texts)) or _FIRST.search(body[0], 1):
        return None
    breaks = [*("\n" * (text[len(text.rstrip()) :].count("\n") or 1) for text in solution.steps[:-1]), ""]
    end = len(texts) if solution.first_error is None else solution.first_error
    signs = ["+" if place < end else "-" for place in range(len(texts))]
    return {
        "input": f"{question} " + "".join(f"{text} {TAG}{space}" for text, space in zip(body, breaks, strict=True)),
        "label": f"{question} " + "".join(f"{t} {s}{space}" for t, s, space in zip(body, signs, breaks, strict=True)),
        "task": solution.subset,
    }


MATH_SHEPHERD = Format("math_shepherd", "Math-Shepherd", ("input", "label"), _read, _write)
