"""llama-cpp-python's plain functions, and a model loaded by them. What llama.cpp logs goes to our log."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from caspo.core.errors import ConfigError, ModelError

__all__ = ["chosen_device", "last_error", "library", "load_model"]

log = logging.getLogger(__name__)

_INSTALL = (
    "CMAKE_ARGS='-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF "
    "-DLLAMA_BUILD_SERVER=OFF' pip install 'caspo-llm[llamacpp]'"
)
_ERROR = 4
"""ggml's level of errors (llama-cpp-python's own table of levels is an older one)."""

_errors: list[str] = []


def last_error() -> str:
    """What llama.cpp last complained of, as a sentence; empty if of nothing."""
    return f"It says: {_errors[-1]}" if _errors else ""


@cache
def library() -> Any:
    """llama-cpp-python's module of plain functions, its log turned into ours."""
    try:
        from llama_cpp import llama_cpp as api
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its own library is missing or does not load
        raise ConfigError(
            f"The llama_cpp engine needs llama-cpp-python, which cannot be imported ({error}). Install it, which compiles "
            f"for some minutes: {_INSTALL}. Or use the engine hf (--engine hf), which makes plain floats of a GGUF file."
        ) from error

    @api.llama_log_callback  # type: ignore[untyped-decorator]
    def record(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        if level == _ERROR and line:
            _errors[:] = [*_errors[-4:], line]
        if line:
            log.debug("%s", line)

    library.callback = record  # type: ignore[attr-defined]  # llama.cpp holds no reference to it
    api.llama_log_set(record, None)
    api.llama_backend_init()
    return api


def chosen_device(device: str) -> str:
    """`cpu`, or the GPU that is asked for; of ``auto`` ``gpu`` where llama.cpp was built with one.

    Raises:
        ConfigError: llama-cpp-python is not installed, or was built without a GPU.
    """
    has = bool(library().llama_supports_gpu_offload())
    if device == "auto":
        return "gpu" if has else "cpu"
    if device != "cpu" and not has:
        raise ConfigError(
            f"The device {device!r} is asked for, and llama.cpp was built here without a GPU. Use 'cpu' or 'auto', or "
            "build it with one (docs/engines.md)."
        )
    return device


def load_model(api: Any, file: Path, device_layers: int) -> Any:
    """llama.cpp's handle of the model in a GGUF file.

    Raises:
        ModelError: the file cannot be loaded.
    """
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise ModelError(f"Could not open {file}: {error.strerror or error}. Give the path of a GGUF file.") from error
    if magic != b"GGUF":
        raise ModelError(
            f"{file} is not a GGUF file: it does not begin with the letters GGUF. Convert the model with llama.cpp's "
            "convert_hf_to_gguf.py, or use the hf engine for safetensors."
        )
    settings = api.llama_model_default_params()
    settings.n_gpu_layers = device_layers
    settings.use_extra_bufts = False  # repacked weights: their AMX kernels end the process on some machines (Q4_1)
    _errors.clear()
    model = api.llama_model_load_from_file(str(file).encode(), settings)
    if not model:
        raise ModelError(
            f"llama.cpp could not load {file}. The file may be incomplete, damaged, or of an architecture that this version "
            f"of llama-cpp-python does not know. {_errors[0] if _errors else ''}"
        )
    return model
