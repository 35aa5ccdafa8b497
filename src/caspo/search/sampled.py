"""Whole solutions: chain of thought (one) and self-consistency (several, majority vote; Wang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from caspo.answers import extract_answer
from caspo.engines.base import Completion, Engine, Request
from caspo.search.base import PathSettings
from caspo.search.vote import vote
from caspo.trees import TreeBuilder, seed_of
from caspo.types import Question, Solution

__all__ = ["ChainOfThought", "ChainOfThoughtSettings", "SelfConsistency", "SelfConsistencySettings"]


class ChainOfThoughtSettings(PathSettings):
    """One solution per question."""

    temperature: float = Field(0.0, ge=0)
    """0: greedy."""


class SelfConsistencySettings(PathSettings):
    """Several solutions per question, and the majority's answer."""

    samples: int = Field(10, ge=1)
    temperature: float = Field(0.7, gt=0)


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
        return _sample(self.name, questions, engine, seed, 1, self.settings.temperature, self.settings, on_done)


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
        return _sample(self.name, questions, engine, seed, settings.samples, settings.temperature, settings, on_done)


def _sample(
    name: str,
    questions: Sequence[Question],
    engine: Engine,
    seed: int,
    samples: int,
    temperature: float,
    settings: PathSettings,
    on_done: Callable[[int], None] | None,
) -> list[Solution]:
    builders = [TreeBuilder(q, engine.prompt(q.text)) for q in questions]
    requests = [
        Request(
            prefix_ids=builder.prompt_ids,
            seed=seed_of(name, seed, builder.question.id, sample),
            max_new_tokens=settings.max_tokens,
            temperature=temperature,
            top_p=settings.top_p,
        )
        for builder in builders
        for sample in range(samples)
    ]

    def receive(place: int, completion: Completion) -> list[Request]:
        assert on_done is not None
        on_done(1)
        return []

    completions = iter(engine.generate(requests, receive if on_done is not None else None))
    solutions = []
    for builder in builders:
        answers: list[str | None] = []
        tokens = 0
        for _ in range(samples):
            completion = next(completions)
            tokens += len(completion.token_ids)
            builder.add_solution(
                completion.token_ids,
                engine.pieces(completion.token_ids),
                completion.trace,
                final=completion.finish == "eos",
            )
            answers.append(extract_answer(completion.text))
        answer, share = vote(answers, [1.0] * samples)
        solutions.append(Solution(builder.question.id, answer, share, builder.build(), tokens))
    return solutions
