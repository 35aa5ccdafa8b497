"""Draws inside vLLM: a logits processor that measures the raw logits and takes the tokens, as every engine here does.

vLLM calls it once a step with the logits of all its requests, on their device, before anything has changed them. It leaves
one token possible in each row, so that vLLM's own (greedy) sampler takes that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from caspo.core.errors import EngineError
from caspo.engines.rows import Row
from caspo.engines.sampling import draw_rows
from caspo.records import Measured

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import LogitsProcessor

__all__ = ["KEY", "drawing"]

KEY = "caspo_row"
"""The request's name in the `extra_args` of its parameters."""


def drawing(rows: Mapping[str, Row], drawn: dict[str, tuple[int, Measured] | EngineError]) -> type[LogitsProcessor]:
    """The processor's class, as vLLM wants it.

    Args:
        rows: the requests by their names; what a row draws depends on it alone.
        drawn: where each step puts the token of every row with what was measured, or what is wrong with its logits. A row
            whose prompt is not computed to its end is there too: vLLM takes no token from it then.

    Raises:
        ImportError: vLLM is not installed.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class Drawing(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self._names: dict[int, str] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(self._names, batch_update, lambda params, *_: params.extra_args[KEY])

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            names = [self._names[at] for at in range(len(logits))]
            found, failures = draw_rows(logits, [rows[name] for name in names])
            tokens, measured = found.tokens.tolist(), found.measured()
            for at, name in enumerate(names):
                drawn[name] = failures[at] if at in failures else (tokens[at], measured[at])
            return logits.fill_(-torch.inf).scatter_(1, found.tokens[:, None], 0.0)

    return Drawing
