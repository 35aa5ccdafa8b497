"""Rows from trees: what they hold, what each token of them sees, and how they are cut and joined."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.records import ROOT, Tree
from caspo.train.tree_packing import PackedRow, cut, fill, join, pack, packed_size, separate
from tiny import bushy_tree, grown

TEMPLATE = (7, 8, 9)
"""What prompts begin with."""


@st.composite
def trees(draw: st.DrawFn, name: str = "q", first: int = 1000) -> Tree:
    """Any tree of up to twelve nodes; no two of its step tokens are equal, so a token says where it came from."""
    shape = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 4)), min_size=1, max_size=12))
    prompt = draw(st.integers(0, 3)), draw(st.lists(st.integers(10, 12), min_size=1, max_size=3))
    parents = [(draw_from % (i + 1) - 1, n) for i, (draw_from, n) in enumerate(shape)]
    return grown(name, TEMPLATE[: prompt[0]] + tuple(prompt[1]), parents, first)


@st.composite
def forests(draw: st.DrawFn) -> list[Tree]:
    """Up to four trees, prompts alike at the beginning as it happens."""
    return [draw(trees(f"q{i}", 1000 * (i + 1))) for i in range(draw(st.integers(1, 4)))]


@st.composite
def with_needed(draw: st.DrawFn) -> tuple[Tree, set[int]]:
    tree = draw(trees())
    return tree, draw(st.sets(st.integers(0, len(tree.nodes) - 1), min_size=1))


@st.composite
def with_targets(draw: st.DrawFn) -> tuple[Tree, list[frozenset[int]]]:
    """A tree and what is to be scored: single nodes and pairs of siblings."""
    tree = draw(trees())
    siblings = [frozenset((a.id, b.id)) for _, found in tree.groups() for a, b in combinations(found, 2)]
    every = [*siblings, *(frozenset((n.id,)) for n in tree.nodes)]
    return tree, draw(st.lists(st.sampled_from(every), min_size=1, max_size=20))


def test_what_the_docstring_shows_is_true() -> None:
    tree = grown("q", (1, 2), [(ROOT, 2), (ROOT, 1), (0, 1), (0, 2)], 3)
    [shown] = doctest.DocTestFinder().find(pack, "pack", globs={"pack": pack, "tree": tree})
    assert len(shown.examples) == 5
    assert doctest.DocTestRunner().run(shown).failed == 0


def closure(tree: Tree, needed: Sequence[int] | set[int] | frozenset[int]) -> set[int]:
    return {above.id for n in needed for above in tree.path(n)}


def sees(row: PackedRow, place: int) -> list[int]:
    """The places that the token at ``place`` sees."""
    return [k for k in range(place + 1) if place < row.ends[k]]


def check_row(row: PackedRow, found: Sequence[Tree]) -> None:
    """Each node's tokens stand once in the row, on their own path, at their own depth, predicted by what precedes them."""
    by_id = {tree.question.id: tree for tree in found}
    for (question, number), (predictors, tokens) in row.nodes.items():
        tree = by_id[question]
        path = tree.prefix_ids(number)
        step = tree.nodes[number].step.token_ids
        assert tuple(tokens) == step
        for i, (predictor, token) in enumerate(zip(predictors, tokens, strict=True)):
            assert row.ids.count(token) == 1
            seen = sees(row, row.ids.index(token))
            depth = len(path) - len(step) + i
            assert tuple(row.ids[k] for k in seen) == path[: depth + 1]
            assert [row.positions[k] for k in seen] == list(range(depth + 1))
            assert seen[-2] == predictor, "predicted from the place before it on its path"


@given(with_needed())
def test_a_packed_row_is_its_paths(given: tuple[Tree, set[int]]) -> None:
    """Every needed node and ancestor once, nothing else; each token sees its own path, at positions that are depths."""
    tree, needed = given
    row = pack(tree, needed)
    assert {n for _, n in row.nodes} == closure(tree, needed)
    assert len(row) == packed_size(tree, needed)
    assert len(row) == len(tree.prompt_ids) + sum(len(tokens) for _, tokens in row.nodes.values())
    assert len(row.ids) == len(row.positions) == len(row.ends)
    assert row.prompt == len(tree.prompt_ids)
    check_row(row, [tree])
    for k in range(row.prompt):
        assert tuple(row.ids[i] for i in sees(row, k)) == tree.prompt_ids[: k + 1]


