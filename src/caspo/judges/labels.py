"""Judge `labels`: people's verdicts (or another judge's) from files of labelled solutions.

Reads what the field publishes: ProcessBench, PRM800K, Math-Shepherd, MR-GSM8K, and JSONL of ``question``, ``steps``,
``first_error`` (label_formats.py says how each is read). The judge answers a chain by the labels of the same question and
the same steps, and "unknown" to all that no file labels; it never generalises. What is not here: how good another judge
is against these labels (`caspo.evaluate.judge_scores`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from caspo.errors import DataError
from caspo.judges.base import Chain
from caspo.judges.label_formats import FORMATS, LabelledSolution, rows_of
from caspo.steps import step_key
from caspo.types import Label, Question, Verdict

__all__ = ["LabelledSolution", "LabelsJudge", "read_labelled"]


def read_labelled(path: Path) -> list[LabelledSolution]:
    """The labelled solutions of a JSON or JSONL file, in its order; the format is told by the keys of its first record.

    Raises:
        DataError: a file that is missing, cut off or of an unknown format; a label beyond the steps; an empty step; two
            solutions with one id. The message names the line.
    """
    solutions: list[LabelledSolution] = []
    seen: dict[str, str] = {}
    read = None
    for where, default_id, row in rows_of(path):
        if read is None:
            read = next((form.read for form in FORMATS if form.fits(row)), None)
            if read is None:
                known = "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in FORMATS)
                raise DataError(
                    f"{where}: no known format of labelled solutions has the keys {', '.join(map(repr, row)) or '(none)'}. "
                    f"Known formats and the keys they need: {known}."
                )
        for solution in read(row, where, default_id):
            first = seen.setdefault(solution.id, where)
            if first != where:
                raise DataError(
                    f"{where}: the id {solution.id!r} is that of {first} too. Ids must be unique: change one."
                )
            solutions.append(solution)
    if not solutions:
        raise DataError(f"{path}: the file holds no labelled solution. It needs at least one.")
    return solutions


class LabelsJudge:
    """Answers by the labels of ``solutions``; instant."""

    name = "labels"
    instant = True

    def __init__(self, solutions: Iterable[LabelledSolution]) -> None:
        self._labels: dict[tuple[str, ...], Label] = {}
        for solution in solutions:
            for end, label in enumerate(solution.labels, start=1):
                if label != "unknown":
                    key = _key(solution.question, solution.steps[:end])
                    before = self._labels.setdefault(key, label)
                    if before != label:  # two files, or two people, disagree
                        self._labels[key] = "unknown"

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """Per chain the verdicts on ``steps[given:]``, up to and including the first wrong one."""
        return [self._chain(chain) for chain in chains]

    def _chain(self, chain: Chain) -> list[Verdict]:
        verdicts = []
        for end in range(chain.given + 1, len(chain.steps) + 1):
            label = self._labels.get(_key(chain.question, chain.steps[:end]))
            reasons = {None: "no label", "unknown": "labels disagree"}
            verdicts.append(Verdict(label or "unknown", reasons.get(label, "labelled so"), self.name))
            if label == "wrong":
                break
        return verdicts


def _key(question: Question, steps: Sequence[str]) -> tuple[str, ...]:
    """The same question and steps, up to white space."""
    return (step_key(question.text), *map(step_key, steps))
