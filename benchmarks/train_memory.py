"""Highest resident memory of `caspo train` with LoRA, from loading the model to writing the result, and what was planned.

A process of its own trains on trees made by rule, as long as those of school mathematics (paths of 300 to 400 tokens, packed
up to `micro_tokens`), and stores the merged model. What is measured is all that the process ever held at once: Python,
libraries, weights, reference, micro-batches, AdamW, saving; pages of files that are mapped count as long as they are in
memory. GB are 10^9 bytes. What `caspo plan` says of tensors stands beside it.

Figures: `train_peak_memory_gb_lora_*`, `train_planned_memory_gb_lora_*`
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parts.measure import difference, options, report
from parts.processes import in_fresh_process, peak_mb
from parts.trees import deep

from caspo.records import StepPair, Tree

SHAPE: dict[str, Any] = {"depth": 8, "pairs": 16, "prompt_tokens": (80, 150), "step_tokens": (20, 45)}


def worker(
    model: str, trees: Sequence[Tree], pairs: Sequence[StepPair], train: dict[str, Any]
) -> tuple[float, float, dict[str, Any]]:
    """GB of the libraries alone, and of all; what training says of itself. For `in_fresh_process`."""
    from caspo.data.pairs import write_pairs
    from caspo.engines.models import read_tokenizer, resolve
    from caspo.engines.opening import ModelSettings
    from caspo.loop.stages import train_stage
    from caspo.train.step_dpo import StepDPOSettings

    before = peak_mb()
    tokenizer = read_tokenizer(resolve(model))
    told = [
        replace(
            tree, nodes=tuple(replace(n, step=replace(n.step, text=tokenizer.decode(n.step.token_ids))) for n in tree.nodes)
        )
        for tree in trees
    ]
    settings = StepDPOSettings.model_validate(train)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_pairs(out / "pairs.parquet", pairs, told, tokenizer.decode)
        data = [(told, out / "pairs.parquet")]
        found = train_stage(model, ModelSettings(name=model), data, settings, 0, out / "out", lambda step, total: None)
    return before * 2**20 / 1e9, peak_mb() * 2**20 / 1e9, found


def planned(model: str, trees: Sequence[Tree], pairs: Sequence[StepPair], train: dict[str, Any]) -> float:
    """GB of tensors by `caspo plan`; for `in_fresh_process`."""
    from transformers import AutoConfig

    from caspo.engines.models import resolve
    from caspo.train.budget import count_tokens, largest_forward, memory
    from caspo.train.step_dpo import StepDPOSettings

    settings = StepDPOSettings.model_validate(train)
    _, micros = count_tokens(trees, pairs, settings, 0)
    found, _ = memory(AutoConfig.from_pretrained(resolve(model)), settings, largest_forward(settings, micros))
    return found.peak / 1e9


def main() -> None:
    """Train once, plan once."""
    parser = options(__doc__, "the smallest model, two trees")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="a name or folder of a model")
    parser.add_argument("--base", default="bfloat16", choices=["float32", "bfloat16", "4bit"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, default=True, help="of gradients")
    parser.add_argument("--trees", type=int, default=4)
    args = parser.parse_args()
    if args.quick:
        args.model, args.trees, args.micro_tokens = "stories-tiny", 2, 512
    train = {
        "learning_rate": 1e-5, "lora": {"rank": args.rank}, "base": args.base, "micro_tokens": args.micro_tokens,
        "precision": "float32" if args.base == "float32" else "bf16", "gradient_checkpointing": args.checkpointing,
        "checkpoint_seconds": 1e9,
    }  # fmt: skip
    trees, pairs = deep(args.trees, **SHAPE)
    start = time.monotonic()
    libraries, peak, found = in_fresh_process(worker, args.model, trees, pairs, train)
    seconds = time.monotonic() - start
    expected = in_fresh_process(planned, args.model, trees, pairs, train)
    size = re.search(r"\d+(\.\d+)?[bm]", args.model.lower())
    name = size[0] if size else Path(args.model).name
    note = (
        f"{args.model}, base {args.base}, rank {args.rank}, {len(pairs)} pairs, {found['unique_tokens']} tokens, passes of "
        f"{args.micro_tokens}{', gradient checkpointing' if args.checkpointing else ''}; libraries {libraries:.2f}, "
        f"first loss {found['loss_first']:.4f}, {seconds:.0f} s"
    )
    report(
        {
            f"train_peak_memory_gb_lora_{name}": difference(peak, None, None, note, "GB"),
            f"train_planned_memory_gb_lora_{name}": difference(
                expected, None, None, "tensors, by `caspo plan`; libraries come on top", "GB"
            ),
        },
        args,
    )


if __name__ == "__main__":
    main()
