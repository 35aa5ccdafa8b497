"""Whole solutions: chain of thought (one) and self-consistency (several, majority vote; Wang et al. 2022).

`Samples` is one question's sampled solutions; best of n and DeepConf choose among the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from caspo.answers import extract_answer
from caspo.engines.base import Completion, Engine, Request
from caspo.search.base import PathSettings, run
from caspo.search.vote import vote
from caspo.trees import TreeBuilder, seed_of
from caspo.types import Question, Solution

__all__ = [
    "ChainOfThought",
    "ChainOfThoughtSettings",
    "Samples",
    "SelfConsistency",
    "SelfConsistencySettings",
    "sample",
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
    """Of sampling: logits are divided by it."""

    @property
    def rows(self) -> int:
        """All samples at once."""
        return self.samples


class Samples:
    """The solutions sampled for one question. A key is a sample's number, from 0.

    A sample depends on the question, ``name``, the seed and its number: methods that sample under one name choose among
    the same solutions, and the difference between them is their choice alone.
    """

    def __init__(
        self, builder: TreeBuilder, name: str, seed: int, count: int, temperature: float, settings: PathSettings
    ) -> None:
        self.builder = builder
        self._name, self._seed, self._temperature, self._settings = name, seed, temperature, settings
        self._count = count
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
        return [extract_answer(completion.text) for completion in self.completions]

    def grow(self, engine: Engine) -> list[int]:
        """Cut the samples into steps and merge equal ones in the tree; the last node of each sample."""
        return [
            self.builder.add_solution(
                found.token_ids, engine.pieces(found.token_ids), found.trace, final=found.finish == "eos"
            )
            for found in self.completions
        ]

    def solution(self, answer: str | None, confidence: float) -> Solution:
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


class ChainOfThought:
    """One solution, greedy unless a temperature is set."""

    name = "chain_of_thought"

    def __init__(self, settings: ChainOfThoughtSettings | None = None) -> None:
        self.settings = settings or ChainOfThoughtSettings()

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """One solution per question; its confidence is 1 where it has an answer: one path cannot disagree."""
        settings = self.settings
        return _majority(sample(self.name, questions, engine, seed, 1, settings.temperature, settings, on_done), engine)


class SelfConsistency:
    """Several sampled solutions; answers of equal value vote together."""

    name = "self_consistency"

    def __init__(self, settings: SelfConsistencySettings | None = None) -> None:
        self.settings = settings or SelfConsistencySettings()

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """The majority's answer; its confidence is its share of the samples."""
        settings = self.settings
        found = sample(self.name, questions, engine, seed, settings.samples, settings.temperature, settings, on_done)
        return _majority(found, engine)


def sample(
    name: str,
    questions: Sequence[Question],
    engine: Engine,
    seed: int,
    count: int,
    temperature: float,
    settings: PathSettings,
    on_done: Callable[[int], None] | None,
    ask: Callable[[str], str] = str,
) -> list[Samples]:
    """``count`` solutions of each question, all in one batch; ``ask`` makes what the model is asked of its text."""
    found = [
        Samples(TreeBuilder(q, engine.prompt(ask(q.text))), name, seed, count, temperature, settings) for q in questions
    ]
    run(found, engine, on_done)
    return found


def _majority(found: Sequence[Samples], engine: Engine) -> list[Solution]:
    solutions = []
    for samples in found:
        samples.grow(engine)
        answers = samples.answers()
        solutions.append(samples.solution(*vote(answers, [1.0] * len(answers))))
    return solutions
