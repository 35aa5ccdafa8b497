"""From the settings of a model to its engine.

Each engine is imported where it is opened: a model on a server needs no torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError
from caspo.engines.base import Engine, ServingEngine
from caspo.engines.kept import CompletionFile
from caspo.engines.memo import MemoEngine
from caspo.engines.prompts import INSTRUCTION, Example
from caspo.engines.remote.settings import RemoteSettings
from caspo.steps import Reading, rule_name

if TYPE_CHECKING:
    from caspo.engines.local.engine import HFEngine

__all__ = [
    "ModelSettings", "check_local", "identity_of", "model_settings", "open_engine", "open_local", "open_serving", "placed",
    "weights_of",
]  # fmt: skip

log = logging.getLogger(__name__)


def _rule(setting: Any) -> str:
    try:
        return rule_name(setting)
    except ConfigError as error:
        raise ValueError(str(error)) from error


@cache
def _tell(line: str) -> None:
    """Log a line, once."""
    log.info("%s", line)


class ModelSettings(RemoteSettings):
    """The model and where it runs. What `RemoteSettings` adds is for `openai_compatible`; the rest of this is for `hf`, but
    ``name``, ``instruction``, ``steps``, ``thinking`` and ``completions``, which are for all."""

    engine: Literal["hf", "llama_cpp", "vllm", "openai_compatible"] = "hf"
    """`hf`: in this process, and what is trained. `llama_cpp`: a GGUF file in this process. `vllm`: vLLM in this process.
    `openai_compatible`: on servers (docs/engines.md)."""
    name: str
    """Bundled name, folder (of a model or a LoRA adapter), GGUF file or hub name; for `llama_cpp` a GGUF file or a bundled
    name, for `openai_compatible` the name that the server gives it."""
    base: str | None = None
    """Of a LoRA adapter: the model it was trained on, where the adapter does not name it or that name is not known here."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What sampling computes in; training keeps float32 masters. `auto`: bfloat16 on a GPU, on a CPU where it is faster
    (docs/engines.md)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, ...; `auto`: CUDA if it is there, else MPS, else the CPU."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; by default one for each core that this process may use."""
    instruction: str = INSTRUCTION
    """System message of the prompt; models trained on plain prompts ignore it."""
    steps: Annotated[str, BeforeValidator(_rule)] = "reasoning"
    """What a step is: `reasoning`, a unit of it (docs/steps.md); `line`, `paragraph`, `sentence`; or `{delimiter: TEXT}`."""
    thinking: tuple[str, str] | None = None
    """What opens and closes the model's thinking, where its chat template does not tell: `["<think>", "</think>"]`."""
    trust_remote_code: bool = False
    """Run the Python code of the model's repository."""
    max_rows: int = Field(256, ge=1)
    """Rows decoded at once."""
    vllm: dict[str, Any] | None = None
    """For `vllm`: further arguments of its `EngineArgs`, such as `{gpu_memory_utilization: 0.8, quantization: fp8}`."""
    completions: Path | None = None
    """File that keeps every completion, so that another method, threshold or seed decodes only what is new
    (docs/engines.md)."""

    @model_validator(mode="after")
    def _servers(self) -> ModelSettings:
        if self.engine == "openai_compatible" and not self.urls:
            raise ValueError("the engine openai_compatible needs urls, a list of its servers")
        if self.urls and self.engine != "openai_compatible":
            raise ValueError(f"urls are for the engine openai_compatible, not for {self.engine}")
        if self.base is not None and self.engine != "hf":
            raise ValueError(f"base is of a LoRA adapter for the engine hf; {self.engine} is given a whole model")
        if self.vllm and self.engine != "vllm":
            raise ValueError(f"vllm holds arguments of the engine vllm, not of {self.engine}")
        return self

    def base_of(self, name: str | None) -> str | None:
        """The base of the model ``name``, which may be another than that of these settings (a round's)."""
        return self.base if name in (None, self.name) else None


def model_settings(
    name: str, *, url: str | Sequence[str] | None = None, engine: str | None = None, **settings: Any
) -> ModelSettings:
    """The model as somebody asks for it: a server's where there is a ``url``, else a GGUF file or what `hf` loads.

    Raises:
        ConfigError: no such setting, a value it cannot have, or an engine that does not go with the others.
    """
    urls = [url] if isinstance(url, str) else list(url or ())
    chosen = engine or ("openai_compatible" if urls else "llama_cpp" if name.lower().endswith(".gguf") else "hf")
    return settings_from(ModelSettings, {"name": name, "engine": chosen, "urls": urls, **settings}, "This model")


def open_engine(settings: ModelSettings, name: str | None = None, examples: Sequence[Example] = ()) -> Engine:
    """The engine for a recipe's model, or for another model (a round's) with the same settings; it takes from the file
    ``settings.completions`` what is known there. ``examples`` are shown before every question
    (`caspo.engines.prompts.asking`).

    Raises:
        ConfigError: another model than the one that the servers or the GGUF file hold; a server that gives no token ids
            does not go with ``completions``.
        DataError, StorageError: as `CompletionFile` does.
    """
    file = settings.completions
    if file is None:
        return open_serving(settings, name, examples)
    settings = placed(settings, name)
    engine = open_serving(settings, name, examples)
    return MemoEngine(engine, CompletionFile(file, identity_of(settings, engine, name)))


def identity_of(settings: ModelSettings, engine: Engine, name: str | None = None) -> str:
    """All that a completion of ``engine`` depends on but its request: the model's files, by what is in them, engine,
    precision and reading. ``settings`` are `placed`; ``name`` is that of another model with the same settings. A server's
    model is known by its addresses and its name alone.

    Raises:
        ConfigError: a server that gives no token ids: its pieces of text are numbered anew by every process.
    """
    model: list[Any]
    if settings.engine == "openai_compatible":
        from caspo.engines.remote.engine import OpenAICompatibleEngine

        assert isinstance(engine, OpenAICompatibleEngine)
        if not engine.features.ids:
            raise ConfigError(
                f"completions cannot be kept of {settings.name}: its server gives no token ids, by which they are known. "
                "Leave completions out, or set tokenizer (docs/engines.md)."
            )
        model = [sorted(settings.urls), settings.name, settings.tokenizer, engine.k]
    else:
        model = [weights_of(settings, name), settings.dtype, settings.vllm]
    reading: Reading = engine.reading
    return json.dumps([settings.engine, model, reading.steps, reading.thinking, reading.turn])


def weights_of(settings: ModelSettings, name: str | None = None) -> str | None:
    """The digest of the files that a model, or another one with the same settings, is read from; None of a server's, which
    cannot be seen.

    Raises:
        ModelError, StorageError: as `caspo.engines.models.resolve` does.
    """
    if settings.engine == "openai_compatible":
        return None
    from caspo.engines.models import model_digest

    gguf = settings.engine == "llama_cpp"
    base = settings.base_of(name)
    return model_digest(name or settings.name, base=base, gguf=gguf, trust_remote_code=settings.trust_remote_code)


def open_serving(settings: ModelSettings, name: str | None = None, examples: Sequence[Example] = ()) -> ServingEngine:
    """The engine itself, without a file of completions, for a server; see `open_engine`."""
    if settings.engine == "openai_compatible" and name in (None, settings.name):
        from caspo.engines.remote.engine import OpenAICompatibleEngine

        return OpenAICompatibleEngine(
            settings, settings.name, settings.instruction, examples, steps=settings.steps, thinking=settings.thinking
        )
    if settings.engine == "llama_cpp" and name in (None, settings.name):
        settings = placed(settings)
        from caspo.engines.llama.engine import open_llama_cpp

        return open_llama_cpp(
            settings.name,
            instruction=settings.instruction,
            examples=examples,
            dtype=settings.dtype,
            device=settings.device,
            max_rows=settings.max_rows,
            steps=settings.steps,
            thinking=settings.thinking,
        )
    if settings.engine == "vllm":
        from caspo.engines.vllm.engine import VllmEngine

        return VllmEngine(
            name or settings.name,
            name=settings.name,
            instruction=settings.instruction,
            examples=examples,
            dtype=settings.dtype,
            max_rows=settings.max_rows,
            trust_remote_code=settings.trust_remote_code,
            options=settings.vllm,
            steps=settings.steps,
            thinking=settings.thinking,
        )
    return open_local(settings, name, examples)


def check_local(settings: ModelSettings, what: str) -> None:
    """Refuse to do ``what`` with a model that cannot be loaded here as what is trained."""
    if settings.engine not in ("hf", "vllm"):
        raise ConfigError(
            f"{what} needs the model's weights, and the engine {settings.engine} does not give them. Set model.engine=hf "
            "and model.name to the model's folder or hub name (model.urls=[])."
        )


def placed(settings: ModelSettings, name: str | None = None) -> ModelSettings:
    """The settings with what they leave open decided for this machine: device, precision, and threads, which this process
    computes with from now on. ``name`` is that of another model with the same settings.

    Raises:
        ConfigError: a device that is not here, or does not have the precision.
        ModelError: there is no such model.
    """
    if settings.engine not in ("hf", "llama_cpp"):
        return settings
    from caspo.core.threads import patient, use_threads

    patient()
    threads = use_threads(settings.threads)
    device, dtype, why = settings.device, str(settings.dtype), ""
    if settings.engine == "llama_cpp":
        from caspo.engines.llama.library import chosen_device as device_of_llama_cpp

        device = device_of_llama_cpp(device)
        dtype = "float32" if dtype == "auto" else dtype  # of keys and values: exact, whatever the weights are
    else:
        from caspo.engines.models import resolve
        from caspo.engines.models.placement import chosen_device, chosen_dtype

        place = chosen_device("float32" if dtype == "auto" else dtype, device)  # before anything is downloaded or converted
        device = place.type if device == "auto" else device
        if dtype == "auto":
            folder = resolve(
                name or settings.name, base=settings.base_of(name), trust_remote_code=settings.trust_remote_code
            )
            dtype, why = chosen_dtype(place, folder)
    chosen = settings.model_copy(update={"device": device, "dtype": dtype, "threads": threads})
    if chosen != settings:
        because = f" ({why})" if why else ""
        _tell(f"{name or settings.name}: device {device}, {dtype}{because}, {threads} thread{'s' * (threads > 1)}")
    return chosen


def open_local(settings: ModelSettings, name: str | None = None, examples: Sequence[Example] = ()) -> HFEngine:
    """The engine `hf`, for what needs the model itself, be it sampled from by vLLM; see `open_engine`.

    Raises:
        ConfigError: the recipe's model is on a server.
    """
    check_local(settings, "A judge or a round that loads a model")
    settings = placed(settings.model_copy(update={"engine": "hf"}), name)  # before torch is loaded
    from caspo.engines.local.engine import HFEngine
    from caspo.engines.local.layout import laid_out
    from caspo.engines.models import load

    model, tokenizer = load(
        name or settings.name,
        dtype=settings.dtype,
        device=settings.device,
        base=settings.base_of(name),
        trust_remote_code=settings.trust_remote_code,
    )
    return HFEngine(
        laid_out(model),
        tokenizer,
        name=settings.name,
        instruction=settings.instruction,
        examples=examples,
        max_rows=settings.max_rows,
        steps=settings.steps,
        thinking=settings.thinking,
    )
