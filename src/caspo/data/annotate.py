"""Growing annotated trees: k continuations at each right prefix, judged, with the model's confidence in each.

Sampling at right prefixes (instead of whole solutions) finds wrong steps where they happen, and gives every wrong step
right siblings to be compared with. Where none of the steps sampled at a depth is known to be right, a tree goes on from
one that is unknown (`past_unknown`): most judges cannot tell an opening line in words. What stands below it is judged
given that it is right, which nobody knows: pairs and figures take steps after right prefixes only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from caspo.core.config import Config
from caspo.engines.base import Engine, Request
from caspo.engines.drive import Asking, drive
from caspo.judges.base import Chain, Judge
from caspo.records import ROOT, Question, Tree, Verdict
from caspo.trees import TreeBuilder, seed_of

__all__ = ["AnnotateSettings", "annotate", "judge_trees"]


_AHEAD = 8
"""Tokens beyond a step's limit, to know whether it ended there."""


class AnnotateSettings(Config):
    """How trees are sampled."""

    samples: int = Field(8, ge=2)
    """Continuations sampled at each prefix that is gone on with."""
    width: int = Field(1, ge=1)
    """Prefixes continued at each depth, drawn by how often they were sampled, right ones before unknown ones."""
    past_unknown: bool = True
    """Go on from a step that the judge cannot tell where too few are right, for whoever judges the trees again; what follows
    it is in no pair. No: a tree ends there."""
    max_depth: int = Field(12, ge=1)
    """Steps of a path, at most."""
    max_step_tokens: int = Field(512, ge=1)
    """Tokens of one step, at most; a longer one is cut and its verdict is unknown."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it before a token is drawn."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the most probable ones that hold this share of the probability."""


def annotate(
    questions: Sequence[Question], engine: Engine, judge: Judge, settings: AnnotateSettings, seed: int
) -> list[Tree]:
    """One annotated tree per question, all grown in one batch.

    With an instant judge each goes on as soon as its own depth is complete; any other is asked about one depth of all
    trees at once. A tree depends on its question, the verdicts, the seed and the settings only.
    """
    trees = [_Growing(TreeBuilder(q, engine.prompt(q.text), engine), judge.name, settings, seed) for q in questions]
    if judge.instant:
        drive([tree.grow(judge) for tree in trees], engine)
    growing = [] if judge.instant else trees
    while growing:
        drive([tree.sample() for tree in growing], engine)
        asked = [tree.chains() for tree in growing]
        verdicts = iter(judge.judge([chain for chains in asked for chain in chains]))
        growing = [
            tree for tree, chains in zip(growing, asked, strict=True) if tree.judged([next(verdicts) for _ in chains])
        ]
    return [tree.builder.build() for tree in trees]


