"""Best of n by confidence: several sampled solutions, and the answer of the one that the model is most confident of.

The peers that choose among whole solutions without a reward model rank them by the mean log p of their tokens
(thinkbooster's `perplexity` scorer, SGLang's token-length-normalised choice); the sum would favour the shortest. The
solutions are those of self-consistency with the same settings and seed: what differs is the choice.
"""

from __future__ import annotations

from caspo.confidence import SIGNALS
from caspo.engines.base import Engine
from caspo.search.base import Method, Search, SignalName
from caspo.search.sampled import SelfConsistencySettings, answers_of, grow, several, solution
from caspo.search.vote import agreement
from caspo.trees import TreeBuilder

__all__ = ["BestOfN", "BestOfNSettings"]


class BestOfNSettings(SelfConsistencySettings):
    """Several solutions per question, and the answer of the most confident one."""

    signal: SignalName = "perplexity"
    """Measured over the whole solution, higher is better; `perplexity` is the mean log p of its tokens, nats."""


class BestOfN(Method[BestOfNSettings]):
    """The most confident of several sampled solutions. The confidence is the share of the samples that agree with it.

    A solution without an answer cannot win; of equally confident ones the first does.
    """

    name, title = "best_of_n", "Best of n"
    settings_type = BestOfNSettings
    alike = True

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """All samples."""
        found = yield several(tree, self.settings, seed, range(self.settings.samples))
        ends, answers = grow(tree, found), answers_of(tree, found)
        signal = SIGNALS[self.settings.signal]
        scores = {number: signal(found[number].trace) for number, answer in enumerate(answers) if answer is not None}
        if not scores:
            return solution(tree, found, None, 0.0)
        best = max(scores, key=lambda number: scores[number])
        for end in ends:
            tree.decide(end, "finished" if end == ends[best] else "dropped")
        return solution(tree, found, answers[best], agreement(answers, best))
