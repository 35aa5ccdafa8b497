"""Our decode loop against `model.generate` on the same ragged batch, and against the forward pass alone.

Prompts of different lengths, solutions that end where they end: `generate` goes on until its last row has ended and pays for
the rows that ended long ago. Greedy: the tokens must be the same. Sides take turns; tokens after a row's end do not count.

The floor: forward passes alone, nothing else: every prompt token once, without padding, in passes of 32 rows, then the new
tokens by passes of the whole batch at the mean length, as if no row ever left it. `decode_fraction_of_forward` is the
floor's time over ours.

Figures: `decode_speedup_vs_generate`, `decode_fraction_of_forward`, `greedy_rows_that_differ`
"""

from __future__ import annotations

import time

import torch
from parts.forward import forward, prefill
from parts.measure import difference, options, ratio, report

from caspo.engines.base import Completion, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.tasks.stories import StoriesTask


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


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the small model, one turn")
    parser.add_argument("--model", default="smollm2-135m-stories", help="a name or folder of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=160, help="of a solution, at most")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.model, args.turns = "stories-tiny", 1
    model, tokenizer = load(args.model, device=args.device, dtype=args.dtype)
    engine = HFEngine(model, tokenizer, name=args.model)
    questions = StoriesTask((1, 2, 3)).questions("test", args.batch, 0)
    prompts = [engine.prompt(question.text) for question in questions]
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
    figures = {
        "decode_speedup_vs_generate": ratio(speeds["ours"], speeds["theirs"], note),
        "decode_fraction_of_forward": ratio(
            speeds["ours"], floor,
            f"forward passes alone: {sorted(floor)[args.turns // 2]:.0f} tokens a second", "share",
        ),
        "greedy_rows_that_differ": difference(differing, None, None, "", "rows", args.batch),
    }  # fmt: skip
    report(figures, args)


if __name__ == "__main__":
    main()
