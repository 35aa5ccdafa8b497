"""Judge `labels`: people's verdicts (or another judge's) from files of labelled solutions.

`caspo.formats.read_labelled` reads them. The judge answers a chain by the labels of the same question and
the same steps, and "unknown" to all that no file labels; it never generalises. What is not here: how good another judge
is against these labels (`caspo.evaluate.judge_scores`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caspo.formats import LabelledSolution
from caspo.judges.base import StepJudge
from caspo.records import Label, Question, Verdict
from caspo.steps import step_key

__all__ = ["LabelsJudge"]


class LabelsJudge(StepJudge):
    """Answers by the labels of ``solutions``."""

    name = "labels"

    def __init__(self, solutions: Iterable[LabelledSolution]) -> None:
        self._labels: dict[tuple[str, ...], Label] = {}
        for solution in solutions:
            for end, label in enumerate(solution.labels, start=1):
                if label != "unknown":
                    key = _key(solution.question, solution.steps[:end])
                    before = self._labels.setdefault(key, label)
                    if before != label:  # two files, or two people, disagree
                        self._labels[key] = "unknown"

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """What the files say of ``step`` after exactly these steps."""
        label = self._labels.get(_key(question, (*prefix, step)))
        reasons = {None: "no label", "unknown": "labels disagree"}
        return self._verdict(label or "unknown", reasons.get(label, "labelled so"))


def _key(question: Question, steps: Sequence[str]) -> tuple[str, ...]:
    """The same question and steps, up to white space."""
    return (step_key(question.text), *map(step_key, steps))
