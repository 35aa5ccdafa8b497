"""Growing annotated trees: k continuations at each right prefix, judged, with the model's confidence in each.

Sampling at right prefixes (instead of whole solutions) finds wrong steps where they happen, and gives every wrong step
right siblings to be compared with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pydantic import Field

from caspo.config import Config
from caspo.engines.base import Completion, Engine, Request
from caspo.engines.drive import drive
from caspo.judges.base import Judge
from caspo.trees import TreeBuilder, seed_of
from caspo.types import ROOT, Question, Step, Tree, Verdict

__all__ = ["AnnotateSettings", "annotate", "judge_tree"]


class AnnotateSettings(Config):
    """How trees are sampled."""

    samples: int = Field(8, ge=2)
    """Continuations sampled at each right prefix."""
    width: int = Field(1, ge=1)
    """Right prefixes continued at each depth, drawn by how often they were sampled."""
    max_depth: int = Field(12, ge=1)
    """Steps, at most."""
    max_step_tokens: int = Field(64, ge=1)
    """Tokens of one step, at most; a longer one is cut and its verdict is unknown."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)


def annotate(
    questions: Sequence[Question],
    engine: Engine,
    judge: Judge,
    settings: AnnotateSettings,
    seed: int,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[Tree]:
    """One annotated tree per question, all grown in one batch; each goes on as soon as its own depth is complete.

    A tree depends on its question, the seed and the settings only.
    """
    growing = [_Growing(TreeBuilder(q, engine.prompt(q.text)), judge, settings, seed) for q in questions]
    drive(growing, engine, lambda tree, completion: on_tokens(len(completion.token_ids)))
    return [tree.builder.build() for tree in growing]


class _Growing:
    """One question's tree while it is sampled. A key is the place of a parent at this depth and which of its samples."""

    def __init__(self, builder: TreeBuilder, judge: Judge, settings: AnnotateSettings, seed: int) -> None:
        self.builder, self.judge, self.settings, self.seed = builder, judge, settings, seed
        self._depth = 0
        self._parents: Sequence[int] = ()
        self._arrived: dict[tuple[int, int], Completion] = {}

    def begin(self) -> list[tuple[tuple[int, int], Request]]:
        """The first depth."""
        return self._continue([ROOT])

    def receive(self, key: tuple[int, int], completion: Completion) -> list[tuple[tuple[int, int], Request]]:
        """Take a continuation in; once the depth is complete, what to sample next."""
        self._arrived[key] = completion
        if len(self._arrived) < len(self._parents) * self.settings.samples:
            return []
        settings, builder = self.settings, self.builder
        children: dict[int, bool] = {}
        for (place, _), found in sorted(self._arrived.items(), key=lambda item: item[0]):
            parent = self._parents[place]
            node = builder.add(parent, Step(found.text, found.token_ids, found.trace), final=found.finish == "eos")
            children.setdefault(node, found.finish == "length")  # the first sample's tokens are the node's
        right = []
        for node, cut in children.items():
            verdict = _verdict(builder, self.judge, builder.nodes[node].parent, node, cut=cut)
            builder.judge(node, verdict)
            if verdict.label == "right" and not builder.nodes[node].final:
                right.append(node)
        if self._depth == settings.max_depth or not right:
            return []
        return self._continue(_choose(builder, right, settings.width, seed_of(self.seed, self._depth)))

    def _continue(self, parents: Sequence[int]) -> list[tuple[tuple[int, int], Request]]:
        """What to sample after each of these nodes, the next depth."""
        settings, builder = self.settings, self.builder
        self._depth += 1
        self._parents = parents
        self._arrived = {}
        return [
            (
                (place, sample),
                Request(
                    prefix_ids=builder.prefix_ids(parent),
                    seed=seed_of("annotate", self.seed, builder.question.id, tuple(builder.texts(parent)), sample),
                    max_new_tokens=settings.max_step_tokens,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    stop=("\n",),
                    keep=True,
                ),
            )
            for place, parent in enumerate(parents)
            for sample in range(settings.samples)
        ]


def judge_tree(tree: Tree, judge: Judge) -> Tree:
    """The tree with a verdict on every node whose prefix is right; what follows a wrong step has none."""
    builder = TreeBuilder(tree.question, tree.prompt_ids)
    builder.nodes = list(tree.nodes)
    for node in tree.nodes:
        parent = node.parent
        if parent == ROOT or builder.nodes[parent].right:
            builder.judge(node.id, _verdict(builder, judge, parent, node.id, cut=False))
    return builder.build()


def _verdict(builder: TreeBuilder, judge: Judge, parent: int, node: int, *, cut: bool) -> Verdict:
    if cut:
        return Verdict("unknown", "cut at the token limit", judge.name)
    step = builder.nodes[node]
    return judge.judge(builder.question, builder.texts(parent), step.step.text, final=step.final)


def _choose(builder: TreeBuilder, right: list[int], width: int, seed: int) -> list[int]:
    """``width`` of the right nodes, without replacement, with chances by their counts."""
    rng = random.Random(seed_of(seed, builder.question.id))
    left = list(right)
    chosen: list[int] = []
    while left and len(chosen) < width:
        node = rng.choices(left, weights=[builder.nodes[n].count for n in left])[0]
        left.remove(node)
        chosen.append(node)
    return chosen
