"""A model loaded by vLLM in this process, and the requests that it decodes: all batches of an engine share its steps."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from caspo.core.errors import ConfigError, EngineError, ModelError
from caspo.engines.base import Completion
from caspo.engines.rows import Row, check
from caspo.engines.vllm.draws import KEY, drawing
from caspo.records import Measured

__all__ = ["OnEnd", "VllmContext"]

OnEnd = Callable[[Row, Completion | EngineError], None]
"""Told of a row that is over."""

_OURS: dict[str, Any] = {
    "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1, "distributed_executor_backend": "uni",
    "async_scheduling": False, "speculative_config": None, "logits_processors": None, "skip_tokenizer_init": True,
    "disable_log_stats": True,
}  # fmt: skip
"""What the draws need: one process, one token a step, and no step begun before the last one's tokens are known."""
_CPU_CACHE = 4 << 30
"""Bytes of keys and values on a CPU, where vLLM would take nearly all of the memory."""
_CPU_BLOCK = 32
"""Tokens of a block there. Prefixes are shared in whole blocks, and vLLM's own 128 are longer than most steps."""

_OPEN: weakref.WeakSet[VllmContext] = weakref.WeakSet()


class VllmContext:
    """What a batch is given, and what the engine composes. The arguments are those of `VllmEngine`.

    Raises:
        ConfigError: vLLM is not installed, or an option is none that this engine can have.
        ModelError: vLLM cannot load the model.
    """

    def __init__(self, folder: Path, *, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.lock = threading.RLock()
        """Guards vLLM and the rows; held for a step."""
        self._rows: dict[str, Row] = {}
        self._told: dict[str, OnEnd] = {}
        self._drawn: dict[str, tuple[int, Measured] | EngineError] = {}
        self._keys = map(str, count())
        self._llm: Any = self._open({"model": str(folder), "served_model_name": name, **options})
        _OPEN.add(self)
        self._free = weakref.finalize(self, _free, self._llm.engine_core)
        config = self._llm.model_config
        self.context_length, self.vocab_size = int(config.max_model_len), int(config.get_vocab_size())
        self.generation: Mapping[str, Any] = config.try_get_generation_config()
        """What the model's folder says of its generation."""

    def close(self) -> None:
        """Give the memory back. Nothing can be asked after."""
        with self.lock:
            self._llm = None
            _OPEN.discard(self)
            self._free()

    def add(self, row: Row, told: OnEnd) -> str:
        """Take a row in; what comes back is its key here.

        Raises:
            EngineError: it can never be served, or the engine was closed.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        request = row.request
        check(request, self.context_length, self.name, self.vocab_size)
        with self.lock:
            llm, key = self._alive(), next(self._keys)
            # Greedy, for one token alone is left possible; where it ends is decided by us, token by token.
            parameters = SamplingParams(
                temperature=0.0,
                max_tokens=min(request.max_new_tokens, self.context_length - len(request.prefix_ids)),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args={KEY: key},
            )
            self._rows[key], self._told[key] = row, told
            llm.add_request(key, tokens_input(list(request.prefix_ids)), parameters)
            return key

    def drop(self, key: str) -> None:
        """Give a row up: it is no longer decoded, and nothing is heard of it again. One that is over is left alone."""
        with self.lock:
            if self._forget(key) and self._llm is not None:
                self._llm.abort_request([key])

    def step(self, piece: Callable[[int], bytes], eos_ids: frozenset[int]) -> None:
        """Go on with the rows of all batches, and tell of those that are over.

        Raises:
            EngineError: vLLM failed, and is closed.
        """
        with self.lock:
            llm = self._alive()
            try:
                outputs = llm.step()
            except Exception as error:  # whatever its model, its kernels or its scheduler trip over
                self.close()
                raise EngineError(
                    f"vLLM failed with {self.name} ({type(error).__name__}: {error}). Open the model again; if memory ran "
                    "out, with fewer rows (max_rows) or a smaller share of it (vllm: {gpu_memory_utilization: 0.8})."
                ) from error
            for output in outputs:
                key = output.request_id
                if key in self._rows and any(part.token_ids for part in output.outputs):
                    self._take(key, piece, eos_ids)

    def forget(self) -> None:
        """Drop the keys and values of all prefixes that are not under way."""
        with self.lock:
            self._alive().reset_prefix_cache()

    def _take(self, key: str, piece: Callable[[int], bytes], eos_ids: frozenset[int]) -> None:
        row, told, drawn = self._rows[key], self._told[key], self._drawn.pop(key)
        if isinstance(drawn, EngineError):
            self.drop(key)
            told(row, drawn)
            return
        token, measured = drawn
        if row.take(token, measured, piece(token), ends=token in eos_ids, context_length=self.context_length):
            self.drop(key)
            told(row, row.completion())

    def _forget(self, key: str) -> bool:
        self._drawn.pop(key, None)
        self._told.pop(key, None)
        return self._rows.pop(key, None) is not None

    def _alive(self) -> Any:
        if self._llm is None:
            raise EngineError(f"The engine of {self.name} was closed. Open the model again.")
        return self._llm

    def _open(self, wanted: dict[str, Any]) -> Any:
        # Read by vLLM whenever it likes. The other runner wants processors of another kind.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
        try:
            from vllm import EngineArgs
            from vllm.platforms import current_platform
            from vllm.v1.engine.llm_engine import LLMEngine

            processor = drawing(self._rows, self._drawn)
        except ImportError as error:
            raise ConfigError(
                f"The engine vllm needs vLLM, which is not installed here ({error}). Install it (docs/engines.md), or start "
                "its server elsewhere and use the engine openai_compatible."
            ) from error
        taken = sorted(_OURS.keys() & wanted.keys())
        if taken:
            raise ConfigError(
                f"model.vllm: the engine sets {', '.join(taken)} itself, as it runs vLLM in one process. For several GPUs "
                "start vLLM's server and use the engine openai_compatible."
            )
        if current_platform.is_cpu():
            space = {} if "VLLM_CPU_KVCACHE_SPACE" in os.environ else {"kv_cache_memory_bytes": _CPU_CACHE}
            wanted = {"block_size": _CPU_BLOCK, **space, **wanted}
        try:
            arguments = EngineArgs(**{**wanted, **_OURS, "logits_processors": [processor]})
        except TypeError as error:
            raise ConfigError(f"model.vllm: {error}. Its keys are the arguments of vLLM's EngineArgs.") from error
        try:
            return LLMEngine.from_engine_args(arguments)
        except Exception as error:  # vLLM raises whatever a model happens to trip over
            raise ModelError(
                f"vLLM could not load {self.name!r}: {type(error).__name__}: {error}. Its own messages are above."
            ) from error


def _free(core: Any) -> None:
    """End vLLM's core; what all engines of the process share goes with the last one."""
    from vllm.distributed import cleanup_dist_env_and_memory

    core.shutdown()
    del core
    gc.collect()
    if not _OPEN:
        cleanup_dist_env_and_memory()
