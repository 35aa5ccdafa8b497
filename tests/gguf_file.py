"""Models of transformers as GGUF files in float32, for tests: llama models with byte-level BPE only; also spoilt ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFWriter, TokenType

_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(file: Path, model: Any, tokenizer: Any, pre: str = "smollm", bos: int | None = None) -> Path:
    """Write both; ``pre`` names how text is cut before BPE (smollm: digits one by one, then as GPT-2). ``bos``: a token that
    every text begins with."""
    config, inner = model.config, json.loads(tokenizer._tokenizer.to_str())["model"]
    out = GGUFWriter(file, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_dimension_count(config.head_dim)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(config.vocab_size)))
    special = set(tokenizer.all_special_ids)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(len(tokens))])
    out.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in inner["merges"]])
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_add_bos_token(bos is not None)
    if bos is not None:
        out.add_bos_token_id(bos)
    if tokenizer.chat_template:
        out.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        parts = name.removeprefix("model.").split(".")
        if parts[0] == "layers":
            kind = ".".join(parts[2:-1])
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                data = _interleaved(data, config.num_attention_heads if "q_proj" in kind else config.num_key_value_heads)
            out.add_tensor(f"blk.{parts[1]}.{_LAYER[kind]}.weight", data)
        elif parts[0] != "lm_head" or not config.tie_word_embeddings:
            theirs = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]]
            out.add_tensor(f"{theirs}.weight", data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def changed(source: Path, target: Path, change: Callable[[GGUFWriter], Any] = lambda out: None, **more: Any) -> Path:
    """The file again with another field or tensor. ``architecture``: what it calls itself; ``without``: a tensor left out;
    ``tokens``: how many it has."""
    reader = GGUFReader(source)
    out = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            value = field.contents()
            if name == "tokenizer.ggml.tokens" and "tokens" in more:
                value = [*value, *(f"more{i}" for i in range(more["tokens"] - len(value)))]
            sub = field.types[-1] if len(field.types) > 1 else None
            out.add_key_value(name, value, field.types[0], sub)
    if "architecture" in more:
        out.kv_data[0]["general.architecture"].value = more["architecture"]
    change(out)
    for tensor in reader.tensors:
        if tensor.name != more.get("without"):
            out.add_tensor(tensor.name, np.array(tensor.data))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return target


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs side by side, as llama.cpp has them in llama models; transformers has them half a head apart."""
    rows, columns = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows, columns))
