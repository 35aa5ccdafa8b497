"""The tree mask in the form each kernel takes, and the models that are refused one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from caspo.core.errors import EngineError
from caspo.train import attention
from caspo.train.attention import TreeAttention
from caspo.train.scoring import Scorer
from caspo.train.tree_packing import PackedRow, join, pack
from tiny import build, bushy_tree

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip


def a_row() -> PackedRow:
    """Two trees in one row."""
    return join([pack(tree, range(9)) for tree in (bushy_tree("a", 0), bushy_tree("b", 1))])


def mask_of(attention: TreeAttention, row: PackedRow, dtype: torch.dtype = torch.float32) -> Any:
    return attention.mask(torch.tensor(row.positions), torch.tensor(row.ends), dtype)


def expected(row: PackedRow, window: int | None) -> list[list[bool]]:
    """Token by token: on the path, and fewer than ``window`` positions back."""
    return [
        [k <= q < row.ends[k] and (window is None or row.positions[q] - row.positions[k] < window) for k in range(len(row))]
        for q in range(len(row))
    ]  # fmt: skip


def test_sdpa_takes_booleans() -> None:
    """True is what a token sees."""
    row = a_row()
    mask = mask_of(TreeAttention.of(build("llama", attn_implementation="sdpa")), row)
    assert mask.dtype == torch.bool
    assert mask.shape == (1, 1, len(row), len(row))
    assert mask[0, 0].tolist() == expected(row, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_takes_what_is_added(dtype: torch.dtype) -> None:
    """The eager kernel adds its mask to the scores: 0 where a token sees, the model's lowest number elsewhere."""
    row = a_row()
    mask = mask_of(TreeAttention.of(build("llama", attn_implementation="eager")), row, dtype)
    assert mask.dtype == dtype
    assert set(mask.flatten().tolist()) == {0.0, torch.finfo(dtype).min}
    assert (mask[0, 0] == 0).tolist() == expected(row, None)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "window"), [("gemma3", 4), ("olmo3", 4)])
def test_mixed_layers_take_a_mask_each(kind: str, window: int, implementation: str) -> None:
    """Layers that see all and layers with a window are told apart by name."""
    row = a_row()
    masks = mask_of(TreeAttention.of(build(kind, attn_implementation=implementation)), row)
    assert masks.keys() == {"full_attention", "sliding_attention"}
    for name, limit in (("full_attention", None), ("sliding_attention", window)):
        seen = masks[name][0, 0] if implementation == "sdpa" else masks[name][0, 0] == 0
        assert seen.tolist() == expected(row, limit)


@pytest.mark.parametrize(
    ("kind", "more", "window"),
    [
        ("mistral", {}, 5),
        ("phi3", {}, 6),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 4}, None),
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}, 4),
        ("gemma3", {"layer_types": ["sliding_attention"] * 2}, 4),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, None),
    ],
)
def test_one_kind_of_layer_takes_one_mask(kind: str, more: dict[str, Any], window: int | None) -> None:
    """Whether a window is in use is read from the configuration, in every way a family writes it down."""
    row = a_row()
    mask = mask_of(TreeAttention.of(build(kind, attn_implementation="sdpa", **more)), row)
    assert mask[0, 0].tolist() == expected(row, window)


def test_qwen2_with_some_windows() -> None:
    """Qwen2 with windows in its upper layers only is a mixed model."""
    attention = TreeAttention.of(build("qwen2", sliding_window=4, use_sliding_window=True, max_window_layers=1))
    assert (attention.window, attention.full) == (4, True)


def small(family: str, **more: Any) -> Any:
    """A tiny model of a class of transformers that packing does not know."""
    config = getattr(tf, f"{family}Config")(**{**SMALL, **more})
    return getattr(tf, f"{family}ForCausalLM")(config)


