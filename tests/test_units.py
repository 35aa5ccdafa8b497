"""What an optimiser step is made of: pure plans that lose no pair, whatever the memory allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.records import ROOT, StepPair, Tree, Verdict
from caspo.train.tree_packing import separate
from caspo.train.units import Micro, Unit, judged_nodes, make_units, micro_batches, plan_steps
from tiny import bushy_tree, grown, pairs_of

TREES = [bushy_tree(f"q{i}", i) for i in range(12)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]


def plan(**more: Any) -> list[list[Micro]]:
    settings = {"epochs": 1, "batch_pairs": 8, "micro_tokens": 60, "seed": 3, **more}
    return plan_steps(make_units(TREES, PAIRS, judged=True), **settings)


def pairs_in(step: list[Micro]) -> list[StepPair]:
    return sorted((p for m in step for u in m.units for p in u.pairs), key=lambda p: (p.question_id, p.chosen, p.rejected))


def judged_in(step: list[Micro]) -> list[tuple[str, int]]:
    return sorted((u.tree.question.id, n) for m in step for u in m.units for n in u.judged)


def test_units_are_trees_with_pairs() -> None:
    """In the order of the trees, each with its own pairs; a tree without pairs is left out."""
    pairs = [p for p in reversed(PAIRS) if p.question_id != "q4"]
    units = make_units(TREES, pairs, judged=False)
    assert [u.tree.question.id for u in units] == [t.question.id for t in TREES if t.question.id != "q4"]
    for unit in units:
        assert set(unit.pairs) == set(pairs_of(unit.tree))
        assert unit.judged == ()
        assert unit.needed == {n for p in unit.pairs for n in (p.chosen, p.rejected)}
        assert unit.size == len(unit.tree.prompt_ids) + sum(len(n.step.token_ids) for n in unit.tree.nodes)


def test_judged_nodes_have_right_prefixes() -> None:
    """A verdict counts where everything before it is right: not after a wrong step, not where the judge did not know."""
    assert [n.id for n in judged_nodes(TREES[0])] == list(range(9))
    # Of `grown` nodes the even ones are wrong, the odd ones right.
    tree = grown("q", (2, 3), [(ROOT, 1), (0, 1), (ROOT, 1), (ROOT, 1), (3, 1), (4, 1)])
    assert [n.id for n in judged_nodes(tree)] == [0, 2, 3, 4], "1 and 5 follow wrong steps"
    nodes = (tree.nodes[0], replace(tree.nodes[1], verdict=None), replace(tree.nodes[2], verdict=Verdict("unknown")))
    assert [n.id for n in judged_nodes(replace(tree, nodes=nodes))] == [0]
    unit = make_units([tree], [StepPair("q", ROOT, 3, 0, "confident_wrong", 0.5, 0.5)], judged=True)[0]
    assert unit.judged == (0, 2, 3, 4)
    assert unit.needed == {0, 2, 3, 4}


@pytest.mark.parametrize("micro_tokens", [1, 20, 60, 10**6])
@pytest.mark.parametrize("batch_pairs", [1, 8, 1000])
def test_every_pair_once_an_epoch(batch_pairs: int, micro_tokens: int) -> None:
    """Over an epoch every pair and every judged node is in exactly one step and one micro-batch."""
    steps = plan(epochs=2, batch_pairs=batch_pairs, micro_tokens=micro_tokens)
    every = sorted(PAIRS * 2, key=lambda p: (p.question_id, p.chosen, p.rejected))
    assert sorted((p for s in steps for p in pairs_in(s)), key=lambda p: (p.question_id, p.chosen, p.rejected)) == every
    half = steps[: len(steps) // 2]
    assert sum(len(pairs_in(s)) for s in half) == len(PAIRS)
    assert sorted(j for s in half for j in judged_in(s)) == sorted((t.question.id, n) for t in TREES for n in range(9))


def test_memory_does_not_change_the_steps() -> None:
    """``micro_tokens`` says how a step is split, never what is in it or by what it is normalised."""
    whole = plan(micro_tokens=10**6)
    assert all(len(step) == 1 for step in whole)
    for tokens in (1, 25, 50):
        split = plan(micro_tokens=tokens)
        assert any(len(step) > 1 for step in split)
        assert [pairs_in(s) for s in split] == [pairs_in(s) for s in whole]
        assert [judged_in(s) for s in split] == [judged_in(s) for s in whole]
        for step in split:
            assert {m.step_pairs for m in step} == {len(pairs_in(step))}
            assert {m.step_judged for m in step} == {len(judged_in(step))}


def test_steps_are_of_whole_trees_about_the_right_size() -> None:
    """A step takes trees until it has ``batch_pairs``; leftovers of less than half a step join the last one."""
    for batch in (1, 4, 8, 13, 22, 30):
        steps = plan(batch_pairs=batch)
        sizes = [len(pairs_in(s)) for s in steps]
        largest = max(len(pairs_of(t)) for t in TREES)
        assert all(batch <= n < batch + largest for n in sizes[:-1])
        assert batch // 2 <= sizes[-1] < batch + largest + batch // 2
        for step in steps:
            by_question = {p.question_id for p in pairs_in(step)}
            assert len(pairs_in(step)) == sum(p.question_id in by_question for p in PAIRS)
    assert len(plan(batch_pairs=10**6)) == 1


def test_plans_are_pure() -> None:
    """The same arguments, the same plan; another seed or epoch, another order."""
    assert plan(epochs=2) == plan(epochs=2)
    two = plan(epochs=2, batch_pairs=1)
    order = [pairs_in(s)[0].question_id for s in two]
    first, second = order[: len(TREES)], order[len(TREES) :]
    assert sorted(first) == sorted(second)
    assert first != second
    assert [pairs_in(s)[0].question_id for s in plan(batch_pairs=1)] == first, "more epochs leave the first as it is"
    assert [pairs_in(s)[0].question_id for s in plan(batch_pairs=1, seed=4)] != first


@given(st.integers(1, 80), st.integers(1, 4), st.booleans())
def test_a_tree_too_large_is_cut(tokens: int, count: int, judged: bool) -> None:
    """Forward passes stay within the budget: a larger tree becomes pieces, down to one pair or one judged node each."""
    units = make_units(TREES[:count], PAIRS, judged=judged)
    found = micro_batches(units, tokens)
    pieces = [u for m in found for u in m.units]
    assert sorted(map(str, (p for u in pieces for p in u.pairs))) == sorted(map(str, (p for u in units for p in u.pairs)))
    assert judged_in(found) == sorted((u.tree.question.id, n) for u in units for n in u.judged)
    for micro in found:
        total = sum(u.size for u in micro.units)
        assert total <= tokens or (len(micro.units) == 1 and targets(micro.units[0]) == 1)
    for unit in units:
        if unit.size <= tokens:
            assert unit in pieces, "what fits is left whole"


def targets(unit: Unit) -> int:
    """Pairs and judged nodes that could stand in different passes; judged sides of a pair cost it nothing."""
    sets = [frozenset((p.chosen, p.rejected)) for p in unit.pairs] + [frozenset((n,)) for n in unit.judged]
    return sum(not any(a < b for b in sets) for a in sets)


def test_small_trees_share_a_pass() -> None:
    """As few forward passes as fit: no two of them could have been one."""
    units = make_units(TREES, PAIRS, judged=False)
    found = micro_batches(units, 100)
    sizes = [sum(u.size for u in m.units) for m in found]
    assert max(sizes) <= 100
    assert any(len(m.units) > 1 for m in found)
    assert len(found) == 1 or min(a + b for i, a in enumerate(sizes) for b in sizes[:i]) > 100
    assert micro_batches([], 100) == []


def test_a_trees_size_is_what_it_needs() -> None:
    """Branches that no pair needs take no memory."""
    tree: Tree = TREES[0]
    pair = next(p for p in pairs_of(tree) if p.parent == ROOT)
    unit = Unit(tree, (pair,), ())
    sides = (pair.chosen, pair.rejected)
    assert unit.size == len(tree.prompt_ids) + sum(len(tree.nodes[n].step.token_ids) for n in sides)


def test_separate_rows_keep_to_the_budget() -> None:
    """With a path in a row of its own the budget counts those rows, padding included; every pair is still there once."""
    trees = [bushy_tree(f"q{i}", i) for i in range(3)]
    pairs = [pair for tree in trees for pair in pairs_of(tree)]
    units = make_units(trees, pairs, judged=True, packed=False)
    micros = micro_batches(units, 60)
    assert len(micros) > len(micro_batches(make_units(trees, pairs, judged=True), 60))
    for micro in micros:
        rows = [len(row) for unit in micro.units for row in separate(unit.tree, unit.needed)]
        assert sum(rows) <= 60
    assert sorted((p.question_id, p.chosen, p.rejected) for m in micros for u in m.units for p in u.pairs) == sorted(
        (p.question_id, p.chosen, p.rejected) for p in pairs
    )
