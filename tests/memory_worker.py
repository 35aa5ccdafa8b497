"""Peak memory of real training, measured in a process of its own by test_budget.py: settings in, bytes out, both JSON."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from caspo.records import ROOT, StepPair, Tree
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from tiny import build, bushy_tree, grown, pairs_of


def tree(name: str, tokens: int) -> tuple[Tree, list[StepPair]]:
    """A prompt and six steps, together ``tokens``; a pair under each of three prefixes."""
    step = (tokens - 24) // 6
    prompt = tuple(range(2, 2 + tokens - 6 * step))
    shape = [(ROOT, step), (ROOT, step), (0, step), (0, step), (1, step), (1, step)]
    pairs = [
        StepPair(name, parent, chosen, rejected, "confident_wrong", 0.5, 0.5)
        for parent, chosen, rejected in ((ROOT, 1, 0), (0, 3, 2), (1, 5, 4))
    ]
    return grown(name, prompt, shape, first=30), pairs


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def train(model: Any, data: list[tuple[Tree, list[StepPair]]], settings: StepDPOSettings, out: Path) -> None:
    """Train on all the trees."""
    train_step_dpo(model, [t for t, _ in data], [p for _, pairs in data for p in pairs], settings, 0, out)


def main() -> None:
    out, config, runs = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    small = [(found, pairs_of(found)) for found in (bushy_tree("a"), bushy_tree("b"))]
    for number, run in enumerate(runs):
        # Two optimiser steps of two micro-batches: in the last one, all that is ever held is there.
        settings = StepDPOSettings(learning_rate=1e-4, batch_pairs=6, **run)
        train(build("llama"), small, settings, out / f"small-{number}")  # imports and thread pools come first
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is held now
        before = status("VmRSS")
        dtype = torch.float32 if settings.base == "float32" else torch.bfloat16
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype).eval()
        train(model, [tree(f"q{i}", settings.micro_tokens) for i in range(4)], settings, out / f"run-{number}")
        print(json.dumps(status("VmHWM") - before), flush=True)
        del model


if __name__ == "__main__":
    main()