@pytest.mark.parametrize(
    ("family", "more", "what"),
    [
        ("Qwen3Next", {"layer_types": ["linear_attention", "full_attention"], "num_experts": 2}, "linear_attention"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "conv"),
        ("Mamba2", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}, "mamba2"),
        ("Jamba", {"num_experts": 2}, "jamba"),
        ("Rwkv", {}, "recurrent state"),
        ("Bloom", {"n_head": 4}, "ALiBi"),
        ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "ALiBi"),
    ],
)
def test_refused_by_name(family: str, more: dict[str, Any], what: str) -> None:
    """Hybrids, recurrences and ALiBi would be silently wrong: the message names the class, why, and what to set."""
    with pytest.raises(EngineError, match=rf"{family}ForCausalLM .*{what}.*train\.layout=separate"):
        TreeAttention.of(small(family, **more))


def test_windows_of_the_row_are_refused() -> None:
    """GPT-Neo's local layers count their window in the row, which a small tree does not show."""
    model = tf.GPTNeoForCausalLM(
        tf.GPTNeoConfig(
            vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    with pytest.raises(EngineError, match=r"GPTNeoForCausalLM .*train\.layout=separate"):
        TreeAttention.of(model)


@pytest.mark.parametrize("more", [{"layer_types": ["chunked_attention", "full_attention"]}, {"attention_chunk_size": 16}])
def test_chunks_are_refused(more: dict[str, Any]) -> None:
    """Llama 4 attends within chunks of the row, however its configuration says so."""
    model = build("llama")
    for name, value in more.items():
        setattr(model.config, name, value)
    with pytest.raises(EngineError, match=r"LlamaForCausalLM \(llama\) .*chunked.attention.*train\.layout=separate"):
        TreeAttention.of(model)


def test_llama4_is_refused() -> None:
    """The real configuration of Llama 4."""
    model = build("llama")
    model.config = tf.Llama4TextConfig(**{**SMALL, "num_hidden_layers": 4})
    with pytest.raises(EngineError, match=r"\(llama4_text\) .*chunked_attention"):
        TreeAttention.of(model)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "kernels-community/x"])
def test_kernels_without_masks_are_refused(implementation: str) -> None:
    """FlashAttention takes no mask and would see the row as one text; the message names one that does."""
    model = build("llama")
    model.config._attn_implementation = implementation
    with pytest.raises(EngineError, match=rf"LlamaForCausalLM runs {implementation}.*attn_implementation='sdpa'"):
        TreeAttention.of(model)


def test_encoder_decoders_are_refused() -> None:
    """T5 is no causal language model in any layout."""
    config = tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    with pytest.raises(EngineError, match="T5ForConditionalGeneration is an encoder-decoder"):
        TreeAttention.of(tf.T5ForConditionalGeneration(config))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "mistral", "olmo3", "qwen3_moe"])
def test_blocks_of_queries_change_nothing(kind: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a long row is attended block by block over the keys it sees: the same scores and gradients."""
    trees = [bushy_tree(name, seed) for seed, name in enumerate("ab")]
    results = []
    for size in (5, 10_000):
        monkeypatch.setattr(attention, "_BLOCK", size)
        model = build(kind)
        if checkpointing:
            model.train()
            model.activation_checkpointing_enable({"use_reentrant": False})
        scorer = Scorer(model, packed=True)
        scores = scorer.score(model, [row for tree in trees for row in scorer.rows(tree, range(9))])
        mask = scorer.attention.mask(torch.arange(30), torch.full((30,), 30), torch.float32)  # type: ignore[union-attr]
        first = next(iter(mask.values())) if isinstance(mask, dict) else mask
        assert len(first.caspo_blocks) == (6 if size == 5 else 1)
        loss = sum(
            (place - 4) * scores[key].logprobs.sum() + scores[key].entropies.mean()
            for place, key in enumerate(sorted(scores))
        )
        loss.backward()
        results.append((scores, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (many, gradients), (one, expected) = results
    for key, score in one.items():
        torch.testing.assert_close(many[key].logprobs, score.logprobs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(many[key].entropies, score.entropies, atol=1e-5, rtol=1e-5)
    whole = float(torch.stack([g.norm() for g in expected.values()]).norm())
    for name, gradient in expected.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-6 * whole, name
