"""What a folder was begun with, where its settings left it to the machine: device, precision and threads.

A run that goes on must go on as it began, be it on another machine, or by a torch that is faster in another precision. What
was chosen stands in ``placement.json`` in the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from caspo.core.errors import ConfigError, ResumeError
from caspo.core.folders import PLACEMENT
from caspo.core.storage import read_json, write_json
from caspo.core.threads import cores, use_threads
from caspo.engines.opening import ModelSettings, placed

__all__ = ["join_placements", "settled"]

_CHOSEN = {"device", "dtype", "threads"}


def settled(model: ModelSettings, out: Path, threads: int | None = None) -> ModelSettings:
    """The settings with nothing left open: as ``out`` was begun, or as this machine chooses, which is noted there.

    ``threads`` are the recipe's, for all that is computed here.

    Raises:
        ResumeError: the folder was begun in another precision than is asked for, or its file is damaged.
        ConfigError, ModelError: as `placed` does.
    """
    asked = model.model_copy(update={"threads": threads or model.threads})
    if model.engine not in ("hf", "llama_cpp"):
        if asked.threads:
            use_threads(asked.threads)  # for what else is computed here
        return asked
    file = out / PLACEMENT
    if not file.exists():
        chosen = placed(asked)
        write_json(file, chosen.model_dump(include=_CHOSEN))
        return chosen
    before = _read(file)
    if asked.dtype not in ("auto", before.dtype):
        raise ResumeError(
            f"{out} was begun in {before.dtype}, and {asked.dtype} is asked for: going on would mix the two. Leave the "
            "dtype out, or choose another --out."
        )
    kept = {
        "dtype": before.dtype,
        "device": before.device if asked.device == "auto" else asked.device,
        "threads": use_threads(asked.threads or min(before.threads or 1, cores())),
    }
    return asked.model_copy(update=kept)


def join_placements(folders: Sequence[Path], out: Path) -> None:
    """Note in ``out`` what the folders of its shards were begun with, if they were with any.

    Raises:
        ConfigError: not all in one precision.
        ResumeError: a file is damaged.
    """
    found = {folder: _read(folder / PLACEMENT) for folder in folders if (folder / PLACEMENT).exists()}
    for folder, placement in found.items():
        first, its = next(iter(found.items()))
        if placement.dtype != its.dtype:
            raise ConfigError(
                f"{first} was made in {its.dtype} and {folder} in {placement.dtype}: they are not parts of one run. Make "
                "all shards in one precision (model.dtype in a recipe, --dtype)."
            )
    if found and not (out / PLACEMENT).exists():
        write_json(out / PLACEMENT, next(iter(found.values())).model_dump(include=_CHOSEN))


def _read(file: Path) -> ModelSettings:
    """What is noted in a file, as settings of a model."""
    try:
        found = read_json(file)
        return ModelSettings.model_validate({"name": "", **{key: found[key] for key in _CHOSEN}})
    except (KeyError, TypeError, ValidationError) as error:
        raise ResumeError(
            f"{file} is damaged, so what the folder was begun with cannot be told. Choose another --out."
        ) from error
