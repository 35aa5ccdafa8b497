"""What every benchmark shares: its two options, figures, and the table and file of them.

A benchmark's docstring names its figures in a line "Figures: ..." where ``*`` stands for what differs (clients, say).
Those that need an option or another package are in a line "Figures with ...: ...". A test holds this against the file.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from caspo.core.storage import write_json
from caspo.tasks.base import Task
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask

__all__ = ["Figure", "difference", "options", "ratio", "report", "task_of"]

Figure = dict[str, Any]
"""``value``, ``unit``, ``low`` and ``high`` (an interval, or None), ``n`` (of how many, or None), ``note``."""
_PACKAGES = ("torch", "transformers", "trl", "xllamacpp", "optillm", "its_hub")


def options(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with what every benchmark has; ``quick`` says what is smaller then."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def task_of(text: str) -> Task:
    """The task of ``--task``: levels of stories ("1,2,3"), or a JSONL file of questions."""
    if text.endswith((".jsonl", ".json")):
        return JsonlTask(Path(text))
    return StoriesTask(tuple(int(level) for level in text.split(",")))


def ratio(above: Sequence[float], below: Sequence[float], note: str, unit: str = "x") -> Figure:
    """The ratio of the medians of two sides that took turns; low and high are the extreme ratios of a turn, n is turns."""
    turns = [a / b for a, b in zip(above, below, strict=True)]
    value = statistics.median(above) / statistics.median(below)
    return difference(value, min(turns), max(turns), note, unit, len(turns))


def difference(value: float, low: float | None, high: float | None, note: str, unit: str, n: int | None = None) -> Figure:
    """A figure with its interval."""
    return {"value": value, "unit": unit, "low": low, "high": high, "n": n, "note": note}


def report(figures: Mapping[str, Figure], arguments: argparse.Namespace, **more: Any) -> None:
    """Print the figures, and write them to the file of ``--json``; ``more`` goes into that file as it is."""
    width = max(map(len, figures), default=0)
    for name, figure in figures.items():
        interval = "" if figure["low"] is None else f"[{figure['low']:.3f}, {figure['high']:.3f}]"
        notes = [figure["note"], "" if figure["n"] is None else f"n = {figure['n']}"]
        note = ", ".join(filter(None, notes))
        print(f"{name:<{width}} {figure['value']:8.3f} {figure['unit']:<12} {interval:<18} {note}", flush=True)
    if arguments.json is not None:
        write_json(arguments.json, {"figures": dict(figures), "environment": _environment(arguments), **more})


def _environment(arguments: argparse.Namespace) -> dict[str, Any]:
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
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
