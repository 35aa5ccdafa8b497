"""Tokens a second of the engines that run a model on the same cores: ours, vLLM's CPU build, llama.cpp in this process.

All sample at temperature 0.7, as many tokens of every prompt, whatever the model says; nothing is kept between turns but
weights. Ours and llama.cpp's measure every token's entropy, vLLM measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from caspo.engines.base import Engine, Request

__all__ = ["VLLM", "Side", "sampled", "vllm_cpu"]

VLLM = Path(os.environ.get("CASPO_VLLM_PYTHON", Path(__file__).resolve().parents[2] / ".venv-vllm" / "bin" / "python"))
"""The Python that has vLLM (`make vllm`)."""
SOURCE = Path(__file__).resolve().parents[2] / "src"


class Side(Protocol):
    """Samples so many new tokens of every prompt: tokens a second."""

    def __call__(self, prompts: Sequence[tuple[int, ...]], new: int) -> float: ...


def sampled(engine: Engine) -> Side:
    """An engine in this process."""

    def side(prompts: Sequence[tuple[int, ...]], new: int) -> float:
        engine.forget()
        start = time.perf_counter()
        found = engine.generate([Request(ids, i, new, temperature=0.7) for i, ids in enumerate(prompts)])
        return sum(one.decoded for one in found) / (time.perf_counter() - start)

    return side


@contextlib.contextmanager
def vllm_cpu(folder: Path, dtype: str, rows: int, context: int, *, ours: bool = False) -> Iterator[Side]:
    """vLLM in a process of its own, with as many threads as torch has here; ``ours``: our engine `vllm` in it."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()), "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SOURCE),
    }  # fmt: skip
    script = Path(__file__).with_name("vllm_side.py")
    with subprocess.Popen(
        [str(VLLM), str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as running:  # fmt: skip
        assert running.stdin is not None
        assert running.stdout is not None

        def ask(**what: Any) -> dict[str, Any]:
            print(json.dumps(what), file=running.stdin, flush=True)
            line = running.stdout.readline() if running.stdout else ""
            if not line:
                raise RuntimeError(f"vLLM ended; run {VLLM} {script} by hand to see why.")
            answer: dict[str, Any] = json.loads(line)
            return answer

        ask(folder=str(folder), dtype=dtype, rows=rows, context=context, ours=ours)

        def side(prompts: Sequence[tuple[int, ...]], new: int) -> float:
            done = ask(prompts=[list(ids) for ids in prompts], new=new)
            return float(done["tokens"] / done["seconds"])

        try:
            yield side
        finally:
            running.stdin.close()
