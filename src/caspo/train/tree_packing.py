"""From trees to rows: every step that training needs, each token computed once.

A tree becomes one row in depth-first order. Position ids are depths along the path; ``ends`` tells for every token where
the subtree of its step ends, from which `attention` makes the mask: every step sees its own ancestors and nothing else,
as if its path stood alone. Several trees stand in one row in the same way.

`separate` makes the other layout, one causal row per leaf: the same numbers for any causal model, the prefixes computed
again. It is what the packed layout is checked against.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from caspo.records import ROOT, Node, Tree

__all__ = ["NodeKey", "PackedRow", "cut", "fill", "join", "pack", "packed_size", "separate"]

NodeKey = tuple[str, int]
"""Question id and node id."""


@dataclass(frozen=True)
class PackedRow:
    """T tokens in depth-first order, and where each node's tokens lie."""

    ids: list[int]
    positions: list[int]
    ends: list[int]
    nodes: dict[NodeKey, tuple[list[int], list[int]]]
    """Per node: the places that predict its tokens, and the tokens."""
    prompt: int
    """The first tokens, which no node holds."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(tree: Tree, needed: Iterable[int]) -> PackedRow:
    """One row with the paths to all ``needed`` nodes, each node once.

    A prompt of the tokens 1 2, the steps 3 4 and 5 after it, the steps 6 and 7 8 after 3 4:

    >>> row = pack(tree, needed=[1, 2, 3])
    >>> row.ids
    [1, 2, 3, 4, 6, 7, 8, 5]
    >>> row.positions
    [0, 1, 2, 3, 4, 4, 5, 2]
    >>> row.ends  # 6 is seen by itself alone, 3 and 4 are seen until 5 begins
    [8, 8, 7, 7, 5, 7, 7, 8]
    >>> row.nodes["q", 3]  # 7 is predicted at the place of 4, and 8 at that of 7
    ([3, 5], [7, 8])
    """
    wanted = _closed(tree, needed)
    ids, positions = list(tree.prompt_ids), list(range(len(tree.prompt_ids)))
    ends = [0] * len(ids)
    nodes: dict[NodeKey, tuple[list[int], list[int]]] = {}
    stack: list[tuple[Node, int] | range] = [(n, len(ids) - 1) for n in reversed(tree.children(ROOT)) if n.id in wanted]
    while stack:
        entry = stack.pop()
        if isinstance(entry, range):  # all descendants of these tokens are placed now
            ends[entry.start : entry.stop] = [len(ids)] * len(entry)
            continue
        node, before = entry
        start, length = len(ids), len(node.step.token_ids)
        ids += node.step.token_ids
        positions += range(positions[before] + 1, positions[before] + 1 + length)
        ends += [0] * length
        nodes[tree.question.id, node.id] = ([before, *range(start, start + length - 1)], list(node.step.token_ids))
        stack.append(range(start, start + length))
        stack += [(child, start + length - 1) for child in reversed(tree.children(node.id)) if child.id in wanted]
    prompt = len(tree.prompt_ids)
    ends[:prompt] = [len(ids)] * prompt
    return PackedRow(ids, positions, ends, nodes, prompt)


def packed_size(tree: Tree, needed: Iterable[int]) -> int:
    """Tokens of ``pack(tree, needed)``."""
    return len(tree.prompt_ids) + sum(len(tree.nodes[n].step.token_ids) for n in _closed(tree, needed))


def separate(tree: Tree, needed: Iterable[int]) -> list[PackedRow]:
    """One row per leaf of the paths to ``needed``; a node that several rows hold is scored in the first."""
    wanted = _closed(tree, needed)
    leaves = [n for n in sorted(wanted) if not any(child.id in wanted for child in tree.children(n))]
    rows: list[PackedRow] = []
    scored: set[NodeKey] = set()
    for leaf in leaves:
        row = pack(tree, [leaf])
        nodes = {key: value for key, value in row.nodes.items() if key not in scored}
        scored |= nodes.keys()
        rows.append(replace(row, nodes=nodes))
    return rows


def join(rows: Sequence[PackedRow]) -> PackedRow:
    """Several rows as one: no token is visible past its own subtree, so they stay strangers.

    What all their prompts begin with (the chat template, an instruction) is computed once for all of them.
    """
    if len(rows) == 1:
        return rows[0]
    shortest = min(row.prompt for row in rows) - 1  # the last token of a prompt predicts first steps: each its own
    shared = 0
    while shared < shortest and len({row.ids[shared] for row in rows}) == 1:
        shared += 1
    ids, positions = rows[0].ids[:shared], rows[0].positions[:shared]
    total = shared + sum(len(row) - shared for row in rows)
    ends = [total] * shared
    nodes: dict[NodeKey, tuple[list[int], list[int]]] = {}
    for row in rows:
        offset = len(ids) - shared
        ids += row.ids[shared:]
        positions += row.positions[shared:]
        ends += [end + offset for end in row.ends[shared:]]
        nodes |= {key: ([p + offset for p in predictors], tokens) for key, (predictors, tokens) in row.nodes.items()}
    return PackedRow(ids, positions, ends, nodes, shared)


def cut(tree: Tree, targets: Sequence[frozenset[int]], budget: int) -> list[list[int]]:
    """Split ``targets`` (indices of them) so that each part packs into ``budget`` tokens; one part if all fit.

    The nodes of a target stay together, as the two sides of a pair must. Targets are taken in depth-first order, so a
    part is a piece of the tree cut off at a node, and what is computed twice is the path to the cut. A target that is
    larger than the budget by itself is a part of its own.
    """
    rank = {node: i for i, (_, node) in enumerate(pack(tree, range(len(tree.nodes))).nodes)}
    parts: list[list[int]] = []
    held: set[int] = set()
    size = 0
    for index in sorted(range(len(targets)), key=lambda i: sorted(rank[n] for n in targets[i])):
        path = _closed(tree, targets[index])
        more = sum(len(tree.nodes[n].step.token_ids) for n in path - held)
        if not parts or size + more > budget:
            parts.append([])
            held, size = set(), len(tree.prompt_ids)
            more = sum(len(tree.nodes[n].step.token_ids) for n in path)
        parts[-1].append(index)
        held |= path
        size += more
    return parts


def fill(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Bins of indices whose sizes sum to at most ``budget``: best fit, largest first; a larger one stands alone."""
    bins: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fits = [b for b, room in enumerate(left) if room >= sizes[index]]
        if fits:
            best = min(fits, key=lambda b: left[b])
            bins[best].append(index)
            left[best] -= sizes[index]
        else:
            bins.append([index])
            left.append(budget - sizes[index])
    return bins


def _closed(tree: Tree, needed: Iterable[int]) -> set[int]:
    """The needed nodes and their ancestors."""
    found: set[int] = set()
    for target in needed:
        node = target
        while node != ROOT and node not in found:
            found.add(node)
            node = tree.nodes[node].parent
    return found
