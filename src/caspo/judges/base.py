"""What a judge is: something that says whether one step is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from caspo.types import Question, Verdict

__all__ = ["Judge"]


@runtime_checkable
class Judge(Protocol):
    """Judges one step at a time, given that everything before it is right.

    A judge that cannot tell, or that failed, says ``unknown``: a failed judge is not a wrong step.
    """

    @property
    def name(self) -> str:
        """Stands in every verdict, and in the provenance of every pair built from it."""

    def judge(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """The verdict on ``step`` after the right steps ``prefix``; ``final``: the model ended its solution here."""
        ...
