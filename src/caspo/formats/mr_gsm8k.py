"""MR-GSM8K (Zeng et al. 2023, arXiv:2312.17080): solutions whose first wrong step is counted from 1. Only read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, get, labels_until, question_of, separated, steps_of

__all__ = ["MR_GSM8K"]


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    key = "model_output_steps"
    if isinstance(get(row, key, where), str):
        row = {**row, key: re.findall(r"[^\n]*\S[^\n]*\n*", row[key])}  # lines, with the empty ones behind them
    steps = separated(steps_of(row, key, where))
    given = get(row, "model_output_solution_first_error_step", where)
    first = -1
    if str(given).strip() not in ("N/A", "", "None"):
        if not str(given).strip().isdigit() or int(given) < 1:
            raise DataError(f"{where}: the first error step is {given!r}, neither N/A nor a number from 1.")
        first = int(given) - 1
    labels = labels_until(first, len(steps), where, "model_output_solution_first_error_step")
    said = row.get("model_output_solution_correctness")
    if said in ("correct", "wrong") and (said == "wrong") != (first >= 0):
        raise DataError(f"{where}: the solution is {said!r}, but its first error step is {given!r}. Correct one of them.")
    identity = str(row.get("uuid") or default_id)
    question = question_of(row, "question", identity, where, answer="ground_truth_answer", solution="ground_truth_solution")
    subset = str(row.get("question_type") or "all")
    return [LabelledSolution(identity, question, steps, labels, subset)]


MR_GSM8K = Format(
    "mr_gsm8k", "MR-GSM8K", ("question", "model_output_steps", "model_output_solution_first_error_step"), _read
)
