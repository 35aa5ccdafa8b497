"""Evaluations that several machines made a shard of each, as the one that a single machine would have made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from caspo.core.shards import Shard
from caspo.core.storage import read_json, write_json
from caspo.evaluate.run import EvaluateSettings, join_evaluations
from caspo.judges.cache import join_caches
from caspo.loop.recipe import CaspoRecipe
from caspo.loop.settled import join_placements
from caspo.loop.task import open_task
from caspo.search import METHODS, ChainOfThought

__all__ = ["SHARD_COMMAND", "join_shards", "shard_files", "validation_settings"]

SHARD_COMMAND = "evaluate"
"""Who has the folder of a shard; the one that they are joined in is that of a run."""

_ROUND, _VERDICTS, _CLOCK = "round-0", "verdicts.jsonl", "clock.json"


def validation_settings(recipe: CaspoRecipe) -> EvaluateSettings:
    """Of the questions of `ValidationStage`, solved greedily."""
    method = ChainOfThought
    chosen = {**dict.fromkeys(METHODS), method.name: recipe.evaluate.of(method) or method.settings_type()}
    return EvaluateSettings.model_validate({"split": "train", "questions": recipe.validation.questions, **chosen})


def shard_files(folder: Path) -> list[Path]:
    """What is read of a shard's folder: outcomes, trees and verdicts."""
    verdicts = folder / _VERDICTS
    return [*sorted((folder / _ROUND).rglob("part-*")), *([verdicts] if verdicts.exists() else [])]


def join_shards(recipe: CaspoRecipe, homes: Mapping[Shard, Path], out: Path) -> None:
    """Write into ``out`` what the shards of an evaluation solved and judged, as if it had been solved there.

    The clock of the run begins at the sum of theirs.

    Raises:
        ConfigError: a shard is not finished.
    """
    join_placements(list(homes.values()), out)
    parts: list[tuple[str, Literal["train", "test"], EvaluateSettings, int]] = []
    parts.append(("evaluate", "test", recipe.evaluate, recipe.seed))
    if recipe.validation.questions:
        parts.append(("validation", "train", validation_settings(recipe), recipe.seed - 1))
    for name, split, settings, seed in parts:
        inside = {shard: folder / _ROUND / name for shard, folder in homes.items()}
        join_evaluations(open_task(recipe.task, split), settings, seed, inside, out / _ROUND / name)
    join_caches([folder / _VERDICTS for folder in homes.values()], out / _VERDICTS)
    if not (out / _CLOCK).exists():
        write_json(out / _CLOCK, {"seconds": sum(read_json(folder / _CLOCK)["seconds"] for folder in homes.values())})
