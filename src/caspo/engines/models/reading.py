"""A folder in Hugging Face format, read by transformers: a model in evaluation mode and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspo.core.errors import ConfigError, ModelError
from caspo.core.storage import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_folder", "chosen_device", "quiet", "read", "read_tokenizer"]

_DTYPES = ("float32", "bfloat16", "float16")


def check_folder(folder: Path, what: str) -> None:
    """Refuse a folder that `load` could not read, or only by unpickling it."""
    if not (folder / "config.json").is_file():
        hint = (
            "It is a LoRA adapter: merge it into its base model first (peft: merge_and_unload, then save_pretrained)."
            if (folder / "adapter_config.json").is_file()
            else "Give a folder in Hugging Face format: config.json, *.safetensors and a tokenizer."
        )
        raise ModelError(f"{what} is not a model: it has no config.json. {hint}")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(kind))
        found = f"only {', '.join(pickles[:3])}, which can run code when opened" if pickles else "no weights at all"
        raise ModelError(
            f"{what} has no *.safetensors but {found}. Get the model as safetensors, or convert it once where you "
            "trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def chosen_device(dtype: str, device: str) -> torch.device:
    """The device, if it and the type of the weights exist here.

    Raises:
        ConfigError: one of them does not.
    """
    import torch

    if dtype not in _DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}. Choose one of these.")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"{device!r} is not a device torch knows. Use for example 'cpu' or 'cuda'.") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"Device {device!r} was asked for, but torch {torch.__version__} sees no GPU. Use device 'cpu'.")
    return place


def read(
    folder: Path, name: str, *, dtype: str = "float32", device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of a folder, called ``name`` in messages. Every weight comes from the file.

    Raises:
        ModelError: it cannot be loaded, lacks a weight, or its tokenizer has no EOS token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **common)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
                **common,
            )
    except Exception as error:  # transformers raises whatever a malformed folder happens to trip over
        raise ModelError(
            f"Could not load {name!r} from {folder}: {type(error).__name__}: {error}. The folder may be "
            "incomplete, damaged, or of an architecture that transformers cannot load as a causal language model."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        bad = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
        raise ModelError(
            f"{folder} lacks {len(bad)} weights of its architecture ({', '.join(bad[:3])}, ...); transformers would "
            "make them up at random. Get the complete model, or check that config.json belongs to these weights."
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {name!r} has no end-of-sequence token, so its solutions would never end. Set "
            "`eos_token` in tokenizer_config.json to the token the model was trained to stop with."
        )
    return model.to(device).eval(), tokenizer


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. `AutoTokenizer` imports torch, so it is asked only for those with a class of their own."""
    from transformers import PreTrainedTokenizerFast

    config = folder / "tokenizer_config.json"
    if config.is_file() and read_json(config).get("tokenizer_class") == PreTrainedTokenizerFast.__name__:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers; what goes wrong is raised."""
    from transformers.utils import logging as transformers_logging

    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
