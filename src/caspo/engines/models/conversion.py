"""Folders made of GGUF files: their weights in plain floats.

They are kept in float32. A four-bit integer times an fp16 scale needs more mantissa than bfloat16 has (8 bits): anything
smaller would be a second, silent quantisation. The price is four bytes a weight, once: 0.5 GB for SmolLM2, 2.5 GB for the
half billion of Qwen2.5-Coder.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError, StorageError
from caspo.engines.models.bundled import GgufWheels, wheel_files
from caspo.engines.models.cache import cache_dir, check_room, sha256
from caspo.engines.models.gguf import open_gguf
from caspo.engines.models.reading import quiet

__all__ = ["WHOLE", "convert_gguf", "convert_wheels", "save", "whole"]

log = logging.getLogger(__name__)

WHOLE = "parts.gguf"
"""The file that parts are joined to."""
_PIECE = 1 << 20
"""Bytes of a part that are copied at a time."""
_LEFT_BY_GGUF = ("quantization_config", "_model_name_or_path")
"""Keys of a configuration read from GGUF that are wrong for the plain floats we save."""
_PROBE = "Tom has 12 apples,\n\n  and 3 × 4 = 12 more: naïve ☃ 日本.\n"
_BESIDE = 64 << 20
"""Bytes of what is saved beside the weights, at most: tokenizer and settings."""


def whole(name: str, source: GgufWheels, folder: Path) -> Path:
    """The file made of the parts, in ``folder``; a single part is used where it lies.

    Raises:
        ModelError: a part is missing, or the whole is not the file that we know.
        OSError: the disk has no room for it.
    """
    found, *more = parts = wheel_files(name, source)
    if more:
        check_room(folder, sum(part.stat().st_size for part in parts))
        found, digest = folder / WHOLE, hashlib.sha256()
        with found.open("wb") as joined:
            for part in parts:
                with part.open("rb") as opened:
                    while piece := opened.read(_PIECE):
                        digest.update(piece)
                        joined.write(piece)
    if (digest.hexdigest() if more else sha256(found)) != source.sha256:
        raise ModelError(
            f"The file of the bundled model {name!r} ({', '.join(part.name for part in parts)}) is damaged or was altered: "
            f"its sha256 is not {source.sha256}. Install it again with: {source.install} --force-reinstall --no-cache-dir"
        )
    return found


def convert_wheels(name: str, source: GgufWheels, folder: Path) -> None:
    """Dequantise the GGUF file of a bundled model into ``folder``."""
    gguf = whole(name, source, folder)
    convert_gguf(name, gguf, folder)
    if gguf.parent == folder:
        gguf.unlink()


def convert_gguf(name: str, gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file into ``folder``; ``name`` is the model's in messages.

    transformers refuses to save a model it read from GGUF ("quantized with gguf"), though its tensors are plain floats:
    a twin without weights is built from the same configuration, given those tensors, and saved.

    Raises:
        ModelError: the file is damaged, or transformers cannot make a model of it.
        OSError: the disk has no room for it.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = open_gguf(gguf, name)
    needed = 4 * file.numbers + _BESIDE
    check_room(folder, needed)
    log.info(
        "Converting %s once into %s: %.1f GB of disk, a little more of memory, and a minute or two of a processor.",
        name, cache_dir(), needed / 1e9,
    )  # fmt: skip
    with quiet(), redirect_stderr(io.StringIO()):  # its progress bar has no switch
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model, info = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                # Where GPU kernels for GGUF are installed, the blocks would stay packed.
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises whatever an unknown or damaged file happens to trip over
            raise ModelError(
                f"transformers {transformers.__version__} makes no model of the GGUF file {gguf} (architecture "
                f"{file.architecture!r}): {type(error).__name__}: {error}. It knows fewer architectures as GGUF than as "
                "safetensors: use those of the model, or the engine llama_cpp (--engine llama_cpp)."
            ) from error
        _keep_own(tokenizer, file.tokens)
        _check(name, tokenizer, info["missing_keys"])
        config = type(model.config).from_dict(
            {key: value for key, value in model.config.to_dict().items() if key not in _LEFT_BY_GGUF}
        )
        if file.rope_factors is not None:
            _set_rope(config, file.rope_factors, gguf)
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(config)
        twin.load_state_dict(model.state_dict(), strict=True, assign=True)
        twin.tie_weights()
        twin.generation_config = model.generation_config
        save(twin, tokenizer, folder)


def _keep_own(tokenizer: Any, number: int) -> None:
    """Take away what transformers adds to the ``number`` tokens of a file by habit (GPT-2's <|endoftext|>): the model has no
    row for it."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < number]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _check(name: str, tokenizer: Any, missing: Sequence[str]) -> None:
    """Refuse what would be saved wrong: weights made up at random, a tokenizer that garbles text."""
    if missing:
        raise ModelError(
            f"The GGUF file of {name!r} lacks {len(missing)} weights of its architecture ({', '.join(sorted(missing)[:3])}, "
            "...); transformers would make them up at random. Use the model's safetensors, or the engine llama_cpp."
        )
    if tokenizer.eos_token is None:
        raise ModelError(
            f"The tokenizer in the GGUF file of {name!r} has no end-of-sequence token, so its solutions would never end. "
            "Convert the model again, with its own tokenizer."
        )
    ids = tokenizer(_PROBE + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    if tokenizer.decode(ids) != _PROBE + tokenizer.eos_token or ids[-1] != tokenizer.eos_token_id:
        raise ModelError(
            f"The tokenizer of {name!r} garbles text: transformers converts it wrongly from GGUF. Of a bundled model: "
            "install the version of transformers that constraints.txt names. Else use the model's safetensors, or the "
            "engine llama_cpp."
        )


def _set_rope(config: Any, factors: Sequence[float], gguf: Path) -> None:
    """Tell the configuration of Llama 3.1 and its like how their rotary frequencies are scaled.

    A GGUF file holds the factors as a tensor, which transformers leaves out: every position would be a little wrong.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = dict(config.rope_parameters)
    config.rope_parameters = {
        **plain, "rope_type": "llama3", "factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    size = 2 * len(scaled)
    unscaled = plain["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    if len(factors) != len(scaled) or not torch.allclose(unscaled / scaled, torch.tensor(factors), rtol=1e-3):
        raise ModelError(
            f"{gguf} scales its rotary frequencies in a way that is not Llama 3's, and transformers does not take that from "
            "a GGUF file. Use the model's safetensors, or the engine llama_cpp."
        )


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both, and make sure that the saved tokenizer is the one we had."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    with quiet():
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # it reports a full disk, but not as an OSError
            raise StorageError(str(error)) from error
        tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if again(_PROBE) != tokenizer(_PROBE):
        raise ModelError(
            f"The tokenizer saved in {folder} reads back as another one: this version of transformers does not save it "
            "rightly. Install the version named in constraints.txt."
        )
