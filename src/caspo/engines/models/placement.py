"""Where a model computes and in what precision, if nobody says so."""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from caspo.core.errors import ConfigError, ModelError
from caspo.engines.models.probe import speedup

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "Precision", "chosen_device", "chosen_dtype"]

DTYPES = ("float32", "bfloat16", "float16")
"""What weights are computed in."""

_SMALL = 50_000_000
"""Parameters. Below, a step is spent on other things than multiplying, and bfloat16 costs digits for nothing."""
_MARGIN = 1.3
"""So many times faster must bfloat16 be on a CPU: less is not worth the digits, and may be chance."""


class Precision(NamedTuple):
    """A precision, and why it was chosen, in a few words."""

    dtype: str
    why: str


def chosen_device(dtype: str, device: str) -> torch.device:
    """The device, if it is here and can compute in this precision; for ``auto`` CUDA's, else MPS, else the CPU.

    Raises:
        ConfigError: it is not, or cannot.
    """
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}. Choose one of these.")
    here = {kind: number for kind in ("cuda", "mps", "xpu", "cpu") if (number := _number(kind))}
    if device == "auto":
        place = torch.device(next(kind for kind in here if kind != "xpu"))
    else:
        try:
            place = torch.device(device)
        except RuntimeError as error:
            raise ConfigError(f"{device!r} is not a device torch knows. Use for example 'cpu' or 'cuda'.") from error
    # torch keeps a number in eight bits: of cuda:256 it makes cuda:0.
    same = place.index is None or str(place) == device
    if not same or (place.index or 0) >= here.get(place.type, 0):
        names = [kind if number == 1 else f"{kind}:0 to {kind}:{number - 1}" for kind, number in here.items()]
        raise ConfigError(
            f"There is no device {device!r} here: torch {torch.__version__} sees {', '.join(names)}. Use one of these, or "
            "'auto'. (A run goes on where it was begun: on a machine that has the same kind of device.)"
        )
    if dtype == "bfloat16" and not _has_bfloat16(place, emulated=True):
        raise ConfigError(f"The device {device!r} does not compute in bfloat16. Set dtype to float32.")
    return place


def _number(kind: str) -> int:
    """How many devices of a kind are here."""
    import torch

    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.cuda if kind == "cuda" else torch.xpu
    return int(module.device_count()) if module.is_available() else 0


def _has_bfloat16(place: torch.device, *, emulated: bool = False) -> bool:
    """Whether a device computes in bfloat16; ``emulated``: be it slowly."""
    import torch

    if place.type == "cuda":
        with torch.cuda.device(place):
            return bool(torch.cuda.is_bf16_supported(including_emulation=emulated))
    return bool(torch.backends.mps.is_macos_or_newer(14, 0)) if place.type == "mps" else True


def chosen_dtype(place: torch.device, folder: Path) -> Precision:
    """What to compute in with the model of a folder on a device.

    float32 for a small model. On a GPU bfloat16 if it has that. Never float16, which models that were trained in bfloat16
    overflow: who knows that a model does not, says so. On a CPU bfloat16 where `speedup` finds it faster by a margin.

    Raises:
        ModelError: the weights are damaged.
    """
    number, shape = _weights(folder)
    if number < _SMALL:
        return Precision("float32", "a small model")
    if place.type != "cpu":
        return Precision("bfloat16", "") if _has_bfloat16(place) else Precision("float32", "it has no bfloat16")
    found = speedup(shape)
    dtype = "bfloat16" if found >= _MARGIN else "float32"
    return Precision(dtype, f"probe: bfloat16 is {found:.1f} times as fast as float32")


def _weights(folder: Path) -> tuple[int, tuple[int, int]]:
    """How many parameters the weights of a folder have, and the shape that most of those are in that are of layers: what
    stands there once or twice are embeddings and the output layer."""
    times: Counter[tuple[int, ...]] = Counter()
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as opened:
                header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
            times.update(tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
            raise ModelError(f"{file} is damaged ({error}). Copy it again from where the model came from.") from error
    matrices = {shape: n for shape, n in times.items() if len(shape) > 1}
    layers = {shape: n for shape, n in matrices.items() if n > 2} or matrices or {(1, 1): 1}
    rows, columns = max(layers, key=lambda shape: layers[shape] * prod(shape))[-2:]  # of experts in one tensor: of one
    return sum(n * prod(shape) for shape, n in times.items()), (rows, columns)
