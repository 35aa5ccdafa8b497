"""What the benchmarks share: the environment, ratios of measurements taken in turns, and the table and file of figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Figure", "difference", "environment", "ratio", "report"]

Figure = dict[str, Any]


def ratio(above: Sequence[float], below: Sequence[float], note: str, unit: str = "x") -> Figure:
    """The ratio of the medians of two sides that took turns; low and high are the extreme ratios of a turn."""
    turns = [a / b for a, b in zip(above, below, strict=True)]
    value = statistics.median(above) / statistics.median(below)
    return {"value": value, "unit": unit, "low": min(turns), "high": max(turns), "note": note}


def difference(value: float, low: float | None, high: float | None, note: str, unit: str) -> Figure:
    """A figure with its interval."""
    return {"value": value, "unit": unit, "low": low, "high": high, "note": note}


def report(figures: Mapping[str, Figure], file: Path | None, arguments: Any, **more: Any) -> None:
    """Print the figures, and write them to ``file`` if there is one; ``more`` goes into the file as it is."""
    for name, figure in figures.items():
        interval = "" if figure["low"] is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        print(f"{name:<34} {figure['value']:8.3f} {figure['unit']:<12} {interval:<18} {figure['note']}", flush=True)
    if file is not None:
        result = {"figures": dict(figures), "environment": environment(arguments), **more}
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def environment(arguments: Any) -> dict[str, Any]:
    """Where and how this was run."""
    import torch

    return {
        "command": " ".join(["python", *sys.argv]),
        "arguments": {key: str(value) for key, value in vars(arguments).items()},
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
