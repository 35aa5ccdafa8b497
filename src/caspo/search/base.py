"""What every way of solving offers: questions in, solutions with their trees and their price out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pydantic import Field

from caspo.config import Config
from caspo.engines.base import Engine
from caspo.types import Question, Solution

__all__ = ["Method", "PathSettings"]


class PathSettings(Config):
    """What all methods share."""

    max_tokens: int = Field(512, ge=1)
    """Tokens of one reasoning path, at most."""
    top_p: float = Field(1.0, gt=0, le=1)


class Method(Protocol):
    """A way to solve questions with an engine."""

    name: str

    @property
    def settings(self) -> PathSettings:
        """How it was asked to work."""

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """One solution per question, in order. A question's solution does not depend on the others.

        ``on_done`` is called with the number of paths that ended since the last call.
        """
        ...
