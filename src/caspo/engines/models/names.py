"""From a name to a folder on disk, and to the model in it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from caspo.core.errors import ModelError, StorageError
from caspo.engines.models.adapter import base_of, is_adapter, merge_adapter
from caspo.engines.models.bundled import BUNDLED, GgufWheels, ShippedAdapter, ShippedFolder, bundled_names, shipped
from caspo.engines.models.cache import cache_dir, cached_folder, digest_of, sha256
from caspo.engines.models.conversion import WHOLE, convert_gguf, convert_wheels, whole
from caspo.engines.models.files import model_files
from caspo.engines.models.placement import chosen_device
from caspo.engines.models.reading import check_folder, quiet, read

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["adapter_and_base", "gguf_file", "load", "model_digest", "resolve"]

_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]


def resolve(name_or_path: str, *, base: str | None = None, trust_remote_code: bool = False) -> Path:
    """The local folder (Hugging Face format, safetensors) of a model: bundled, a folder, a GGUF file, or a hub name.

    A GGUF file is dequantised once, and a LoRA adapter merged once into its base, both into the cache. ``base`` names the
    adapter's base (as this function takes names), where its own settings do not or name one that is not here.

    A folder beats a bundled model of the same name only when written as a path (``./stories-tiny``). With
    ``trust_remote_code`` a hub snapshot includes the repository's Python files.

    Raises:
        ModelError: there is no such model, it cannot be used, or ``base`` is given for what is no adapter.
        StorageError: the cache has no room.
    """
    folder = _adapter_or_model(name_or_path, trust_remote_code)
    if is_adapter(folder):
        return _merged(folder, base, trust_remote_code)
    if base is not None:
        raise ModelError(
            f"A base ({base!r}) is of a LoRA adapter, and {name_or_path!r} is a whole model. Leave the base out, or name "
            "the adapter's folder (adapter_config.json, adapter_model.safetensors)."
        )
    return folder


def adapter_and_base(
    name_or_path: str, *, base: str | None = None, trust_remote_code: bool = False
) -> tuple[Path, str] | None:
    """The folder of a LoRA adapter and the name of its base; None of a model that is whole. Names as `resolve` takes them.

    Raises:
        ModelError: there is no such model, or an adapter that cannot be used.
    """
    folder = _adapter_or_model(name_or_path, trust_remote_code)
    return (folder, _base(folder, base, trust_remote_code)[0]) if is_adapter(folder) else None


def model_digest(name_or_path: str, *, gguf: bool = False, base: str | None = None, trust_remote_code: bool = False) -> str:
    """A digest of the files that a model is read from: of its folder, or with ``gguf`` of the GGUF file itself. Names and
    errors as `resolve` has them; that of an adapter depends on its base, too."""
    if gguf:
        return digest_of([gguf_file(name_or_path) if name_or_path in BUNDLED else Path(name_or_path).expanduser()])
    return digest_of(model_files(resolve(name_or_path, base=base, trust_remote_code=trust_remote_code)))


def load(
    name_or_path: str, *, dtype: str = "float32", device: str = "cpu", base: str | None = None,
    trust_remote_code: bool = False, four_bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """A model in evaluation mode, and its tokenizer; names and ``base`` as `resolve` takes them, ``device`` as
    `chosen_device` does. With ``four_bit`` the weights of its linear layers are rounded to NF4 by bitsandbytes, and
    ``dtype`` is what they are computed in.

    Attention is SDPA, or eager where a model needs that. The tokenizer has an EOS token (without one no solution could ever
    end); it may lack a padding token: engines and collators pad by themselves. Every weight comes from the file: a missing
    one is an error, never a random tensor.
    """
    place = chosen_device(dtype, device)  # before anything is downloaded or converted
    folder = resolve(name_or_path, base=base, trust_remote_code=trust_remote_code)
    return read(folder, name_or_path, dtype=dtype, device=place, trust_remote_code=trust_remote_code, four_bit=four_bit)


def gguf_file(name: str) -> Path:
    """The GGUF file of a bundled model that is one; one that comes in parts is joined once, in the cache.

    Raises:
        ModelError: the model is none, a part is missing, or the file is not the one that we know.
        StorageError: the cache has no room for the whole.
    """
    source = BUNDLED[name]
    if not isinstance(source, GgufWheels):
        raise ModelError(f"The bundled model {name!r} has no GGUF file. Use the hf engine for it.")
    if len(source.parts) == 1:
        return whole(name, source, cache_dir())  # where it lies
    return cached_folder(f"{name}-gguf", source.sha256, lambda folder: whole(name, source, folder)) / WHOLE


def _adapter_or_model(name: str, trust_remote_code: bool) -> Path:
    """The folder of a name, which may be an adapter's."""
    if name in BUNDLED:
        return _resolve_bundled(name)
    path = Path(name).expanduser()
    if name.strip() and path.is_dir():
        if not is_adapter(path):
            check_folder(path, f"The folder {path}")
        return path
    if path.is_file():
        if not name.lower().endswith(".gguf"):
            raise ModelError(
                f"{path} is a file, and a model is a folder with config.json, *.safetensors and a tokenizer, or a *.gguf "
                "file. Give the folder; convert a single checkpoint file with transformers first."
            )
        return cached_folder(_plain(path.stem), digest_of([path]), lambda folder: convert_gguf(name, path, folder))
    is_gguf = name.lower().endswith(".gguf")
    if is_gguf or not name.strip() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        what = "GGUF file" if is_gguf else "model folder"
        raise ModelError(f"There is no {what} {name!r}. Check the path, or name {bundled_names()}.")
    return _resolve_hub(name, trust_remote_code)


def _plain(name: str) -> str:
    """A name for a folder of the cache."""
    return re.sub(r"[^\w.-]+", "-", name)[:60].strip(".-") or "model"


def _merged(adapter: Path, base: str | None, trust_remote_code: bool) -> Path:
    """The folder of an adapter merged into its base."""
    _, found = _base(adapter, base, trust_remote_code)
    digest = digest_of([*model_files(adapter), *model_files(found)])
    return cached_folder(
        _plain(adapter.resolve().name),
        digest,
        lambda folder: merge_adapter(found, adapter, folder, trust_remote_code=trust_remote_code),
    )


def _base(adapter: Path, base: str | None, trust_remote_code: bool) -> tuple[str, Path]:
    """The name and the folder of an adapter's base."""
    named = base_of(adapter)
    chosen = base or named
    if chosen is None:
        raise ModelError(f"The adapter {adapter} does not say what its base is. Name it with --base (model.base).")
    try:
        found = _adapter_or_model(chosen, trust_remote_code)
    except ModelError as error:
        if base is not None:
            raise
        raise ModelError(
            f"The base of the adapter {adapter} is not here; its adapter_config.json names {chosen!r}. Name it with --base "
            f"(model.base). {error}"
        ) from error
    if is_adapter(found):
        raise ModelError(
            f"The base of the adapter {adapter} is {chosen!r}, which is an adapter too. Merge that one into its base first "
            "(peft: merge_and_unload, then save_pretrained), and name the result with --base (model.base)."
        )
    return chosen, found


def _resolve_bundled(name: str) -> Path:
    match source := BUNDLED[name]:
        case GgufWheels():
            return cached_folder(name, source.sha256, lambda folder: convert_wheels(name, source, folder))
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
    if not is_adapter(folder):
        check_folder(folder, f"The hub model {name!r} (cached in {folder})")
    return folder
