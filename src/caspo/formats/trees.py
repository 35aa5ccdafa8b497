"""Labelled solutions as trees, and the paths of trees as labelled solutions.

The trees have no confidence (trace kind ``none``), until `caspo annotate --rescore` scores them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo.engines.prompts import INSTRUCTION, prompt_ids, step_ids
from caspo.engines.reading import MARKS
from caspo.formats.labelled import LabelledSolution, bare
from caspo.records import ROOT, Label, Step, TokenTrace, Tree, Verdict
from caspo.steps import in_thinking, step_key
from caspo.trees import TreeBuilder

__all__ = ["solutions_of", "trees_of"]


def solutions_of(tree: Tree) -> list[LabelledSolution]:
    """Every path of a tree to a node that nothing follows, with the verdicts on its steps; those not judged are unknown."""
    found, level = [], tree.question.meta.get("level")
    for leaf in tree.nodes:
        if tree.children(leaf.id):
            continue
        path = tree.path(leaf.id)
        labels: list[Label] = [node.verdict.label if node.verdict else "unknown" for node in path]
        steps, subset = tuple(node.step.text for node in path), "all" if level is None else f"level {level}"
        name = f"{tree.question.id}/{leaf.id}"
        found.append(LabelledSolution(name, tree.question, steps, tuple(labels), subset, leaf.final))
    return found


def trees_of(solutions: Sequence[LabelledSolution], tokenizer: Any = None, instruction: str = INSTRUCTION) -> list[Tree]:
    """One tree for each question, its solutions merged where they begin alike; labels become verdicts of judge ``labels``.

    Without a tokenizer the steps have no tokens. Steps that are labelled differently are unknown; what
    follows a wrong one is not judged. A step keeps the white space behind it, or gets a line break where there is none; the
    last of a solution that ended ends as a turn of the model does.
    """
    builders: dict[str, TreeBuilder] = {}
    for solution in solutions:
        key = step_key(solution.question.text)
        if key not in builders:
            prompt = () if tokenizer is None else prompt_ids(tokenizer, solution.question.text, instruction)
            builders[key] = TreeBuilder(solution.question, prompt)
        builder = builders[key]
        parent, last = ROOT, len(solution.steps) - 1
        for place, (step, label) in enumerate(zip(_steps(solution, tokenizer), solution.labels, strict=True)):
            final = solution.ended and place == last
            parent = builder.add(parent, step, final=final)
            if solution.first_error is not None and place > solution.first_error:
                continue
            before = builder.nodes[parent].verdict
            known = {label, before.label if before else label} - {"unknown"}
            builder.judge(parent, Verdict(known.pop() if len(known) == 1 else "unknown", "", "labels"))
    return [builder.build() for builder in builders.values()]


def _steps(solution: LabelledSolution, tokenizer: Any) -> list[Step]:
    """The steps as a tree has them."""
    texts = [text if text.endswith(("\n", " ", "\t")) else f"{text}\n" for text in solution.steps]
    if solution.ended:
        texts[-1] = bare(texts[-1])
    if tokenizer is None:
        found: list[tuple[int, ...]] = [()] * len(texts)
    else:
        found = step_ids(tokenizer, texts, ended=solution.ended)
    thinking = in_thinking(texts, MARKS)
    return [Step(text, ids, _no_trace(len(ids)), inside) for text, ids, inside in zip(texts, found, thinking, strict=True)]


def _no_trace(length: int) -> TokenTrace:
    nothing = np.full(length, np.nan, dtype=np.float32)
    return TokenTrace(nothing, nothing, nothing, nothing, nothing, kind="none")
