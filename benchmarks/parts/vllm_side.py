"""vLLM's offline engine beside ours: run by the Python that has vLLM, and asked by lines of JSON on its stdin.

First line: ``folder``, ``dtype``, ``rows``, ``context``, and ``ours``: our engine `vllm` instead of vLLM alone. Every other:
``prompts`` (token ids) and ``new`` (tokens of each, whatever the model says). It answers with ``seconds`` and ``tokens``.
vLLM has its best settings on a CPU: compiled, prefixes shared within a call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    sample = (_ours if asked["ours"] else _alone)(asked)
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.perf_counter()
        tokens = sample(asked["prompts"], asked["new"])
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), file=out)


def _alone(asked: dict[str, Any]) -> Callable[[list[list[int]], int], int]:
    from vllm import LLM, SamplingParams

    llm = LLM(
        asked["folder"], dtype=asked["dtype"], max_model_len=asked["context"], max_num_seqs=asked["rows"],
        max_num_batched_tokens=max(4096, asked["context"]), disable_log_stats=True,
    )  # fmt: skip

    def sample(prompts: list[list[int]], new: int) -> int:
        llm.reset_prefix_cache()
        settings = SamplingParams(temperature=0.7, max_tokens=new, ignore_eos=True)
        found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        return sum(len(one.outputs[0].token_ids) for one in found)

    return sample


def _ours(asked: dict[str, Any]) -> Callable[[list[list[int]], int], int]:
    from caspo.engines.base import Request
    from caspo.engines.vllm.engine import VllmEngine

    options = {"max_model_len": asked["context"], "max_num_batched_tokens": max(4096, asked["context"])}
    engine = VllmEngine(asked["folder"], dtype=asked["dtype"], max_rows=asked["rows"], options=options)
    engine.eos_ids = frozenset()

    def sample(prompts: list[list[int]], new: int) -> int:
        engine.forget()
        found = engine.generate([Request(tuple(ids), i, new, temperature=0.7) for i, ids in enumerate(prompts)])
        return sum(one.decoded for one in found)

    return sample


if __name__ == "__main__":
    main()
