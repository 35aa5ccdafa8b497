"""A folder in Hugging Face format, read by transformers: a model in evaluation mode and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caspo.core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_folder", "quiet", "read", "read_tokenizer"]

_VOCABULARIES = (
    "tokenizer.json", "*.model", "vocab.*", "vocab-*", "*.tiktoken", "tekken.json", "*.gguf", "tokenization_*.py"
)  # fmt: skip
"""Files of which a tokenizer needs one; the last is for those that bring code of their own."""


def check_folder(folder: Path, what: str) -> None:
    """Refuse a folder that `load` could not read, or only by unpickling it."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{what} is not a model: it has no config.json. Give a folder in Hugging Face format (config.json, "
            "*.safetensors and a tokenizer), that of a LoRA adapter, or a GGUF file."
        )
    config_of(folder)
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(kind))
        found = f"only {', '.join(pickles[:3])}, which can run code when opened" if pickles else "no weights at all"
        raise ModelError(
            f"{what} has no *.safetensors but {found}. Get the model as safetensors, or convert it once where you "
            "trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def config_of(folder: Path, file: str = "config.json") -> dict[str, Any]:
    """The settings of the model in a folder.

    Raises:
        ModelError: they are damaged.
    """
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {type(found).__name__}, not keys with values")
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / file} is damaged ({error}). Copy it again from where the model came from.") from error
    return found


def read(
    folder: Path, name: str, *, dtype: str = "float32", device: str | torch.device = "cpu",
    trust_remote_code: bool = False, four_bit: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:  # fmt: skip
    """The model of a folder, called ``name`` in messages. Every weight comes from the file.

    Raises:
        ConfigError: ``four_bit`` without bitsandbytes.
        ModelError: it cannot be loaded, lacks a weight, or its tokenizer is not there, has no EOS token, or has tokens that
            the model does not know.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": not trust_remote_code}
    rounding = _four_bit(torch.device(device), dtype) if four_bit else {}
    tokenizer = open_tokenizer(AutoTokenizer, folder, name, **common)
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation=_attention(folder),
                use_safetensors=True,
                output_loading_info=True,
                **common,
                **rounding,
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
    _check_vocabulary(tokenizer, int(model.get_input_embeddings().weight.shape[0]), name)
    if four_bit:
        _without_repacking(model)
        return model.eval(), tokenizer  # it is on its device
    return model.to(device).eval(), tokenizer


def _attention(folder: Path) -> str | None:
    """How a model attends. None: by transformers' choice, SDPA where its class can do with it, else eager.

    Scores that are capped before the softmax (Gemma 2) cannot be had from SDPA, which would leave the cap out.
    """
    config = config_of(folder)
    capped = config.get("attn_logit_softcapping") or (config.get("text_config") or {}).get("attn_logit_softcapping")
    return "eager" if capped else None


def _four_bit(device: torch.device, dtype: str) -> dict[str, Any]:
    """Options of `from_pretrained` for NF4 weights, their scales rounded as well."""
    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "A base in 4 bits needs bitsandbytes, which is not installed: pip install 'caspo-llm[bitsandbytes]'. Or set "
            "train.base=bfloat16, which takes four times the memory of it."
        )
    rounding = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )  # fmt: skip
    return {"quantization_config": rounding, "device_map": {"": device}}


def _without_repacking(model: Any) -> None:
    """On a CPU with bfloat16 instructions bitsandbytes repacks weights in place once they are used without gradients, and
    what it then computes has no gradient: without a word, training after any such pass would be wrong."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. `AutoTokenizer` imports torch, so it is asked only for those with a class of their own.

    Raises:
        ModelError: it is not there or cannot be read, or has tokens that the model does not know.
    """
    from transformers import PreTrainedTokenizerFast

    name, file = str(folder), folder / "tokenizer_config.json"
    kind: Any = PreTrainedTokenizerFast
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None  # opening it will say what is wrong
    if not isinstance(settings, dict) or settings.get("tokenizer_class") != PreTrainedTokenizerFast.__name__:
        from transformers import AutoTokenizer

        kind = AutoTokenizer
    tokenizer = open_tokenizer(kind, folder, name)
    config = config_of(folder) if (folder / "config.json").is_file() else {}
    rows = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    if isinstance(rows, int):
        _check_vocabulary(tokenizer, rows, name)
    return tokenizer


def open_tokenizer(kind: Any, folder: Path, name: str, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, by ``kind.from_pretrained``; ``name`` is the model's in messages.

    Raises:
        ModelError: the folder has none, or a damaged one.
    """
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):  # transformers may make an empty one up
        raise ModelError(
            f"{name!r} has no tokenizer: {folder} holds none of its files (tokenizer.json, tokenizer.model, vocab.json). "
            "Take those of the model it was made of: AutoTokenizer.from_pretrained(original).save_pretrained(folder)."
        )
    try:
        with quiet():
            found: PreTrainedTokenizerBase = kind.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises whatever a malformed file happens to trip over
        raise ModelError(
            f"The tokenizer of {name!r} cannot be read from {folder}: {type(error).__name__}: {error}. Its files are "
            "incomplete or damaged: copy them again."
        ) from error
    return found


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Refuse a tokenizer that makes tokens which the embedding of the model, of so many ``rows``, has no row for.

    Padding is no such token: we pad by ourselves.
    """
    outside = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows and i != tokenizer.pad_token_id)
    if outside:
        named = ", ".join(f"{token!r} is {i}" for i, token in outside[:3])
        raise ModelError(
            f"The tokenizer of {name!r} has {len(outside)} tokens that the model does not know ({named}): its embedding has "
            f"{rows} rows. Give the model the tokenizer that it was trained with; or, if tokens were added to it, "
            "model.resize_token_embeddings(len(tokenizer)), and train them."
        )


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
