"""From trees to rows: every step that training needs, each token computed once.

A tree becomes one row in depth-first order. Position ids are depths along the path, and token k is visible to token q
if ``k <= q < end[k]``, where ``end[k]`` is where the subtree of k's step ends: so every step sees its own ancestors and
nothing else, as if its path stood alone. Several trees stand in one row in the same way.

Models for which such a mask is not known to be exact get separate rows instead, one per leaf, padded and causal; the
numbers are the same (a test holds that), only the prefixes are computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from caspo.types import ROOT, Node, Tree

__all__ = ["NodeScores", "Row", "can_pack", "pack", "score_packed", "score_separate", "separate"]

NodeKey = tuple[str, int]
"""Question id and node id."""

_PACKABLE = frozenset({"llama", "qwen2", "qwen3", "smollm3", "granite"})
"""Model types with full attention in every layer, for which packed was compared with separate rows."""


@dataclass(frozen=True)
class NodeScores:
    """What the model says of one step; both (n,) over its tokens, differentiable."""

    logprobs: torch.Tensor
    """log p of each token, nats."""
    entropies: torch.Tensor
    """Entropy of each next-token distribution, nats."""


@dataclass(frozen=True)
class Row:
    """T tokens in depth-first order, and where each node's tokens lie."""

    ids: list[int]
    positions: list[int]
    ends: list[int]
    nodes: dict[NodeKey, tuple[list[int], list[int]]]
    """Per node: the indices that predict its tokens, and the tokens."""

    def __len__(self) -> int:
        return len(self.ids)


def can_pack(model: Any) -> bool:
    """Whether the ancestor mask is known to be exact for this model."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config.model_type in _PACKABLE
        and kinds == {"full_attention"}
        and config._attn_implementation == "sdpa"
        and not getattr(config, "use_sliding_window", False)
    )


def pack(tree: Tree, needed: Iterable[int]) -> Row:
    """One row with the paths to all ``needed`` nodes, each node once."""
    wanted = {node.id for target in needed for node in tree.path(target)}
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
    return Row(ids, positions, ends, nodes)


def separate(tree: Tree, needed: Iterable[int]) -> list[Row]:
    """One row per leaf of the paths to ``needed``; a node that several rows hold is scored in the first."""
    wanted = {node.id for target in needed for node in tree.path(target)}
    leaves = [n for n in sorted(wanted) if not any(child.id in wanted for child in tree.children(n))]
    rows: list[Row] = []
    scored: set[NodeKey] = set()
    for leaf in leaves:
        row = pack(tree, [leaf])
        nodes = {key: value for key, value in row.nodes.items() if key not in scored}
        scored |= nodes.keys()
        rows.append(Row(row.ids, row.positions, row.ends, nodes))
    return rows


def score_packed(model: Any, rows: Sequence[Row], *, entropies: bool) -> dict[NodeKey, NodeScores]:
    """Score every node of the rows in one forward pass over one row that holds them all."""
    joined = _join(rows)
    device = next(model.parameters()).device
    ends_T = torch.tensor(joined.ends, device=device)
    index_T = torch.arange(len(joined), device=device)
    # Rows: who looks (q); columns: who is seen (k).
    mask_TT = (index_T[None, :] <= index_T[:, None]) & (index_T[:, None] < ends_T[None, :])
    # Logits only where a step's token is predicted; a position that predicts several children appears once.
    places = sorted({place for predictors, _ in joined.nodes.values() for place in predictors})
    logits_PV = model(
        input_ids=torch.tensor([joined.ids], device=device),
        position_ids=torch.tensor([joined.positions], device=device),
        attention_mask=mask_TT[None, None],
        logits_to_keep=torch.tensor(places, device=device),
        use_cache=False,
    ).logits[0]
    rank = {place: i for i, place in enumerate(places)}
    keyed = {key: ([rank[p] for p in predictors], tokens) for key, (predictors, tokens) in joined.nodes.items()}
    return _scores(logits_PV, keyed, entropies)


def score_separate(model: Any, rows: Sequence[Row], *, entropies: bool) -> dict[NodeKey, NodeScores]:
    """Score every node of the rows, each row by itself in a padded batch with a causal mask."""
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    keyed: dict[NodeKey, tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        assert row.positions == list(range(len(row))), "separate rows hold one path each"
        ids_BT[i, : len(row)] = torch.tensor(row.ids, device=device)
        mask_BT[i, : len(row)] = 1
        for key, (predictors, tokens) in row.nodes.items():
            keyed[key] = ([i * width + p for p in predictors], tokens)
    logits_NV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits.flatten(0, 1)
    return _scores(logits_NV, keyed, entropies)


def _scores(
    logits_NV: torch.Tensor, nodes: Mapping[NodeKey, tuple[list[int], list[int]]], entropies: bool
) -> dict[NodeKey, NodeScores]:
    device = logits_NV.device
    places = torch.tensor([p for predictors, _ in nodes.values() for p in predictors], device=device)
    tokens = torch.tensor([t for _, tokens in nodes.values() for t in tokens], device=device)
    unique, inverse = torch.unique(places, return_inverse=True)
    logp_UV = logits_NV[unique].float().log_softmax(-1)
    logprobs = logp_UV[inverse, tokens]
    entropy = -(logp_UV.exp() * logp_UV).sum(-1)[inverse] if entropies else torch.zeros_like(logprobs)
    sizes = [len(tokens) for _, tokens in nodes.values()]
    split = zip(nodes, torch.split(logprobs, sizes), torch.split(entropy, sizes), strict=True)
    return {key: NodeScores(lp, h) for key, lp, h in split}


def _join(rows: Sequence[Row]) -> Row:
    """Several rows as one: the mask keeps them apart, since no token is visible past its own subtree."""
    ids: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    nodes: dict[NodeKey, tuple[list[int], list[int]]] = {}
    for row in rows:
        offset = len(ids)
        ids += row.ids
        positions += row.positions
        ends += [end + offset for end in row.ends]
        nodes |= {key: ([p + offset for p in predictors], tokens) for key, (predictors, tokens) in row.nodes.items()}
    return Row(ids, positions, ends, nodes)
