"""Trees and pairs as Parquet: one row per node, one row per pair; schema version in the file's metadata.

A row repeats its question and prompt (Parquet's dictionaries make that free), so every row means something by itself
and the files load in `datasets`, polars and pandas as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caspo.confidence import step_score
from caspo.core.errors import DataError
from caspo.core.storage import write_file
from caspo.records import TRACE_COLUMNS, Node, Question, Step, TokenTrace, Tree, Verdict

__all__ = [
    "SCHEMA_VERSION", "TREE_SCHEMA", "holds_trees", "read_table", "read_trees", "tree_files", "tree_rows", "write_table",
    "write_trees",
]  # fmt: skip

SCHEMA_VERSION = 1

_FLOATS = pa.list_(pa.float32())
_IDS = pa.list_(pa.int32())

TREE_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("solution", pa.string()),
        ("meta", pa.string()),  # JSON
        ("prompt_ids", _IDS),
        ("node", pa.int32()),
        ("parent", pa.int32()),
        ("depth", pa.int32()),
        ("step", pa.string()),
        ("thinking", pa.bool_()),
        ("token_ids", _IDS),
        ("count", pa.int32()),
        ("final", pa.bool_()),
        ("decision", pa.string()),
        ("verdict", pa.string()),  # right, wrong, unknown; null: not judged
        ("reason", pa.string()),
        ("judge", pa.string()),
        ("confidence", pa.float32()),  # exp(-mean entropy)
        ("trace_kind", pa.string()),
        ("trace_k", pa.int32()),
        *((name, _FLOATS) for name in TRACE_COLUMNS),
        ("entropy_upper", _FLOATS),
        ("steps", pa.string()),  # the rule that cut the tree's steps
    ]
)
_LATER = {"thinking": False, "steps": "line"}
"""Columns that files of earlier versions lack, and what holds for their trees."""


def write_trees(path: Path, trees: Sequence[Tree]) -> None:
    """Write trees atomically, in order."""
    write_table(path, [row for tree in trees for row in tree_rows(tree)], TREE_SCHEMA)


def tree_rows(tree: Tree) -> list[dict[str, Any]]:
    """A tree's rows of `TREE_SCHEMA`, one a node, in order."""
    return [_row(tree, node) for node in tree.nodes]


def tree_files(path: Path) -> list[Path]:
    """The files that trees are read from: the path, or all ``*.parquet`` of a folder in the order of their names.

    Raises:
        DataError: a folder without any.
    """
    files = sorted(path.glob("[!.]*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no *.parquet files of trees. Check the path.")
    return files


def read_trees(*paths: Path) -> list[Tree]:
    """Read what `write_trees` wrote: files, and all ``*.parquet`` of folders in the order of their names.

    Raises:
        DataError: missing, truncated, of another schema version, a tree's rows are not whole, or two files hold trees of
            one question.
    """
    trees: list[Tree] = []
    homes: dict[str, Path] = {}
    for file in (file for path in paths for file in tree_files(path)):
        rows = read_table(file, TREE_SCHEMA)
        start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and rows[end]["node"] != 0:
                end += 1
            trees.append(_tree(file, rows[start:end]))
            first = homes.setdefault(trees[-1].question.id, file)
            if first != file:
                raise DataError(
                    f"{first} and {file} both hold trees of question {trees[-1].question.id}: they are of different runs. "
                    "Keep the files of one in the folder."
                )
            start = end
    return trees


def holds_trees(path: Path) -> bool:
    """Whether a path is of annotated trees: a folder, or a Parquet file with their columns; labelled solutions have none."""
    if path.is_dir():
        return True
    if path.suffix != ".parquet":
        return False
    try:
        return {"prompt_ids", "parent"} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return True  # reading it as trees says what is wrong


def write_table(
    path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema, metadata: Mapping[str, str] | None = None, **options: Any
) -> None:
    """Write rows as Parquet atomically, with ``options`` of pyarrow's `write_table`; ``metadata`` is of the file."""
    told = {"caspo_schema": str(SCHEMA_VERSION), **(metadata or {})}
    table = pa.Table.from_pylist(list(rows), schema=schema.with_metadata(told))
    write_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd", **options))


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Rows of a Parquet file written by `write_table`, checked against ``schema``."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check the path, or run the command that writes it.") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}): it is truncated or damaged. "
            "Delete it and run the same command again; it will be made anew."
        ) from error
    version = (table.schema.metadata or {}).get(b"caspo_schema", b"none").decode()
    missing = set(schema.names) - set(table.column_names) - set(_LATER)
    if missing:
        raise DataError(
            f"{path} holds something else than is read here: it lacks {', '.join(sorted(missing)[:3])}"
            f"{' and other columns' if len(missing) > 3 else ''}. Give the right file, or take it out of its folder."
        )
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"{path} has schema {version}; this version of caspo reads schema {SCHEMA_VERSION}. Make the file again with "
            "this version."
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    lacking = {name: value for name, value in _LATER.items() if name in schema.names and name not in table.column_names}
    return [row | lacking for row in rows] if lacking else rows


