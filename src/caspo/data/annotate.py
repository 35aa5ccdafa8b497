"""Growing annotated trees: k continuations at each right prefix, judged, with the model's confidence in each.

Sampling at right prefixes (instead of whole solutions) finds wrong steps where they happen, and gives every wrong step
right siblings to be compared with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pydantic import Field

from caspo.config import Config
from caspo.engines.base import Engine, Request
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
    """One annotated tree per question, all grown together depth by depth so that the batch stays full.

    A tree depends on its question, the seed and the settings only.
    """
    builders = [TreeBuilder(q, engine.prompt(q.text)) for q in questions]
    open_prefixes: list[tuple[TreeBuilder, int]] = [(builder, ROOT) for builder in builders]
    for depth in range(1, settings.max_depth + 1):
        requests = [
            Request(
                prefix_ids=builder.prefix_ids(node),
                seed=seed_of("annotate", seed, builder.question.id, tuple(builder.texts(node)), sample),
                max_new_tokens=settings.max_step_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                stop=("\n",),
            )
            for builder, node in open_prefixes
            for sample in range(settings.samples)
        ]
        completions = iter(engine.generate(requests))
        right: dict[int, list[int]] = {}
        for builder, parent in open_prefixes:
            children: dict[int, bool] = {}
            for _ in range(settings.samples):
                completion = next(completions)
                on_tokens(len(completion.token_ids))
                step = Step(completion.text, completion.token_ids, completion.trace)
                node = builder.add(parent, step, final=completion.finish == "eos")
                children.setdefault(node, completion.finish == "length")  # the first sample's tokens are the node's
            for node, cut in children.items():
                verdict = _verdict(builder, judge, parent, node, cut=cut)
                builder.judge(node, verdict)
                if verdict.label == "right" and not builder.nodes[node].final:
                    right.setdefault(id(builder), []).append(node)
        open_prefixes = [
            (builder, node)
            for builder in builders
            for node in _choose(builder, right.get(id(builder), []), settings.width, seed_of(seed, depth))
        ]
        if not open_prefixes:
            break
    return [builder.build() for builder in builders]


def judge_tree(tree: Tree, judge: Judge) -> Tree:
    """The tree with a verdict on every node whose prefix is right; what follows a wrong step has none."""
    builder = TreeBuilder(tree.question, tree.prompt_ids)
    builder.nodes = list(tree.nodes)
    for node in tree.nodes:
        parent = node.parent
        verdict = None if parent == ROOT else builder.nodes[parent].verdict
        if parent == ROOT or (verdict is not None and verdict.label == "right"):
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