@given(with_needed())
def test_separate_rows_are_plain_paths(given: tuple[Tree, set[int]]) -> None:
    """One causal row per needed leaf; every node is scored in exactly one of them."""
    tree, needed = given
    rows = separate(tree, needed)
    wanted = closure(tree, needed)
    leaves = [n for n in wanted if not any(tree.nodes[m].parent == n for m in wanted)]
    assert sorted(tuple(row.ids) for row in rows) == sorted(tree.prefix_ids(leaf) for leaf in leaves)
    assert sorted(n for row in rows for _, n in row.nodes) == sorted(wanted)
    for row in rows:
        assert row.positions == list(range(len(row)))
        assert row.ends == [len(row)] * len(row)
        check_row(row, [tree])


@given(forests())
def test_joined_trees_stay_strangers(found: list[Tree]) -> None:
    """Several trees in one row: each token still sees its own prompt and path only; the common beginning stands once."""
    rows = [pack(tree, range(len(tree.nodes))) for tree in found]
    row = join(rows)
    assert row.nodes.keys() == {key for r in rows for key in r.nodes}
    check_row(row, found)
    prompts = [tree.prompt_ids for tree in found]
    shared = 0
    while shared < min(map(len, prompts)) - 1 and len({p[shared] for p in prompts}) == 1:
        shared += 1
    saved = 0 if len(found) == 1 else shared * (len(found) - 1)
    assert len(row) == len(row.ends) == len(row.positions) == sum(map(len, rows)) - saved


def test_a_template_is_computed_once() -> None:
    """By hand: two trees after the same three tokens; a prompt's last token is never shared, though it is the same."""
    a = grown("a", (7, 8, 9, 5), [(ROOT, 2), (0, 1), (0, 1)], 100)
    b = grown("b", (7, 8, 9, 5), [(ROOT, 1)], 200)
    row = join([pack(a, [1, 2]), pack(b, [0])])
    assert row.ids == [7, 8, 9, 5, 100, 101, 102, 103, 5, 200]
    assert row.positions == [0, 1, 2, 3, 4, 5, 6, 6, 3, 4]
    assert row.ends == [10, 10, 10, 8, 8, 8, 7, 8, 10, 10]
    assert row.nodes["a", 2] == ([5], [103])
    assert row.nodes["b", 0] == ([8], [200])
    assert sees(row, 9) == [0, 1, 2, 8, 9]


@given(with_targets(), st.integers(1, 60))
def test_a_cut_keeps_targets_whole(given: tuple[Tree, list[frozenset[int]]], budget: int) -> None:
    """Every target is in one part, both sides of a pair together; a part fits the budget unless it is one target."""
    tree, targets = given
    parts = cut(tree, targets, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(targets)))
    for part in parts:
        size = packed_size(tree, frozenset[int]().union(*(targets[i] for i in part)))
        assert size <= budget or len({targets[i] for i in part}) == 1
    everything = packed_size(tree, frozenset[int]().union(*targets))
    if everything <= budget:
        assert len(parts) == 1


def test_a_cut_is_made_between_branches() -> None:
    """Nodes that share a path stay in one part: little more is computed than the path to the cut."""
    branch = [(ROOT, 2), (ROOT, 2), (0, 5), (1, 5), (0, 5), (1, 5)]
    tree = grown("q", (1, 2), branch)
    parts = cut(tree, [frozenset((n,)) for n in range(6)], 14)
    assert parts == [[0, 2, 4], [1, 3, 5]]


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 40))
def test_bins_are_full(sizes: list[int], budget: int) -> None:
    """Every index once; no bin above the budget unless it is one piece; no two bins could have been one."""
    bins = fill(sizes, budget)
    assert sorted(i for found in bins for i in found) == list(range(len(sizes)))
    sums = [sum(sizes[i] for i in found) for found in bins]
    assert all(total <= budget or len(found) == 1 for total, found in zip(sums, bins, strict=True))
    assert all(a + b > budget for a, b in combinations(sums, 2)), "so at most one is less than half full"


def test_bins_best_fit() -> None:
    """A piece goes where it leaves the least room, the largest first."""
    assert fill([2, 6, 3, 8, 1], 10) == [[3, 0], [1, 2, 4]]
    assert fill([6, 7, 3], 10) == [[1, 2], [0]]
    assert fill([], 10) == []


def test_deep_trees() -> None:
    """A path of thousands of steps neither recurses nor takes more than linear memory."""
    tree = grown("q", (1, 2), [(i - 1, 1) for i in range(5000)])
    row = pack(tree, [4999])
    assert len(row) == packed_size(tree, [4999]) == 5002
    assert row.positions == list(range(5002))
    assert row.ends == [5002] * 5002


@pytest.mark.parametrize("needed", [[4], [4, 0], [4, 4]])
def test_other_branches_are_not_computed(needed: list[int]) -> None:
    """Only paths to needed nodes are in a row, however they are asked for."""
    tree = bushy_tree()
    assert {n for _, n in pack(tree, needed).nodes} == {0, 4}
    assert len(separate(tree, needed)) == 1
