"""ReASC, Reliability-Aware Adaptive Self-Consistency (Kim et al. 2026, arXiv 2601.02970), after its public code
(junseokkim00/ReASC).

Adaptive-Consistency in two stages that look at the model's confidence S in a sample:

- The first sample answers alone if its S is at or above a gate (`sure_above`).
- Otherwise samples are drawn until the leading answer is probably that of the majority, as in Adaptive-Consistency, but a
  sample counts max(1, exp(``sharpness`` (S - ``mean``) / ``spread``)) instead of 1. The answer with most weight is given.

S is that of DeepConf: the mean confidence of the lowest 10% of the groups of ``window`` tokens, nats. The paper measures a
token by minus the mean log p of its ``top_k`` most probable ones, less log k: a constant that cancels in the weights, and
shifts mean and gate.

What S is worth differs from model to model, so gate, mean and spread come from labelled questions (`ReASC.calibrated`): mean
and spread are those of their first samples; the gate is the lowest S from which on a share ``precision`` of these is right,
but no lower than the mean S of the right ones. Without them nothing is known of S, all samples count 1, and there is no
gate: that is Adaptive-Consistency. The paper also calibrates without labels (a mixture of two Gaussians); we do not.

Ours: a first sample without an answer never answers. Where the public code also forms shorter groups at a trace's end, all
of ours are full, as DeepConf's; and where it takes gate, mean and spread from the lowest group alone, we take them from S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from caspo.core.errors import DataError
from caspo.engines.base import Completion, Engine
from caspo.records import Question
from caspo.search.adaptive import AdaptiveConsistencySettings, doubt
from caspo.search.base import Method, Search, Tokens, Unit
from caspo.search.deepconf import MEASURES, token_confidences
from caspo.search.sampled import answers_of, grow, several, solution
from caspo.search.vote import vote
from caspo.trees import TreeBuilder

__all__ = ["ReASC", "ReASCSettings", "gate"]

_MOST = 100.0
"""A sample weighs e to this power at most, so that sums of weights are finite."""


class ReASCSettings(AdaptiveConsistencySettings):
    """One sample where it suffices, otherwise samples that count by confidence; `mean`, `spread` and `sure_above` are to be
    calibrated."""

    sure_above: float | None = None
    """A first sample of at least this confidence answers alone, nats; null: none does."""
    mean: float | None = None
    """Mean confidence of a sample, nats; null: all samples count 1."""
    spread: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the confidence of samples, nats; goes with ``mean``."""
    sharpness: float = Field(0.7, ge=0)
    """How much more a confident sample counts: by this power of e for each standard deviation above the mean."""
    window: Tokens = 128
    """Tokens of a group; a shorter solution is one group."""
    top_k: Annotated[int, Field(ge=2), Unit("paths")] = 20  # side by side, as DeepConf's
    """Most probable tokens whose log p make a token's confidence."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.mean is None) != (self.spread is None):
            raise ValueError("mean and spread go together: give both, or neither for samples that all count 1")
        return self


class ReASC(Method[ReASCSettings]):
    """Adaptive self-consistency by confidence. The confidence is the answer's share of the weight of all samples drawn."""

    name, title = "reasc", "ReASC"
    settings_type = ReASCSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The first sample, and unless it is sure enough waves of others."""
        settings, found = self.settings, list[Completion]()
        answers, weights = list[str | None](), list[float]()
        while len(found) < settings.samples and doubt(answers, weights) > 1 - settings.level:
            wave = range(len(found), min(len(found) + (settings.wave if found else 1), settings.samples))
            new = yield several(tree, settings, seed, wave, settings.top_k)
            grow(tree, new)
            found += new
            answers += answers_of(tree, new)
            weights += map(self._weight, new)
            if len(found) == 1 and answers[0] is not None and self._passes(found[0]):
                break
        return solution(tree, found, *vote(answers, weights))

    def measure(self, sample: Completion) -> float:
        """The confidence S of a whole sample, nats."""
        return MEASURES["bottom"](token_confidences(sample), self.settings.window)

    def _passes(self, sample: Completion) -> bool:
        return self.settings.sure_above is not None and self.measure(sample) >= self.settings.sure_above

    def _weight(self, sample: Completion) -> float:
        mean, spread, sharpness = self.settings.mean, self.settings.spread, self.settings.sharpness
        if mean is None or spread is None:
            return 1.0
        return math.exp(min(max(0.0, sharpness * (self.measure(sample) - mean) / spread), _MOST))

    def calibrated(
        self,
        questions: Sequence[Question],
        engine: Engine,
        right: Callable[[Question, str | None], bool],
        seed: int = 0,
        precision: float = 0.9,
    ) -> ReASC:
        """The same with mean, spread and gate of the first samples of ``questions``, which are not to be measured on.

        Args:
            questions: with known answers; the paper takes 128.
            engine: the model that is to be searched with.
            right: whether an answer is right: the grader of a task.
            seed: of the samples.
            precision: share of the samples that pass the gate that shall be right.

        Raises:
            DataError: no questions.
        """
        if not questions:
            raise DataError("ReASC cannot be calibrated on no questions. Give some with known answers; the paper takes 128.")
        settings = self.settings
        trees = [TreeBuilder(question, engine.prompt(question.text), engine) for question in questions]
        requests = [request for tree in trees for request in several(tree, settings, seed, range(1), settings.top_k)]
        found = engine.generate(requests)
        confidences = [self.measure(sample) for sample in found]
        answers = [answers_of(tree, [sample])[0] for tree, sample in zip(trees, found, strict=True)]
        verdicts = [right(question, answer) for question, answer in zip(questions, answers, strict=True)]
        spread = float(np.std(confidences))
        known = {"mean": float(np.mean(confidences)), "spread": spread} if spread > 0 else {"mean": None, "spread": None}
        return ReASC(settings.model_copy(update={**known, "sure_above": gate(confidences, verdicts, precision)}))


def gate(confidences: Sequence[float], right: Sequence[bool], precision: float) -> float | None:
    """The confidence from which on a share ``precision`` of the samples is right, or the largest share that there is; no
    lower than the mean of the right ones. None if none is right."""
    if not any(right):
        return None
    ranked = sorted(zip(confidences, right, strict=True))
    shares = [float(np.mean([verdict for c, verdict in ranked if c >= confidence])) for confidence, _ in ranked]
    best = next((at for at, share in enumerate(shares) if share >= precision), int(np.argmax(shares)))
    return max(ranked[best][0], float(np.mean([confidence for confidence, verdict in ranked if verdict])))
