"""Rows of users' files: JSONL, JSON, Parquet, and what of these is packed with gzip. This is the one place that reads them.

What a file is, is told by its first bytes. A row that cannot be used is an error that names it; who asks to leave bad rows
out (`BadRows`) is told each of them.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from caspo.core.errors import DataError

__all__ = ["BadRows", "lone_surrogate", "looks_like_rows", "read_rows", "stem_of"]

T = TypeVar("T")

_NAMED = 10
"""Rows left out that are told with the reason; of the others the place."""

_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_UNREAD = {b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass
class BadRows:
    """The rows of a file that were left out, in order."""

    found: list[tuple[str, str]] = field(default_factory=list)
    """Where each stands, and the message that says why it was left out."""
    rows: int = 0
    """Rows that were read, with these."""

    def __str__(self) -> str:
        """How many, why the first ones, and where the others stand; empty where there is none."""
        if not self.found:
            return ""
        lines = [f"Left out {len(self.found)} of {self.rows} rows:", *(f"  {told}" for _, told in self.found[:_NAMED])]
        if more := [where for where, _ in self.found[_NAMED:]]:
            lines.append(f"  and {', '.join([more[0], *(where.rpartition(', ')[2] for where in more[1:])])}")
        return "\n".join(lines)


def looks_like_rows(name: str) -> bool:
    """Whether a text is the name of a file of rows, one that is there or one that is not, and no question."""
    path = r"(~?|\.\.?)/.*"  # may hold spaces
    named = re.fullmatch(rf"(\S+|{path})\.(jsonl?|ndjson|parquet|csv|tsv)(\.\w+)?", name.strip(), re.IGNORECASE)
    somewhere = re.fullmatch(r"(~|\.\.?|/\S+)/\S*", name.strip())
    return named is not None or somewhere is not None or os.path.exists(name)  # noqa: PTH110 - may be too long for Path


def stem_of(path: Path) -> str:
    """The name of a file without the endings that say how it is packed."""
    name = path.name.encode(errors="replace").decode()  # it may hold bytes that are no text
    return re.sub(r"(\.(jsonl?|ndjson|parquet))?(\.gz)?$", "", name, flags=re.IGNORECASE) or name


def read_rows(
    path: Path, needed: str, use: Callable[[dict[str, Any], str, str], Sequence[T]], *, array: bool = False,
    bad: BadRows | None = None,
) -> list[T]:  # fmt: skip
    """What ``use`` makes of each row, given where it stands and an id for it.

    Args:
        path: one object a line, or a row of Parquet; with ``array`` a JSON array too. Packed with gzip or not.
        needed: says in messages what a row should hold.
        use: raises `DataError` for a row that cannot be used.
        bad: takes the rows that cannot be used, and why. Without it the first one is an error.

    Raises:
        DataError: no file, a damaged one, a row that cannot be used, or none that can.
    """
    found: list[T] = []
    stem = stem_of(path)
    rows = 0
    for number, where, value in _values(path, needed, array=array):
        rows += 1
        try:
            if isinstance(value, DataError):
                raise value
            if not isinstance(value, dict):
                raise DataError(f"{where}: a value of type {type(value).__name__} where an object with {needed} is needed.")
            if half := lone_surrogate(value):
                raise DataError(f"{where}: {half} is half of a character, which no text can hold. Write the row again.")
            found += use(value, where, f"{stem}-{number}")
        except DataError as error:
            if bad is None:
                raise
            bad.found.append((where, str(error)))
    if bad is not None:
        bad.rows += rows
        if bad.found and not found:
            raise DataError(f"None of the {rows} rows of {path} can be used. The last: {bad.found[-1][1]}")
    return found


def lone_surrogate(value: Any) -> str | None:
    """The first lone surrogate in a text, or in the texts of a JSON value: half a character, which UTF-8 cannot hold."""
    if isinstance(value, str):
        found = re.search("[\ud800-\udfff]", value)
        return None if found is None else f"\\u{ord(found[0]):04x}"
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((half for part in parts if (half := lone_surrogate(part))), None)


def _values(path: Path, needed: str, *, array: bool) -> Iterator[tuple[int, str, Any]]:
    """(number, where it stands, the value or what is wrong with it) of every row."""
    data = _bytes(path, needed)
    if data.startswith(_PARQUET) or path.suffix.lower() == ".parquet":
        for number, row in enumerate(_parquet(path, data), start=1):
            yield number, f"{path}, row {number}", row
        return
    data = data.removeprefix(_BOM)
    if array and data.lstrip().startswith(b"["):
        rows = _parsed(data, str(path), "the JSON array")
        if isinstance(rows, DataError):
            raise rows
        for number, row in enumerate(rows, start=1):
            yield number, f"{path}, record {number}", row
        return
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, where, _parsed(line, where, "the last line" if number == len(lines) else None)


def _bytes(path: Path, needed: str) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Each of its records must be an object with {needed}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give a file that you may read.") from error
    if kind := next((kind for begins, kind in _UNREAD.items() if data.startswith(begins)), None):
        raise DataError(f"{path}: packed as {kind}, and gzip is what is read. Unpack it.")
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the packed file is damaged or cut off ({error}). Copy it again.") from None


def _parquet(path: Path, data: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}). Copy it again.") from None
    names: list[str] = table.column_names
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path}: the column {twice!r} is there twice, and only one can be meant. Remove one.")

    def text(value: Any) -> str:
        return (
            value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
        )  # bytes, dates and the like

    plain: list[dict[str, Any]] = json.loads(json.dumps(table.to_pylist(), default=text))
    return plain


def _parsed(part: bytes, where: str, last: str | None) -> Any:
    """A JSON value, or the error that says why there is none; ``last`` names what stands at the end of the file."""
    try:
        return json.loads(part.decode("utf-8"), object_pairs_hook=_once, parse_int=_integer)
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1}" + ("" if last == "the JSON array" else " of the line")
        return DataError(f"{where}: {place} is not UTF-8. Convert the file, for example with iconv.")
    except _Refused as error:
        return DataError(f"{where}: {error}.")
    except (ValueError, RecursionError) as error:
        if last:  # complete files end with a line break
            return DataError(f"{where}: {last} is cut off ({error}). Copy the file again.")
        return DataError(f"{where}: not JSON: {error}. Every line must be one JSON object.")


class _Refused(Exception):
    """JSON that says something we do not take."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"the key {twice!r} is written twice, and only one of the two can be meant. Remove one")
    return found


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # Python's limit on digits
        raise _Refused(f"a number of {len(digits)} digits is too long to be read. Write it as a text, in quotes") from None
