"""Low-rank adapters (Hu et al. 2021) by peft, on every linear layer of the decoder."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from caspo.core.config import Config

__all__ = ["LoraSettings", "add_adapters"]


class LoraSettings(Config):
    """Low-rank adapters on every linear layer of the decoder."""

    rank: int = Field(16, ge=1)
    """Rank of every adapter; its parameters grow with it."""
    alpha: float = Field(32.0, gt=0)
    """What an adapter adds is scaled by alpha / rank."""


def add_adapters(model: Any, settings: LoraSettings, seed: int) -> Any:
    """The model with fresh adapters, the only weights that will be trained."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapters = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, adapters)
