"""The published step dataset: annotated trees as Parquet that `read_trees` reads, with every signal of a step beside it.

The columns of `caspo.formats.parquet` come first, so a file of the dataset can be trained on; then ``model`` and one
``signal_<name>`` for each of `SIGNALS`. Traces keep 12 bits of their mantissa (a relative error of at most 1.3e-4): what
follows is zero and costs nothing on the disk. Signals and confidence are computed before that, from the exact traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from caspo.confidence import SIGNALS, signals
from caspo.core.errors import DataError
from caspo.formats.parquet import TREE_SCHEMA, tree_rows, write_table
from caspo.records import TRACE_COLUMNS, Tree

__all__ = ["DATASET_SCHEMA", "write_dataset"]

_MANTISSA = 12
"""Bits that are kept of the 23."""

DATASET_SCHEMA = pa.schema([*TREE_SCHEMA, ("model", pa.string()), *((f"signal_{name}", pa.float32()) for name in SIGNALS)])


def write_dataset(path: Path, trees: Sequence[Tree], model: str) -> None:
    """Write annotated trees as one file of the dataset, atomically; equal trees give equal bytes.

    Raises:
        DataError: there are no nodes, or a node has no trace to publish.
    """
    rows = []
    for tree in trees:
        for node, row in zip(tree.nodes, tree_rows(tree), strict=True):
            if node.step.trace.kind == "none":
                raise DataError(
                    f"Question {tree.question.id} has steps without entropies. Score them first: caspo annotate --rescore."
                )
            row |= {name: _rounded(row[name]) for name in TRACE_COLUMNS}
            row |= {f"signal_{name}": value for name, value in signals(node.step.trace).items()}
            rows.append(row | {"model": model})
    if not rows:
        raise DataError("The trees hold no steps: there is nothing to publish.")
    floats = [f"{name}.list.element" for name in TRACE_COLUMNS]
    others = [name for name in DATASET_SCHEMA.names if name not in (*TRACE_COLUMNS, "entropy_upper")]
    encoding = dict.fromkeys(floats, "BYTE_STREAM_SPLIT")
    write_table(path, rows, DATASET_SCHEMA, compression_level=19, use_dictionary=others, column_encoding=encoding)


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """To ``_MANTISSA`` bits, to the nearest."""
    drop = 23 - _MANTISSA
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    half, kept = np.uint32(1 << (drop - 1)), np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    return ((bits + half) & kept).view(np.float32)
