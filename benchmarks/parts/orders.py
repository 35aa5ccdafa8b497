"""The samples of a pool in other orders: what a search finds depends on which of equally good samples come first.

Samples of one question are exchangeable, so a pool in another order is as good a draw as the one that was made. The mean
over several orders says better what a method is worth on these questions; the interval over questions is of these means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from caspo.engines.base import Completion, Request
from caspo.engines.memo import Known
from caspo.records import Question
from caspo.search import SelfConsistency
from caspo.trees import seed_of

__all__ = ["Reordered"]


class Reordered:
    """What is known, with the samples of each question in the order of this number; 0 is that in which they were drawn."""

    def __init__(self, known: Known, questions: Sequence[Question], samples: int, order: int) -> None:
        self._known = known
        self._seeds: dict[int, int] = {}
        for question in questions:
            seeds = [seed_of(SelfConsistency.name, 0, question.id, number) for number in range(samples)]
            others = seeds.copy()
            if order:
                Random(f"{order} {question.id}").shuffle(others)
            self._seeds |= dict(zip(seeds, others, strict=True))

    def get(self, request: Request) -> Completion | None:
        """As `Known.get`."""
        return self._known.get(self._moved(request))

    def put(self, request: Request, whole: Completion) -> None:
        """Refused: a sample would be kept in the place of another one."""
        raise ValueError("the pool lacks a sample that was asked for: orders are of samples that are all there")

    def forget(self) -> None:
        """Nothing."""

    def _moved(self, request: Request) -> Request:
        return request if request.temperature == 0 else replace(request, seed=self._seeds.get(request.seed, request.seed))
