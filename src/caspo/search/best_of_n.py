"""Best of n by confidence: several sampled solutions, and the answer of the one that the model is most confident of.

The peers that choose among whole solutions without a reward model rank them by the mean log p of their tokens
(thinkbooster's `perplexity` scorer, SGLang's token-length-normalised choice); the sum would favour the shortest. The
solutions are those of self-consistency with the same settings and seed: what differs is the choice.
"""

from __future__ import annotations

from caspo.confidence import SIGNALS
from caspo.engines.base import Engine
from caspo.search.base import Method, SignalName
from caspo.search.sampled import SelfConsistencySettings, SeveralSamples
from caspo.search.vote import agreement
from caspo.types import Question, Solution

__all__ = ["BestOfN", "BestOfNSettings"]


class BestOfNSettings(SelfConsistencySettings):
    """Several solutions per question, and the answer of the most confident one."""

    signal: SignalName = "perplexity"
    """Measured over the whole solution, higher is better; `perplexity` is the mean log p of its tokens, nats."""


class BestOfN(Method[BestOfNSettings]):
    """The most confident of several sampled solutions. The confidence is the share of the samples that agree with it.

    A solution without an answer cannot win; of equally confident ones the first does.
    """

    name = "best_of_n"
    settings_type = BestOfNSettings

    def search(self, question: Question, engine: Engine, seed: int) -> _Best:
        """All samples."""
        return _Best(question, engine, seed, self.settings)


class _Best(SeveralSamples):
    """The most confident one answers."""

    def __init__(self, question: Question, engine: Engine, seed: int, settings: BestOfNSettings) -> None:
        super().__init__(question, engine, seed, settings)
        self._signal = SIGNALS[settings.signal]

    def solution(self) -> Solution:
        ends = self._grow()
        answers = self.answers()
        scores = {
            number: self._signal(completion.trace)
            for number, completion in enumerate(self.completions)
            if answers[number] is not None
        }
        if not scores:
            return self._answered(None, 0.0)
        best = max(scores, key=lambda number: scores[number])
        for end in ends:
            self.builder.decide(end, "finished" if end == ends[best] else "dropped")
        return self._answered(answers[best], agreement(answers, best))
