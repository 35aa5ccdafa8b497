"""Step-DPO (Lai et al. 2024, arXiv:2406.18629): pairs of steps that go on from one beginning.

A record is read as two beginnings of solutions, right but for the rejected step at the end of the second. Its steps before
are taken to be lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, Record, labels_until, question_of, text_of
from caspo.records import StepPair, Tree
from caspo.steps import split_steps

__all__ = ["STEP_DPO", "pairs_as_step_dpo"]


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    before = row.get("initial_reason_steps") or ""
    if not isinstance(before, str):
        raise DataError(f"{where}: 'initial_reason_steps' is of type {type(before).__name__}, not text.")
    identity = str(row.get("id") or default_id)
    question = question_of(row, "prompt", identity, where)
    shared = tuple(line.strip() for line in split_steps(before))
    subset = str(row.get("dataset") or "all")
    found = []
    for key, first in (("chosen", -1), ("rejected", len(shared))):
        steps = (*shared, text_of(row, key, where).strip())
        labels = labels_until(first, len(steps), where, key)
        found.append(LabelledSolution(f"{identity}/{key}", question, steps, labels, subset, ended=False))
    return found


def pairs_as_step_dpo(pairs: Sequence[StepPair], trees: Sequence[Tree], dataset: str = "caspo") -> list[Record]:
    """Pairs as Step-DPO's records, but for ``full_chosen`` and ``full_rejected``, which its training does not read."""
    by_id = {tree.question.id: tree for tree in trees}
    rows = []
    for pair in pairs:
        tree = by_id[pair.question_id]
        rows.append(
            {
                "dataset": dataset,
                "prompt": tree.question.text,
                "initial_reason_steps": "".join(f"{node.step.text.strip()}\n" for node in tree.path(pair.parent)),
                "chosen": tree.nodes[pair.chosen].step.text.strip(),
                "rejected": tree.nodes[pair.rejected].step.text.strip(),
                "answer": tree.question.answer,
            }
        )
    return rows


STEP_DPO = Format("step_dpo", "Step-DPO", ("prompt", "initial_reason_steps", "chosen", "rejected"), _read)