class _Growing:
    """One question's tree while it is sampled, depth by depth."""

    def __init__(self, builder: TreeBuilder, judge: str, settings: AnnotateSettings, seed: int) -> None:
        self.builder, self.judge, self.settings, self.seed = builder, judge, settings, seed
        self._depth = 1
        self._parents: list[int] = [ROOT]
        self._cut: dict[int, bool] = {}
        """The nodes of this depth, and whether each was cut at the token limit."""

    def grow(self, judge: Judge) -> Asking[None]:
        """Sample and judge, depth after depth."""
        going_on = True
        while going_on:
            yield from self.sample()
            going_on = self.judged(judge.judge(self.chains()))

    def sample(self) -> Asking[None]:
        """Sample one depth."""
        builder, samples = self.builder, range(self.settings.samples)
        asked = [(parent, sample) for parent in self._parents for sample in samples]
        found = yield [self._request(parent, sample) for parent, sample in asked]
        for (parent, _), one in zip(asked, found, strict=True):
            size, most = builder.step_size(parent, one.token_ids, one.ahead), self.settings.max_step_tokens
            if not size:
                continue  # it goes on with the parent's step, which then is not the one to be continued, or ends with it
            finish = one.finish if size == len(one.token_ids) else "stop"
            cut, size = finish == "length" or size > most, min(size, most)
            node = builder.add_step(parent, one.token_ids[:size], one.trace[:size], final=finish == "eos" and not cut)
            self._cut.setdefault(node, cut)  # the first sample's tokens are the node's

    def _request(self, parent: int, sample: int) -> Request:
        settings, builder = self.settings, self.builder
        return Request(
            prefix_ids=builder.prefix_ids(parent),
            seed=seed_of("annotate", self.seed, builder.question.id, tuple(builder.texts(parent)), sample),
            max_new_tokens=settings.max_step_tokens + _AHEAD,
            temperature=settings.temperature,
            top_p=settings.top_p,
            step=builder.reader(parent),
            keep=True,
        )

    def chains(self) -> list[Chain]:
        """What a judge is asked about this depth."""
        return [_chain(self.builder, node) for node, cut in self._cut.items() if not cut]

    def judged(self, verdicts: Sequence[Sequence[Verdict]]) -> bool:
        """Note the verdicts on `chains`; whether the tree goes on at the next depth."""
        builder, settings, told = self.builder, self.settings, iter(verdicts)
        right: list[int] = []
        unknown: list[int] = []
        for node, cut in self._cut.items():
            (verdict,) = [Verdict("unknown", "cut at the token limit", self.judge)] if cut else next(told)
            builder.judge(node, verdict)
            if not cut and not builder.nodes[node].final:
                {"right": right, "unknown": unknown}.get(verdict.label, []).append(node)
        self._cut = {}
        seed = seed_of(self.seed, self._depth)
        self._parents = _choose(builder, right, settings.width, seed)
        if settings.past_unknown:
            self._parents += _choose(builder, unknown, settings.width - len(self._parents), seed)
        self._depth += 1
        return self._depth <= settings.max_depth and bool(self._parents)


def judge_trees(trees: Sequence[Tree], judge: Judge) -> list[Tree]:
    """The trees with a verdict on every node whose prefix is right; what follows another step has none.

    The judge is asked once a depth, about all trees.
    """
    builders = []
    for tree in trees:
        builders.append(TreeBuilder(tree.question, tree.prompt_ids))
        builders[-1].nodes = [replace(node, verdict=None) for node in tree.nodes]
    for depth in range(1, max((node.depth for tree in trees for node in tree.nodes), default=0) + 1):
        asked = [
            (builder, node.id)
            for builder in builders
            for node in builder.nodes
            if node.depth == depth and (node.parent == ROOT or builder.nodes[node.parent].right)
        ]
        verdicts = judge.judge([_chain(builder, node) for builder, node in asked])
        for (builder, node), (verdict,) in zip(asked, verdicts, strict=True):
            builder.judge(node, verdict)
    return [replace(builder.build(), steps=tree.steps) for builder, tree in zip(builders, trees, strict=True)]


def _chain(builder: TreeBuilder, node: int) -> Chain:
    """The path to a node, of which the node itself is to be judged."""
    path = builder.path(node)
    steps = tuple(builder.nodes[n].step for n in path)
    return Chain(
        builder.question,
        tuple(step.text for step in steps),
        builder.nodes[node].final,
        given=len(steps) - 1,
        prompt_ids=builder.prompt_ids,
        token_ids=tuple(step.token_ids for step in steps),
    )


def _choose(builder: TreeBuilder, nodes: list[int], width: int, seed: int) -> list[int]:
    """``width`` of the nodes, without replacement, with chances by their counts."""
    rng = random.Random(seed_of(seed, builder.question.id))
    left = list(nodes)
    chosen: list[int] = []
    while left and len(chosen) < width:
        node = rng.choices(left, weights=[builder.nodes[n].count for n in left])[0]
        left.remove(node)
        chosen.append(node)
    return chosen
