"""Engine `llama_cpp`: a GGUF file in this process, by the low-level API of llama-cpp-python.

llama.cpp computes the logits; everything after them (draws, entropies, stop strings) is what the `hf` engine does too, so
seeds, ranks and figures mean the same. All requests are rows of one context with one memory of ``cells`` tokens: those that
begin alike share cells, and a step that was decoded is continued, not computed again.

A row's result does not depend on its neighbours up to float rounding; llama.cpp rounds activations of quantised weights to
8 bits, so its entropies differ a little from those of the same weights in `hf` (docs/engines.md says how much).

Not covered: models whose memory cannot be cut at a token (recurrent, hybrid), encoders and diffusion models: refused.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from caspo.engines.base import Completion, Message, OnDone, Request
from caspo.engines.llama.batch import LlamaBatch
from caspo.engines.llama.cells import Cells
from caspo.engines.llama.tokens import GgufTokenizer
from caspo.engines.models import BUNDLED, gguf_file
from caspo.engines.prompts import INSTRUCTION, chat_ids, prompt_ids
from caspo.engines.rows import check
from caspo.engines.run import run
from caspo.errors import ConfigError, EngineError, ModelError

__all__ = ["LlamaCppEngine", "open_llama_cpp"]

log = logging.getLogger(__name__)

_INSTALL = (
    "CMAKE_ARGS='-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF "
    "-DLLAMA_BUILD_SERVER=OFF' pip install 'caspo-llm[llamacpp]'"
)
_CACHE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
"""ggml's numbers for the types of keys and values."""
_ERROR = 3
"""ggml's level of errors."""


