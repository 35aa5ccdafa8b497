"""Forward passes of the model alone: what a decode step cannot be faster than."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from caspo.engines.local.engine import HFEngine
from caspo.engines.local.kv import RowPool

__all__ = ["forward", "prefill"]


@torch.inference_mode()
def forward(engine: HFEngine, rows: int, length: int, passes: int) -> float:
    """Seconds of one pass of ``rows`` tokens, each after ``length`` others, as the loop makes it with all threads."""
    config = engine.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = int(config.num_hidden_layers)
    pool = RowPool(layers, rows, length + 2, engine.device)
    empty = torch.zeros(heads, length, width, dtype=engine.model.dtype, device=engine.device)
    pool.admit([[(empty, empty)] * layers] * rows)
    inputs: dict[str, Any] = {"attention_mask": pool.mask(), "position_ids": pool.positions()}
    token = torch.ones(rows, 1, dtype=torch.long, device=engine.device)
    engine.model(input_ids=token, past_key_values=pool.cache, use_cache=True, **inputs)
    start = time.perf_counter()
    for _ in range(passes):
        engine.model(input_ids=token, past_key_values=pool.cache, use_cache=True, **inputs)
    return (time.perf_counter() - start) / passes


@torch.inference_mode()
def prefill(engine: HFEngine, prompts: Sequence[tuple[int, ...]]) -> float:
    """Seconds of forward passes over as many tokens as the prompts have, all of one length."""
    mean, rows = sum(map(len, prompts)) // len(prompts), min(32, len(prompts))
    ids = torch.ones(rows, mean, dtype=torch.long, device=engine.device)
    start = time.perf_counter()
    engine.model(input_ids=ids, logits_to_keep=1)
    return (time.perf_counter() - start) * sum(map(len, prompts)) / (rows * mean)
