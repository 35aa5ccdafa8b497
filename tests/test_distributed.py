"""Training as two processes on the CPU (gloo): the same weights as one process, whatever way they are spread."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distributed_worker import run

HERE = Path(__file__).parent
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3, "batch_pairs": 12, "micro_tokens": 60, "warmup": 0.0, "epochs": 2, "anchor": 0.3,
    "confidence": 0.5, "max_grad_norm": 0.5, "checkpoint_seconds": 1e-9,
}  # fmt: skip
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}  # fmt: skip


LORA = {**SETTINGS, "lora": {"rank": 2, "alpha": 4}, "gradient_checkpointing": True}


def two_processes(runs: dict[Path, dict[str, Any]], environment: dict[str, str], stop: int = 0) -> int:
    """The exit code of trainings with these settings into these folders, one after the other; raises if they hang."""
    for out in runs:
        out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
        str(HERE / "distributed_worker.py"), json.dumps({str(out): settings for out, settings in runs.items()}), str(stop),
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, timeout=150,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode and not stop:
        print(done.stderr[-4000:])
    return done.returncode


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``full`` and ``lora`` of what two processes trained, spread one way. To start them is what takes long."""
    folder = tmp_path_factory.mktemp(request.param)
    runs = {folder / "full": SETTINGS, folder / "lora": LORA}
    assert two_processes(runs, FSDP if request.param == "fsdp2" else {}) == 0
    return folder


@pytest.mark.parametrize(("name", "settings"), [("full", SETTINGS), ("lora", LORA)], ids=["full", "lora"])
def test_two_processes_equal_one(two: Path, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Loss, metrics and weights are those of a single process, with micro-batches that do not divide by two."""
    model, result = run(tmp_path / "one", dict(settings))
    found = json.loads((two / name / "result.json").read_text())
    assert found["world"] == 2
    assert len(found["log"]) == len(result.log) >= 4
    for line, expected in zip(found["log"], result.log, strict=True):
        for key in ("loss", "grad_norm", "dpo", "anchor", "confidence", "entropy_right/depth_2"):
            assert line[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    spread_weights = load_file(two / name / "model.safetensors")
    for key, value in model.state_dict().items():
        # AdamW's first steps are signs of gradients: where those are rounding noise, single weights may differ.
        assert float((value - spread_weights[key]).abs().mean()) < 1e-5, key
    assert len(list((two / name / "reference").glob("*"))) == 1, "both processes scored the same reference"


@pytest.mark.parametrize("two", ["fsdp2"], indirect=True)
def test_killed_and_resumed_as_two_processes(two: Path, tmp_path: Path) -> None:
    """Sharded training that is killed goes on from its checkpoint to the same weights."""
    killed = {tmp_path / "killed": SETTINGS}
    assert two_processes(killed, FSDP, stop=3) != 0
    assert list((tmp_path / "killed" / "train").glob("checkpoint-2/whole"))
    assert two_processes(killed, FSDP) == 0
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (two / "full", tmp_path / "killed"))
    for name, value in whole.items():
        torch.testing.assert_close(value, resumed[name], atol=1e-6, rtol=1e-5)
