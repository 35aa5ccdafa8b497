"""Self-consistency that stops early: Adaptive-Consistency (Aggarwal et al. 2023, arXiv 2305.11860) and Early-Stopping
Self-Consistency, ESC (Li et al. 2024, arXiv 2401.10480).

Both draw the samples of self-consistency in its order and let the majority of what was drawn answer. They differ in when
that is enough: for Adaptive-Consistency once the leading answer is probably that of the majority, for ESC once a whole
window of samples agrees. Samples come in waves, and only a whole wave is looked at: which sample of a batch ends first
depends on what else is in the batch.

A sample without an answer agrees with nobody, where the public code of ESC counts those as one more answer. That code also
answers with the window that agreed; the paper, and we, with the majority of all samples drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from caspo.answers import group_answers
from caspo.engines.base import Completion, Engine
from caspo.search.base import Method, Paths, Search
from caspo.search.sampled import SelfConsistencySettings, answers_of, grow, majority, several
from caspo.search.vote import tally
from caspo.trees import TreeBuilder

__all__ = [
    "ESC", "AdaptiveConsistency", "AdaptiveConsistencySettings", "ESCSettings", "doubt",
]  # fmt: skip


def doubt(answers: Sequence[str | None], weights: Sequence[float]) -> float:
    """The probability that the leading answer is not the more frequent one of the first two.

    Of those two it has the share p of the samples, of which nothing is known before: after weights a and b for them,
    p ~ Beta(a + 1, b + 1), and this is P(p < 1/2). Without any answer 1/2.
    """
    from scipy.special import betainc  # takes a while to load

    first, second = ([total for _, total in tally(answers, weights)] + [0.0, 0.0])[:2]
    return float(betainc(first + 1, second + 1, 0.5))


class AdaptiveConsistencySettings(SelfConsistencySettings):
    """Samples are drawn until the majority is clear. ``samples`` is the most there may be (40 in the paper)."""

    level: float = Field(0.95, gt=0.5, le=1)
    """Probability that the leading answer is the majority's with which no more samples are drawn; 1 draws all."""
    wave: Paths = 1
    """Samples drawn at a time: 1 looks at the answers after each; more is faster where questions are few."""


class AdaptiveConsistency(Method[AdaptiveConsistencySettings]):
    """Self-consistency that stops once its majority is clear. The confidence is the share of the samples drawn."""

    name, title = "adaptive_consistency", "Adaptive-Consistency"
    settings_type = AdaptiveConsistencySettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """Waves of samples."""
        settings, found = self.settings, list[Completion]()
        while len(found) < settings.samples and doubt(answers_of(tree, found), [1.0] * len(found)) > 1 - settings.level:
            wave = range(len(found), min(len(found) + settings.wave, settings.samples))
            found += yield several(tree, settings, seed, wave)
            grow(tree, found[wave.start :])
        return majority(tree, found)


class ESCSettings(SelfConsistencySettings):
    """Samples are drawn until a window of them agrees. ``samples`` is the most there may be (40 in the paper)."""

    window: Paths = 5
    """Samples drawn at a time; when all of them have the same answer no more are drawn."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.window > self.samples:
            raise ValueError(f"window is {self.window}, more than the {self.samples} samples there may be; lower it")
        return self


class ESC(Method[ESCSettings]):
    """Self-consistency that stops once a window of samples agrees. The confidence is the share of the samples drawn."""

    name, title = "esc", "ESC"
    settings_type = ESCSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """Windows of samples."""
        settings, found = self.settings, list[Completion]()
        while len(found) < settings.samples and not _agree(answers_of(tree, found[-settings.window :])):
            window = range(len(found), min(len(found) + settings.window, settings.samples))
            found += yield several(tree, settings, seed, window)
            grow(tree, found[window.start :])
        return majority(tree, found)


def _agree(answers: Sequence[str | None]) -> bool:
    return None not in answers and len(set(group_answers(answers))) == 1
