"""vLLM's offline engine beside ours: run by the Python that has vLLM, and asked by lines of JSON on its stdin.

First line: ``folder``, ``dtype``, ``rows``, ``context``. Every other: ``prompts`` (token ids) and ``new`` (tokens of each,
whatever the model says). It answers with ``seconds`` and ``tokens``. Its best settings on a CPU: compiled, prefixes shared
within a call.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever vLLM prints is no answer
    from vllm import LLM, SamplingParams

    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    llm = LLM(
        asked["folder"], dtype=asked["dtype"], max_model_len=asked["context"], max_num_seqs=asked["rows"],
        max_num_batched_tokens=max(4096, asked["context"]), disable_log_stats=True,
    )  # fmt: skip
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        llm.reset_prefix_cache()
        settings = SamplingParams(temperature=0.7, max_tokens=asked["new"], ignore_eos=True)
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        start = time.perf_counter()
        found = llm.generate(prompts, settings, use_tqdm=False)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": sum(len(one.outputs[0].token_ids) for one in found)}), file=out)


if __name__ == "__main__":
    main()
