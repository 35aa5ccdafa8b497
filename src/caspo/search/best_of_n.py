"""Best of n by confidence: several sampled solutions, and the answer of the one that the model is most confident of.

The peers that choose among whole solutions without a reward model rank them by the mean log p of their tokens
(thinkbooster's `perplexity` scorer, SGLang's token-length-normalised choice); the sum would favour the shortest. The
solutions are those of self-consistency with the same settings and seed: what differs is the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from caspo.confidence import SIGNALS
from caspo.engines.base import Engine
from caspo.search.base import SignalName
from caspo.search.sampled import Samples, SelfConsistency, SelfConsistencySettings, sample
from caspo.search.vote import agreement
from caspo.types import Question, Solution

__all__ = ["BestOfN", "BestOfNSettings"]


class BestOfNSettings(SelfConsistencySettings):
    """Several solutions per question, and the answer of the most confident one."""

    signal: SignalName = "perplexity"
    """Measured over the whole solution, higher is better; `perplexity` is the mean log p of its tokens, nats."""


class BestOfN:
    """The most confident of several sampled solutions."""

    name = "best_of_n"

    def __init__(self, settings: BestOfNSettings | None = None) -> None:
        self.settings = settings or BestOfNSettings()

    def solve(
        self,
        questions: Sequence[Question],
        engine: Engine,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Solution]:
        """The best solution's answer; its confidence is the share of the samples that agree with it.

        A solution without an answer cannot win; of equally confident ones the first does.
        """
        settings = self.settings
        found = sample(
            SelfConsistency.name, questions, engine, seed, settings.samples, settings.temperature, settings, on_done
        )
        return [_best(samples, settings.signal, engine) for samples in found]


def _best(samples: Samples, signal: str, engine: Engine) -> Solution:
    ends = samples.grow(engine)
    answers = samples.answers()
    scores = {
        number: SIGNALS[signal](completion.trace)
        for number, completion in enumerate(samples.completions)
        if answers[number] is not None
    }
    if not scores:
        return samples.solution(None, 0.0)
    best = max(scores, key=lambda number: scores[number])
    for end in ends:
        samples.builder.decide(end, "finished" if end == ends[best] else "dropped")
    return samples.solution(answers[best], agreement(answers, best))
