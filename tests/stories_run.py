"""A whole run on stories-tiny, small enough for the tests of the loop and of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

RECIPE: dict[str, Any] = {
    "kind": "caspo",
    "name": "small",
    "model": {"name": "stories-tiny", "device": "cpu"},
    "task": {"name": "stories", "levels": [2]},
    "seed": 1,
    "threads": 1,
    "annotate": {"questions": 8, "samples": 4},
    "train": {"learning_rate": 1e-4, "epochs": 1, "batch_pairs": 8, "checkpoint_seconds": 0.001},
    "evaluate": {
        "questions": 4,
        "self_consistency_questions": 3,
        "chain_of_thought": {"max_tokens": 96},
        "self_consistency": {"max_tokens": 96, "samples": 3},
        "cat": {"max_tokens": 96, "paths": 3},
    },
}


def write_recipe(path: Path, **changes: Any) -> Path:
    """`RECIPE` as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**RECIPE, **changes}), encoding="utf-8")
    return path


def timeless(value: Any) -> Any:
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.startswith("seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def pair_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a pairs file."""
    rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return rows
