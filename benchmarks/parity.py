"""Entropies of the same tokens by every engine and precision, against `hf` in float32.

Greedy solutions of `hf` in float32; then each engine is given their tokens one by one, and says what it measured there.
The largest difference, in nats; the note has the mean. llama.cpp computes with the GGUF file's own weights and rounds
activations to eight bits; everything else has the same weights.

`bounds_violated`: tokens whose exact entropy lies outside of the interval that `openai_compatible` makes of the 20 most
probable tokens of vLLM's server in float32, beyond 0.001 nats, which is what two orders of the same sums may differ by.

Figures: `entropy_difference_max_hf_bfloat16`

Figures with `make vllm`: `entropy_difference_max_vllm_*`, `bounds_violated`

Figures with `make llama` and a bundled model that is a GGUF file: `entropy_difference_max_llama_cpp`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from parts.decode_peers import VLLM
from parts.measure import Figure, difference, options, report, task_of

from caspo.engines.base import Request
from caspo.engines.models import BUNDLED, GgufWheels, resolve
from caspo.engines.opening import model_settings, open_local

ROOT = Path(__file__).resolve().parents[1]
ROUNDING = 1e-3
"""Nats."""
Ids = list[list[int]]
Floats = NDArray[np.float64]


def reference(model: str, task: str, questions: int, new: int) -> tuple[Ids, Ids, Floats]:
    """Prompts, the tokens that `hf` in float32 says, and their entropies, all in one row."""
    engine = open_local(model_settings(model, dtype="float32", device="cpu"))
    prompts = [engine.prompt(question.text) for question in task_of(task).questions("test", questions, 0)]
    found = engine.generate([Request(ids, 0, new, temperature=0) for ids in prompts])
    entropies = np.concatenate([one.trace.entropy for one in found]).astype(np.float64)
    return [list(ids) for ids in prompts], [list(one.token_ids) for one in found], entropies


def measured(prompts: Ids, tokens: Ids, python: Path, **model: Any) -> tuple[Floats, Floats]:
    """Lower and upper bounds of the entropies by another engine, in one row."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"), "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    asked = json.dumps({"model": model, "prompts": prompts, "tokens": tokens})
    done = subprocess.run(
        [str(python), str(Path(__file__).parent / "parts" / "parity_side.py")],
        input=asked, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{model}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    lower, upper = (np.concatenate([np.array(row) for row in found[side]]) for side in ("lower", "upper"))
    return lower, upper


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the small model, few tokens")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder of a model")
    parser.add_argument("--task", default="1,2,3", metavar="TASK", help="levels of stories, or a JSONL file of questions")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=96, help="of a solution, at most")
    args = parser.parse_args()
    if args.quick:
        args.model, args.questions, args.new_tokens = "stories-tiny", 4, 12
    prompts, tokens, exact = reference(args.model, args.task, args.questions, args.new_tokens)
    folder, here = resolve(args.model), Path(sys.executable)
    figures: dict[str, Figure] = {}

    def compare(label: str, python: Path, **model: Any) -> None:
        found, _ = measured(prompts, tokens, python, **model)
        gaps = np.abs(found - exact)
        note = f"mean {gaps.mean():.4f}, 99th percentile {np.quantile(gaps, 0.99):.4f}; mean entropy {exact.mean():.3f}"
        figures[f"entropy_difference_max_{label}"] = difference(float(gaps.max()), None, None, note, "nats", len(gaps))

    compare("hf_bfloat16", here, name=args.model, dtype="bfloat16", device="cpu")
    if find_spec("llama_cpp") is not None and isinstance(BUNDLED.get(args.model), GgufWheels):
        compare("llama_cpp", here, name=args.model, engine="llama_cpp")
    if VLLM.exists():
        for dtype in ("float32", "bfloat16"):
            compare(f"vllm_{dtype}", VLLM, name=str(folder), engine="vllm", dtype=dtype, vllm={"max_model_len": 1024})
        sys.path.insert(0, str(ROOT / "tests"))
        from vllm_server import VllmServer

        server = VllmServer(folder, "served")
        try:
            low, high = measured(
                prompts, tokens, here, name="served", engine="openai_compatible", urls=[f"{server.url}/v1"],
                tokenizer=str(folder), top_logprobs=20,
            )  # fmt: skip
        finally:
            server.kill()
        outside = int(((exact < low - ROUNDING) | (exact > high + ROUNDING)).sum())
        note = f"20 most probable tokens; the interval's mean width is {(high - low).mean():.3f} nats"
        figures["bounds_violated"] = difference(outside, None, None, note, "tokens", len(exact))
    report(figures, args)


if __name__ == "__main__":
    main()
