"""Packed trees against separate rows and against one plain forward pass per path."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caspo.train.tree_packing import NodeScores, can_pack, pack, score_packed, score_separate, separate
from caspo.types import Tree
from tiny import build, bushy_tree

PACKABLE = ("llama", "qwen2", "qwen3", "smollm3", "granite")
Scores = dict[tuple[str, int], NodeScores]


def trees() -> list[Tree]:
    return [bushy_tree(f"q{i}", i) for i in range(3)]


def every(tree: Tree) -> range:
    return range(len(tree.nodes))


def packed(model: Any, found: list[Tree]) -> Scores:
    return score_packed(model, [pack(t, every(t)) for t in found], entropies=True)


def apart(model: Any, found: list[Tree]) -> Scores:
    return score_separate(model, [row for t in found for row in separate(t, every(t))], entropies=True)


def weighted(scores: Scores) -> torch.Tensor:
    """A loss in which every token has a weight of its own."""
    terms = []
    for i, key in enumerate(sorted(scores)):
        n = len(scores[key].logprobs)
        weights = torch.arange(1.0, n + 1) / (i + 1)
        terms.append((weights * (scores[key].logprobs + 0.3 * scores[key].entropies)).sum())
    return torch.stack(terms).sum()


@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_equals_separate(kind: str) -> None:
    """Log-probabilities, entropies, loss and gradients of a packed tree are those of separate rows."""
    model = build(kind)
    assert can_pack(model)
    found = trees()
    results = []
    for score in (packed, apart):
        model.zero_grad()
        scores = score(model, found)
        loss = weighted(scores)
        loss.backward()  # type: ignore[no-untyped-call]
        results.append((scores, loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (a, loss_a, grads_a), (b, loss_b, grads_b) = results
    assert a.keys() == b.keys() == {(t.question.id, i) for t in found for i in every(t)}
    for key in a:
        torch.testing.assert_close(a[key].logprobs, b[key].logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a[key].entropies, b[key].entropies, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss_a, loss_b, atol=1e-4, rtol=1e-5)
    assert grads_a.keys() == grads_b.keys()
    for name, grad in grads_a.items():
        assert float((grad - grads_b[name]).norm()) <= 1e-4 * float(grads_b[name].norm()) + 1e-6, name


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_scores_equal_plain_forward_passes(kind: str) -> None:
    """A node's scores are those of its path alone, also for models that are not packed (sliding windows)."""
    model = build(kind)
    tree = trees()[1]
    scores = (packed if kind == "llama" else apart)(model, [tree])
    for node in tree.nodes:
        ids = tree.prefix_ids(node.id)
        n = len(node.step.token_ids)
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([ids])).logits[0, -n - 1 : -1].log_softmax(-1)
        mine = scores[tree.question.id, node.id]
        expected = logp.gather(1, torch.tensor(ids[-n:])[:, None])[:, 0]
        torch.testing.assert_close(mine.logprobs.detach(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.entropies.detach(), -(logp.exp() * logp).sum(-1), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_packed() -> None:
    """Sliding windows, unknown families and attention kernels that take no mask get separate rows."""
    assert not can_pack(build("gemma3"))
    assert not can_pack(build("mistral"))
    assert not can_pack(build("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0))
    eager = build("llama")
    eager.config._attn_implementation = "eager"
    assert not can_pack(eager)


def test_pack_holds_each_token_once() -> None:
    """A row's length is the prompt plus every needed step once; positions are depths along the path."""
    tree = trees()[0]
    row = pack(tree, every(tree))
    assert len(row) == len(tree.prompt_ids) + sum(len(n.step.token_ids) for n in tree.nodes)
    for node in tree.nodes:
        _, tokens = row.nodes[tree.question.id, node.id]
        assert tuple(tokens) == node.step.token_ids
    for node in tree.nodes:
        last = last_place(row, tree, node.id)
        seen = [k for k in range(len(row)) if k <= last < row.ends[k]]
        assert tuple(row.ids[k] for k in seen) == tree.prefix_ids(node.id), "a step sees its own path, nothing else"
        assert [row.positions[k] for k in seen] == list(range(len(seen)))


def last_place(row: Any, tree: Tree, node: int) -> int:
    """Where a node's last token stands in the row."""
    predictors, tokens = row.nodes[tree.question.id, node]
    if len(predictors) > 1:
        return int(predictors[-1]) + 1
    return next(
        k
        for k in range(predictors[0] + 1, len(row))
        if row.ids[k] == tokens[0]
        and row.positions[k] == row.positions[predictors[0]] + 1
        and alone(row, k, predictors[0])
    )


def alone(row: Any, place: int, parent: int) -> bool:
    return bool(row.ends[place] <= row.ends[parent])


def test_only_what_is_needed() -> None:
    """Paths to the needed nodes are computed, other branches are not."""
    tree = trees()[0]
    row = pack(tree, [4])
    assert {node for _, node in row.nodes} == {0, 4}
    assert len(separate(tree, [3, 4, 6])) == 3
    rows = separate(tree, every(tree))
    assert sorted(node for r in rows for _, node in r.nodes) == list(every(tree)), "each node is scored once"
