"""The files of a model's folder: which of them make the model what it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from caspo.core.errors import ModelError
from caspo.engines.models.bundled import BUNDLED

__all__ = ["model_files", "model_inputs", "stored_dtype"]

_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "spiece.model", "*.tiktoken", "tekken.json", "*_tokens*.json", "*.jinja")
_MODEL = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "*.py",
)


def model_files(folder: Path) -> list[Path]:
    """Weights, configuration, tokenizer and code, in the order of their names; not what is kept beside them
    (a calibrator, thresholds)."""
    found = {file for pattern in (*_MODEL, *_TOKENIZER) for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in found if not file.name.startswith("."))


def stored_dtype(folder: Path) -> str:
    """What most bytes of a folder's weights are: `float32`, `bfloat16` or `float16`, as the headers of its files say.
    `float32` of weights that are none of these.

    Raises:
        ModelError: a file is damaged.
    """
    known = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    found = Counter({"float32": 0})
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            for name, entry in header.items():
                if name != "__metadata__" and entry["dtype"] in known:
                    start, end = entry["data_offsets"]
                    found[known[entry["dtype"]]] += end - start
        except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
            raise ModelError(f"{file} is damaged ({error}). Copy it again from where the model came from.") from error
    return max(found, key=lambda name: found[name])


def model_inputs(names: Mapping[str, str | None]) -> dict[str, list[Path]]:
    """The files of those models that are folders (or GGUF files) on this machine; bundled and hub models have none.

    ``names``: the model's name, by the key that names it.
    """
    found = {}
    for key, name in names.items():
        path = Path(name or "").expanduser()
        if not name or name in BUNDLED:
            continue
        if path.is_dir():
            found[key] = model_files(path)
        elif path.is_file():
            found[key] = [path]
    return found
