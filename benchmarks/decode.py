"""Our decode loop against `model.generate` on the same ragged batch, against the forward pass alone, and against peers.

Prompts of different lengths, solutions that end where they end: `generate` goes on until its last row has ended and pays for
the rows that ended long ago. Greedy: the tokens must be the same. Sides take turns; tokens after a row's end do not count.

The floor: forward passes alone, nothing else: every prompt token once, without padding, in passes of 32 rows, then the new
tokens by passes of the whole batch at the mean length, as if no row ever left it. `decode_fraction_of_forward` is the
floor's time over ours.

Peers sample the same prompts with as many threads, all the new tokens of every row (benchmarks/parts/decode_peers.py):
vLLM's CPU build in the same precision, llama.cpp with the GGUF file's own weights. A ratio above 1 is ours faster. Ours is
`hf`, and for `engine_vllm_ratio_vs_vllm_cpu` our engine `vllm`, which measures what `hf` measures, inside of vLLM.

`cat_batch_efficiency`: tokens a second of CaT with 4 paths over those of self-consistency with 4 samples, the same questions
in batches of the same rows. Searches ask for less at a time, and their last paths have the batch for themselves.

Figures: `decode_speedup_vs_generate`, `decode_fraction_of_forward`, `greedy_rows_that_differ`, `cat_batch_efficiency`

Figures with `make vllm`: `tokens_per_second_ratio_vs_vllm_cpu`, `engine_vllm_ratio_vs_vllm_cpu`

Figures with `make llama` and a bundled model that is a GGUF file: `tokens_per_second_ratio_vs_llama_cpp`
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from parts.decode_peers import VLLM, Side, sampled, vllm_cpu
from parts.forward import forward, prefill
from parts.measure import Figure, difference, options, ratio, report, task_of

from caspo.engines.base import Completion, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import BUNDLED, GgufWheels, resolve
from caspo.engines.opening import model_settings, open_local
from caspo.records import Question
from caspo.search import METHODS

SIDES = ("generate", "cat", "vllm_cpu", "llama_cpp")


def ours(engine: HFEngine, prompts: list[tuple[int, ...]], new: int) -> tuple[float, list[Completion]]:
    """Seconds and completions of our loop."""
    engine.forget()
    start = time.perf_counter()
    found = engine.generate([Request(prompt, 0, max_new_tokens=new, temperature=0.0) for prompt in prompts])
    return time.perf_counter() - start, found


@torch.inference_mode()
def theirs(engine: HFEngine, prompts: list[tuple[int, ...]], new: int) -> tuple[float, list[list[int]]]:
    """Seconds and new tokens of `generate`, up to and including each row's end."""
    pad = min(engine.eos_ids)
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=engine.device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=engine.device)
    start = time.perf_counter()
    found = engine.model.generate(
        ids_BT, attention_mask=mask_BT, max_new_tokens=new, do_sample=False, num_beams=1, pad_token_id=pad,
        eos_token_id=sorted(engine.eos_ids), repetition_penalty=1.0,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    rows = found[:, width:].tolist()
    ends = [next((i + 1 for i, t in enumerate(row) if t in engine.eos_ids), len(row)) for row in rows]
    return seconds, [row[:end] for row, end in zip(rows, ends, strict=True)]


def against_generate(engine: HFEngine, prompts: list[tuple[int, ...]], args: argparse.Namespace) -> dict[str, Figure]:
    """The ratio to `generate`, the share of the forward pass, and whether the tokens are the same."""
    ours(engine, prompts, args.new_tokens)  # the first time, memory is new
    theirs(engine, prompts, 4)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(args.turns):
        for side in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                seconds, found = ours(engine, prompts, args.new_tokens)
                mine = [list(c.token_ids) for c in found]
                speeds[side].append(sum(map(len, mine)) / seconds)
            else:
                seconds, rows = theirs(engine, prompts, args.new_tokens)
                speeds[side].append(sum(map(len, rows)) / seconds)
    differing = sum(a != b for a, b in zip(mine, rows, strict=True))
    lengths = sorted(map(len, mine))
    mean = sum(map(len, prompts)) // len(prompts) + sum(lengths) // len(lengths) // 2
    total, passes = sum(lengths), max(2, min(20, lengths[-1] // 4))
    floor = [
        total / (prefill(engine, prompts) + total / args.batch * forward(engine, args.batch, mean, passes))
        for _ in speeds["ours"]
    ]
    note = (
        f"{args.batch} rows of {lengths[0]} to {lengths[-1]} new tokens (mean {sum(lengths) / len(lengths):.0f}), greedy, "
        f"{args.turns} turns: {sorted(speeds['ours'])[args.turns // 2]:.0f} against "
        f"{sorted(speeds['theirs'])[args.turns // 2]:.0f} tokens a second"
    )
    return {
        "decode_speedup_vs_generate": ratio(speeds["ours"], speeds["theirs"], note),
        "decode_fraction_of_forward": ratio(
            speeds["ours"], floor,
            f"forward passes alone: {sorted(floor)[args.turns // 2]:.0f} tokens a second", "share",
        ),
        "greedy_rows_that_differ": difference(differing, None, None, "", "rows", args.batch),
    }  # fmt: skip


@contextlib.contextmanager
def peers(args: argparse.Namespace, longest: int) -> Iterator[dict[str, Side]]:
    """Those that are here, by the figure's ending."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Side] = {}
        if VLLM.exists() and "vllm_cpu" in args.sides:
            shape = (resolve(args.model), args.dtype, args.batch, longest + args.new_tokens + 8)
            found["vllm_cpu"] = stack.enter_context(vllm_cpu(*shape))
            found["engine_vllm"] = stack.enter_context(vllm_cpu(*shape, ours=True))
        gguf = isinstance(BUNDLED.get(args.model), GgufWheels)
        if "llama_cpp" in args.sides and gguf and find_spec("llama_cpp") is not None:
            from caspo.engines.llama.engine import LlamaCppEngine
            from caspo.engines.models import gguf_file

            cells = args.batch * (longest + args.new_tokens + 8)
            engine = LlamaCppEngine(gguf_file(args.model), max_rows=args.batch, cells=cells)
            engine.context.tokenizer.eos_ids = frozenset()
            found["llama_cpp"] = sampled(engine)
        yield found


def against_peers(engine: HFEngine, prompts: list[tuple[int, ...]], args: argparse.Namespace) -> dict[str, Figure]:
    """Ratios of tokens a second; all sides take turns."""
    figures = {}
    with peers(args, max(map(len, prompts))) as found:
        ends, engine.decoder.eos_ids = engine.decoder.eos_ids, frozenset()
        sides = {"hf": sampled(engine), **found} if found else {}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side(prompts[:2], 4)
        for turn in range(args.turns):
            for name in sides if turn % 2 == 0 else reversed(sides):
                speeds[name].append(sides[name](prompts, args.new_tokens))
        engine.decoder.eos_ids = ends
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    for label, above, below in (
        ("tokens_per_second_ratio_vs_vllm_cpu", "hf", "vllm_cpu"),
        ("engine_vllm_ratio_vs_vllm_cpu", "engine_vllm", "vllm_cpu"),
        ("tokens_per_second_ratio_vs_llama_cpp", "hf", "llama_cpp"),
    ):
        if below in speeds:
            note = f"{middle[above]:.0f} against {middle[below]:.0f} tokens a second"
            figures[label] = ratio(speeds[above], speeds[below], note)
    return figures


def searched(engine: HFEngine, questions: Sequence[Question], method: str, **more: int) -> float:
    """Tokens a second of a method."""
    engine.forget()
    kind = METHODS[method]
    start = time.perf_counter()
    found = kind(kind.settings_type(**more)).solve(questions, engine)
    return sum(solution.generated_tokens for solution in found) / (time.perf_counter() - start)


def efficiency(engine: HFEngine, questions: Sequence[Question], args: argparse.Namespace) -> Figure:
    """`cat_batch_efficiency`."""
    engine.decoder.max_rows = args.batch
    cat, samples = [], []
    for turn in range(args.turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            if which == 0:
                cat.append(searched(engine, questions, "cat", paths=4, max_tokens=args.new_tokens))
            else:
                samples.append(searched(engine, questions, "self_consistency", samples=4, max_tokens=args.new_tokens))
    middle = args.turns // 2
    note = f"{sorted(cat)[middle]:.0f} against {sorted(samples)[middle]:.0f} tokens a second, {len(questions)} questions"
    return ratio(cat, samples, note, "share")


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the small model, one turn")
    parser.add_argument("--model", default="smollm2-135m-stories", help="a name or folder of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=160, help="of a solution, at most")
    parser.add_argument("--task", default="1,2,3", metavar="TASK", help="levels of stories, or a JSONL file of questions")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES, help="what is measured; all that is here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.model, args.turns, args.new_tokens = "stories-tiny", 1, 40
    torch.set_num_threads(args.threads)
    engine = open_local(model_settings(args.model, device=args.device, dtype=args.dtype))
    questions = task_of(args.task).questions("test", args.batch, 0)
    prompts = [engine.prompt(question.text) for question in questions]
    figures: dict[str, Figure] = {}
    if "generate" in args.sides:
        figures |= against_generate(engine, prompts, args)
    if "cat" in args.sides:
        figures["cat_batch_efficiency"] = efficiency(engine, questions, args)
    figures |= against_peers(engine, prompts, args)
    report(figures, args)


if __name__ == "__main__":
    main()
