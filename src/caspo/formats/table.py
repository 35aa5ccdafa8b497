"""All public formats of labelled steps, files that are read in any of them, and trees that are written in one.

What gets lost on every way out: token ids, traces, counts. A path is left out, and counted, where a format cannot say what
is known of it: one with an unknown step before its end or first error, and in ProcessBench and Math-Shepherd, which hold
whole solutions, one that is right so far but did not end; TRL's stepwise supervision holds what is known of a path until an
unknown step. TRL's preference format is that of the pairs themselves (`pairs.parquet`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from caspo.core.errors import ConfigError, DataError
from caspo.core.rows import BadRows, read_rows
from caspo.core.storage import write_text
from caspo.formats.labelled import Format, LabelledSolution, Record
from caspo.formats.math_shepherd import MATH_SHEPHERD
from caspo.formats.mr_gsm8k import MR_GSM8K
from caspo.formats.prm800k import PRM800K
from caspo.formats.processbench import PROCESSBENCH
from caspo.formats.step_dpo import STEP_DPO
from caspo.formats.steps import STEPS
from caspo.formats.trees import solutions_of
from caspo.formats.trl_stepwise import TRL_STEPWISE
from caspo.records import Tree

__all__ = ["FORMATS", "WRITTEN", "Exported", "read_labelled", "read_solutions", "trees_as", "write_rows"]

FORMATS = (PROCESSBENCH, PRM800K, MATH_SHEPHERD, STEP_DPO, MR_GSM8K, TRL_STEPWISE, STEPS)

WRITTEN: Mapping[str, Format] = MappingProxyType({f.name: f for f in FORMATS if f.write or f.write_tree})
"""What trees can be written as, by name."""


@dataclass(frozen=True)
class Exported:
    """Records of a format, and how many paths it could not hold, by reason."""

    rows: list[Record]
    dropped: dict[str, int]


def read_labelled(path: Path, bad: BadRows | None = None, empty: list[str] | None = None) -> list[LabelledSolution]:
    """The labelled solutions of a file of rows, in its order; the format is told by the keys of its first record.

    ``bad`` takes the records that cannot be used; without it the first of them is an error. ``empty`` takes where those
    stand that have no steps: in some formats that is no fault.

    Raises:
        DataError: a file that is missing, cut off or of an unknown format; a label beyond the steps; an empty step; two
            solutions with one id. The message names the line.
    """
    seen: dict[str, str] = {}
    form: Format | None = None

    def use(row: dict[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
        nonlocal form
        form = form or _format_of(row, where)
        found = form.read(row, where, default_id)
        if not found and empty is not None:
            empty.append(where)
        for solution in found:
            first = seen.setdefault(solution.id, where)
            if first != where:
                raise DataError(f"{where}: the id {solution.id!r} is that of {first} too. Ids must be unique: change one.")
        return found

    solutions = read_rows(path, "steps and labels", use, array=True, bad=bad)
    if not solutions:
        raise DataError(f"{path}: the file holds no labelled solution. It needs at least one.")
    return solutions


def _format_of(row: Mapping[str, Any], where: str) -> Format:
    found = next((form for form in FORMATS if form.fits(row)), None)
    if found is None:
        known = "; ".join(f"{form.title} ({', '.join(form.keys)})" for form in FORMATS)
        raise DataError(
            f"{where}: no known format of labelled solutions has the keys {', '.join(map(repr, row)) or '(none)'}. "
            f"Known formats and the keys they need: {known}."
        )
    return found


def read_solutions(
    paths: Path | Sequence[Path], bad: BadRows | None = None, empty: list[str] | None = None
) -> list[LabelledSolution]:
    """The paths of annotated trees (folders or ``*.parquet``), or the solutions of a labelled file.

    Raises:
        ConfigError: shards of trees that are not all there, or several labelled files.
    """
    from caspo.formats.parquet import holds_trees
    from caspo.formats.shards import read_all_trees

    several = [paths] if isinstance(paths, Path) else list(paths)
    labelled = [path for path in several if not holds_trees(path)]
    if not labelled:
        return [solution for tree in read_all_trees(several) for solution in solutions_of(tree)]
    if len(several) > 1:
        raise ConfigError(f"{labelled[0]} holds no trees, and only trees are read from several places. Give one file.")
    return read_labelled(several[0], bad, empty)


def trees_as(name: str, trees: Sequence[Tree], generator: str = "caspo") -> Exported:
    """Trees as records of a format in `WRITTEN`; ``generator`` is the model that wrote the steps."""
    dropped: Counter[str] = Counter()
    rows: list[Record] = []
    form = WRITTEN[name]
    for tree in trees:
        if form.write_tree:
            rows += form.write_tree(tree)
            if form.known_only:
                dropped["no step of it is known"] += sum(s.labels[0] == "unknown" for s in solutions_of(tree))
            continue
        assert form.write is not None
        for solution in solutions_of(tree):
            reason, row = _unfit(solution, partial=form.partial), None
            if reason is None:
                row = form.write(solution, generator)
            if row is None:
                dropped[reason or "a text holds a mark of the format"] += 1
            else:
                rows.append(row)
    return Exported(rows, dict(+dropped))


def write_rows(path: Path, rows: Sequence[Record]) -> None:
    """Write records as JSONL, atomically."""
    # Line separators other than \n would cut a line for readers that use splitlines().
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    escaped = (line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") for line in lines)
    write_text(path, "".join(f"{line}\n" for line in escaped))


def _unfit(solution: LabelledSolution, *, partial: bool) -> str | None:
    """Why a format that knows a first error and nothing else cannot hold a solution."""
    end = len(solution.steps) if solution.first_error is None else solution.first_error
    if "unknown" in solution.labels[:end]:
        return "a step is unknown"
    if solution.first_error is None and not solution.ended and not partial:
        return "right so far, but not at its end"
    return None
