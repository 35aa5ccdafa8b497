"""Whole solutions: chain of thought (one) and self-consistency (several, majority vote; Wang et al. 2022).

`Samples` is one question's sampled solutions; best of n and DeepConf choose among the same ones.
"""

from __future__ import annotations

from pydantic import Field

from caspo.answers import stated_answer
from caspo.engines.base import Completion, Engine, Request
from caspo.search.base import Method, PathSettings
from caspo.search.vote import vote
from caspo.trees import TreeBuilder, seed_of
from caspo.types import Question, Solution, Step

__all__ = [
    "ChainOfThought",
    "ChainOfThoughtSettings",
    "Samples",
    "SelfConsistency",
    "SelfConsistencySettings",
    "SeveralSamples",
]


class ChainOfThoughtSettings(PathSettings):
    """One solution per question."""

    temperature: float = Field(0.0, ge=0)
    """0: greedy."""


class SelfConsistencySettings(PathSettings):
    """Several solutions per question, and the majority's answer."""

    samples: int = Field(10, ge=1)
    """Solutions of one question."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token is drawn."""

    @property
    def rows(self) -> int:
        """All samples at once."""
        return self.samples


class Samples:
    """The solutions sampled for one question, whose majority answers. A key is a sample's number, from 0.

    A sample depends on the question, ``name``, the seed and its number: methods that sample under one name choose among
    the same solutions, and the difference between them is their choice alone. ``asked`` is what the model is asked, if
    not the question's own text.
    """

    def __init__(
        self,
        question: Question,
        engine: Engine,
        seed: int,
        settings: PathSettings,
        *,
        name: str,
        count: int = 1,
        temperature: float = 0.0,
        asked: str | None = None,
    ) -> None:
        self.builder = TreeBuilder(question, engine.prompt(question.text if asked is None else asked))
        self._engine, self._seed, self._settings = engine, seed, settings
        self._name, self._count, self._temperature = name, count, temperature
        self._asked = 0
        self._found: dict[int, Completion] = {}

    def begin(self) -> list[tuple[int, Request]]:
        """All of them."""
        return self._ask(self._count)

    def receive(self, key: int, completion: Completion) -> list[tuple[int, Request]]:
        """Keep a solution; nothing follows it."""
        self._found[key] = completion
        return []

    @property
    def over(self) -> bool:
        """Whether every sample that was asked for is there."""
        return len(self._found) == self._asked

    @property
    def completions(self) -> list[Completion]:
        """The samples in the order they were asked for."""
        return [self._found[number] for number in range(self._asked)]

    def answers(self) -> list[str | None]:
        """The answer that each sample states."""
        return [stated_answer(self.builder.question, completion.text) for completion in self.completions]

    def solution(self) -> Solution:
        """The majority's answer, equal values counted together; its confidence is its share of the samples."""
        self._grow()
        answers = self.answers()
        return self._answered(*vote(answers, [1.0] * len(answers)))

    def _grow(self) -> list[int]:
        """Cut the samples into steps and merge equal ones in the tree; the last node of each sample."""
        return [
            self.builder.add_solution(
                found.token_ids, self._engine.pieces(found.token_ids), found.trace, final=found.finish == "eos"
            )
            for found in self.completions
        ]

    def _answered(self, answer: str | None, confidence: float) -> Solution:
        """This answer, with the tree and the price of all samples."""
        tokens = sum(len(completion.token_ids) for completion in self.completions)
        return Solution(self.builder.question.id, answer, confidence, self.builder.build(), tokens)

    def _ask(self, count: int) -> list[tuple[int, Request]]:
        new = range(self._asked, self._asked + count)
        self._asked = new.stop
        return [(number, self._request(number)) for number in new]

    def _request(self, number: int) -> Request:
        return Request(
            prefix_ids=self.builder.prompt_ids,
            seed=seed_of(self._name, self._seed, self.builder.question.id, number),
            max_new_tokens=self._settings.max_tokens,
            temperature=self._temperature,
            top_p=self._settings.top_p,
        )


class ChainOfThought(Method[ChainOfThoughtSettings]):
    """One solution, greedy unless a temperature is set. Its confidence is 1: one path cannot disagree."""

    name = "chain_of_thought"
    settings_type = ChainOfThoughtSettings

    def search(self, question: Question, engine: Engine, seed: int) -> Samples:
        """One sample."""
        temperature = self.settings.temperature
        return Samples(question, engine, seed, self.settings, name=self.name, temperature=temperature)

    def settles(self, step: Step) -> bool:
        """There is no other path."""
        return True


class SelfConsistency(Method[SelfConsistencySettings]):
    """Several sampled solutions; answers of equal value vote together. The confidence is the share of the samples."""

    name = "self_consistency"
    settings_type = SelfConsistencySettings

    def search(self, question: Question, engine: Engine, seed: int) -> SeveralSamples:
        """All samples."""
        return SeveralSamples(question, engine, seed, self.settings)


class SeveralSamples(Samples):
    """The samples of self-consistency."""

    def __init__(self, question: Question, engine: Engine, seed: int, settings: SelfConsistencySettings) -> None:
        number, temperature = settings.samples, settings.temperature
        super().__init__(
            question, engine, seed, settings, name=SelfConsistency.name, count=number, temperature=temperature
        )
