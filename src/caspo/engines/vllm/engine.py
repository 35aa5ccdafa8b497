"""Engine `vllm`: vLLM in this process, by its own engine and one logits processor.

vLLM computes the logits and decides what is computed when; draws, entropies, stop strings and the rest are what the `hf`
engine does too, on the logits' device, so seeds, ranks and figures mean the same. Nothing is bounded: the whole
distribution is measured, and only a few numbers a token leave the device. Prefixes are shared by vLLM's prefix cache.

Not covered: several GPUs for one model (start vLLM's server: `openai_compatible`), speculative decoding, training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caspo.core.errors import ModelError
from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.models import read_tokenizer, resolve
from caspo.engines.pieces import Pieces
from caspo.engines.prompts import INSTRUCTION, Example, begin_ids, chat_ids, prompt_ids, turn_ends
from caspo.engines.reading import reading_of, shown_ids
from caspo.engines.run import run
from caspo.engines.vllm.batch import VllmBatch
from caspo.engines.vllm.context import VllmContext

__all__ = ["VllmEngine"]


class VllmEngine:
    """Samples from a model in Hugging Face format.

    Args:
        model: bundled name, folder or hub name.
        name: for records; the model's by default.
        instruction: what the prompt asks for, besides the question.
        examples: what it shows before the question, see `asking`.
        dtype: of the weights, and of keys and values.
        max_rows: requests decoded at once.
        trust_remote_code: run the Python code of the model's repository.
        options: further arguments of vLLM's `EngineArgs`.
        steps, thinking: how its text is read, as for `HFEngine`.

    Raises:
        ConfigError: vLLM is not installed, or an option is none that this engine can have.
        ModelError: there is no such model, vLLM cannot load it, or it has no token that ends a text.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str = "",
        instruction: str = INSTRUCTION,
        examples: Sequence[Example] = (),
        dtype: str = "auto",
        max_rows: int = 256,
        trust_remote_code: bool = False,
        options: Mapping[str, Any] | None = None,
        steps: str = "reasoning",
        thinking: Sequence[str] | None = None,
    ) -> None:
        self.name, self.instruction, self.examples, self.max_rows = name or model, instruction, tuple(examples), max_rows
        folder = resolve(model, trust_remote_code=trust_remote_code)
        self.tokenizer = tokenizer = read_tokenizer(folder)
        self.reading = reading_of(tokenizer.chat_template, steps=steps, thinking=thinking)
        wanted = {"dtype": dtype, "max_num_seqs": max_rows, "trust_remote_code": trust_remote_code, "max_model_len": -1}
        self.context = context = VllmContext(folder, name=self.name, options=wanted | dict(options or {}))
        self.context_length, self.vocab_size = context.context_length, context.vocab_size
        shown = shown_ids(tokenizer, self.reading)
        listed = context.generation.get("eos_token_id")
        named = listed if isinstance(listed, list) else [listed]
        self.eos_ids = frozenset(int(i) for i in named if i is not None) | (
            turn_ends(tokenizer) - (shown - {tokenizer.eos_token_id})
        )
        if not self.eos_ids:
            context.close()
            raise ModelError(
                f"{self.name} has no end-of-sequence token, so no solution would ever end. "
                "Set tokenizer.eos_token, save the tokenizer and load it again."
            )
        self._pieces = Pieces(tokenizer, shown)

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
        return [self._pieces[i] for i in token_ids]

    def forget(self) -> None:
        """Drop the keys and values of all prefixes."""
        self.context.forget()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: a prefix leaves no room in the model's context, or the model returned NaN or infinite logits.
        """
        return run(self.batch(), requests, on_done)

    def batch(self, most: int | None = None) -> VllmBatch:
        """An empty batch of ``most`` requests at once, ``max_rows`` at most."""
        most = min(most or self.max_rows, self.max_rows)
        return VllmBatch(self.context, most, self.reading, self._pieces.__getitem__, self.eos_ids)

    def close(self) -> None:
        """Free the model. Nothing can be asked of the engine after."""
        self.context.close()
