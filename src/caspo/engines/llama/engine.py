"""Engine `llama_cpp`: a GGUF file in this process, by the low-level API of llama-cpp-python.

llama.cpp computes the logits; everything after them (draws, entropies, stop strings) is what the `hf` engine does too, so
seeds, ranks and figures mean the same. All requests are rows of one context with one memory of ``cells`` tokens: those that
begin alike share cells, and a step that was decoded is continued, not computed again.

A row's result does not depend on its neighbours up to float rounding; llama.cpp rounds activations of quantised weights to
8 bits, so its entropies differ a little from those of the same weights in `hf` (docs/engines.md says how much).

Not covered: models whose memory cannot be cut at a token (recurrent, hybrid), encoders and diffusion models: refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError
from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.llama.batch import LlamaBatch
from caspo.engines.llama.context import LlamaContext
from caspo.engines.llama.tokens import GgufTokenizer
from caspo.engines.models import BUNDLED, GgufWheels, gguf_file
from caspo.engines.prompts import INSTRUCTION, Example, begin_ids, chat_ids, prompt_ids
from caspo.engines.reading import reading_of
from caspo.engines.run import run

__all__ = ["LlamaCppEngine", "open_llama_cpp"]


class LlamaCppEngine:
    """Samples from a GGUF file.

    Args:
        file: the file; of a model in several files the first.
        name: for records; the file's by default.
        instruction: what the prompt asks for, besides the question.
        examples: what it shows before the question, see `asking`.
        max_rows: requests decoded at once, at most half of the sequences llama.cpp can tell apart (256).
        cells: tokens held at once, of all requests and of what is kept to be continued; every one costs memory from the
            start, and time at each step once it was used.
        chunk: tokens of prompts computed at a step, at most; also the most requests at a step.
        dtype: of keys and values. The weights are what they are in the file.
        device_layers: layers computed on a GPU, where llama.cpp was built with one; -1: all.
        steps, thinking: how its text is read, as for `HFEngine`.

    Raises:
        ConfigError: llama-cpp-python is not installed.
        ModelError: the file cannot be loaded, or its model not be used.
    """

    def __init__(
        self,
        file: Path,
        *,
        name: str = "",
        instruction: str = INSTRUCTION,
        examples: Sequence[Example] = (),
        max_rows: int = 64,
        cells: int = 16384,
        chunk: int = 512,
        dtype: str = "float32",
        device_layers: int = 0,
        steps: str = "reasoning",
        thinking: Sequence[str] | None = None,
    ) -> None:
        self.name, self.instruction, self.examples = name or file.stem, instruction, tuple(examples)
        self.context = context = LlamaContext(
            file, name=self.name, cells=cells, chunk=chunk, dtype=dtype, device_layers=device_layers
        )
        self.reading = reading_of(context.tokenizer.chat_template, steps=steps, thinking=thinking)
        context.tokenizer.show([mark for pair in self.reading.thinking for mark in pair])
        self.context_length, self.vocab_size = context.context_length, context.tokenizer.size
        self.max_rows = max(1, min(max_rows, context.strands // 2, chunk))

    @property
    def tokenizer(self) -> GgufTokenizer:
        """The tokenizer in the file."""
        return self.context.tokenizer

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt that asks ``question``, in the chat template of the file if it has one."""
        return prompt_ids(self.tokenizer, question, self.instruction, self.examples)

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt that asks for the assistant's next message."""
        return chat_ids(self.tokenizer, messages)

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Tokens of a text as it is; names of special tokens in it are text. Of one that ``begins`` a sequence they are
        meant, and BOS is in front if the model knows texts with it."""
        if begins:
            return begin_ids(self.tokenizer, text)
        return tuple(self.tokenizer.tokens(text, special=False))

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; special tokens have none."""
        return [self.context.piece(i) for i in token_ids]

    def forget(self) -> None:
        """Drop the keys and values of all prefixes."""
        with self.context.lock:
            self.context.alive()
            self.context.cells.forget()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: a prefix leaves no room in the model's context or in the cells, or the model returned NaN.
        """
        for request in requests:
            self.context.check(request)
        return run(self.batch(), requests, on_done)

    def batch(self, most: int | None = None) -> LlamaBatch:
        """An empty batch of ``most`` requests at once, ``max_rows`` at most."""
        return LlamaBatch(self.context, min(most or self.max_rows, self.max_rows), self.reading.turn)

    def close(self) -> None:
        """Free the model. Nothing can be asked of the engine after."""
        self.context.close()


def open_llama_cpp(name: str, *, dtype: str, device: str, **options: Any) -> LlamaCppEngine:
    """The engine for a GGUF file, or for a bundled model that is one, with the settings of a recipe."""
    if name in BUNDLED:
        file = gguf_file(name)
    elif name.lower().endswith(".gguf"):
        file = Path(name).expanduser()
    else:
        named = ", ".join(one for one, source in BUNDLED.items() if isinstance(source, GgufWheels))
        raise ModelError(
            f"The llama_cpp engine reads GGUF files, and {name!r} is none. Give the path of a *.gguf file, or the name of a "
            f"bundled model that is one ({named})."
        )
    layers = 0 if device == "cpu" else -1
    return LlamaCppEngine(file, name=name, dtype=dtype, device_layers=layers, **options)
