"""A GGUF file before anything is made of it: what model is in it, and whether all of it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError

__all__ = ["GgufFile", "open_gguf"]

_CUTS = frozenset(
    {
        "dbrx", "deepseek-r1-qwen", "default", "f2llmv2", "falcon-h1", "falcon3", "gpt-2", "gpt-4o", "jina-v5-nano",
        "kanana2", "kormo", "lfm2", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez", "midm-2.0", "minimax-m2",
        "pixtral", "qwen2", "qwen35", "smaug-bpe", "smollm", "talkie", "tekken",
    }
)  # fmt: skip
"""Ways of cutting text before byte-level BPE that transformers 5.23 has; any other it takes for GPT-2's. `smollm` is that,
with single digits, which its merges never join."""


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself."""

    path: Path
    architecture: str
    numbers: int
    """Of all its tensors together; each takes four bytes as float32."""
    tokens: int
    """In its vocabulary."""
    rope_factors: Sequence[float] | None
    """What the frequencies of rotary embedding are divided by, where the file has a tensor of that."""


def open_gguf(path: Path, name: str) -> GgufFile:
    """Read the head of a file; ``name`` is the model's in messages.

    Raises:
        ModelError: it is no GGUF file, damaged, cut off, one of several, or holds no model; or its tokens and embeddings
            differ in number.
    """
    from gguf import GGUFReader

    try:
        reader: Any = GGUFReader(path)
    except Exception as error:  # a damaged file breaks the reader wherever it is damaged: numpy, struct and codecs
        raise ModelError(
            f"{name!r} cannot be read: {path} is no GGUF file, damaged, or incomplete ({type(error).__name__}: {error}). "
            "Download it again and compare its size, or its sha256, with the source."
        ) from error

    def field(key: str, default: Any = None) -> Any:
        found = reader.get_field(key)
        return default if found is None else found.contents()

    of = field("split.count", 1)
    if of > 1:
        raise ModelError(
            f"{path} is one of {of} files of a model. Join them (llama-gguf-split --merge FIRST.gguf WHOLE.gguf) and give "
            "the whole one, or use the engine llama_cpp with the first of them."
        )
    architecture, kind = field("general.architecture"), field("general.type", "model")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if architecture is None or kind != "model" or not tensors:
        raise ModelError(
            f"{path} holds {'no model' if kind == 'model' else f'what GGUF calls {kind!r}, and no model'}. Give the GGUF "
            "file of a whole language model; of an adapter its folder with safetensors."
        )
    embedding = tensors.get("token_embd.weight")
    rows = 0 if embedding is None else int(embedding.shape[-1])
    found = reader.get_field("tokenizer.ggml.tokens")
    tokens = 0 if found is None else len(found.data)
    if not tokens or tokens != rows:
        raise ModelError(
            f"The tokenizer in {path} has {tokens} tokens, and the embedding of its model {rows} rows: they do not belong "
            "together. Convert the model again, with its own tokenizer."
        )
    cut = field("tokenizer.ggml.pre", "default")
    if field("tokenizer.ggml.model") == "gpt2" and cut not in _CUTS:
        raise ModelError(
            f"The tokenizer in {path} cuts text into words in the way {cut!r}, which transformers does not know of GGUF "
            "files: it would make other tokens of a text. Use the model's safetensors, or the engine llama_cpp."
        )
    long = [n for n in tensors if n.startswith("rope_factors_")]
    if long:
        raise ModelError(
            f"{path} has rotary factors for long texts ({', '.join(long)}), which transformers does not take from a GGUF "
            "file. Use the model's safetensors, or the engine llama_cpp."
        )
    factors = tensors.get("rope_freqs.weight")
    return GgufFile(
        path,
        str(architecture),
        sum(int(tensor.n_elements) for tensor in tensors.values()),
        tokens,
        None if factors is None else factors.data.tolist(),
    )
