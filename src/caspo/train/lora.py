"""Low-rank adapters (Hu et al. 2021) by peft, on every linear layer of the decoder, over a base that may be held in less.

The base is frozen, so it needs no float32 masters: in bfloat16 it takes half, in 4 bits (NF4 with nested scales, QLoRA,
Dettmers et al. 2023) an eighth. The adapters are float32 whatever the base is.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from caspo.core.config import Config
from caspo.core.errors import ConfigError, ModelError

__all__ = ["Adapters", "LoraSettings", "add_adapters", "continue_adapters", "like", "merged", "without_adapters"]


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


def continue_adapters(model: Any, folder: Path, settings: LoraSettings) -> Any:
    """The base model with the adapters of a folder, to be trained further.

    Raises:
        ConfigError: they have another rank or alpha than these settings, or are not the weights of layers alone.
        ModelError: they cannot be read, or are of another base.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # An adapter for other layers loads without effect and with this warning only.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except Exception as error:  # peft and torch raise whatever a damaged folder or a weight of another shape trips over
        raise ModelError(
            f"The adapter {folder} cannot be put on its base model: {type(error).__name__}: {error}. It is damaged, or of "
            "another base."
        ) from error
    found = adapted.peft_config["default"]
    if (found.r, found.lora_alpha) != (settings.rank, settings.alpha):
        raise ConfigError(
            f"The adapter {folder} has rank {found.r} and alpha {found.lora_alpha:g}, and train.lora asks for rank "
            f"{settings.rank} and alpha {settings.alpha:g}. An adapter is trained further as it is: set train.lora to the "
            "same, or start from a merged model."
        )
    _check_weights(adapted, folder)
    found.base_model_name_or_path = model.name_or_path  # where peft looks when a checkpoint is written: here, not on the hub
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _check_weights(adapted: Any, folder: Path) -> None:
    """Refuse weights that would be lost without a word, or change what they are not for."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    there = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        extra = sorted(key for key in file.keys() if key not in there)  # noqa: SIM118
    if layers := [key for key in extra if "lora_" in key]:
        raise ModelError(
            f"The adapter {folder} does not fit its base model: {len(layers)} of its weights are for layers that are not "
            f"there ({layers[0]}, ...). It is of another base: name that one with model.base."
        )
    plain = without_adapters(adapted)
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    names = [f".{name}." for name, module in plain.named_modules() if any(module is end for end in ends)]
    tied = plain.config.get_text_config().tie_word_embeddings
    odd = [*extra, *(key for key in there if "lora_" not in key or (tied and any(name in key for name in names)))]
    if odd:
        raise ConfigError(
            f"The adapter {folder} holds more than low-rank weights of layers ({odd[0]}): whole weights, or one end of tied "
            "embeddings. It cannot be trained further as it is: merge it into its base (peft: merge_and_unload, then "
            "save_pretrained) and start from that model."
        )


def without_adapters(model: Any) -> Any:
    """The model of transformers itself; what adapters add to its layers stays in them."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def like(model: Any, base: Any) -> Any:
    """``base`` with untrained adapters of the same shape as those of ``model``."""
    from peft import get_peft_model

    return get_peft_model(base, model.peft_config["default"])


def merged(model: Any) -> Any:
    """The plain model with its adapters added to its weights, in place."""
    return model.merge_and_unload()


@dataclass(frozen=True)
class Adapters:
    """Trained adapters without the base that they were trained on, which may be held in less than it is stored in."""

    config: Any
    """Of peft."""
    weights: dict[str, Any]

    @classmethod
    def of(cls, model: Any) -> Adapters:
        """Those of a model."""
        from peft import get_peft_model_state_dict

        # Left to itself, peft asks the hub about the base model's vocabulary, which never changes here.
        found = get_peft_model_state_dict(model, save_embedding_layers=False)
        return cls(model.peft_config["default"], {name: value.detach().cpu() for name, value in found.items()})

    def on(self, base: Any) -> Any:
        """``base`` with these adapters merged into its weights, in place."""
        from peft import get_peft_model, set_peft_model_state_dict

        adapted = get_peft_model(base, self.config)
        set_peft_model_state_dict(adapted, self.weights)
        return merged(adapted)

    def save(self, folder: Path, base: str) -> None:
        """The files that peft reads; ``base`` is the name or the folder of the model that they are for."""
        from safetensors.torch import save_file

        config = copy.copy(self.config)
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(folder)
        weights = {name: value.contiguous() for name, value in self.weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
