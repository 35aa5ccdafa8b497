"""Folders made of bundled files: GGUF weights in plain floats, and adapters merged into their base model.

GGUF weights are kept in float32. A four-bit integer times an fp16 scale needs more mantissa than bfloat16 has (8 bits):
anything smaller would be a second, silent quantisation; the price is 0.5 GB for SmolLM2 and 1.1 GB for Gemma, once.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError, StorageError
from caspo.engines.models.bundled import GgufWheels, wheel_files
from caspo.engines.models.cache import cache_dir, sha256
from caspo.engines.models.reading import quiet, read

__all__ = ["WHOLE", "convert_gguf", "merge_adapter", "save", "whole"]

log = logging.getLogger(__name__)

WHOLE = "parts.gguf"
"""The file that parts are joined to."""
_LEFT_BY_GGUF = ("quantization_config", "_model_name_or_path")
"""Keys of a configuration read from GGUF that are wrong for the plain floats we save."""
_PROBE = "Tom has 12 apples,\n\n  and 3 × 4 = 12 more: naïve ☃ 日本.\n"


def whole(name: str, source: GgufWheels, folder: Path) -> Path:
    """The file made of the parts, in ``folder``; a single part is used where it lies."""
    whole, *more = parts = wheel_files(name, source)
    if more:
        whole = folder / WHOLE
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    if sha256(whole) != source.sha256:
        raise ModelError(
            f"The file of the bundled model {name!r} ({whole.name}) is damaged: its sha256 is not {source.sha256}. "
            f"Install it again with: {source.install} --force-reinstall --no-cache-dir"
        )
    return whole


def convert_gguf(name: str, source: GgufWheels, folder: Path) -> None:
    """Dequantise the GGUF file of ``source`` into ``folder``.

    transformers refuses to save a model it read from GGUF ("quantized with gguf"), though its tensors are plain floats:
    a twin without weights is built from the same configuration, given those tensors, and saved.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = whole(name, source, folder)
    log.info("Converting %s once into %s; this takes about a minute.", name, cache_dir())
    with quiet(), redirect_stderr(io.StringIO()):  # its progress bar has no switch
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        ids = tokenizer(_PROBE + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids) != _PROBE + tokenizer.eos_token or ids[-1] != tokenizer.eos_token_id:
            raise ModelError(
                f"The tokenizer of the bundled model {name!r} garbles text: this version of transformers converts it "
                "wrongly. Install the version named in constraints.txt."
            )
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # Where GPU kernels for GGUF are installed, the blocks would stay packed.
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        config = type(model.config).from_dict(
            {key: value for key, value in model.config.to_dict().items() if key not in _LEFT_BY_GGUF}
        )
        with torch.device("meta"):
            twin = AutoModelForCausalLM.from_config(config)
        twin.load_state_dict(model.state_dict(), strict=True, assign=True)
        twin.tie_weights()
        twin.generation_config = model.generation_config
        save(twin, tokenizer, folder)
    if gguf.parent == folder:
        gguf.unlink()


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Add the LoRA ``adapter`` to the weights of ``base`` in float32 and save the sum."""
    from peft import PeftModel

    model, tokenizer = read(base, base.name)
    with warnings.catch_warnings():
        # An adapter for other layers loads without effect and with this warning only.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    template = adapter / "chat_template.jinja"
    if template.is_file():  # the prompt that the adapter was trained with, not the base model's
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    save(merged, tokenizer, folder)


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
