"""Trees and pairs for the benchmarks, made by rule: no model is sampled.

Token ids are random, since neither side's time depends on them. Every tree is one path of right steps with siblings
beside it, which is how the demo's trees look: only a right step is continued in pairs. Nodes that no pair needs are left
out; neither side would compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from caspo.records import ROOT, Label, Node, Question, Step, StepPair, TokenTrace, Tree, Verdict

__all__ = ["VOCABULARY", "deep", "demo_like"]

VOCABULARY = 500
"""Token ids are below this, so that they fit every bundled model."""

# Measured on `caspo run recipes/demo/recipe.yaml`, seed 0, 2026-11-23: 58 of 80 trees have pairs, 254 in all (4.4 a tree,
# 1 to 11). Lengths are linear between the quantiles given, in tokens.
_DEMO_PROMPT = ((0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0), (29, 32, 34, 42, 44, 47, 54))
_DEMO_STEP = ((0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0), (7, 8, 15, 17, 18, 20, 26))
# One entry per tree: pairs at depth 1, 2, 3.
_DEMO_PAIRS = (
    *(6 * [(0, 1)]), *(3 * [(0, 0, 1)]), *(3 * [(1, 2)]), *(3 * [(0, 2, 1)]), *(2 * [(2, 4, 1)]), *(2 * [(3, 3)]),
    *(2 * [(0, 0, 2)]), *(2 * [(0, 3, 2)]), *(2 * [(5, 4)]), *(2 * [(0, 2)]), (0, 0, 4), (0, 4, 1), (2, 2, 1), (2,),
    (5, 1), (1, 1), (5, 3, 2), (0, 2, 2), (3,), (4, 2), (5,), (4,), (4, 0, 1), (3, 5), (1,), (2, 3, 1), (6, 4), (0, 4),
    (4, 4, 3), (0, 3, 1), (1, 3), (3, 4, 2), (4, 1, 1), (2, 2), (0, 1, 2), (3, 4), (4, 2, 3), (0, 3), (0, 5), (2, 1, 1),
    (1, 4, 1),
)  # fmt: skip


def demo_like(n: int, seed: int = 0) -> tuple[list[Tree], list[StepPair]]:
    """``n`` trees of the demo's sizes; 58 of them have exactly the demo's numbers of pairs at each depth."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(_DEMO_PAIRS))
    return _trees(
        [_DEMO_PAIRS[order[i % len(order)]] for i in range(n)],
        lambda: round(float(np.interp(rng.random(), *_DEMO_PROMPT))),
        lambda: round(float(np.interp(rng.random(), *_DEMO_STEP))),
        rng,
    )


def deep(
    n: int,
    *,
    depth: int = 6,
    pairs: int = 18,
    prompt_tokens: tuple[int, int] = (100, 150),
    step_tokens: tuple[int, int] = (20, 40),
    seed: int = 0,
) -> tuple[list[Tree], list[StepPair]]:
    """``n`` trees of ``depth`` steps with ``pairs`` pairs each, spread evenly over the depths.

    Lengths are uniform in the ranges given, both ends included. A depth with k pairs has k + 1 siblings; one tree packed
    holds prompt + (pairs + depth) steps.
    """
    rng = np.random.default_rng(seed)
    spread = tuple(pairs // depth + (level < pairs % depth) for level in range(depth))
    return _trees(
        n * [spread],
        lambda: int(rng.integers(prompt_tokens[0], prompt_tokens[1] + 1)),
        lambda: int(rng.integers(step_tokens[0], step_tokens[1] + 1)),
        rng,
    )


def _trees(
    shapes: Sequence[Sequence[int]],
    prompt_length: Callable[[], int],
    step_length: Callable[[], int],
    rng: np.random.Generator,
) -> tuple[list[Tree], list[StepPair]]:
    """One tree per shape; a shape gives the number of pairs at each depth."""

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(0, VOCABULARY, length))

    trees: list[Tree] = []
    pairs: list[StepPair] = []
    for number, shape in enumerate(shapes):
        question = Question("", id=f"tree-{number}")
        prompt = tokens(prompt_length())
        nodes: list[Node] = []

        def add(parent: int, depth: int, label: Label, nodes: list[Node] = nodes) -> int:
            ids = tokens(step_length())
            zeros = np.zeros(len(ids), dtype=np.float32)
            step = Step("", ids, TokenTrace(zeros, zeros, zeros, zeros, zeros))
            nodes.append(Node(len(nodes), parent, depth, step, verdict=Verdict(label)))
            return len(nodes) - 1

        parent = ROOT
        for depth, count in enumerate(shape, 1):
            right, wrong = [add(parent, depth, "right")], []
            for _ in range(count):  # the first sibling must be wrong, the others are either
                label: Label = "right" if wrong and rng.random() < 0.5 else "wrong"
                (right if label == "right" else wrong).append(add(parent, depth, label))
            # Every wrong step against one right step, every other right step against one wrong step: one pair fewer than
            # there are steps. So it is in 98 of the demo's 105 groups, since there the nearest sibling is mostly the same.
            found = [(right[0], w) for w in wrong] + [(r, wrong[0]) for r in right[1:]]
            pairs += [StepPair(question.id, parent, r, w, "confident_wrong", 0.5, 0.5) for r, w in found]
            parent = right[0]
        trees.append(Tree(question, prompt, tuple(nodes)))
    return trees, pairs
