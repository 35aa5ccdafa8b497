"""The optimiser loop under both kinds of training: `transformers.Trainer` over a fixed plan, on one device or on many.

One item of the data is one optimiser step: a list of micro-batches of any number, each with its share of the step's loss
(normalised over the whole step beforehand). So how a step is split, packed and spread over processes does not change the
update: processes take the micro-batches in turn, and one that has fewer than the others goes along with weight 0.

Trainable weights are float32; under ``precision: bf16`` the forward pass runs in bfloat16 (autocast) and the masters
stay float32, because bfloat16 weights lose the small updates of preference training.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from accelerate.utils import DistributedType, gather_object
from pydantic import Field
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from caspo.core.config import Config
from caspo.core.errors import ConfigError, EngineError, StorageError
from caspo.core.storage import is_refusal, write_text

__all__ = ["Fitted", "Job", "LoopSettings", "Metrics", "fit", "has_ended", "remove_checkpoints"]

Item = TypeVar("Item")
Metrics = dict[str, tuple[float, float]]
"""Per name a sum and the number of things in it: what is shown is their quotient over the whole step."""

_WHOLE = "whole"
"""File that marks a checkpoint as completely written; it says `_ENDED` where nothing is left to train."""

_ENDED = "ended"

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


class LoopSettings(Config):
    """How the weights move."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly."""
    final_rate: float = Field(0.1, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of AdamW; norms and biases have none."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient with a larger norm is scaled down to it."""
    precision: Literal["float32", "bf16"] = "float32"
    """What the forward pass computes in; trainable weights are always float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go besides ``log.jsonl``; tensorboard writes into the run's folder, wandb as its own settings say."""


@dataclass(frozen=True)
class Job(Generic[Item]):
    """What is to be trained."""

    plan: Sequence[Sequence[Item]]
    """Optimiser steps of micro-batches."""
    loss: Callable[[Any, Item], tuple[torch.Tensor, Metrics]]
    """A micro-batch's share of its step's loss (the shares add up to the loss), and its metrics."""
    epochs: int = 1
    """How many times the plan goes over the data: for the log."""
    validation: Sequence[Item] = ()
    """Micro-batches of one more step that is only measured."""
    evaluate_every: int = 0
    """Optimiser steps between two measurements; 0 never."""
    patience: int = 0
    """Measurements without a new best one after which training stops; the best weights are kept. 0: never."""


@dataclass(frozen=True)
class Fitted:
    """What came out of training."""

    model: Any
    """The trained model, whole; None on the processes other than the first if the weights were spread over them."""
    log: list[dict[str, float]]
    seconds: float


def fit(
    model: Any,
    job: Job[Item],
    settings: LoopSettings,
    out: Path,
    seed: int,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda step, total, metrics: None,
    rebuild: Callable[[], Any] | None = None,
) -> Fitted:
    """Take the steps of the job, going on from a checkpoint in ``out`` if a run of the same job was killed there.

    The last checkpoint is written when training ends: what comes after may fail (a full disk), and then only that is done
    again. Whoever has stored the result calls `remove_checkpoints`.

    Every parameter with ``requires_grad`` is trained and must be float32. Runs as one process, or as one of the processes
    of ``accelerate launch``. ``rebuild`` makes an untrained model of the same shape, for weights that were spread over
    processes to be put together in.

    Raises:
        EngineError: the loss or the gradient is not a number; the message says at which item.
        StorageError: a checkpoint could not be written.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable, "nothing to train"
    assert all(p.dtype == torch.float32 for p in trainable), "trainable weights must be float32 masters"
    _without_dropout(model)
    checkpoint = _checkpoint(out)
    if checkpoint is not None and has_ended(out):
        job = replace(job, plan=job.plan[: _step_of(checkpoint)])  # it may have stopped early: no step is left
    trainer = _PlanTrainer(model, job, settings, out, seed, on_step)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # one for every checkpoint
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Exception as error:
        if not is_refusal(error):
            raise
        raise StorageError(
            f"Could not write a checkpoint below {out}: {error}. The checkpoint before it is kept. Free some space, then "
            "run the same command again."
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    accelerator = trainer.accelerator
    if accelerator.distributed_type in _SHARDED:
        assert rebuild is not None
        state = accelerator.get_state_dict(trainer.model_wrapped)
        model = None
        if trainer.is_world_process_zero():
            model = rebuild()
            model.load_state_dict(state)
    else:
        model = accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    log = [line for line in trainer.state.log_history if "train_loss" not in line]
    return Fitted(None if model is None else model.eval(), log, trainer.spent())


def _checkpointing() -> dict[str, Any]:
    """The arguments that have activations computed again in the backward pass, as this transformers calls them."""
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # transformers 5.19 has the other
    kind = "activation" if new else "gradient"
    return {f"{kind}_checkpointing": True, f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}


class _PlanTrainer(Trainer):
    """`transformers.Trainer` whose batches are the optimiser steps of a job."""

    def __init__(
        self, model: Any, job: Job[Any], settings: LoopSettings, out: Path, seed: int,
        on_step: Callable[[int, int, dict[str, float]], None],
    ) -> None:  # fmt: skip
        self.job, self.settings, self.on_step = job, settings, on_step
        measured = job.evaluate_every > 0 and len(job.validation) > 0
        arguments = TrainingArguments(
            output_dir=str(out),
            seed=seed,
            per_device_train_batch_size=1,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            optim="adamw_torch_fused",
            adam_beta1=0.9,
            adam_beta2=0.95,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            bf16=settings.precision == "bf16",
            **(_checkpointing() if settings.gradient_checkpointing else {}),
            logging_steps=1,
            logging_nan_inf_filter=False,
            log_on_each_node=False,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            average_tokens_across_devices=False,
            ddp_find_unused_parameters=False,
            use_cpu=model.device.type == "cpu",
            save_strategy="best" if measured else "no",
            eval_strategy="steps" if measured else "no",
            eval_steps=job.evaluate_every if measured else None,
            load_best_model_at_end=measured,
            metric_for_best_model="loss" if measured else None,
            greater_is_better=False if measured else None,
            restore_callback_states_from_checkpoint=measured and job.patience > 0,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for `accelerate launch`, not for DataParallel
        self.checkpoints = _Checkpoints(settings.checkpoint_seconds, out)
        callbacks: list[Any] = [self.checkpoints]
        if measured and job.patience:
            callbacks.append(EarlyStoppingCallback(job.patience))
        callbacks += _reporters(settings.report_to, out.parent)
        super().__init__(
            model=model, args=arguments, train_dataset=list(job.plan), eval_dataset=list(job.validation),
            callbacks=callbacks,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self._scheduler: Any = None
        self._metrics: dict[str, float] = {}
        self._started: float | None = None
        self._before = 0.0
        """Seconds spent by the starts before this one."""

    def get_train_dataloader(self) -> Any:
        """The steps of the plan in order, the same on every process."""
        return DataLoader(self.train_dataset, batch_size=1, shuffle=False, collate_fn=lambda batch: batch[0])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up that begins above 0, then a cosine."""
        if self._scheduler is None:
            self._scheduler = self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: _rate(self.settings, step, num_training_steps)
            )
        return self._scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Backward passes of this process's share of the step; returns the loss of the whole step."""
        if self._started is None:
            self._before, self._started = self.spent(), time.monotonic()
        model.train()
        world = self.args.world_size
        shares = self._shares(inputs)
        sharded = self.accelerator.distributed_type in _SHARDED
        loss = 0.0
        metrics: Metrics = {}
        for place, (item, weight) in enumerate(shares):
            last = place == len(shares) - 1
            # DeepSpeed steps where gradients are synchronised. Sharded gradients are reduced after every micro-batch:
            # kept whole they would cost the memory that sharding saves.
            self.accelerator.gradient_state._set_sync_gradients(last)
            wait = contextlib.nullcontext() if last or sharded else self.accelerator.no_sync(model=model)
            with wait, self.compute_loss_context_manager():
                value, found = self.job.loss(model, item)
                # Processes average their gradients; the shares add up.
                self.accelerator.backward(value * (world * weight))
            if weight:
                loss += float(value.detach())
                _add(metrics, found)
        self.accelerator.gradient_state._set_sync_gradients(True)
        loss, self._metrics = self._together(loss, metrics)
        if not math.isfinite(loss):
            self._refuse(f"The loss is {loss}", self.state.global_step + 1)
        return torch.tensor(loss, device=self.args.device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A disk without room for the last checkpoint may have room for the result, which is then all that is lacking."""
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not (self.checkpoints.ended and is_refusal(error) and self.args.world_size == 1):
                raise
            shutil.rmtree(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", ignore_errors=True)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss and metrics of the validation step, each with ``eval_`` before its name."""
        model = self.model_wrapped
        model.eval()
        loss = 0.0
        metrics: Metrics = {}
        for item, weight in self._shares(self.job.validation):
            with torch.no_grad(), self.compute_loss_context_manager():
                value, found = self.job.loss(model, item)
            if weight:
                loss += float(value)
                _add(metrics, found)
        loss, shown = self._together(loss, metrics)
        result = {f"eval_{name}": value for name, value in {"loss": loss, **shown}.items()}
        self.log(result)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's metrics; stop at a gradient that is not a number."""
        if "grad_norm" in logs:
            if not math.isfinite(logs["grad_norm"]):
                self._refuse(f"The gradient norm is {logs['grad_norm']}", self.state.global_step)
            logs = {**logs, **self._metrics}
        if self.state.epoch is not None:
            self.state.epoch *= self.job.epochs  # the plan holds all epochs, to Trainer it is one
        super().log({**logs, "seconds": self.spent()})
        if self.state.epoch is not None:
            self.state.epoch /= self.job.epochs
        if "grad_norm" in logs:
            self.on_step(self.state.global_step, self.state.max_steps, self.state.log_history[-1])

    def spent(self) -> float:
        """Seconds of training so far, those of the starts before this one included."""
        if self._started is None:
            return max((line.get("seconds", 0.0) for line in self.state.log_history), default=0.0)
        return self._before + time.monotonic() - self._started

    def _shares(self, items: Sequence[Any]) -> list[tuple[Any, float]]:
        """This process's micro-batches with weight 1, and so many of weight 0 that all processes have the same number."""
        world = self.args.world_size
        mine = [(item, 1.0) for item in items[self.args.process_index :: world]]
        return mine + [(items[-1], 0.0)] * (math.ceil(len(items) / world) - len(mine))

    def _together(self, loss: float, metrics: Metrics) -> tuple[float, dict[str, float]]:
        """Sums over all processes; quotients of the metrics."""
        if self.args.world_size > 1:
            shares = gather_object([(loss, metrics)])
            loss, metrics = sum(share[0] for share in shares), {}
            for share in shares:
                _add(metrics, share[1])
        return loss, {name: total / count for name, (total, count) in sorted(metrics.items()) if count}

    def _refuse(self, what: str, step: int) -> None:
        raise EngineError(
            f"{what} at step {step} of {self.state.max_steps}: training diverged. Nothing of this "
            "step was kept; lower the learning rate and run again."
        )


class _Checkpoints(TrainerCallback):
    """Asks for a checkpoint every so often and at the end, marks it when it is whole, and removes the ones before it."""

    def __init__(self, seconds: float, out: Path) -> None:
        self.seconds, self.out = seconds, out
        self.saved = time.monotonic()
        self.ended = False

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        due = time.monotonic() - self.saved > self.seconds
        if args.world_size > 1:  # all processes save together, so the first one's clock counts
            flag = torch.tensor(float(due), device=args.device)
            torch.distributed.broadcast(flag, 0)
            due = bool(flag)
        if due and state.global_step < state.max_steps:
            control.should_save = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> Any:
        """Training has ended, at its last step or before it: what it came to is kept until the result is stored."""
        self.ended = True
        # The optimizer has done its work; sharded weights are only written together with it.
        args.save_only_model = args.distributed_state.distributed_type not in _SHARDED
        newest = self.out / f"checkpoint-{state.global_step}"
        if not (newest / _WHOLE).exists():
            control.should_save = True
        elif state.is_world_process_zero:
            write_text(newest / _WHOLE, _ENDED)
        return control

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        self.saved = time.monotonic()
        if args.world_size > 1:
            torch.distributed.barrier()
        newest = self.out / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and newest.exists():
            write_text(newest / _WHOLE, _ENDED if self.ended else "")
            for old in _checkpoints(self.out):
                if old != newest and str(old) != state.best_model_checkpoint:
                    shutil.rmtree(old, ignore_errors=True)
        return control


def remove_checkpoints(out: Path) -> None:
    """Remove the checkpoints that `fit` left in ``out``, and the folder if nothing else is in it."""
    for folder in _checkpoints(out):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not there, or somebody keeps something in it
        out.rmdir()


def _checkpoints(out: Path) -> list[Path]:
    return [folder for folder in out.glob("checkpoint-*") if folder.name.removeprefix("checkpoint-").isdecimal()]


def has_ended(out: Path) -> bool:
    """Whether the training with its checkpoints in ``out`` came to its end."""
    checkpoint = _checkpoint(out)
    return checkpoint is not None and (checkpoint / _WHOLE).read_text(encoding="utf-8") == _ENDED


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    whole = [folder for folder in _checkpoints(out) if (folder / _WHOLE).exists()]
    return max(whole, key=_step_of) if whole else None


def _reporters(names: Sequence[str], folder: Path) -> list[Any]:
    from transformers.integrations import TensorBoardCallback, WandbCallback

    reporters: list[Any] = []
    try:
        if "tensorboard" in names:
            reporters.append(TensorBoardCallback())
            reporters[-1].logging_dir = str(folder / "tensorboard")
        if "wandb" in names:
            reporters.append(WandbCallback())
    except RuntimeError as error:
        raise ConfigError(f"train.report_to: {error} Install it, or leave it out; log.jsonl has all figures.") from error
    return reporters


def _rate(settings: LoopSettings, step: int, total: int) -> float:
    """Learning rate of step ``step`` of ``total`` (0-based), as a share of the peak."""
    warmup = max(1, round(settings.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    floor = settings.final_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def _add(total: Metrics, more: Metrics) -> None:
    for name, (value, count) in more.items():
        before, counted = total.get(name, (0.0, 0.0))
        total[name] = before + value, counted + count


def _without_dropout(model: Any) -> None:
    """Preference margins are differences of two passes: dropout would be noise in both, and the layouts would differ."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
