"""From a name to a folder on disk, and to the model in it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from caspo.core.errors import ModelError, StorageError
from caspo.engines.models.bundled import (
    BUNDLED,
    GgufWheels,
    ShippedAdapter,
    ShippedFolder,
    bundled_names,
    shipped,
    wheel_files,
)
from caspo.engines.models.cache import cached_folder, sha256
from caspo.engines.models.conversion import WHOLE, convert_gguf, merge_adapter, whole
from caspo.engines.models.reading import check_folder, chosen_device, quiet, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["gguf_file", "load", "resolve"]

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]


def resolve(name_or_path: str, *, trust_remote_code: bool = False) -> Path:
    """The local folder (Hugging Face format, safetensors) of a bundled model, a local folder or a hub name.

    A folder beats a bundled model of the same name only when written as a path (``./stories-tiny``). With
    ``trust_remote_code`` a hub snapshot includes the repository's Python files.
    """
    if name_or_path in BUNDLED:
        return _resolve_bundled(name_or_path)
    path = Path(name_or_path).expanduser()
    if name_or_path.strip() and path.is_dir():
        check_folder(path, f"The folder {path}")
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file, and a model is a folder with config.json, *.safetensors and a tokenizer. Give the "
            "folder; convert a single GGUF or checkpoint file with transformers first."
        )
    if not name_or_path.strip() or name_or_path.startswith(("/", "./", "../", "~")) or name_or_path.count("/") > 1:
        raise ModelError(f"There is no model folder {name_or_path!r}. Check the path, or name {bundled_names()}.")
    return _resolve_hub(name_or_path, trust_remote_code)


def load(
    name_or_path: str, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode with SDPA attention, and its tokenizer.

    The tokenizer has an EOS token (without one no solution could ever end); it may lack a padding token: engines and
    collators pad by themselves. Every weight comes from the file: a missing one is an error, never a random tensor.
    """
    place = chosen_device(dtype, device)  # before anything is downloaded or converted
    folder = resolve(name_or_path, trust_remote_code=trust_remote_code)
    return read(folder, name_or_path, dtype=dtype, device=place, trust_remote_code=trust_remote_code)


def gguf_file(name: str) -> Path:
    """The GGUF file of a bundled model that is one; one that comes in parts is joined once, in the cache."""
    source = BUNDLED[name]
    if not isinstance(source, GgufWheels):
        raise ModelError(f"The bundled model {name!r} has no GGUF file. Use the hf engine for it.")
    if len(source.parts) == 1:
        return wheel_files(name, source)[0]
    return cached_folder(f"{name}-gguf", source.sha256, lambda folder: whole(name, source, folder)) / WHOLE


def _resolve_bundled(name: str) -> Path:
    match source := BUNDLED[name]:
        case GgufWheels():
            return cached_folder(name, source.sha256, lambda folder: convert_gguf(name, source, folder))
        case ShippedFolder():
            return shipped(name, source)
        case ShippedAdapter():
            adapter = shipped(name, source)
            base = BUNDLED[source.base]
            assert isinstance(base, GgufWheels)
            digest = hashlib.sha256(base.sha256.encode())
            for file in sorted(adapter.iterdir()):
                digest.update(sha256(file).encode())
            return cached_folder(
                name, digest.hexdigest(), lambda folder: merge_adapter(resolve(source.base), adapter, folder)
            )


def _resolve_hub(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            found = snapshot_download(
                name,
                allow_patterns=[*_HUB_FILES, "*.py"] if trust_remote_code else _HUB_FILES,
                # Subfolders hold other formats, consolidated* the same weights a second time.
                ignore_patterns=["*/*", "consolidated*"],
            )
    except Exception as error:  # the hub client, its HTTP library and its validation share no base class
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise StorageError(
                f"Could not store {name!r} in the Hugging Face cache: {error.strerror or error}. Free some space or "
                "set HF_HOME to a folder you may write to, then run the same command again."
            ) from error
        raise ModelError(
            f"{name!r} is neither a bundled model nor a local folder, and the Hugging Face hub did not deliver it "
            f"({type(error).__name__}): offline and not in the cache, misspelt, or gated (then: hf auth login). "
            f"Without the hub, give a local folder or name {bundled_names()}."
        ) from error
    folder = Path(found)
    check_folder(folder, f"The hub model {name!r} (cached in {folder})")
    return folder
