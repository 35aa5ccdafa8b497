"""Whole solutions: chain of thought (one) and self-consistency (several, majority vote; Wang et al. 2022).

What follows their classes is what all methods that sample whole solutions share: best of n, DeepConf and others too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pydantic import Field

from caspo.answers import stated_answer
from caspo.engines.base import Completion, Engine, Request
from caspo.records import Solution, Step, TokenTrace
from caspo.search.base import Method, Paths, PathSettings, Search
from caspo.search.vote import vote
from caspo.steps import text_of
from caspo.trees import TreeBuilder, seed_of

__all__ = [
    "ChainOfThought", "ChainOfThoughtSettings", "Head", "SelfConsistency", "SelfConsistencySettings", "answers_of", "grow",
    "majority", "sample", "several", "solution",
]  # fmt: skip


class ChainOfThoughtSettings(PathSettings):
    """One solution per question."""

    temperature: float = Field(0.0, ge=0)
    """0: greedy."""


class ChainOfThought(Method[ChainOfThoughtSettings]):
    """One solution, greedy unless a temperature is set. Its confidence is 1: one path cannot disagree."""

    name, title = "chain_of_thought", "Chain of thought"
    settings_type = ChainOfThoughtSettings
    measured = thrifty = True

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """One sample."""
        settings = self.settings
        found = yield [sample(tree, settings, self.name, seed, 0, settings.temperature)]
        grow(tree, found)
        return majority(tree, found)

    def settles(self, step: Step) -> bool:
        """There is no other path."""
        return True


class SelfConsistencySettings(PathSettings):
    """Several solutions per question, and the majority's answer."""

    samples: Paths = 10
    """Solutions of one question."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token is drawn."""

    @property
    def rows(self) -> int:
        """All samples at once."""
        return self.samples


class SelfConsistency(Method[SelfConsistencySettings]):
    """Several sampled solutions; answers of equal value vote together. The confidence is the share of the samples."""

    name, title = "self_consistency", "Self-consistency"
    settings_type = SelfConsistencySettings
    measured = alike = True

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """All samples."""
        found = yield several(tree, self.settings, seed, range(self.settings.samples))
        grow(tree, found)
        return majority(tree, found)


def sample(tree: TreeBuilder, settings: PathSettings, name: str, seed: int, number: int, temperature: float) -> Request:
    """The request for one whole solution.

    It depends on the question, ``name``, the seed and its number: methods that sample under one name choose among the same
    solutions, and the difference between them is their choice alone.
    """
    return Request(
        prefix_ids=tree.prompt_ids,
        seed=seed_of(name, seed, tree.question.id, number),
        max_new_tokens=settings.longest_path,
        temperature=temperature,
        top_p=settings.top_p,
    )


def several(
    tree: TreeBuilder, settings: SelfConsistencySettings, seed: int, samples: Iterable[int], top_k: int = 0
) -> list[Request]:
    """Some of the samples of self-consistency, by their numbers."""
    name, temperature = SelfConsistency.name, settings.temperature
    return [replace(sample(tree, settings, name, seed, number, temperature), top_k=top_k) for number in samples]


class Head(NamedTuple):
    """What a path shares with the one that it leaves."""

    token_ids: tuple[int, ...] = ()
    trace: TokenTrace = TokenTrace.of(())

    def joined(self, rest: Completion, engine: Engine) -> Completion:
        """The whole path."""
        if not self.token_ids:
            return rest
        ids = self.token_ids + rest.token_ids
        return replace(
            rest, token_ids=ids, text=text_of(engine.pieces(ids)), trace=TokenTrace.join([self.trace, rest.trace])
        )


def grow(tree: TreeBuilder, found: Sequence[Completion]) -> list[int]:
    """Cut the samples into steps and merge equal ones in the tree; the last node of each sample."""
    return [tree.add_solution(one.token_ids, one.trace, final=one.finish == "eos") for one in found]


def answers_of(tree: TreeBuilder, found: Sequence[Completion]) -> list[str | None]:
    """The answer that each sample states, as far as one that was cut at its limit does."""
    return [stated_answer(tree.question, tree.said(one.text), ended=one.finish == "eos") for one in found]


def majority(tree: TreeBuilder, found: Sequence[Completion]) -> Solution:
    """The majority's answer, equal values counted together; its confidence is its share of the samples."""
    return solution(tree, found, *vote(answers_of(tree, found), [1.0] * len(found)))


def solution(tree: TreeBuilder, found: Sequence[Completion], answer: str | None, confidence: float) -> Solution:
    """This answer, with those of all samples, their tree and their price."""
    tokens, answers = sum(one.decoded for one in found), tuple(answers_of(tree, found))
    return Solution(tree.question.id, answer, confidence, tree.build(), tokens, answers=answers)
