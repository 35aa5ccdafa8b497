"""A GGUF file before anything is made of it: what model is in it, and whether all of it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError

__all__ = ["GgufFile", "open_gguf"]


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself."""

    path: Path
    architecture: str
    numbers: int
    """Of all its tensors together; each takes four bytes as float32."""
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
    rows = None if embedding is None else int(embedding.shape[-1])
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if rows is not None and tokens is not None and len(tokens.data) != rows:
        raise ModelError(
            f"The tokenizer in {path} has {len(tokens.data)} tokens, and the embedding of its model {rows} rows: they do "
            "not belong together. Convert the model again, with its own tokenizer."
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
        None if factors is None else factors.data.tolist(),
    )
