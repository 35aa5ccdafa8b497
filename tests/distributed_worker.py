"""One of the processes of test_distributed.py: trainings of a few steps, the results written by the first process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from transformers import Trainer

from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from tiny import build, bushy_tree, pairs_of

TREES = [bushy_tree(f"q{i}", i) for i in range(5)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]


def run(out: Path, settings: dict[str, Any], stop: int | None = None) -> tuple[Any, Any]:
    """Train a tiny Llama; ``stop`` kills the process when it comes to that step."""

    def on_step(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == stop:
            os._exit(9)

    kind = settings.pop("kind", "llama")
    return train_step_dpo(
        build(kind), TREES, PAIRS, StepDPOSettings(**settings), 3, out / "train", on_step, cache=out / "reference"
    )


def _fsdp_on_the_cpu() -> None:
    """accelerate takes FSDP on accelerators only and falls back to DDP without a word; PyTorch's own works on gloo."""
    prepare = Trainer.create_accelerator_and_postprocess

    def patched(self: Any) -> None:
        prepare(self)
        state = self.accelerator.state
        plugin = FullyShardedDataParallelPlugin()  # reads FSDP_*
        assert plugin.fsdp_version == 2
        state.fsdp_plugin, state.distributed_type = plugin, DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    Trainer.create_accelerator_and_postprocess = patched


def main() -> None:
    runs, stop = json.loads(sys.argv[1]), int(sys.argv[2])
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _fsdp_on_the_cpu()
    for folder, settings in runs.items():
        out = Path(folder)
        trained, result = run(out, settings, stop or None)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if rank == 0:
            save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, out / "model.safetensors")
            (out / "result.json").write_text(json.dumps({"world": world, "log": result.log, **result.as_json()}))
        else:
            assert (trained is None) == (os.environ.get("ACCELERATE_USE_FSDP") == "true")
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort when the interpreter takes them down


if __name__ == "__main__":
    main()
