"""What one optimiser step is made of: trees (or pieces of large ones) with their pairs, dealt into micro-batches.

Everything here is a pure function of its arguments, so that a resumed run and every process of several see the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from caspo.records import Node, StepPair, Tree
from caspo.train.tree_packing import cut, fill, packed_size, separate

__all__ = ["Micro", "Unit", "judged_nodes", "make_units", "micro_batches", "plan_steps"]


@dataclass(frozen=True)
class Unit:
    """A tree, or a piece of a large one, with its pairs and what else training reads of it."""

    tree: Tree
    pairs: tuple[StepPair, ...]
    judged: tuple[int, ...]
    """Nodes of the confidence term; empty without it."""
    packed: bool = True
    """Whether it is scored as one row, or every path in a row of its own."""

    @cached_property
    def needed(self) -> frozenset[int]:
        """Nodes that must be scored."""
        return frozenset({n for p in self.pairs for n in (p.chosen, p.rejected)} | set(self.judged))

    @cached_property
    def size(self) -> int:
        """Tokens of the unit's rows."""
        if self.packed:
            return packed_size(self.tree, self.needed)
        lengths = [len(row) for row in separate(self.tree, self.needed)]
        return max(lengths) * len(lengths)


@dataclass(frozen=True)
class Micro:
    """Units of one forward pass, and by what their step's loss is normalised."""

    units: tuple[Unit, ...]
    step_pairs: int
    """Pairs of the whole optimiser step, over all micro-batches and processes."""
    step_judged: int
    """Judged nodes of the whole optimiser step."""


def judged_nodes(tree: Tree) -> Iterator[Node]:
    """Nodes whose verdict means something: right or wrong after a right prefix."""
    for node in tree.nodes:
        if node.verdict is not None and node.verdict.label != "unknown" and tree.prefix_right(node.id):
            yield node


def make_units(trees: Sequence[Tree], pairs: Sequence[StepPair], *, judged: bool, packed: bool = True) -> list[Unit]:
    """Trees that have pairs, in order; with all nodes for the confidence term if ``judged``."""
    by_question: dict[str, list[StepPair]] = {}
    for pair in pairs:
        by_question.setdefault(pair.question_id, []).append(pair)
    return [
        Unit(tree, tuple(mine), tuple(node.id for node in judged_nodes(tree)) if judged else (), packed)
        for tree in trees
        if (mine := by_question.get(tree.question.id))
    ]


def plan_steps(units: Sequence[Unit], *, epochs: int, batch_pairs: int, micro_tokens: int, seed: int) -> list[list[Micro]]:
    """Optimiser steps of all epochs, each about ``batch_pairs`` pairs in micro-batches of at most ``micro_tokens``."""
    plan: list[list[Micro]] = []
    for epoch in range(epochs):
        order = list(units)
        random.Random(f"{seed} {epoch}").shuffle(order)
        rest = sum(len(unit.pairs) for unit in order)
        step: list[Unit] = []
        taken = 0
        for unit in order:
            step.append(unit)
            taken += len(unit.pairs)
            rest -= len(unit.pairs)
            # What is left over at the end joins the last step unless it is half a step by itself.
            if (taken >= batch_pairs and rest >= batch_pairs // 2) or not rest:
                plan.append(micro_batches(step, micro_tokens))
                step, taken = [], 0
    return plan


def micro_batches(step: Sequence[Unit], tokens: int) -> list[Micro]:
    """One step's units in as few forward passes as fit, the fullest first; a unit too large for one is cut at a node."""
    pairs, judged = sum(len(u.pairs) for u in step), sum(len(u.judged) for u in step)
    pieces = [piece for unit in step for piece in ([unit] if unit.size <= tokens else _pieces(unit, tokens))]
    return [
        Micro(tuple(pieces[i] for i in found), pairs, judged) for found in fill([piece.size for piece in pieces], tokens)
    ]


def _pieces(unit: Unit, tokens: int) -> list[Unit]:
    split = len(unit.pairs)
    targets = [frozenset((p.chosen, p.rejected)) for p in unit.pairs] + [frozenset((n,)) for n in unit.judged]
    return [
        Unit(
            unit.tree,
            tuple(unit.pairs[i] for i in sorted(part) if i < split),
            tuple(unit.judged[i - split] for i in sorted(part) if i >= split),
            unit.packed,
        )
        for part in cut(unit.tree, targets, tokens if unit.packed else 0)
    ]
