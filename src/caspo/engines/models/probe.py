"""Which precision this CPU decodes faster in: what its instructions promise is not what a library makes of them.

A probe multiplies a few rows, as many as a batch has, by weights of the model's own shape, in float32 and in bfloat16 in
turns; of each it takes the fastest, which a busy neighbour disturbs least. What it found is kept in the cache for this
processor, this torch, this shape and this number of threads: two runs on one machine choose alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import time
from collections import defaultdict
from pathlib import Path

from filelock import FileLock

from caspo.core.errors import DataError, StorageError
from caspo.core.storage import read_json, write_json
from caspo.engines.models.cache import cache_dir

__all__ = ["measure", "speedup"]

log = logging.getLogger(__name__)

_VERSION = 1
"""Part of every key: raise it when the probe changes."""
_BATCHES = (1, 8, 64)
"""Rows of a decode step."""
_WEIGHTS = 2**25
"""Numbers in the weights, about: more than caches hold."""
_SECONDS = 0.5


def speedup(shape: tuple[int, int]) -> float:
    """How many times faster than float32 this CPU decodes in bfloat16, with weights of this shape; measured once."""
    import torch

    key = {
        "version": _VERSION, "processor": _processor(), "torch": torch.__version__, "threads": torch.get_num_threads(),
        "shape": list(shape),
    }  # fmt: skip
    file = cache_dir() / "precision" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # of two that begin at once the second takes what the first found
            if (kept := _kept(file, key)) is not None:
                return kept
            found = measure(shape)
            write_json(file, {**key, "speedup": found})
            return found
    except (OSError, StorageError) as error:
        log.warning("What was measured of this CPU cannot be kept (%s): it will be measured again.", error)
        return measure(shape)


def _kept(file: Path, key: dict[str, object]) -> float | None:
    """What was measured before; None if nothing was, or the file is damaged."""
    try:
        read = read_json(file)
    except DataError:
        return None
    found = read.pop("speedup", None) if isinstance(read, dict) else None
    whole = read == key and isinstance(found, float) and math.isfinite(found) and found > 0
    return found if whole else None


def measure(shape: tuple[int, int]) -> float:
    """The geometric mean, over sizes of a batch, of the time in float32 over that in bfloat16."""
    import torch

    rows, columns = shape
    copies = max(1, round(_WEIGHTS / (rows * columns)))
    # Numbers that are not zero: pages of nothing but zeros would be one page, in the cache.
    weights = {
        dtype: [torch.full((rows, columns), 0.01, dtype=dtype) for _ in range(copies)]
        for dtype in (torch.float32, torch.bfloat16)
    }
    best: dict[tuple[torch.dtype, int], float] = defaultdict(lambda: math.inf)
    began, turns = time.perf_counter(), 0
    with torch.inference_mode():
        while turns < 2 or time.perf_counter() - began < _SECONDS:  # in the first one oneDNN writes its code
            for batch in _BATCHES:
                for dtype, layers in weights.items():
                    inputs = torch.full((batch, columns), 0.01, dtype=dtype)
                    start = time.perf_counter()
                    for layer in layers:
                        torch.nn.functional.linear(inputs, layer)
                    best[dtype, batch] = min(best[dtype, batch], time.perf_counter() - start)
            turns += 1
    ratios = [best[torch.float32, batch] / best[torch.bfloat16, batch] for batch in _BATCHES]
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _processor() -> str:
    """The processor's name and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return f"{platform.machine()} {platform.processor()}"
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    can = told.get("flags") or told.get("Features") or ""
    return f"{told.get('model name', platform.machine())} {hashlib.sha256(can.encode()).hexdigest()[:12]}"
