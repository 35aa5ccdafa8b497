"""Measurements in processes of their own: peak memory never goes down again, and no side finds what another imported."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_fresh_process", "peak_mb"]

T = TypeVar("T")


def in_fresh_process(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a module-level function in a new interpreter, so that `peak_mb` there is its own. Exceptions come back."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def peak_mb() -> float:
    """Highest resident memory of this process, MiB.

    Not `ru_maxrss` on Linux: there a child starts with the memory its parent had when it was started.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
