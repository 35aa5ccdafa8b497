"""What every way of solving offers: questions in, solutions with their trees and their price out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from pydantic import AfterValidator, Field

from caspo.confidence import SIGNALS
from caspo.core.config import Config
from caspo.engines.base import Engine
from caspo.engines.drive import Asking, drive
from caspo.records import Question, Solution, Step
from caspo.search.thinking import limited
from caspo.trees import TreeBuilder

__all__ = ["Method", "PathSettings", "Paths", "Search", "SignalName", "Tokens", "Unit", "numbers"]


def _known_signal(name: str) -> str:
    if name not in SIGNALS:
        raise ValueError(f"no confidence signal is called {name!r}; choose one of {', '.join(SIGNALS)}")
    return name


SignalName = Annotated[str, AfterValidator(_known_signal)]
"""A key of `caspo.confidence.SIGNALS`."""


class Unit(NamedTuple):
    """What a whole number among a method's settings counts, so that a server can hold it to its limits."""

    name: Literal["paths", "tokens"]


Paths = Annotated[int, Field(ge=1), Unit("paths")]
"""A setting that counts what is decoded side by side: paths, samples, children."""
Tokens = Annotated[int, Field(ge=1), Unit("tokens")]
"""A setting that counts tokens of one path."""


class PathSettings(Config):
    """What all methods share."""

    max_tokens: Tokens = 512
    """Tokens of one reasoning path, at most; of its answer alone where its thinking has a limit of its own."""
    max_thinking_tokens: Annotated[int | None, Field(ge=1), Unit("tokens")] = None
    """Tokens of the model's thinking (`<think>`), at most, besides ``max_tokens``. A path whose thinking is cut answers
    nothing."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the most probable ones that hold this share of the probability; 1 is all of them."""

    @property
    def longest_path(self) -> int:
        """Tokens of one path, at most, its thinking included."""
        return self.max_tokens + (self.max_thinking_tokens or 0)

    @property
    def rows(self) -> int:
        """Paths of one question that are decoded at a time, about."""
        return 2


def numbers(settings: PathSettings, unit: Literal["paths", "tokens"]) -> dict[str, int]:
    """The settings that count paths, or tokens of a path, by name."""
    fields = type(settings).model_fields
    found = {name: getattr(settings, name) for name, field in fields.items() if Unit(unit) in field.metadata}
    return {name: value for name, value in found.items() if value is not None}


Search: TypeAlias = Asking[Solution]
"""One question's search: it yields lists of requests, is sent their completions, and returns the solution. Close it to
give it up; what it has grown so far stands in the `TreeBuilder` that it was given."""

S = TypeVar("S", bound=PathSettings)
T = TypeVar("T")


class Method(ABC, Generic[S]):
    """A way to solve questions with an engine. Its docstring says what the confidence of its answers is.

    All that others know of a method stands here: a new one is one file, and its line in `METHODS`.
    """

    name: ClassVar[str]
    """In recipes and in `metrics.json`."""
    title: ClassVar[str]
    """In reports."""
    settings_type: type[S]
    measured: ClassVar[bool] = False
    """Whether a recipe that names no methods measures it."""
    thrifty: ClassVar[bool] = False
    """Whether it decodes little more than one solution a question, so that it is run on all questions of an evaluation."""
    greedy: ClassVar[bool] = False
    """Whether its first path is greedy though it draws others: asked for temperature 0, a server takes that for a fixed
    seed."""
    alike: ClassVar[bool] = False
    """Whether its solution's ``answers`` are those of ``settings.samples`` whole solutions, all drawn alike: what pass@k
    and maj@k are of."""

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings or self.settings_type()

    @classmethod
    def draws(cls) -> bool:
        """Whether it can draw, at a temperature above 0; otherwise the same question has the same solution at every seed."""
        return "temperature" in cls.settings_type.model_fields

    @property
    def after(self) -> str:
        """What is asked of the model after the question itself, as it stands in the prompt."""
        return ""

    @abstractmethod
    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """Search for the answer to the tree's question, from its prompt on, growing the tree."""

    def started(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The search as it is to be run: within the limits that the settings give thinking and answer."""
        return self.within_limits(self.search(tree, engine, seed), tree, engine)

    def within_limits(self, asking: Asking[T], tree: TreeBuilder, engine: Engine) -> Asking[T]:
        """The same, within the limits that the settings give thinking and answer."""
        settings = self.settings
        if settings.max_thinking_tokens is None:
            return asking
        return limited(asking, tree, engine, settings.max_thinking_tokens, settings.max_tokens)

    def settles(self, step: Step) -> bool:
        """Whether the answer's path goes through this step, if the first path decoded does and did so in all steps before.

        What is settled can be told before the search is over; by default nothing is.
        """
        return False

    def solve(
        self, questions: Sequence[Question], engine: Engine, seed: int = 0, on_done: Callable[[int], None] | None = None
    ) -> list[Solution]:
        """One solution per question, in order, all searches in one batch.

        A question's solution does not depend on the others. ``on_done`` is called with the number of questions that
        were solved since the last call.
        """
        trees = [TreeBuilder(question, engine.prompt(self.asked(question.text)), engine) for question in questions]
        searches = [self.started(tree, engine, seed) for tree in trees]
        return drive(searches, engine, lambda: on_done(1) if on_done is not None else None)

    def asked(self, text: str) -> str:
        """What the model is asked for a question; an empty one stays empty, so that the engine refuses it."""
        return text.strip() + self.after if self.after and text.strip() else text