class LlamaCppEngine:
    """Samples from a GGUF file.

    Args:
        file: the file; of a model in several files the first.
        name: for records; the file's by default.
        instruction: what the prompt asks for, besides the question.
        max_rows: requests decoded at once, at most half of the sequences llama.cpp can tell apart (256).
        cells: tokens held at once, of all requests and of what is kept to be continued; every one costs memory from the
            start, and time at each step once it was used.
        chunk: tokens of prompts computed at a step, at most; also the most requests at a step.
        dtype: of keys and values. The weights are what they are in the file.
        device_layers: layers computed on a GPU, where llama.cpp was built with one; -1: all.

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
        max_rows: int = 64,
        cells: int = 16384,
        chunk: int = 512,
        dtype: str = "float32",
        device_layers: int = 0,
    ) -> None:
        self._api = api = _library()
        model = _load(api, file, device_layers)
        # Freed with the engine, or before Python goes down at the latest; the context before the model.
        self._close = weakref.finalize(self, _free, api.llama_model_free, model)
        self._name, self.instruction = name or file.stem, instruction
        _refuse_unsupported(api, model, self._name)
        self.context_length = int(api.llama_model_n_ctx_train(model))
        self._tokenizer = GgufTokenizer(api, model)
        self.vocab_size = self._tokenizer.size
        if not self._tokenizer.eos_ids:
            raise ModelError(
                f"{self._name} has no end-of-sequence token, so no solution would ever end. Convert it to GGUF again, from "
                "a folder whose tokenizer names one."
            )
        strands = int(api.llama_max_parallel_sequences())
        self.max_rows = max(1, min(max_rows, strands // 2, chunk))
        self.chunk = chunk
        self._context = context = self._open(model, cells, strands, dtype)
        self._close.detach()
        self._close = weakref.finalize(self, _free, api.llama_free, context, api.llama_model_free, model)
        self.cells = Cells(api, api.llama_get_memory(context), strands, int(api.llama_n_ctx(context)))
        self.lock = threading.RLock()
        """Of the context and its cells: held for a step."""

    @property
    def name(self) -> str:
        """The model's name, for records."""
        return self._name

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt that asks ``question``, in the chat template of the file if it has one."""
        return prompt_ids(self.tokenizer, question, self.instruction)

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt that asks for the assistant's next message."""
        return chat_ids(self.tokenizer, messages)

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as it is; names of special tokens in it are text."""
        return tuple(self.tokenizer.tokens(text, special=False))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token; special tokens are empty."""
        return [self.piece(i) for i in token_ids]

    def piece(self, token: int) -> str:
        """The text of one token; of a special one empty."""
        return self.tokenizer.piece(token).decode("utf-8", errors="replace")

    def forget(self) -> None:
        """Drop the keys and values of all prefixes."""
        with self.lock:
            self.alive()
            self.cells.forget()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places.

        Raises:
            EngineError: a prefix leaves no room in the model's context or in the cells, or the model returned NaN.
        """
        for request in requests:
            self.check(request)
        return run(self.batch(), requests, on_done)

    def batch(self, most: int | None = None) -> LlamaBatch:
        """An empty batch of ``most`` requests at once, ``max_rows`` at most."""
        return LlamaBatch(self, min(most or self.max_rows, self.max_rows))

    def close(self) -> None:
        """Free the model. Nothing can be asked of the engine after."""
        with self.lock:
            self._close()

    # What follows is for `LlamaBatch`.

    @property
    def closed(self) -> bool:
        """Whether the memory was given back: llama.cpp must not be called then."""
        return not self._close.alive

    @property
    def tokenizer(self) -> GgufTokenizer:
        """The tokenizer in the file."""
        self.alive()
        return self._tokenizer

    def alive(self) -> None:
        """Refuse to touch memory that was given back.

        Raises:
            EngineError: the engine was closed.
        """
        if self.closed:
            raise EngineError(f"The engine of {self._name} was closed. Open the model again.")

    def check(self, request: Request) -> None:
        """Refuse a request that can never be served.

        Raises:
            EngineError: its prefix leaves no room in the model's context, or in the cells.
        """
        check(request, self.context_length, self._name)
        size = self.tokenizer.size
        if not all(0 <= token < size for token in request.prefix_ids):
            raise EngineError(
                f"A prefix holds tokens that {self._name} does not have: it knows those from 0 to {size - 1}."
            )
        if len(request.prefix_ids) > self.cells.size:
            raise EngineError(
                f"A prompt of {len(request.prefix_ids)} tokens does not fit into the {self.cells.size} cells of the "
                "engine. Raise `cells`, or shorten the question."
            )

    def decode(self, fed: Sequence[tuple[int, int, Sequence[int], bool]]) -> torch.Tensor:
        """(B, V): the logits after the last token of each strand that asks for them, a view until the next call.

        Args:
            fed: per strand its id, the place of its first new token, the new tokens, and whether logits are asked for.

        Raises:
            EngineError: llama.cpp failed.
        """
        self.alive()
        api, at = self._api, 0
        room = api.llama_batch_init(sum(len(ids) for _, _, ids, _ in fed), 0, 1)
        try:
            for strand, first, ids, ask in fed:
                for place, token in enumerate(ids, start=first):
                    room.token[at], room.pos[at], room.logits[at] = token, place, False
                    room.n_seq_id[at], room.seq_id[at][0] = 1, strand
                    at += 1
                room.logits[at - 1] = ask
            room.n_tokens = at
            code = api.llama_decode(self._context, room)
        finally:
            api.llama_batch_free(room)
        if code != 0:
            raise EngineError(f"llama.cpp could not decode ({_CODES.get(code, 'error')}, code {code}). {_last_error()}")
        rows = sum(ask for *_, ask in fed)
        if not rows:
            return torch.empty(0, self.tokenizer.size)
        # llama.cpp has them in the order of the batch; its own functions give one row at a time.
        start = ctypes.cast(api.llama_get_logits(self._context), ctypes.c_void_p).value
        assert start is not None
        floats = (ctypes.c_float * (rows * self.tokenizer.size)).from_address(start)
        return torch.frombuffer(floats, dtype=torch.float32).view(rows, self.tokenizer.size)

    def _open(self, model: Any, cells: int, strands: int, dtype: str) -> Any:
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = cells, strands, self.chunk
        settings.n_outputs_max = strands
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.kv_unified = True  # one memory for all, so that sequences can share cells
        settings.swa_full = True  # a sliding window would forget cells that others still continue from
        settings.flash_attn_type = 0  # on a CPU it costs entropies their third digit
        settings.type_k = settings.type_v = _CACHE_TYPES[dtype]
        context = api.llama_init_from_model(model, settings)
        if not context:
            raise ModelError(
                f"llama.cpp could not make room for {self._name}: {cells} cells of keys and values in {dtype} may be more "
                f"than the memory holds. Lower `cells`. {_last_error()}"
            )
        return context


def open_llama_cpp(name: str, *, instruction: str, dtype: str, device: str, max_rows: int) -> LlamaCppEngine:
    """The engine for a GGUF file, or for a bundled model that is one, with the settings of a recipe."""
    if name in BUNDLED:
        file = gguf_file(name)
    elif name.lower().endswith(".gguf"):
        file = Path(name).expanduser()
    else:
        raise ModelError(
            f"The llama_cpp engine reads GGUF files, and {name!r} is none. Give the path of a *.gguf file, or the name of a "
            "bundled model that is one (smollm2-135m, gemma3-270m)."
        )
    layers = 0 if device == "cpu" else -1
    return LlamaCppEngine(
        file, name=name, instruction=instruction, dtype=dtype, max_rows=max_rows, device_layers=layers
    )


_CODES = {1: "out of cells", 2: "aborted", -1: "invalid input"}

_errors: list[str] = []


def _last_error() -> str:
    return f"It says: {_errors[-1]}" if _errors else ""


@cache
def _library() -> Any:
    """llama-cpp-python's module of plain functions, its log turned into ours."""
    try:
        from llama_cpp import llama_cpp as api
    except (ImportError, OSError, RuntimeError) as error:  # the last two: its own library is missing or does not load
        raise ConfigError(
            f"The llama_cpp engine needs llama-cpp-python, which cannot be imported ({error}). Install it, which compiles "
            f"for some minutes: {_INSTALL}"
        ) from error

    @api.llama_log_callback  # type: ignore[untyped-decorator]
    def record(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", errors="replace").strip()
        if level == _ERROR and line:
            _errors[:] = [*_errors[-4:], line]
        if line:
            log.debug("%s", line)

    _library.callback = record  # type: ignore[attr-defined]  # llama.cpp holds no reference to it
    api.llama_log_set(record, None)
    api.llama_backend_init()
    return api


def _load(api: Any, file: Path, device_layers: int) -> Any:
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
    except OSError as error:
        raise ModelError(f"Could not open {file}: {error.strerror or error}. Give the path of a GGUF file.") from error
    if magic != b"GGUF":
        raise ModelError(
            f"{file} is not a GGUF file: it does not begin with the letters GGUF. Convert the model with llama.cpp's "
            "convert_hf_to_gguf.py, or use the hf engine for safetensors."
        )
    settings = api.llama_model_default_params()
    settings.n_gpu_layers = device_layers
    settings.use_extra_bufts = False  # repacked weights: their AMX kernels end the process on some machines (Q4_1)
    _errors.clear()
    model = api.llama_model_load_from_file(str(file).encode(), settings)
    if not model:
        raise ModelError(
            f"llama.cpp could not load {file}. The file may be incomplete, damaged, or of an architecture that this version "
            f"of llama-cpp-python does not know. {_errors[0] if _errors else ''}"
        )
    return model


def _refuse_unsupported(api: Any, model: Any, name: str) -> None:
    kinds = {
        "recurrent": api.llama_model_is_recurrent(model),
        "hybrid": api.llama_model_is_hybrid(model),
        "diffusion": api.llama_model_is_diffusion(model),
        "encoder": api.llama_model_has_encoder(model) or not api.llama_model_has_decoder(model),
    }
    odd = [kind for kind, true in kinds.items() if true]
    if odd:
        raise ModelError(
            f"The llama_cpp engine continues steps from the middle of others, which takes attention in all layers; {name} "
            f"is of another kind ({', '.join(odd)}). Serve it with llama.cpp's server and use engine openai_compatible."
        )


def _free(*calls: Any) -> None:
    """Call every function (even places) on the handle after it."""
    for function, handle in zip(calls[::2], calls[1::2], strict=True):
        function(handle)
