"""What every way of solving offers: questions in, solutions with their trees and their price out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import AfterValidator, Field

from caspo.confidence import SIGNALS
from caspo.config import Config
from caspo.engines.base import Completion, Engine
from caspo.engines.drive import Asking, drive
from caspo.trees import TreeBuilder
from caspo.types import Question, Solution, Step

__all__ = ["Method", "PathSettings", "Search", "SignalName"]


def _known_signal(name: str) -> str:
    if name not in SIGNALS:
        raise ValueError(f"no confidence signal is called {name!r}; choose one of {', '.join(SIGNALS)}")
    return name


SignalName = Annotated[str, AfterValidator(_known_signal)]
"""A key of `caspo.confidence.SIGNALS`."""


class PathSettings(Config):
    """What all methods share."""

    max_tokens: int = Field(512, ge=1)
    """Tokens of one reasoning path, at most."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the most probable ones that hold this share of the probability; 1 is all of them."""

    @property
    def rows(self) -> int:
        """Paths of one question that are decoded at a time, about."""
        return 2


class Search(Asking[Any], Protocol):
    """One question's search, as `Method.solve` drives it."""

    @property
    def builder(self) -> TreeBuilder:
        """The tree as far as it is known."""

    @property
    def over(self) -> bool:
        """Whether it wants nothing more."""

    def solution(self) -> Solution:
        """What it came to; asked once, when it is over."""
        ...


S = TypeVar("S", bound=PathSettings)


class Method(ABC, Generic[S]):
    """A way to solve questions with an engine. Its docstring says what the confidence of its answers is."""

    name: ClassVar[str]
    """In recipes and in `metrics.json`."""
    settings_type: type[S]

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings or self.settings_type()

    @abstractmethod
    def search(self, question: Question, engine: Engine, seed: int) -> Search:
        """The search for one question's answer."""

    def settles(self, step: Step) -> bool:
        """Whether the answer's path goes through this step, if the first path decoded does and did so in all steps before.

        What is settled can be told before the search is over; by default nothing is.
        """
        return False

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """One solution per question, in order, all searches in one batch.

        A question's solution does not depend on the others. ``on_done`` is called with the number of questions that
        were solved since the last call.
        """
        searches = [self.search(question, engine, seed) for question in questions]

        def received(search: Any, completion: Completion) -> None:
            if on_done is not None and search.over:
                on_done(1)

        drive(searches, engine, received)
        return [search.solution() for search in searches]
