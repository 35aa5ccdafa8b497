"""One forward pass over packed trees against separate rows, against plain forward passes, and against the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from caspo.core.errors import EngineError
from caspo.engines.base import Request
from caspo.engines.local.engine import HFEngine
from caspo.records import ROOT, Question, Step, Tree
from caspo.train.attention import TreeAttention
from caspo.train.scoring import NodeScores, Scorer, _TokenScores, check_packing
from caspo.train.tree_packing import NodeKey, join, pack
from caspo.trees import TreeBuilder
from tiny import build, bushy_tree, node, tokenizer

FAMILIES = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "olmo3", "smollm3", "granite", "qwen3_moe", "gpt_oss",
    "gpt2", "gpt_neox", "opt", "phi", "falcon",
)  # fmt: skip
EAGER = ("gemma2", "gpt_oss")
"""Score caps and sinks: transformers has no SDPA for them."""
KERNELS = [(kind, kernel) for kind in FAMILIES for kernel in ("sdpa", "eager") if kernel == "eager" or kind not in EAGER]
Scores = dict[NodeKey, NodeScores]


def forest() -> list[Tree]:
    """Three trees whose prompts begin alike, as with a chat template: some of it is computed once."""
    return [replace(t, prompt_ids=(5, 6, 7, *t.prompt_ids)) for t in (bushy_tree(f"q{i}", i) for i in range(3))]


def score(model: Any, found: list[Tree], *, packed: bool) -> Scores:
    scorer = Scorer(model, packed=packed)
    return scorer.score(model, [row for t in found for row in scorer.rows(t, range(len(t.nodes)))])


def weighted(scores: Scores) -> torch.Tensor:
    """A loss in which every token has a weight of its own, signs mixed as those of chosen and rejected steps."""
    terms = []
    for i, key in enumerate(sorted(scores)):
        n = len(scores[key].logprobs)
        weights = torch.arange(1.0, n + 1) * (i % 5 - 2.1) / 10
        terms.append((weights * (scores[key].logprobs + 0.3 * scores[key].entropies)).sum())
    return torch.stack(terms).sum()


def plain(model: Any, tree: Tree, number: int) -> torch.Tensor:
    """(n, V) log-probabilities before each token of a step: its path alone through the model, nothing of ours."""
    n = len(tree.nodes[number].step.token_ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tree.prefix_ids(number)])).logits
    return logits[0, -n - 1 : -1].double().log_softmax(-1)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("kind", "kernel"), KERNELS)
def test_packed_equals_separate(kind: str, kernel: str, checkpointing: bool) -> None:
    """Three trees in one row: log p, entropies, loss and gradients are those of separate rows, in fp32."""
    model = build(kind, attn_implementation=kernel)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert model.is_gradient_checkpointing == checkpointing
    found = forest()
    results = []
    for packed in (True, False):
        model.zero_grad()
        scores = score(model, found, packed=packed)
        loss = weighted(scores)
        loss.backward()  # type: ignore[no-untyped-call]
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((scores, loss.detach(), grads))
    (a, loss_a, grads_a), (b, loss_b, grads_b) = results
    assert a.keys() == b.keys() == {(t.question.id, n.id) for t in found for n in t.nodes}
    for key in a:
        torch.testing.assert_close(a[key].logprobs, b[key].logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a[key].entropies, b[key].entropies, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss_a, loss_b, atol=1e-5, rtol=1e-5)
    assert grads_a.keys() == grads_b.keys()
    # A bias that softmax cancels has a gradient of rounding only: it is measured against the whole.
    whole = float(torch.stack([g.norm() for g in grads_b.values()]).norm())
    for name, grad in grads_a.items():
        norm = float(grads_b[name].norm())
        assert float((grad - grads_b[name]).norm()) <= 1e-5 * norm + 1e-7 * whole, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_scores_equal_plain_forward_passes(kind: str) -> None:
    """A packed node's scores and traces are those of its path alone through the model, windows and all."""
    model = build(kind)
    tree = bushy_tree("q", 1)
    scorer = Scorer(model, packed=True)
    rows = scorer.rows(tree, range(9))
    scores, traces = scorer.score(model, rows), scorer.traces(model, rows)
    assert scores.keys() == traces.keys() == {("q", i) for i in range(9)}
    for key, mine in scores.items():
        logp = plain(model, tree, key[1])
        p = logp.exp()
        entropy = -(p * logp).sum(-1)
        best = p.topk(2).values
        expected = {
            "entropy": entropy,
            "logprob": logp.gather(1, torch.tensor(tree.nodes[key[1]].step.token_ids)[:, None])[:, 0],
            "max_logprob": logp.max(-1).values,
            "margin": best[:, 0] - best[:, 1],
            "varentropy": (p * (logp + entropy[:, None]) ** 2).sum(-1),
        }
        np.testing.assert_allclose(mine.logprobs.detach(), expected["logprob"], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(mine.entropies.detach(), expected["entropy"], atol=1e-5, rtol=1e-5)
        for i, (name, values) in enumerate(expected.items()):
            np.testing.assert_allclose(traces[key][:, i], values, atol=5e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_gradients_equal_plain_autograd(kind: str) -> None:
    """The gradient of a packed loss, entropies included, is that of plain forward passes path by path."""
    model, tree = build(kind), bushy_tree()
    weighted(score(model, [tree], packed=True)).backward()  # type: ignore[no-untyped-call]
    mine = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    apart: Scores = {}
    for n in tree.nodes:
        tokens = torch.tensor(n.step.token_ids)
        out = model(input_ids=torch.tensor([tree.prefix_ids(n.id)])).logits
        logp = out[0, -len(tokens) - 1 : -1].log_softmax(-1)
        apart["q", n.id] = NodeScores(logp.gather(1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1))
    weighted(apart).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert float((mine[name] - parameter.grad).norm()) <= 1e-5 * float(parameter.grad.norm()), name


def test_windows_are_measured_in_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings that stand between a step and its parent in the row take nothing of the window, and would by index."""
    steps = [(ROOT, (11, 12)), (0, (21, 22, 23)), (0, (31, 32, 33)), (0, (41, 42))]
    nodes = tuple(node(i, parent, 1 + (parent >= 0), ids, None) for i, (parent, ids) in enumerate(steps))
    tree = Tree(Question("", id="q"), (5, 6, 7), nodes)
    model = build("mistral", sliding_window=4)
    right = score(model, [tree], packed=True)["q", 3].logprobs.detach()
    expected = plain(model, tree, 3).gather(1, torch.tensor([[41], [42]]))[:, 0]
    np.testing.assert_allclose(right, expected, atol=1e-5, rtol=1e-5)

    ours = TreeAttention.mask

    def by_index(self: TreeAttention, positions: torch.Tensor, ends: torch.Tensor, dtype: torch.dtype) -> Any:
        return ours(self, torch.arange(len(ends)), ends, dtype)

    monkeypatch.setattr(TreeAttention, "mask", by_index)
    wrong = score(model, [tree], packed=True)["q", 3].logprobs.detach()
    assert float((wrong - right).abs().max()) > 0.1, "the tree does not tell the two apart"


def test_pieces_of_one_tree_may_meet() -> None:
    """Parts of a cut tree in one row score what they share as if it stood once."""
    model, tree = build("llama"), bushy_tree()
    scorer = Scorer(model, packed=True)
    whole = scorer.traces(model, [pack(tree, range(9))])
    parts = scorer.traces(model, [pack(tree, [3, 7]), pack(tree, [4, 8]), pack(tree, [1, 5, 6])])
    assert parts.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_flex_attention_equals_sdpa() -> None:
    """The block mask of FlexAttention says the same as the dense one (forward only: it has no backward on a CPU)."""
    found = forest()
    with torch.no_grad():
        flex = score(build("llama", attn_implementation="flex_attention"), found, packed=True)
        sdpa = score(build("llama", attn_implementation="sdpa"), found, packed=False)
    for key in sdpa:
        torch.testing.assert_close(flex[key].logprobs, sdpa[key].logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(flex[key].entropies, sdpa[key].entropies, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_bfloat16_models_are_packed(kernel: str) -> None:
    """Masks come in the model's type; layouts differ by its rounding only."""
    model = build("gemma3", attn_implementation=kernel).bfloat16()
    assert check_packing(model, bushy_tree(), range(9)) < 0.1


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_traces_are_the_engines(kind: str, packed: bool) -> None:
    """A tree that the hf engine sampled, scored again: all five numbers of each token are those it recorded."""
    engine = HFEngine(build(kind), tokenizer())
    builder = TreeBuilder(Question("", id="q"), tuple(range(2, 12)))
    for depth, parent in enumerate((ROOT, 0, 4)):
        requests = [Request(builder.prefix_ids(parent), 10 * depth + i, 6, 0.8, 0.95) for i in range(4)]
        for i, done in enumerate(engine.generate(requests)):
            step = Step(f"{depth} {i}", done.token_ids, done.trace)
            builder.add(parent, step, final=False)
    tree = builder.build()
    scorer = Scorer(engine.model, packed=packed)
    traces = scorer.traces(engine.model, scorer.rows(tree, range(len(tree.nodes))))
    assert len(traces) == 12
    for (_, number), found in traces.items():
        trace = tree.nodes[number].step.trace
        recorded = [trace.entropy, trace.logprob, trace.max_logprob, trace.margin, trace.varentropy]
        np.testing.assert_allclose(found.numpy(), np.stack(recorded, axis=1), atol=1e-4, rtol=1e-4)


def test_damaged_logits_are_named() -> None:
    """NaN in the weights is an error where it is scored, not a NaN in a file."""
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    scorer = Scorer(model, packed=True)
    with pytest.raises(EngineError, match="NaN or infinite logits"):
        scorer.traces(model, scorer.rows(bushy_tree(), range(9)))


def test_a_model_that_ignores_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the configuration says, both layouts are compared before training."""
    model = build("llama")
    assert check_packing(model, bushy_tree(), range(9)) < 1e-4
    forward = model.forward

    def deaf(attention_mask: torch.Tensor, **more: Any) -> Any:
        return forward(attention_mask=None if attention_mask.dim() == 4 else attention_mask, **more)

    monkeypatch.setattr(model, "forward", deaf)
    with pytest.raises(EngineError, match=r"LlamaForCausalLM does not honour.*train\.layout=separate"):
        check_packing(model, bushy_tree(), range(9))


# `_TokenScores`: many places at once (more than are reduced together), some of them of several tokens.
PLACES = torch.tensor([0, 0, 3, 3, 3, 8, 19, 12])
TOKENS = torch.tensor([1, 4, 2, 2, 0, 6, 6, 5])


def logits(dtype: torch.dtype, scale: float = 3.0) -> torch.Tensor:
    return (torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)


def plain_scores(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logp = z.log_softmax(-1)
    return logp[PLACES, TOKENS], -(logp.exp() * logp).sum(-1)


def test_token_scores_gradcheck() -> None:
    """The closed forms of both gradients against finite differences, in float64."""
    z = logits(torch.float64, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _TokenScores.apply(x, PLACES, TOKENS), (z,))


@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
def test_token_scores_equal_autograd(entropy_weight: float) -> None:
    """float32: values and gradients of `log_softmax`, with or without entropies in the loss."""
    results = []
    for scores in (lambda z: _TokenScores.apply(z, PLACES, TOKENS), plain_scores):
        z = logits(torch.float32).requires_grad_()
        logp, entropy = scores(z)
        weights = torch.arange(len(PLACES)) - 3.3
        loss = (weights * logp).sum()
        if entropy_weight:
            loss = loss + entropy_weight * entropy[PLACES].square().sum()
        loss.backward()
        results.append((logp.detach(), entropy.detach(), z.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_token_scores_of_masked_vocabulary() -> None:
    """Logits of -inf have p = 0: finite entropies and gradients, the same as without those columns."""
    z = logits(torch.float32)
    masked = torch.cat([z, torch.full((20, 2), float("-inf"))], dim=1)
    results = []
    for x in (z.requires_grad_(), masked.requires_grad_()):
        logp, entropy = _TokenScores.apply(x, PLACES, TOKENS)
        (logp.sum() + entropy.sum()).backward()
        assert x.grad is not None
        results.append((logp.detach(), entropy.detach(), x.grad[:, :7]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert masked.grad is not None
    assert not masked.grad[:, 7:].any()


def test_token_scores_of_bfloat16_logits() -> None:
    """Under autocast logits are bfloat16: numbers are float32, and the gradient is rounded once, sure tokens too."""
    z = logits(torch.bfloat16, 2.0)
    z[3, 2] = 12.0  # p near 1: its gradient is a small difference
    mine, theirs = z.clone().requires_grad_(), z.float().requires_grad_()
    found, expected = _TokenScores.apply(mine, PLACES, TOKENS), plain_scores(theirs)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    (found[0][2:4].sum() + found[0][5:].sum()).backward()
    (expected[0][2:4].sum() + expected[0][5:].sum()).backward()  # type: ignore[no-untyped-call]
    assert mine.grad is not None
    assert theirs.grad is not None
    assert mine.grad.dtype == torch.bfloat16
    torch.testing.assert_close(mine.grad.float(), theirs.grad, atol=1e-7, rtol=2**-7)


def test_rows_and_batches_agree() -> None:
    """Joining rows one by one or all at once is the same; a tree does not depend on what stands beside it."""
    model, found = build("gemma3"), forest()
    scorer = Scorer(model, packed=True)
    rows = [pack(t, range(9)) for t in found]
    together = scorer.traces(model, rows)
    nested = scorer.traces(model, [join(rows[:2]), rows[2]])
    for t, row in zip(found, rows, strict=True):
        alone = scorer.traces(model, [row])
        assert alone.keys() == {(t.question.id, i) for i in range(9)}
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(nested[key], value, atol=1e-5, rtol=1e-5)
