"""Step-DPO (Lai et al. 2024, arXiv:2406.18629): pairs of steps that go on from one beginning.

A record is read as two solutions, right but for the rejected step at the end of the second. The beginning is cut at its
headers ("Step 2:"), where it has some: such a step may span paragraphs. In the public files it ends with the header of the
step to come, which belongs to that step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, Record, labels_until, question_of, text_of
from caspo.records import StepPair, Tree
from caspo.steps import split_steps

__all__ = ["STEP_DPO", "pairs_as_step_dpo"]

_HEADER = r"(?:#+[ \t]*)?(?:\*\*)?Step[ \t]+[0-9]+:"
_OPENING = rf"(?:[^\n]*?[.!?:][ \t]+)??{_HEADER}"
"""How a step begins up to its header; words may stand before that ("Let's think step by step. Step 1:")."""
_STARTS = re.compile(rf"\A(?={_OPENING})|^(?={_HEADER})", re.MULTILINE)
_UNFINISHED = re.compile(rf"^{_OPENING}\s*\Z", re.MULTILINE)


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    before = row.get("initial_reason_steps") or ""
    if not isinstance(before, str):
        raise DataError(f"{where}: 'initial_reason_steps' is of type {type(before).__name__}, not text.")
    identity = str(row.get("id") or default_id)
    question = question_of(row, "prompt", identity, where)
    begun = _UNFINISHED.search(before)
    opening = begun[0] if begun else ""
    shared = _cut(before.removesuffix(opening))
    subset = str(row.get("dataset") or "all")
    found = []
    for key, first in (("chosen", -1), ("rejected", len(shared))):
        text = text_of(row, key, where)
        space = " " if opening and not (opening[-1].isspace() or text[0].isspace()) else ""
        steps = (*shared, (opening + space + text if opening else text.lstrip()).rstrip())
        labels = labels_until(first, len(steps), where, key)
        ended = str(row.get(f"full_{key}") or "").strip() == text.strip()
        found.append(LabelledSolution(f"{identity}/{key}", question, steps, labels, subset, ended))
    return found


def _cut(text: str) -> tuple[str, ...]:
    """The steps of a beginning: at its headers, and by the rule for all text what has none."""
    unheaded, *headed = _STARTS.split(text)
    return (*split_steps(unheaded), *headed)


def pairs_as_step_dpo(pairs: Sequence[StepPair], trees: Sequence[Tree], dataset: str = "caspo") -> list[Record]:
    """Pairs as Step-DPO's records, but for ``full_chosen`` and ``full_rejected``, which its training does not read.

    A header that both steps begin with goes to the end of the beginning, as in the public files.
    """
    by_id = {tree.question.id: tree for tree in trees}
    rows = []
    for pair in pairs:
        tree = by_id[pair.question_id]
        chosen, rejected = (tree.nodes[node].step.text.rstrip() for node in (pair.chosen, pair.rejected))
        header = re.match(_OPENING, chosen)
        opening = header[0] if header and all(t.startswith(header[0]) and t != header[0] for t in (chosen, rejected)) else ""
        rows.append(
            {
                "dataset": dataset,
                "prompt": tree.question.text,
                "initial_reason_steps": "".join(node.step.text for node in tree.path(pair.parent)) + opening,
                "chosen": chosen.removeprefix(opening),
                "rejected": rejected.removeprefix(opening),
                "answer": tree.question.answer,
            }
        )
    return rows


STEP_DPO = Format("step_dpo", "Step-DPO", ("prompt", "initial_reason_steps", "chosen", "rejected"), _read)