def _row(tree: Tree, node: Node) -> dict[str, Any]:
    trace, verdict, question = node.step.trace, node.verdict, tree.question
    return {
        "question_id": question.id,
        "question": question.text,
        "answer": question.answer,
        "solution": question.solution,
        "meta": json.dumps(dict(question.meta)),
        "prompt_ids": tree.prompt_ids,
        "node": node.id,
        "parent": node.parent,
        "depth": node.depth,
        "step": node.step.text,
        "thinking": node.step.thinking,
        "token_ids": node.step.token_ids,
        "count": node.count,
        "final": node.final,
        "decision": node.decision,
        "verdict": verdict.label if verdict else None,
        "reason": verdict.reason if verdict else None,
        "judge": verdict.judge if verdict else None,
        "confidence": None if trace.kind == "none" else step_score(trace),
        "trace_kind": trace.kind,
        "trace_k": trace.k,
        **{name: None if trace.kind == "none" else getattr(trace, name) for name in TRACE_COLUMNS},
        "entropy_upper": trace.entropy_upper,
        "steps": tree.steps,
    }


def _tree(file: Path, rows: Sequence[dict[str, Any]]) -> Tree:
    first = rows[0]
    whole = all(r["node"] == i and r["parent"] < i and r["question_id"] == first["question_id"] for i, r in enumerate(rows))
    if not whole:
        raise DataError(
            f"{file} does not hold whole trees (at question {first['question_id']}): rows are missing or were reordered. "
            "Delete it and run the same command again."
        )
    question = Question(
        first["question"],
        first["answer"],
        id=first["question_id"],
        solution=first["solution"],
        meta=json.loads(first["meta"]),
    )
    return Tree(question, tuple(first["prompt_ids"]), tuple(_node(row) for row in rows), first["steps"])


def _node(row: dict[str, Any]) -> Node:
    upper = row["entropy_upper"]
    missing = [math.nan] * len(row["token_ids"])
    columns: dict[str, Any] = {
        name: np.array(missing if row[name] is None else row[name], dtype=np.float32) for name in TRACE_COLUMNS
    }
    upper = None if upper is None else np.array(upper, dtype=np.float32)
    trace = TokenTrace(**columns, kind=row["trace_kind"], k=row["trace_k"], entropy_upper=upper)
    verdict = None if row["verdict"] is None else Verdict(row["verdict"], row["reason"], row["judge"])
    return Node(
        id=row["node"],
        parent=row["parent"],
        depth=row["depth"],
        step=Step(row["step"], tuple(row["token_ids"]), trace, row["thinking"]),
        count=row["count"],
        final=row["final"],
        verdict=verdict,
        decision=row["decision"],
    )
