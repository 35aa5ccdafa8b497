"""A model loaded by llama.cpp with the memory that it decodes in: a context, and the cells of it that are taken.

What is decoded, and for whom, is the batch's business.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from caspo.core.errors import EngineError, ModelError
from caspo.engines.base import Request
from caspo.engines.llama.cells import Cells
from caspo.engines.llama.library import last_error, library, load_model
from caspo.engines.llama.tokens import GgufTokenizer
from caspo.engines.rows import check

__all__ = ["LlamaContext"]

_CACHE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 30}
"""ggml's numbers for the types of keys and values."""
_CODES = {1: "out of cells", 2: "aborted", -1: "invalid input"}


class LlamaContext:
    """A GGUF file in memory: what a batch is given, and what the engine composes. The arguments are those of
    `LlamaCppEngine`.

    Raises:
        ConfigError: llama-cpp-python is not installed.
        ModelError: the file cannot be loaded, or its model not be used.
    """

    def __init__(self, file: Path, *, name: str, cells: int, chunk: int, dtype: str, device_layers: int) -> None:
        self._api = api = library()
        model = load_model(api, file, device_layers)
        # Freed with this object, or before Python goes down at the latest; the context before the model.
        self._close = weakref.finalize(self, _free, api.llama_model_free, model)
        self.name, self.chunk = name, chunk
        _refuse_unsupported(api, model, name)
        self.context_length = int(api.llama_model_n_ctx_train(model))
        self._tokenizer = GgufTokenizer(api, model)
        if not self._tokenizer.eos_ids:
            raise ModelError(
                f"{name} has no end-of-sequence token, so no solution would ever end. Convert it to GGUF again, from "
                "a folder whose tokenizer names one."
            )
        self.strands = int(api.llama_max_parallel_sequences())
        """Sequences that llama.cpp can tell apart."""
        self._context = context = self._open(model, cells, dtype)
        self._close.detach()
        self._close = weakref.finalize(self, _free, api.llama_free, context, api.llama_model_free, model)
        self.cells = Cells(api, api.llama_get_memory(context), self.strands, int(api.llama_n_ctx(context)))
        self.lock = threading.RLock()
        """Guards the context and its cells; held for a step."""

    def close(self) -> None:
        """Give the memory back. Nothing can be asked after."""
        with self.lock:
            self._close()

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
            raise EngineError(f"The engine of {self.name} was closed. Open the model again.")

    def piece(self, token: int) -> bytes:
        """The bytes of one token; a special one has none."""
        return self.tokenizer.piece(token)

    def check(self, request: Request) -> None:
        """Refuse a request that can never be served.

        Raises:
            EngineError: its prefix leaves no room in the model's context, or in the cells.
        """
        check(request, self.context_length, self.name, self.tokenizer.size)
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
            raise EngineError(f"llama.cpp could not decode ({_CODES.get(code, 'error')}, code {code}). {last_error()}")
        rows = sum(ask for *_, ask in fed)
        if not rows:
            return torch.empty(0, self.tokenizer.size)
        # llama.cpp has them in the order of the batch; its own functions give one row at a time.
        start = ctypes.cast(api.llama_get_logits(self._context), ctypes.c_void_p).value
        assert start is not None
        floats = (ctypes.c_float * (rows * self.tokenizer.size)).from_address(start)
        return torch.frombuffer(floats, dtype=torch.float32).view(rows, self.tokenizer.size)

    def _open(self, model: Any, cells: int, dtype: str) -> Any:
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = cells, self.strands, self.chunk
        settings.n_outputs_max = self.strands
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        settings.kv_unified = True  # one memory for all, so that sequences can share cells
        settings.swa_full = True  # a sliding window would forget cells that others still continue from
        settings.flash_attn_type = 0  # on a CPU it costs entropies their third digit
        settings.type_k = settings.type_v = _CACHE_TYPES[dtype]
        context = api.llama_init_from_model(model, settings)
        if not context:
            raise ModelError(
                f"llama.cpp could not make room for {self.name}: {cells} cells of keys and values in {dtype} may be more "
                f"than the memory holds. Lower `cells`. {last_error()}"
            )
        return context


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
