"""A scripted engine that keeps what it decoded, random scripts, and short ways to look at a solution. No torch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from caspo.engines.base import Completion, OnDone, Request
from caspo.records import ROOT, Question, Solution
from caspo.testing.scripted import Script, Scripted, ScriptedEngine

Q = Question("Q", "5", id="q")
FIVE, SIX, SEVEN = "The answer is 5.", "The answer is 6.", "The answer is 7."


class Recording(ScriptedEngine):
    """Keeps what it was asked and what it decoded, and may work in any order."""

    def __init__(self, script: Script, order: int | None = None) -> None:
        super().__init__(script)
        self.requests: list[Request] = []
        self.completions: list[Completion] = []
        self.order = order

    @property
    def tokens(self) -> int:
        return sum(completion.decoded for completion in self.completions)

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """In order, or in an order drawn at random."""
        rng = None if self.order is None else random.Random(self.order)
        asked, done = list(requests), dict[int, Completion]()
        waiting = list(range(len(asked)))
        while waiting:
            place = waiting.pop(0 if rng is None else rng.randrange(len(waiting)))
            done[place] = self.play(asked[place])
            more = on_done(place, done[place]) if on_done is not None else []
            waiting += range(len(asked), len(asked) + len(more))
            asked += more
        self.requests += asked
        self.completions += [done[place] for place in range(len(asked))]
        return [done[place] for place in range(len(asked))]


def solve(method: Any, script: Script, seed: int = 0) -> Solution:
    solutions: list[Solution] = method.solve([Q], ScriptedEngine(script), seed)
    (solution,) = solutions
    return solution


def plain(solution: Solution) -> Any:
    """A solution as something that can be compared."""
    nodes = [
        (n.parent, n.step.text, n.step.token_ids, n.step.trace.entropy.tolist(), n.count, n.final, n.decision)
        for n in solution.tree.nodes
    ]
    return (solution.question_id, solution.answer, solution.confidence, solution.generated_tokens, nodes)


def ends(*options: tuple[str, float], **more: Any) -> list[Scripted]:
    """Whole solutions with their probabilities."""
    return [Scripted(text, weight, eos=True, **more) for text, weight in options]


def counts(solution: Solution) -> Counter[str]:
    """How often each first step was sampled."""
    return Counter({n.step.text: n.count for n in solution.tree.children(ROOT)})


def decisions(solution: Solution) -> dict[str, str]:
    tree = solution.tree
    return {"".join(n.step.text for n in tree.path(node.id)): node.decision for node in tree.nodes}


def wild(seed: int) -> Script:
    """A random but fixed model that ends within some lines, with an answer or without."""

    def script(text: str) -> list[Scripted]:
        if not text.endswith("\n"):
            return []  # inside an entry
        rng = random.Random(f"{seed} {text}")
        lines = text.count("\n")
        options = []
        for i in range(rng.randint(1, 4)):
            end = lines > 4 or rng.random() < 0.3
            line = f"The answer is {rng.randint(1, 3)}." if end and rng.random() < 0.8 else f"{i} + {lines} = {i + lines}"
            options.append(Scripted(line if end else f"{line}\n", rng.randint(1, 9), eos=end))
        return options

    return script


PROSE = [
    "Tom has 3 pens.\n", "3 + 4 = 7\n", "So the total is:\n\n", "1. First\n", "2. Second: 3 = 3\n", "- one\n",
    "  more\n", "\\[\nx = 1\n\\]\n", "```\ny\n```\n", "### Part\n", "Step 2: Count\n", "**Bold**\n", "½ of it.\n\n",
    "| a |\n", "---\n", "<think>\n", "</think>\n", "Then it is so, ", "A. ",
]  # fmt: skip
"""What real models write, to be put together."""


def prose(seed: int) -> Script:
    """A random but fixed model that writes paragraphs, lists, formulas and thinking, and ends within some pieces."""

    def script(text: str) -> list[Scripted]:
        if not text.endswith(("\n", ", ", "A. ")):
            return []  # inside an entry
        rng = random.Random(f"{seed} {text}")
        long = len(text) > 120
        options = [Scripted(piece, rng.randint(1, 9), rng.random()) for piece in rng.sample(PROSE, rng.randint(1, 4))]
        return options if not long else [Scripted(f"The answer is {rng.randint(1, 3)}.", 1, rng.random(), eos=True)]

    return script
