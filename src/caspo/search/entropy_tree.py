"""Entropy-Tree (Wei et al. 2026, arXiv 2601.15296): sampled paths that part where the model is unsure.

The paper's: the tree grows only at tokens whose distribution has a high entropy, where several continuations are sampled;
what stands before is shared. How unsure the model is of its answer is the predictive entropy, that of the distribution over
the different answers of the leaves.

We could read no more than the paper's abstract and introduction, and there is no public code, so the rest is ours. The first
path is the first sample of self-consistency. Then the place of the highest entropy in any path so far, if above
`branch_above`, is branched: new continuations are sampled from what stands before its token, until there are `paths` leaves
or no place is left. A place is branched once. Leaves vote, one vote each.

The tokens before a branch are decoded once: where paths share much, n leaves cost less than n samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from pydantic import Field

from caspo.answers import group_answers
from caspo.confidence import SIGNALS
from caspo.engines.base import Completion, Engine, Request
from caspo.engines.rows import shared_length
from caspo.records import Solution
from caspo.search.base import Method, Paths, PathSettings, Search
from caspo.search.sampled import Head, SelfConsistency, answers_of, grow, sample
from caspo.search.vote import vote
from caspo.trees import TreeBuilder, seed_of

__all__ = ["EntropyTree", "EntropyTreeSettings"]


class EntropyTreeSettings(PathSettings):
    """Where sampled paths part, and how often."""

    paths: Paths = 10
    """Leaves, at most; fewer where the model is unsure of few tokens."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token is drawn."""
    branch_above: float = Field(0.7, ge=0)
    """Entropy of a token's distribution above which paths may part at it, nats; before temperature."""
    children: Paths = 2
    """Continuations that are sampled at such a token, that of its path included; 1 never branches."""
    wave: Paths = 1
    """Continuations sampled at a time: 1 looks for the highest entropy after each; more is faster with few questions."""

    @property
    def rows(self) -> int:
        """All paths that there may be."""
        return self.paths


class _Place(NamedTuple):
    """A token at which a path may be left. The first in order is branched first: the most uncertain, then the oldest."""

    certainty: float
    """Minus the entropy, nats."""
    path: int
    at: int
    """Tokens of the path before it."""
    child: int
    """Which continuation is to be sampled here; 0 is the path itself."""


class EntropyTree(Method[EntropyTreeSettings]):
    """The majority of the leaves. The confidence is exp(-H), H the entropy of the distribution over their answers, nats.

    That is 1 if all agree and 1/n for n answers that are equally frequent; leaves without an answer agree with nobody.
    """

    name, title = "entropy_tree", "Entropy-Tree"
    settings_type = EntropyTreeSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The first path, then branches by entropy."""
        settings, paths, spent = self.settings, list[Completion](), 0
        open_places = list[_Place]()
        first = sample(tree, settings, SelfConsistency.name, seed, 0, settings.temperature)
        heads, requests = [Head()], [replace(first, keep=True)]
        while requests:
            found = yield requests
            spent += sum(one.decoded for one in found)
            for head, one in zip(heads, found, strict=True):
                path = head.joined(one, engine)
                open_places += self._places(path, paths)
                paths.append(path)
            grow(tree, paths[-len(found) :])
            open_places.sort()
            number = min(settings.wave, settings.paths - len(paths))
            chosen, open_places = open_places[:number], open_places[number:]
            heads = [Head(paths[place.path].token_ids[: place.at], paths[place.path].trace[: place.at]) for place in chosen]
            requests = [self._request(tree, head, place, seed) for head, place in zip(heads, chosen, strict=True)]
        answers = answers_of(tree, paths)
        answer, _ = vote(answers, [1.0] * len(answers))
        confidence = 0.0 if answer is None else _certainty(answers)
        return Solution(tree.question.id, answer, confidence, tree.build(), spent, answers=tuple(answers))

    def _places(self, path: Completion, before: Sequence[Completion]) -> list[_Place]:
        """The unsure tokens of a new path; what it shares with paths before it, the token where it parts included, they
        have."""
        settings = self.settings
        fixed = max((shared_length(path.token_ids, other.token_ids) + 1 for other in before), default=0)
        if fixed >= len(path.token_ids):
            return []
        SIGNALS["entropy"](path.trace)  # says so where the engine told nothing, or no numbers
        entropies = path.trace.entropy.tolist()
        return [
            _Place(-entropies[at], len(before), at, child)
            for at in range(fixed, len(entropies))
            if entropies[at] > settings.branch_above
            for child in range(1, settings.children)
        ]

    def _request(self, tree: TreeBuilder, head: Head, place: _Place, seed: int) -> Request:
        settings = self.settings
        return Request(
            prefix_ids=tree.prompt_ids + head.token_ids,
            seed=seed_of(self.name, seed, tree.question.id, head.token_ids, place.child),
            max_new_tokens=settings.longest_path - len(head.token_ids),
            temperature=settings.temperature,
            top_p=settings.top_p,
            keep=True,
        )


def _certainty(answers: Sequence[str | None]) -> float:
    shares = np.bincount(group_answers(answers)) / len(answers)
    return math.exp(float(np.sum(shares * np.log(shares))))
