"""vLLM alone, offline: tokens a second of a batch of prompts. A script for the Python that has vLLM (`make vllm`).

    .venv-vllm/bin/python benchmarks/parts/vllm_side.py --model FOLDER --prompts prompts.json --tokens 256 --dtype bfloat16

``prompts.json`` holds lists of token ids; all of them are rows of one batch, and each gets as many tokens. Prints one JSON
object a run, after a run of a few tokens that is not counted. vLLM's engine runs in this process and in its own threads
only, so that ``cpu_seconds`` are all that it used; prompts are not taken from its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path


def main() -> None:
    """Read the arguments, load the model, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--logprobs", type=int, default=None, help="most probable tokens told of each token")
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(given.threads),
    }  # fmt: skip
    prompts = json.loads(given.prompts.read_text())
    from vllm import LLM, SamplingParams

    longest = max(map(len, prompts)) + given.tokens
    llm = LLM(
        model=given.model, dtype=given.dtype, max_num_seqs=len(prompts), max_model_len=longest, enforce_eager=given.eager,
        enable_prefix_caching=False, distributed_executor_backend="uni", skip_tokenizer_init=True, seed=0,
    )  # fmt: skip
    asked = [{"prompt_token_ids": ids} for ids in prompts]
    for run in range(-1, given.runs):
        tokens = given.tokens if run >= 0 else 4
        sampling = SamplingParams(
            temperature=given.temperature, max_tokens=tokens, ignore_eos=True, logprobs=given.logprobs, detokenize=False
        )
        began, cpu = time.perf_counter(), time.process_time()
        done = llm.generate(asked, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
        generated = sum(len(one.outputs[0].token_ids) for one in done)
        if run >= 0:
            told = {"rows": len(prompts), "tokens": generated, "tokens_per_second": round(generated / seconds, 2)}
            print(json.dumps(told | {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}), flush=True)


if __name__ == "__main__":
    main()
