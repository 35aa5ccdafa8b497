"""Tiny random models, a tiny tokenizer and hand-made trees for the tests of engines and training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from caspo.engines.base import Completion, Request
from caspo.loop.warm_start import train_tokenizer
from caspo.records import ROOT, Node, Question, Step, StepPair, TokenTrace, Tree, Verdict
from caspo.steps import text_of
from caspo.tasks.stories import StoriesTask
from caspo.testing.scripted import Script, ScriptedEngine

VOCABULARY = 320

COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # wide enough that the next token is neither certain nor uniform
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@cache
def tokenizer() -> Any:
    """Byte-level BPE, 320 tokens; 0 is EOS, 1 is padding."""
    return train_tokenizer(StoriesTask().questions("train", 40), VOCABULARY)


def build(kind: str, seed: int = 0, **more: Any) -> Any:
    """A random model of the given family, in evaluation mode; Gemma 2 attends as `models.load` has it, eagerly."""
    import transformers as tf

    layers = ["sliding_attention", "full_attention"]
    if kind == "gemma2":
        more = {"attn_implementation": "eager", **more}
    gemma = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4, "layer_types": layers}
    families: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "llama": (tf.LlamaConfig, tf.LlamaForCausalLM, {}),
        "qwen2": (tf.Qwen2Config, tf.Qwen2ForCausalLM, {}),
        "qwen3": (tf.Qwen3Config, tf.Qwen3ForCausalLM, {"head_dim": 8}),
        "smollm3": (tf.SmolLM3Config, tf.SmolLM3ForCausalLM, {}),
        "granite": (tf.GraniteConfig, tf.GraniteForCausalLM, {}),
        "mistral": (tf.MistralConfig, tf.MistralForCausalLM, {"sliding_window": 5}),
        "phi3": (tf.Phi3Config, tf.Phi3ForCausalLM, {"sliding_window": 6}),
        "olmo3": (tf.Olmo3Config, tf.Olmo3ForCausalLM, {"sliding_window": 4, "layer_types": layers}),
        "gemma2": (tf.Gemma2Config, tf.Gemma2ForCausalLM, {**gemma, "attn_logit_softcapping": 5.0}),
        "gemma3": (tf.Gemma3TextConfig, tf.Gemma3ForCausalLM, gemma),
        "qwen3_moe": (
            tf.Qwen3MoeConfig,
            tf.Qwen3MoeForCausalLM,
            {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        ),
        "gpt_oss": (
            tf.GptOssConfig,
            tf.GptOssForCausalLM,
            {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4, "layer_types": layers},
        ),
        "gpt2": (tf.GPT2Config, tf.GPT2LMHeadModel, {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        "gpt_neox": (tf.GPTNeoXConfig, tf.GPTNeoXForCausalLM, {}),
        "opt": (
            tf.OPTConfig,
            tf.OPTForCausalLM,
            {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.25, "dropout": 0.0},
        ),
        "phi": (tf.PhiConfig, tf.PhiForCausalLM, {"num_key_value_heads": 4}),
        "falcon": (tf.FalconConfig, tf.FalconForCausalLM, {}),
        "bloom": (tf.BloomConfig, tf.BloomForCausalLM, {}),
        "mpt": (tf.MptConfig, tf.MptForCausalLM, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    }
    config_class, model_class, extra = families[kind]
    torch.manual_seed(seed)
    return model_class(config_class(**{**COMMON, **extra, **more})).eval()


def trace(n: int, entropy: float = 0.5, logprob: float = -0.5) -> TokenTrace:
    """A made-up trace of ``n`` tokens."""
    values = (entropy, logprob, -0.1, 0.5, 0.2)
    return TokenTrace(*(np.full(n, v, dtype=np.float32) for v in values))


def node(
    id: int, parent: int, depth: int, ids: tuple[int, ...], label: str | None, *, final: bool = False,
    entropy: float = 0.5, logprob: float = -0.5,
) -> Node:  # fmt: skip
    verdict = None if label is None else Verdict(label, "", "test")  # type: ignore[arg-type]
    step = Step(f"step {id}\n", ids, trace(len(ids), entropy, logprob))
    return Node(id, parent, depth, step, final=final, verdict=verdict)


def bushy_tree(name: str = "q", seed: int = 0) -> Tree:
    """Nine nodes, three levels, steps of 1 to 5 tokens; right and wrong siblings at each level."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(2, VOCABULARY, n))

    shape = [
        (ROOT, 1, 3, "right"), (ROOT, 1, 4, "wrong"), (ROOT, 1, 1, "right"), (0, 2, 5, "right"), (0, 2, 2, "wrong"),
        (2, 2, 3, "right"), (2, 2, 1, "wrong"), (3, 3, 4, "right"), (3, 3, 3, "wrong"),
    ]  # fmt: skip
    nodes = [
        node(i, parent, depth, ids(n) + ((0,) if i == 7 else ()), label, final=i == 7)
        for i, (parent, depth, n, label) in enumerate(shape)
    ]
    return Tree(Question(f"question {name}", "5", id=name), ids(6 + seed % 3), tuple(nodes))


def grown(name: str, prompt: tuple[int, ...], shape: Sequence[tuple[int, int]], first: int = 1000) -> Tree:
    """A tree whose every step token is another one, counted from ``first``; ``shape``: per node its parent, its tokens."""
    nodes: list[Node] = []
    for i, (parent, n) in enumerate(shape):
        depth = 1 if parent == ROOT else nodes[parent].depth + 1
        nodes.append(node(i, parent, depth, tuple(range(first, first + n)), "right" if i % 2 else "wrong"))
        first += n
    return Tree(Question("", id=name), prompt, tuple(nodes))


def pairs_of(tree: Tree) -> list[StepPair]:
    """Every right sibling of `bushy_tree` with every wrong one."""
    found = []
    for parent, children in tree.groups():
        right = [c for c in children if c.verdict and c.verdict.label == "right"]
        wrong = [c for c in children if c.verdict and c.verdict.label == "wrong"]
        found += [StepPair(tree.question.id, parent, r.id, w.id, "confident_wrong", 0.5, 0.5) for r in right for w in wrong]
    return found


def same_tree(a: Tree, b: Tree) -> bool:
    """Equality of two trees, arrays included."""

    def plain(tree: Tree) -> Any:
        return _lists(dataclasses.asdict(tree))

    return bool(plain(a) == plain(b))


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items() if k != "_children"}
    if isinstance(value, (list, tuple)):
        return [_lists(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


class Counting(ScriptedEngine):
    """A scripted engine that notes what is asked of it, and counts what it decodes for each question."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.tokens: dict[str, int] = {}
        self.requests: list[Request] = []

    def play(self, request: Request) -> Completion:
        completion = super().play(request)
        self.requests.append(request)
        name = text_of(self.pieces(request.prefix_ids)).partition("\n")[0]
        self.tokens[name] = self.tokens.get(name, 0) + completion.decoded
        return completion
