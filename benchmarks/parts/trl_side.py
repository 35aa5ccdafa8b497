"""The other side of the benchmark: TRL's `DPOTrainer` on the same pairs, set up as fast as it goes on a CPU.

What matters in TRL 1.16, read in its source:

- A pair is two rows, prompt + chosen and prompt + rejected; a batch of B pairs is one forward pass over 2 B rows, padded to
  the longest. `padding_free` warns and is ignored. No prefix is shared.
- Tokenisation appends EOS to both sides, and has no switch. Rows come as token ids here, and `_prepare_dataset` lets them
  through as they are: no EOS, as for steps in the middle of a solution.
- The reference's log p is computed once beforehand (`precompute_ref_log_probs`), inside the constructor, in the order of the
  data; its batch size is its own. `max_length` is None: its default of 1024 would cut rows.
- By default bfloat16 autocast and gradient checkpointing are on. Both are off here: float32, and no second forward pass.
- `train_sampling_strategy="group_by_length"` pads little: it sorts within mega-batches of several steps. It needs a
  column of lengths, and `remove_unused_columns=False`, since that column is dropped before the sampler is made otherwise.
  `batch_rebalance` pads about as much, and repeats pairs to fill the last optimiser step.
- The vocabulary projection is chunked and done again in the backward pass. On CUDA it is done at completion tokens only, on
  any other device **at every position**, padding too. There is no switch; `compact_head=True` makes the CPU do as CUDA does.
  Both are worth showing: what a user gets here, and what is left when that accident is taken away.
- Entropy, mean logits and top-1 accuracy are computed in every forward pass, for its log, and cannot be turned off.

Every measurement belongs in a process of its own (`in_fresh_process`): peak memory never goes down again.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from caspo.records import StepPair, Tree
from parts.processes import peak_mb

# Before any import of Hugging Face libraries, which read them once. Processes started from here inherit them.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}

__all__ = [
    "Row", "Timing", "best_batch_size", "check_loss", "check_worker", "epoch_worker", "pair_rows", "reference_worker",
    "trl_epoch", "trl_reference",
]  # fmt: skip

Row = dict[str, list[int]]
"""A pair as TRL wants it after tokenisation: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
Reference = list[tuple[float, float]]
"""Per pair: log p of the chosen and of the rejected step under the reference, nats."""


@dataclass(frozen=True)
class Timing:
    """What one measurement cost."""

    seconds: float
    tokens: int
    """Positions that went through the model, padding included."""
    real_tokens: int
    """The same without padding."""
    peak_mb: float
    """Highest resident memory of the process so far, MiB."""
    loss: float | None = None
    """Mean training loss over the epoch; None when nothing was trained."""


def pair_rows(trees: Sequence[Tree], pairs: Sequence[StepPair]) -> list[Row]:
    """One row per pair, in order; the prompt holds all steps before the pair."""
    by_id = {tree.question.id: tree for tree in trees}
    return [
        {
            "prompt_ids": list(by_id[p.question_id].prefix_ids(p.parent)),
            "chosen_ids": list(by_id[p.question_id].nodes[p.chosen].step.token_ids),
            "rejected_ids": list(by_id[p.question_id].nodes[p.rejected].step.token_ids),
        }
        for p in pairs
    ]


def trl_epoch(
    model: Any,
    rows: Sequence[Row],
    *,
    batch_size: int,
    accumulation: int,
    beta: float,
    learning_rate: float,
    reference: Reference,
    compact_head: bool = False,
    sampling: str = "group_by_length",
) -> Timing:
    """One epoch over the pairs; the model is trained in place.

    The clock runs from the first batch to the end of the last optimiser step: no construction, no hashing of weights.
    An optimiser step takes ``batch_size * accumulation`` pairs, the last one what is left.
    """
    from transformers import TrainerCallback

    clock = {"start": 0.0, "end": 0.0}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock["start"] = time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            clock["end"] = time.perf_counter()

    scored = [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(rows, reference, strict=True)
    ]
    with _trainer(
        model, scored, compact_head, per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        beta=beta, learning_rate=learning_rate, train_sampling_strategy=sampling,
    ) as trainer:  # fmt: skip
        trainer.add_callback(Clock())
        loss = trainer.train().training_loss
        counted = trainer.data_collator
    return Timing(clock["end"] - clock["start"], counted.tokens, counted.real_tokens, peak_mb(), loss)


def trl_reference(
    model: Any, rows: Sequence[Row], batch_size: int, *, compact_head: bool = False
) -> tuple[Timing, Reference]:
    """Score the reference as `precompute_ref_log_probs` does; the scores are in the order of ``rows``.

    TRL takes the data as they come, so they are given sorted by length: the least padding. Hashing the weights for its
    cache on disk is not in the time.
    """
    order = sorted(range(len(rows)), key=lambda i: _length(rows[i]), reverse=True)
    with _trainer(model, [rows[i] for i in order], compact_head, precompute_ref_batch_size=batch_size) as trainer:
        scored, counted, seconds = trainer.train_dataset, trainer.data_collator, trainer.reference_seconds
    reference: Reference = [(0.0, 0.0)] * len(rows)
    for i, *scores in zip(order, scored["ref_chosen_logps"], scored["ref_rejected_logps"], strict=True):
        reference[i] = (scores[0], scores[1])
    return Timing(seconds, counted.tokens, counted.real_tokens, peak_mb()), reference


