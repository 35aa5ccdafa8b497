"""Supervised recipes: from questions with written solutions to a model that writes steps.

Two kinds: a small model from scratch with its own tokenizer (``architecture``), and a LoRA adapter on a model
(``lora``) that does not write steps by itself. The result is a folder that `caspo` loads like any other model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from caspo.core.config import Config
from caspo.core.folders import claimed
from caspo.core.storage import write_directory
from caspo.core.threads import use_threads
from caspo.engines.models import model_inputs
from caspo.engines.prompts import PLAIN_TEMPLATE, prompt_ids, solution_ids
from caspo.tasks.stories import StoriesTask, sums
from caspo.train.lora import LoraSettings, add_adapters
from caspo.train.supervised import Example, SupervisedSettings, plan_batches, supervised_loss
from caspo.train.trainer import Job, fit, remove_checkpoints

if TYPE_CHECKING:
    from caspo.records import Question

__all__ = ["Architecture", "SupervisedRecipe", "run_supervised"]


class Architecture(Config):
    """A Llama decoder of our own, trained from scratch."""

    vocabulary: int = Field(1024, ge=300)
    """Tokens of the tokenizer, at most: byte-level BPE with single digits."""
    hidden: int = Field(256, ge=2)
    """Numbers in a hidden state."""
    layers: int = Field(5, ge=1)
    """Decoder layers."""
    heads: int = Field(4, ge=1)
    """Attention heads of a layer."""
    feed_forward: int = Field(688, ge=1)
    """Numbers between the two halves of a feed-forward block."""

    @model_validator(mode="after")
    def _whole_heads(self) -> Architecture:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden must be a multiple of twice the heads, and {self.hidden} is not of {self.heads}")
        return self


class SupervisedRecipe(Config):
    """A recipe with ``kind: supervised``."""

    kind: Literal["supervised"]
    model: str | None = None
    """Bundled name, folder or hub name to adapt; none with ``architecture``."""
    architecture: Architecture | None = None
    lora: LoraSettings | None = None
    levels: tuple[int, ...] = (1, 2, 3)
    """Difficulty levels of `stories` to learn from (training scenes only)."""
    problems: int = Field(2000, ge=1)
    """Problems with solutions, each seen once."""
    sums: int = Field(0, ge=0)
    """Sheets of ten sums between the problems: so that what the model then gets wrong is its reasoning."""
    seed: int = 0
    """All that is drawn follows from it, the first weights included."""
    threads: int | None = None
    """CPU threads; by default one for each core that this process may use."""
    train: SupervisedSettings

    @model_validator(mode="after")
    def _one_start(self) -> SupervisedRecipe:
        if (self.architecture is None) == (self.model is None) or (self.lora is None) == (self.model is not None):
            raise ValueError("give either architecture (from scratch), or model and lora (an adapter)")
        return self


def run_supervised(
    recipe: SupervisedRecipe, out: Path, on_step: Callable[[int, int, dict[str, float]], None] | None = None
) -> Path:
    """Train as the recipe says; the folder of the result (``out/model``). Killed and run again, it goes on.

    An adapter's folder holds the LoRA weights, the tokenizer with our chat template, and nothing of the base model.

    Raises:
        ConfigError: the model to adapt lies where the result would, or another process works in ``out``.
        ResumeError: ``out`` belongs to another recipe, or to another model to adapt.
    """
    with claimed(out, recipe, "run", ("model", "train"), model_inputs({"model": recipe.model})):
        result = out / "model"
        if not result.exists():
            _train(recipe, out, on_step or (lambda step, total, metrics: None))
        remove_checkpoints(out / "train")
        return result


def _train(recipe: SupervisedRecipe, out: Path, on_step: Callable[[int, int, dict[str, float]], None]) -> None:
    """Train and store ``out/model``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    use_threads(recipe.threads)
    set_seed(recipe.seed)
    questions = StoriesTask(recipe.levels).questions("train", recipe.problems, recipe.seed)
    questions += sums(recipe.sums, recipe.seed)
    model: Any
    if recipe.architecture is not None:
        tokenizer = train_tokenizer(questions, recipe.architecture.vocabulary)
        shape = recipe.architecture
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            intermediate_size=shape.feed_forward,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
    else:
        from caspo.engines.models import load

        assert recipe.model is not None
        assert recipe.lora is not None
        base, tokenizer = load(recipe.model)
        tokenizer.chat_template = PLAIN_TEMPLATE
        # Noted in the adapter and in its card: the name, not a path of this machine.
        base.name_or_path = base.config.name_or_path = recipe.model
        model = add_adapters(base, recipe.lora, recipe.seed)
    examples: list[Example] = [(prompt_ids(tokenizer, q.text), solution_ids(tokenizer, q.solution or "")) for q in questions]
    job = Job(plan=plan_batches(examples, recipe.train.batch_size, recipe.seed), loss=supervised_loss)
    model = fit(model, job, recipe.train, out / "train", recipe.seed, on_step).model

    def save(folder: Path) -> None:
        # bfloat16: half the size to ship, and what most users would load anyway.
        # Left to itself, peft asks the hub about the base model's vocabulary, which never changes here.
        more = {} if recipe.lora is None else {"save_embedding_layers": False}
        model.to(torch.bfloat16).save_pretrained(folder, **more)
        tokenizer.save_pretrained(folder)

    write_directory(out / "model", save)


def train_tokenizer(questions: Sequence[Question], size: int) -> Any:
    """A byte-level BPE tokenizer with single digits, learnt from questions and their solutions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"Question: {q.text}\nAnswer:\n{q.solution}" for q in questions[:5000])
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer
