"""`caspo plan RECIPE`: memory of a device, tokens and time, before anything is downloaded, sampled or trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from caspo.cli.run import Overrides
from caspo.core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from caspo.engines.opening import ModelSettings
    from caspo.loop.recipe import CaspoRecipe
    from caspo.train.budget import Devices, Memory, ModelSize, Tokens

__all__ = ["plan"]

_GIB = 2**30
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_WEIGHTS = {
    "float32": "4 B x parameters", "bfloat16": "2 B x frozen, 4 B x trained",
    "4bit": "0.516 B x frozen linear, 2 B x other frozen, 4 B x trained",
}  # fmt: skip
_WHOLE = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_MLU", "MULTI_NPU", "MULTI_XPU"}


def plan(
    recipe: Annotated[Path, typer.Argument(help="YAML file, for example recipes/demo/recipe.yaml.")],
    overrides: Overrides = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes of the training; those of the recipe's `accelerate` file, or 1.")
    ] = None,
    sharding: Annotated[
        str | None, typer.Option(help="none (DDP) or full (FSDP2, ZeRO-3); that of the `accelerate` file, or none.")
    ] = None,
    trees: Annotated[
        list[Path] | None, typer.Option(help="Folder (or file) of annotated trees, for exact tokens; once for every round.")
    ] = None,
    pairs: Annotated[
        list[Path] | None, typer.Option(help="File of the pairs built from them; once for every round.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Unique tokens trained in a second by all devices together, for the time.")
    ] = None,
    sampling_tokens_per_second: Annotated[
        float | None, typer.Option(help="Tokens sampled in a second by one server, for the time.")
    ] = None,
    sampling_servers: Annotated[
        int, typer.Option(min=1, help="Servers, or shards, that sample at the same time (docs/clusters.md).")
    ] = 1,
) -> None:
    """Print what training will cost: memory of each device, tokens, and the time at a given throughput.

    A config.json beside the recipe stands for the hub's, where its `_name_or_path` is the recipe's model: nothing is
    downloaded.
    """
    from caspo.cli.show import output
    from caspo.core.config import load_recipe
    from caspo.loop.recipe import CaspoRecipe
    from caspo.loop.stages import read_rounds, trees_and_pairs
    from caspo.train.budget import count_tokens, largest_forward, memory

    for option, rate in (("tokens", tokens_per_second), ("sampling-tokens", sampling_tokens_per_second)):
        if rate is not None and not rate > 0:
            raise ConfigError(f"--{option}-per-second is {rate:g}; a throughput is more than 0 tokens a second.")
    settings = load_recipe(CaspoRecipe, recipe, overrides or ())
    placed = _devices(settings.accelerate, devices, sharding)
    tokens = micros = None
    if trees or pairs:
        tokens, micros = count_tokens(
            *trees_and_pairs(read_rounds(trees or [], pairs or [])), settings.training, settings.seed
        )
    forward = largest_forward(settings.training, micros)
    config = _config(settings.model, recipe.parent)
    needed, size = memory(
        config,
        settings.training,
        forward,
        placed,
        gpu=_on_gpu(settings.model.device),
        trust_remote_code=settings.model.trust_remote_code,
    )
    output.print(_memory_table(settings, placed, needed, size))
    output.print(
        f"Largest pass: {forward.tokens:,} tokens{'' if micros else ' at most (train.micro_tokens)'}. Not counted: what the "
        "framework and its allocator hold beside tensors (leave a tenth), and sampling."
    )
    output.print()
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    sampled, judged, trained = _bounds(settings) if tokens is None else _counted(settings, tokens, context)
    _sampling_times(sampled, judged, sampling_tokens_per_second, sampling_servers)
    _training_time(trained, tokens is None, tokens_per_second)
    output.print(
        f"Machines: {_several(sampling_servers, 'server')} to sample, {_several(placed.number, 'device')} to train."
    )


def _devices(file: Path | None, number: int | None, sharding: str | None) -> Devices:
    """From the options, else from the file of `accelerate config`, else one device."""
    from caspo.train.budget import Devices

    if sharding not in (None, "none", "full"):
        raise ConfigError(f"--sharding {sharding!r} is not known. Choose none (DDP) or full (FSDP2, ZeRO-3).")
    found: tuple[int, Literal["none", "full"]] = (1, "none")
    if file is not None and (number is None or sharding is None):
        found = _accelerate(file)
    return Devices(number or found[0], "full" if (sharding or found[1]) == "full" else "none")


def _accelerate(file: Path) -> tuple[int, Literal["none", "full"]]:
    import yaml

    from caspo.core.config import parse_yaml

    try:
        data = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read accelerate: {file} of the recipe: {error.strerror}. Check the path, or make one with `accelerate "
            "config`."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"accelerate: {file} is not valid YAML: {error}. Make it again with `accelerate config`."
        ) from error
    data = data if isinstance(data, dict) else {}
    kind, number = str(data.get("distributed_type")), data.get("num_processes")
    if kind == "DEEPSPEED" and (data.get("deepspeed_config") or {}).get("zero_stage") != 3:
        kind = "DEEPSPEED of a zero_stage that is not 3"
    if not isinstance(number, int) or number < 1 or kind not in {*_WHOLE, "FSDP", "DEEPSPEED"}:
        raise ConfigError(
            f"accelerate: {file} has num_processes {number} and distributed_type {kind}, which cannot be planned. Give "
            "--devices and --sharding (none or full)."
        )
    return number, "none" if kind in _WHOLE else "full"


def _on_gpu(device: str) -> bool:
    """Whether that is planned for; for ``auto``, if this machine has a GPU. A device that is named need not be here."""
    from caspo.engines.models.placement import chosen_device

    return (chosen_device("float32", device).type if device == "auto" else device) != "cpu"


def _config(model: ModelSettings, beside: Path) -> Any:
    """The model's configuration; of a hub model nothing else is downloaded, a folder needs no weights.

    One of this model that stands ``beside`` the recipe is taken first.
    """
    from transformers import AutoConfig

    from caspo.core.storage import read_json
    from caspo.engines.models import BUNDLED, resolve

    name, adapter = model.name, Path(model.name).expanduser() / "adapter_config.json"
    if name not in BUNDLED and adapter.is_file():  # has the configuration of its base, for which nothing need be merged
        found = read_json(adapter)
        name = model.base or (found.get("base_model_name_or_path") if isinstance(found, dict) else None) or name
    source: str | Path = Path(name).expanduser()
    if name in BUNDLED or not (Path(source) / "config.json").is_file():
        hub = name not in BUNDLED and not Path(source).exists() and _HUB_NAME.fullmatch(name)
        shipped = hub and (beside / "config.json").is_file() and read_json(beside / "config.json")
        of_this = isinstance(shipped, dict) and shipped.get("_name_or_path") == name
        source = beside if of_this else name if hub else resolve(name, base=model.base_of(name))
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # transformers raises whatever a malformed file or a missing network happens to trip over
        raise ModelError(
            f"The configuration of the model {name!r} could not be read ({type(error).__name__}). It must be a bundled "
            f"model ({', '.join(BUNDLED)}), a folder with config.json, or a hub name (offline, misspelt, or gated?)."
        ) from error


def _memory_table(recipe: CaspoRecipe, devices: Devices, needed: Memory, size: ModelSize) -> Any:
    from rich.table import Column, Table

    train, full = recipe.training, devices.sharding == "full"
    by = f" / {devices.number}" if full and devices.number > 1 else ""
    active = [f"{size.active / 1e6:,.1f}M active"] if size.active < size.total else []
    ways = [f"{size.total / 1e6:,.1f}M parameters", *active, f"{size.trained / 1e6:,.1f}M trained", train.precision]
    ways += [f"base {train.base}"] if train.base != "float32" else []
    ways += ["gradient checkpointing"] if train.gradient_checkpointing else []
    ways += [f"{devices.number} device{'s' * (devices.number > 1)}" + (", fully sharded" if full else "")]
    columns = ("memory of a device", Column("GiB", justify="right"), "from")
    table = Table(*columns, title=f"{recipe.model.name}: {', '.join(ways)}", title_justify="left")
    working = "gathered layers" if full else "largest matrix unpacked" if train.base == "4bit" else "casts to bf16"
    rows = [
        ("weights", needed.weights, _WEIGHTS[train.base] + by),
        ("gradients", needed.gradients, f"4 B x trained{by}" + (" x 2 (DDP)" if devices.number > 1 and not full else "")),
        ("AdamW", needed.optimizer, f"8 B x trained{by}"),
        ("working weights", needed.working, working),
        ("activations", needed.activations, "simulated pass"),
        ("logits", needed.logits, "simulated pass"),
        ("tree mask", needed.mask, "1 B x tokens x tokens"),
    ]
    for name, value, source in rows:
        table.add_row(name, f"{value / _GIB:,.2f}", source)
    table.add_section()
    table.add_row("training, at its highest", f"{needed.training / _GIB:,.2f}", "the sum, or AdamW's step if that is higher")
    table.add_row("reference, before it", f"{needed.reference / _GIB:,.2f}", "whole model, simulated pass")
    table.add_row("peak", f"{needed.peak / _GIB:,.2f}", "the higher of the two", style="bold")
    return table


def _bounds(recipe: CaspoRecipe) -> tuple[int, int, int]:
    """Print what the recipe allows at most; tokens sampled, judged by and trained on in all rounds, without prompts."""
    from caspo.cli.show import output

    annotate, train, rounds = recipe.annotate, recipe.training, recipe.rounds
    prefixes = 1 + annotate.width * (annotate.max_depth - 1)
    steps = annotate.questions * prefixes * annotate.samples
    pairs = annotate.questions * prefixes * 2 * recipe.pairs.per_group
    tokens = steps * annotate.max_step_tokens
    epochs = train.epochs * (rounds * (rounds + 1) // 2 if recipe.accumulate else rounds)
    output.print(
        f"A round samples at most {steps:,} steps, {tokens:,} tokens: {annotate.questions} questions, {prefixes} prefixes "
        f"each, {annotate.samples} samples, {annotate.max_step_tokens} tokens."
    )
    judge, judged = recipe.task.judge, 0
    if judge is not None and judge.kind == "rollouts":
        judged = steps * judge.samples * judge.max_tokens
        output.print(
            f"Its judge rollouts completes each at most {judge.samples} times, {judged:,} tokens (seen on small models: 2 "
            "completions a step)."
        )
    output.print(
        f"Training: {rounds} rounds of {train.epochs} epochs{', accumulated' if recipe.accumulate else ''}, on at most "
        f"{pairs:,} pairs and {tokens:,} tokens of a round, and on prompts, whose length is not known."
    )
    output.print(
        "Usually it is a small part of this: equal steps are merged, steps end early, and not every tree has pairs. For "
        "exact numbers give --trees and --pairs."
    )
    return tokens * rounds, judged * rounds, tokens * epochs


def _counted(recipe: CaspoRecipe, tokens: Tokens, context: int | None) -> tuple[int, int, int]:
    """Print what was counted; no tokens to sample, and those to train on in all epochs."""
    from caspo.cli.show import output

    train = recipe.training
    output.print(
        f"{tokens.pairs:,} pairs in {tokens.trees:,} trees: {tokens.unique:,} unique tokens; every pair in rows of its own "
        f"would have {tokens.separate:,} ({tokens.separate / tokens.unique:.1f} times as many)."
    )
    output.print(
        f"{tokens.steps:,} optimiser steps in {tokens.micro_batches:,} micro-batches: {train.epochs} epochs of "
        f"{tokens.computed:,} tokens computed."
    )
    over = context is not None and tokens.longest_path > context
    output.print(
        f"Longest path: {tokens.longest_path:,} tokens"
        + (f", of a context of {context:,}" if context else "")
        + (". Training will refuse it." if over else ".")
    )
    return 0, 0, tokens.trained * train.epochs


def _sampling_times(sampled: int, judged: int, rate: float | None, servers: int) -> None:
    """Print how long all rounds are sampled, and judged by completing what was sampled."""
    from caspo.cli.show import output

    if rate is None or not sampled:
        return
    speed = f"{rate:g} tokens a second" + (f" of each of {servers} servers" if servers > 1 else "")
    output.print(f"Sampling: at most {_duration(sampled / rate / servers)} at {speed}.")
    if judged:
        output.print(f"Judging by rollouts: at most {_duration(judged / rate / servers)} at the same.")


def _training_time(trained: int, bound: bool, rate: float | None) -> None:
    from caspo.cli.show import output

    most = "at most " if bound else ""
    if rate is not None:
        output.print(f"Training: {most}{_duration(trained / rate)} at {rate:g} unique tokens a second.")
    else:
        output.print(
            "Time: give --tokens-per-second. A short run of the recipe on the same devices tells it: in its training.json, "
            "unique_tokens x epochs / seconds."
        )


def _several(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
