"""The weights that training starts from and those that it leaves: bases held in less, adapters, precision of the files."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from caspo.core.storage import write_directory
from caspo.engines.models import BUNDLED, adapter_and_base, load, read_tokenizer, resolve, stored_dtype
from caspo.engines.models.reading import quiet
from caspo.engines.opening import ModelSettings
from caspo.train.lora import Adapters, continue_adapters
from caspo.train.step_dpo import StepDPOSettings

__all__ = ["ADAPTER", "open_for_training", "save_trained"]

ADAPTER = "adapter"
"""Folder of the adapters beside the merged model, with ``save: both``."""


def open_for_training(source: str, model: ModelSettings, settings: StepDPOSettings) -> tuple[Any, Any]:
    """The model as training starts from it and as a reference is scored, and its tokenizer.

    Under `lora` the base is held as `train.base` says, and the adapters of an adapter's folder are on it, to be trained
    further. Everything else is float32: the masters of a full training.

    Raises:
        ConfigError: another shape of adapters than the recipe's, or no bitsandbytes for 4 bits.
        ModelError: as `load` does.
    """
    adapted = None if settings.lora is None else _adapter_and_base(source, model)
    loaded, tokenizer = load(
        source if adapted is None else adapted[1],
        dtype="float32" if settings.base == "float32" else "bfloat16",
        device=model.device,
        base=model.base_of(source) if adapted is None else None,
        trust_remote_code=model.trust_remote_code,
        four_bit=settings.base == "4bit",
    )
    if adapted is None or settings.lora is None:
        return loaded, tokenizer
    folder = adapted[0]
    if (folder / "tokenizer_config.json").is_file():  # the one it was trained with, and its prompt
        tokenizer = read_tokenizer(folder)
    return continue_adapters(loaded, folder, settings.lora), tokenizer


def _adapter_and_base(source: str, model: ModelSettings) -> tuple[Path, str] | None:
    return adapter_and_base(source, base=model.base_of(source), trust_remote_code=model.trust_remote_code)


def save_trained(
    trained: Any, tokenizer: Any, source: str, model: ModelSettings, settings: StepDPOSettings, out: Path
) -> None:
    """Write ``out/model``, and with ``save: both`` ``out/adapter``, unless they are there. The model is used up.

    Args:
        trained: the model; under `lora` its adapters, which are merged into the base as it is stored, read again.
        tokenizer: written beside both.
        source: what the training started from.
        model, settings: of the recipe.
        out: the folder.
    """
    adapted = _adapter_and_base(source, model)
    base = source if adapted is None else adapted[1]
    if isinstance(trained, Adapters) and settings.save != "merged":
        place = Path(base).expanduser()
        name = str(place.resolve()) if base not in BUNDLED and place.exists() else base
        _once(out / ("model" if settings.save == "adapter" else ADAPTER), partial(trained.save, base=name), tokenizer)
    if (out / "model").exists():
        return
    dtype: str = settings.save_dtype
    if dtype == "auto":
        dtype = stored_dtype(resolve(base, trust_remote_code=model.trust_remote_code))
    if isinstance(trained, Adapters):
        _give_back_memory()
        stored, _ = load(base, dtype=dtype, device="cpu", trust_remote_code=model.trust_remote_code)
        trained = trained.on(stored)

    def whole(folder: Path) -> None:
        import torch

        with quiet():
            trained.to(getattr(torch, dtype)).save_pretrained(folder)

    _once(out / "model", whole, tokenizer)


def _give_back_memory() -> None:
    """Have the C library hand what training freed to the system before as much again is loaded: gigabytes lie in holes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _once(folder: Path, write: Callable[[Path], object], tokenizer: Any) -> None:
    def both(temporary: Path) -> None:
        write(temporary)
        tokenizer.save_pretrained(temporary)

    if not folder.exists():
        write_directory(folder, both)