def best_batch_size(measure: Callable[[int], Timing], sizes: Sequence[int], repeats: int = 2) -> dict[int, Timing]:
    """The fastest of ``repeats`` measurements for each size, fastest size first. Sizes take turns, against drift."""
    found: dict[int, Timing] = {}
    for _ in range(repeats):
        for size in sizes:
            timing = measure(size)
            if size not in found or timing.seconds < found[size].seconds:
                found[size] = timing
    return dict(sorted(found.items(), key=lambda item: item[1].seconds))


def check_loss(model: Any, rows: Sequence[Row], *, beta: float, compact_head: bool = False) -> None:
    """Assert that TRL's loss and gradients on one batch are those of DPO on plain forward passes, one row at a time.

    The reference is made up, so that the margins are not zero. Asserts the number of positions of the batch as well.
    """
    import torch

    def log_p(prompt: list[int], step: list[int]) -> torch.Tensor:
        logits_TV = model(input_ids=torch.tensor([prompt + step]), use_cache=False).logits[0]
        return logits_TV[len(prompt) - 1 : -1].log_softmax(-1).gather(1, torch.tensor(step)[:, None]).sum()

    def gradients() -> list[torch.Tensor]:
        taken = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return taken

    with torch.no_grad():
        reference = [
            (float(log_p(r["prompt_ids"], r["chosen_ids"])) + 0.3, float(log_p(r["prompt_ids"], r["rejected_ids"])) - 0.4)
            for r in rows
        ]
    losses = []
    for row, (ref_chosen, ref_rejected) in zip(rows, reference, strict=True):
        chosen, rejected = log_p(row["prompt_ids"], row["chosen_ids"]), log_p(row["prompt_ids"], row["rejected_ids"])
        loss = -torch.nn.functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))) / len(rows)
        loss.backward()
        losses.append(loss.detach())
    expected, wanted = sum(losses), gradients()

    scored = [
        {**row, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for row, (chosen, rejected) in zip(rows, reference, strict=True)
    ]
    with _trainer(model, scored, compact_head, beta=beta) as trainer:
        model.train()
        batch = trainer.data_collator(scored)
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        model.eval()
        positions = trainer.data_collator.tokens
    torch.testing.assert_close(loss.detach(), expected, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(wanted, gradients(), strict=True):
        assert float((ours - theirs).norm()) <= 1e-3 * float(ours.norm()) + 1e-6, "gradients differ"
    assert positions == 2 * len(rows) * max(_length(row) for row in rows), "another number of positions than two padded rows"


# Workers


def epoch_worker(model: str, rows: Sequence[Row], **settings: Any) -> Timing:
    """`trl_epoch` on a model by name, float32; for `in_fresh_process`."""
    from caspo.engines.models import load

    return trl_epoch(load(model)[0], rows, **settings)


def reference_worker(
    model: str, rows: Sequence[Row], batch_size: int, *, compact_head: bool = False
) -> tuple[Timing, Reference]:
    """`trl_reference` on a model by name, float32; for `in_fresh_process`."""
    from caspo.engines.models import load

    return trl_reference(load(model)[0], rows, batch_size, compact_head=compact_head)


def check_worker(model: str, rows: Sequence[Row], *, beta: float, compact_head: bool) -> None:
    """`check_loss` on a model by name, float32; for `in_fresh_process`."""
    from caspo.engines.models import load

    check_loss(load(model)[0], rows, beta=beta, compact_head=compact_head)


# TRL


def _length(row: Row) -> int:
    """Tokens of the longer of a pair's two rows."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


@contextmanager
def _trainer(model: Any, rows: Sequence[dict[str, Any]], compact_head: bool, **settings: Any) -> Iterator[Any]:
    """A `DPOTrainer` over token ids; ``model`` gets its own forward pass back afterwards.

    Rows with `ref_chosen_logps` are taken as scored, others are scored in the constructor.
    """
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, PrinterCallback
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    @dataclass
    class Counting(DataCollatorForPreference):  # type: ignore[misc]
        tokens: int = 0
        real_tokens: int = 0

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().torch_call(examples)
            self.tokens += batch["input_ids"].numel()
            self.real_tokens += int(batch["attention_mask"].sum())
            return batch

    class Trainer(trl.DPOTrainer):  # type: ignore[misc]
        reference_seconds = 0.0

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:
            if "ref_chosen_logps" in dataset.column_names:
                return dataset
            start = time.perf_counter()
            dataset = super()._precompute_ref_logps(dataset, *args)
            self.reference_seconds = time.perf_counter() - start
            return dataset

    # TRL asks its tokenizer for nothing but the padding token, whose id is masked; so no model needs its own here.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>"
    )
    data = Dataset.from_list([{**row, "length": _length(row)} for row in rows])  # type: ignore[arg-type]
    forward = vars(model).get("forward")
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("trl.trainer.utils._use_triton", lambda device: True) if compact_head else nullcontext(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        config = trl.DPOConfig(
            output_dir=folder, num_train_epochs=1, max_length=None, precompute_ref_log_probs=True, bf16=False,
            use_cpu=True, gradient_checkpointing=False, remove_unused_columns=False, dataloader_pin_memory=False,
            logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
            **settings,
        )  # fmt: skip
        collator = Counting(pad_token_id=0)
        trainer = Trainer(model, args=config, train_dataset=data, data_collator=collator, processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        try:
            yield trainer
        finally:
            vars(model).pop("forward", None)
            if forward is not None:
                model.forward = forward
