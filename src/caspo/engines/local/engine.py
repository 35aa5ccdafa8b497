"""Engine `hf`: our own batched decode loop over any transformers causal LM with a key-value cache.

Continuous batching: a row that finishes leaves at once and another takes its place. Prompts and steps that were decoded
before are continued from their cached keys and values. Every step measures the raw distribution and keeps five numbers
a token (see `TokenTrace`); logits never leave the step.

A row's result depends on its prefix, its seed and its settings, not on its neighbours (up to float rounding).

Not covered: encoder-decoder models and models with layers that are not attention (Mamba, linear attention): refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.local.batch import HFBatch
from caspo.engines.local.decoder import Decoder
from caspo.engines.prompts import INSTRUCTION, Example, begin_ids, chat_ids, prompt_ids
from caspo.engines.reading import reading_of
from caspo.engines.run import run

__all__ = ["HFEngine"]


class HFEngine:
    """Samples from a transformers causal LM.

    Args:
        model: the model, on its device, in evaluation mode.
        tokenizer: its tokenizer.
        name: for records.
        instruction: what the prompt asks for, besides the question.
        examples: what it shows before the question, see `asking`.
        max_rows: rows decoded at once.
        pool_bytes: memory for the rows' keys and values; fewer rows are used when they would need more. A search whose
            rows grow longer on the way may exceed it until some of them end.
        store_bytes: memory for prefixes kept to be continued later.
        steps: the rule that cuts what it writes into steps.
        thinking: the marks of its thinking, (opening, closing), where the chat template does not tell them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str = "",
        instruction: str = INSTRUCTION,
        examples: Sequence[Example] = (),
        max_rows: int = 256,
        pool_bytes: int = 4 << 30,
        store_bytes: int = 1 << 30,
        steps: str = "reasoning",
        thinking: Sequence[str] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.instruction, self.examples = model, tokenizer, instruction, tuple(examples)
        self.name = name or str(getattr(model.config, "name_or_path", "")) or model.config.model_type
        self.reading = reading_of(tokenizer.chat_template, steps=steps, thinking=thinking)
        self.decoder = decoder = Decoder(
            model, tokenizer, self.reading, name=self.name, max_rows=max_rows, pool_bytes=pool_bytes, store_bytes=store_bytes
        )
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        self.device, self.eos_ids, self.context_length = decoder.device, decoder.eos_ids, decoder.context_length

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt that asks ``question``, in the model's chat template if it has one."""
        return prompt_ids(self.tokenizer, question, self.instruction, self.examples)

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt that asks for the assistant's next message."""
        return chat_ids(self.tokenizer, messages)

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Tokens of a text as it is; of one that ``begins`` a sequence, with BOS if the model knows texts with it."""
        if begins:
            return begin_ids(self.tokenizer, text)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; special tokens have none."""
        return [self.decoder.pieces[i] for i in token_ids]

    def forget(self) -> None:
        """Drop the keys and values of all prefixes."""
        self.decoder.store.clear()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: a prefix leaves no room in the model's context, or the model returned NaN or infinite logits.
        """
        for request in requests:
            self.decoder.check(request)
        return run(self.batch(len(requests) if on_done is None else None), requests, on_done)

    def batch(self, most: int | None = None) -> HFBatch:
        """An empty batch of ``most`` requests at once, ``max_rows`` at most, fewer where memory is short."""
        decoder = self.decoder
        return HFBatch(decoder, min(most or decoder.max_rows, decoder.max_rows))
