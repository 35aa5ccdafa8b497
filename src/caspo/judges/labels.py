"""Judge `labels`: people's verdicts (or another judge's) from files of labelled solutions.

`caspo.formats.read_labelled` reads them. The judge answers a chain by the labels of the same question and
the same steps, and "unknown" to all that no file labels; it never generalises. What is not here: how good another judge
is against these labels (`caspo.evaluate.judge_scores`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from caspo.formats import LabelledSolution
from caspo.judges.base import Chain
from caspo.steps import step_key
from caspo.types import Label, Question, Verdict

__all__ = ["LabelsJudge"]


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
