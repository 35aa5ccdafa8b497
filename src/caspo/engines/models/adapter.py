"""A LoRA adapter: a folder with little weights that are added to those of its base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caspo.core.errors import ModelError
from caspo.engines.models.cache import check_room
from caspo.engines.models.conversion import save
from caspo.engines.models.reading import config_of, open_tokenizer, quiet, read

__all__ = ["base_of", "is_adapter", "merge_adapter"]

_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / _SETTINGS).is_file()


def base_of(folder: Path) -> str | None:
    """What the adapter in ``folder`` says it was trained on: a name, or a path on the machine where it was.

    Raises:
        ModelError: it is damaged, of another kind than LoRA, no safetensors, or lies among the weights of a whole model.
    """
    settings = config_of(folder, _SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"The adapter {folder} is of the kind {settings.get('peft_type')!r}, and only LoRA can be used here. Merge it "
            "into its base model with peft, and give that folder."
        )
    if not (folder / _WEIGHTS).is_file():
        raise ModelError(
            f"The adapter {folder} has no {_WEIGHTS}. Save it as safetensors (peft: save_pretrained does); *.bin files can "
            "run code when opened."
        )
    if any(file.name != _WEIGHTS for file in folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds an adapter ({_SETTINGS}) and a whole model (*.safetensors). Put one of them into a folder of "
            "its own."
        )
    base = settings.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def merge_adapter(base: Path, adapter: Path, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Add the LoRA ``adapter`` to the weights of ``base`` in float32 and save the sum, in float32 too.

    A base in bfloat16 does not come back in bfloat16: what an adapter adds to a weight is often less than half of the
    distance to the next number of that type, and would be lost.

    Raises:
        ModelError: the adapter does not fit: it is of another base; or its weights are damaged.
        OSError: the disk has no room for the sum.
    """
    from peft import PeftModel
    from safetensors import SafetensorError, safe_open

    model, tokenizer = read(base, base.name, trust_remote_code=trust_remote_code)
    check_room(folder, sum(p.numel() * 4 for p in model.parameters()))
    try:
        with safe_open(adapter / _WEIGHTS, "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(
            f"{adapter / _WEIGHTS} is damaged ({error}). Copy it again from where the adapter came from."
        ) from error
    _fit_vocabulary(model, shapes)
    try:
        with warnings.catch_warnings(), quiet():
            # An adapter for other layers loads without effect and with this warning only.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # untied by now
            adapted = PeftModel.from_pretrained(model, str(adapter))
    except Exception as error:  # peft raises whatever an adapter that does not fit happens to trip over
        raise ModelError(f"{_misfit(adapter, base)} ({type(error).__name__}: {error!s:.300})") from error
    _check_keys(adapted, shapes, f"{_misfit(adapter, base)}")
    merged = adapted.merge_and_unload()
    if any((adapter / name).is_file() for name in _TOKENIZER):  # the one it was trained with, and its prompt
        from transformers import AutoTokenizer

        tokenizer = open_tokenizer(AutoTokenizer, adapter, adapter.name, local_files_only=True)
    template = adapter / "chat_template.jinja"
    if template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    save(merged, tokenizer, folder)


def _misfit(adapter: Path, base: Path) -> str:
    return (
        f"The adapter {adapter} does not fit the model {base}: it was trained on another one. Name its base with --base "
        "(model.base in a recipe)."
    )


def _fit_vocabulary(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the embedding as many rows as the adapter brings, and an output layer of its own where that is adapted."""
    import torch

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    names = {id(module): name for name, module in model.named_modules()}
    ends = [names[id(end())] for end in (model.get_input_embeddings, model.get_output_embeddings)]
    rows = {shape[0] for key, shape in shapes.items() for end in ends if key.endswith(f"{end}.weight")}
    if rows and max(rows) != model.get_input_embeddings().num_embeddings:
        with quiet():
            model.resize_token_embeddings(max(rows), mean_resizing=False)
    if tied and any(f".{end}." in key and "lora" in key for key in shapes for end in ends):
        output = model.get_output_embeddings()
        output.weight = torch.nn.Parameter(output.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = model.config.tie_word_embeddings = False


def _check_keys(adapted: Any, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Refuse an adapter with weights for layers that the model does not have: peft leaves them out without a word."""
    from peft import get_peft_model_state_dict

    there = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    extra = sorted(key for key in set(shapes) - there if "lora_" in key)
    if extra:
        raise ModelError(f"{what} ({len(extra)} of its weights are for layers that are not there: {extra[0]}, ...)")
