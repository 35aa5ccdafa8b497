"""DiPT, Diversified Perspective-Taking (Just et al. 2024, arXiv 2409.06241): look at a problem from several sides first.

At inference DiPT is a prompt: the model weighs every option of a multiple-choice question, or more than one way to solve
an open one, before it commits itself to an answer. The paper adds such a prompt to chain of thought. The wording here is
ours: a paraphrase of what it asks for, not its text.
"""

from __future__ import annotations

from pydantic import Field

from caspo.engines.base import Engine
from caspo.search.base import Method, PathSettings, Search
from caspo.search.sampled import answers_of, grow, sample, solution
from caspo.search.vote import vote
from caspo.trees import TreeBuilder

__all__ = ["PERSPECTIVES", "DiPT", "DiPTSettings"]

PERSPECTIVES = (
    "Look at this from more than one side before you answer. If options are given, go through every option and say what "
    "speaks for and against it. Otherwise solve the problem in at least two different ways and compare their results. "
    "Then decide. The last line is: The answer is X."
)
"""What is asked for after the question."""


class DiPTSettings(PathSettings):
    """One greedy solution that considers several perspectives."""

    instruction: str = Field(PERSPECTIVES, min_length=1)
    """Stands after the question, as a paragraph of its own."""


class DiPT(Method[DiPTSettings]):
    """Chain of thought that looks at the problem from several sides.

    Its confidence is 1 where it has an answer: one path cannot disagree. The tree holds the question as it was, and the
    prompt with the instruction.
    """

    name, title = "dipt", "DiPT"
    settings_type = DiPTSettings

    @property
    def after(self) -> str:
        """The instruction."""
        return f"\n\n{self.settings.instruction}"

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """One greedy solution, of which the answer that is stated last counts."""
        found = yield [sample(tree, self.settings, self.name, seed, 0, temperature=0.0)]
        grow(tree, found)
        return solution(tree, found, *vote(answers_of(tree, found), [1.0]))
