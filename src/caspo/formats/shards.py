"""Trees that several machines grew, each a shard of the questions: their files, and all of them read as one run.

Each file of a shard says in its metadata which shard it is of, what that was made of, and where its questions stand among
all. So shards are told apart wherever their files are moved to, and trees come in the order of the run that was not divided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from caspo.core.errors import ConfigError, DataError
from caspo.core.shards import Made, Shard, check_alike, check_all_there
from caspo.formats.parquet import TREE_SCHEMA, read_trees, tree_files, tree_rows, write_table
from caspo.records import Tree

__all__ = ["Piece", "read_all_trees", "read_piece", "tree_inputs", "write_piece"]

_KEY = "caspo_shard"


@dataclass(frozen=True)
class Piece:
    """What a file of a shard says of itself."""

    shard: Shard
    made: Made
    """What the shard was made of; the same for all shards of a run."""
    total: int
    """Questions of the run, in all shards."""
    places: Mapping[str, int]
    """Where each question of the file stands among all, from 0, by its id; also of those that left no tree."""

    def file(self, name: str) -> str:
        """The name of a file of this shard: shards can be gathered in one folder."""
        return f"shard-{self.shard.number}-of-{self.shard.of}-{name}"


def write_piece(path: Path, trees: Sequence[Tree], piece: Piece) -> None:
    """Write trees of a shard as `write_trees` does, and what the file is a piece of."""
    told = {"shard": str(piece.shard), "made": dict(piece.made), "total": piece.total, "places": dict(piece.places)}
    rows = [row for tree in trees for row in tree_rows(tree)]
    write_table(path, rows, TREE_SCHEMA, metadata={_KEY: json.dumps(told)})


def read_piece(file: Path) -> Piece | None:
    """What a file of trees is a piece of; None for one that is of no shard.

    Raises:
        DataError: what it says cannot be read.
    """
    try:
        told = (pq.read_schema(file).metadata or {}).get(_KEY.encode())
    except (pa.ArrowException, OSError):
        return None  # reading its rows says what is wrong
    if told is None:
        return None
    try:
        found = json.loads(told)
        return Piece(Shard.parse(found["shard"]), found["made"], found["total"], found["places"])
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{file} is of a shard, and what it says of it is damaged. Make the file again.") from error


def tree_inputs(option: str, paths: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of trees that an option names, for `claimed`: each path by its shard, or by its number where it is of none.

    Raises:
        ConfigError: a path is given twice.
        DataError: a folder without trees.
    """
    if len(paths) == 1:
        return {option: tree_files(paths[0])}
    found: dict[str, list[Path]] = {}
    for number, path in enumerate(paths, start=1):
        first = next(other for other in paths if other.resolve() == path.resolve())
        if first is not path:
            raise ConfigError(f"{option}: {path} is given twice, and its questions would count twice. Give it once.")
        files = tree_files(path)
        piece = read_piece(files[0])
        name = f"{option} ({number} of {len(paths)})" if piece is None else f"{option} (shard {piece.shard})"
        found.setdefault(name, []).extend(files)
    return dict(sorted(found.items()))


def read_all_trees(paths: Sequence[Path]) -> list[Tree]:
    """The trees of folders (or files): of runs that were not divided, or of all shards of one in the order of its questions.

    Raises:
        ConfigError: shards of different runs, a shard twice, one that is missing or not finished.
        DataError: as `read_trees`; one question in two files.
    """
    files = [file for group in tree_inputs("The trees", paths).values() for file in group]
    pieces = [(file, piece) for file in files if (piece := read_piece(file)) is not None]
    if not pieces:
        return read_trees(*paths)
    if len(pieces) < len(files):
        alone = next(file for file in files if file not in dict(pieces))
        raise ConfigError(
            f"{pieces[0][0]} is of shard {pieces[0][1].shard}, and {alone} is of none. Give the shards of one run."
        )
    first, one = pieces[0]
    owners: dict[int, Path] = {}
    for file, piece in pieces:
        check_alike(str(first), _division(one), str(file), _division(piece))
        for place in piece.places.values():
            if other := owners.get(place):
                raise ConfigError(
                    f"{other} and {file} hold the same questions of shard {piece.shard}, which would count twice. Give "
                    "each shard once."
                )
            owners[place] = file
    check_all_there([(str(file), shard) for shard, file in {piece.shard: file for file, piece in pieces}.items()])
    for shard in (Shard(number, one.shard.of) for number in range(1, one.shard.of + 1)):
        wanted = shard.take(range(one.total))
        if there := sum(place not in owners for place in wanted):
            raise ConfigError(
                f"Shard {shard} is not finished: {there} of its {len(wanted)} questions are missing. Run its command again; "
                "killed, it goes on where it was."
            )
    places = {question: place for _, piece in pieces for question, place in piece.places.items()}
    return sorted(read_trees(*files), key=lambda tree: places[tree.question.id])


def _division(piece: Piece) -> Made:
    """What is the same for all pieces that belong together."""
    return {**piece.made, "questions": piece.total, "shards": piece.shard.of}
