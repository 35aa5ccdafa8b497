"""The optimiser loop under both trainers: AdamW, warm-up and cosine, clipping, checkpoints that resume exactly.

Trainable weights are float32; under ``precision: bf16`` the forward pass runs in bfloat16 (autocast) and the masters
stay float32, because bfloat16 weights lose the small updates of preference training.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from caspo.config import Config
from caspo.errors import EngineError, StorageError
from caspo.storage import write_file

__all__ = ["Loop", "LoopSettings"]

Item = TypeVar("Item")
Metrics = dict[str, float]


class LoopSettings(Config):
    """How the weights move."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly."""
    final_rate: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    """Of the forward pass; trainable weights are always float32."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Time between checkpoints."""


class Loop:
    """Runs optimiser steps over a fixed plan, going on from ``out/checkpoint.safetensors`` if it is there.

    Args:
        model: the model; every parameter with ``requires_grad`` is trained and must be float32.
        settings: the optimiser's settings.
        out: folder for the checkpoint and ``log.jsonl``.
    """

    def __init__(self, model: torch.nn.Module, settings: LoopSettings, out: Path) -> None:
        self.model, self.settings, self.out = model, settings, out
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        assert self.named, "nothing to train"
        assert all(p.dtype == torch.float32 for _, p in self.named), "trainable weights must be float32 masters"
        self.optimizer = torch.optim.AdamW(
            [p for _, p in self.named],
            lr=settings.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=settings.weight_decay,
        )
        self.log: list[Metrics] = []
        self.seconds = 0.0
        self.checkpoint = out / "checkpoint.safetensors"

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` of ``total`` (0-based)."""
        warmup = max(1, round(self.settings.warmup * total))
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        floor = self.settings.final_rate
        return self.settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    def run(
        self,
        plan: Sequence[Sequence[Item]],
        loss: Callable[[Item], tuple[torch.Tensor, Metrics]],
        on_step: Callable[[int, int, Metrics], None] = lambda step, total, metrics: None,
        stop_after: int | None = None,
    ) -> list[Metrics]:
        """Take one optimiser step per element of ``plan``, or only the first ``stop_after`` of its schedule.

        An element is a list of micro-batches; ``loss`` gives each one's share of the step's loss, so that their sum is
        the loss whatever the split, and metrics that add up in the same way. Returns the metrics of every step.
        """
        done = self._resume()
        last = time.monotonic()
        saved = last
        for step in range(done, min(len(plan), stop_after or len(plan))):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step, len(plan))
            metrics: Metrics = {}
            for item in plan[step]:
                with torch.autocast("cpu" if self._device == "cpu" else "cuda", torch.bfloat16, enabled=self._bf16):
                    value, more = loss(item)
                value.backward()  # type: ignore[no-untyped-call]
                for key, number in {"loss": float(value.detach()), **more}.items():
                    metrics[key] = metrics.get(key, 0.0) + number
            norm = torch.nn.utils.clip_grad_norm_([p for _, p in self.named], self.settings.max_grad_norm)
            if not math.isfinite(metrics["loss"]) or not torch.isfinite(norm):
                raise EngineError(
                    f"The loss is {metrics['loss']} and the gradient norm {float(norm)} at step {step + 1} of {len(plan)}: "
                    "training diverged. Nothing of this step was kept; lower the learning rate and run again."
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            self.log.append({"step": step + 1, "grad_norm": float(norm), "rate": self.rate(step, len(plan)), **metrics})
            on_step(step + 1, len(plan), self.log[-1])
            if now - saved > self.settings.checkpoint_seconds:
                self._save()
                saved = last = time.monotonic()
        return self.log

    def finish(self) -> None:
        """Remove the checkpoint, once the trained model is safe elsewhere."""
        self.checkpoint.unlink(missing_ok=True)

    @property
    def _device(self) -> str:
        return self.named[0][1].device.type

    @property
    def _bf16(self) -> bool:
        return self.settings.precision == "bf16"

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.named:
            state = self.optimizer.state[parameter]
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            tensors[f"first.{name}"], tensors[f"second.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        meta = {"log": json.dumps(self.log), "seconds": repr(self.seconds)}
        try:
            write_file(self.checkpoint, lambda path: save_file(tensors, path, metadata=meta))
        except SafetensorError as error:  # it reports a full disk, but not as an OSError
            raise StorageError(
                f"Could not write {self.checkpoint}: {error}. The checkpoint before it is kept. Free some space, then run "
                "the same command again."
            ) from error

    def _resume(self) -> int:
        """Load the checkpoint if there is one; the number of steps already taken."""
        if not self.checkpoint.exists():
            return 0
        with safe_open(self.checkpoint, framework="pt") as file:
            meta: dict[str, Any] = file.metadata()
            self.log, self.seconds = json.loads(meta["log"]), float(meta["seconds"])
            with torch.no_grad():
                for name, parameter in self.named:
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(len(self.log))),
                        "exp_avg": file.get_tensor(f"first.{name}").to(parameter.device),
                        "exp_avg_sq": file.get_tensor(f"second.{name}").to(parameter.device),
                    }
        return len(self.log)
