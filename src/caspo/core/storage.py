"""Files that are either whole or absent: written beside their target, flushed, and renamed into place.

A process killed at any moment leaves the old file or the new one. Every refusal of the disk becomes a `StorageError`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caspo.core.errors import DataError, StorageError

__all__ = ["explain_os_error", "read_json", "read_records", "write_directory", "write_file", "write_json", "write_text"]


def explain_os_error(error: OSError, path: Path) -> StorageError:
    """The `StorageError` for a failed write to ``path``, with what to do about it."""
    return StorageError(
        f"Could not write {path}: {error.strerror or error}. Nothing was lost: what was finished before is kept. "
        "Free some space or choose a folder you may write to (--out), then run the same command again."
    )


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain_os_error(error, path) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then rename it to ``path``."""
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to ``path`` atomically."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically. NaN and infinity are refused: no reader agrees on them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file, or raise a `DataError` that says which file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check the path, or run the command that writes it.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}): it was truncated or edited. Delete it and run the command again."
        ) from error


def read_records(path: Path, needed: str, *, array: bool = False) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where it stands, an id for it, the object) of every record of a JSONL file; with ``array`` of a JSON array too.

    Raises:
        DataError: no file, no UTF-8, no JSON, a record that is no object; ``needed`` says what it should be.
    """
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Each of its records must be an object with {needed}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give a file that you may read.") from error
    whole = array and data.lstrip().startswith(b"[")
    parts = [data] if whole else data.split(b"\n")
    for number, part in enumerate(parts, start=1):
        where = str(path) if whole else f"{path}, line {number}"
        try:
            found: Any = json.loads(part.decode("utf-8")) if part.strip() else []
        except UnicodeDecodeError as error:
            place = f"byte {error.start + 1}" if array else f"byte {error.start + 1} of the line"
            raise DataError(f"{where}: {place} is not UTF-8. Convert the file, for example with iconv.") from None
        except (ValueError, RecursionError) as error:
            if number == len(parts):  # complete files end with a line break
                what = "the JSON array" if whole else "the last line"
                raise DataError(f"{where}: {what} is cut off ({error}). Copy the file again.") from None
            raise DataError(f"{where}: not JSON: {error}. Every line must be one JSON object.") from None
        for count, row in enumerate(found if whole or not part.strip() else [found], start=1 if whole else number):
            at = f"{path}, record {count}" if whole else where
            if not isinstance(row, dict):
                raise DataError(f"{at}: a value of type {type(row).__name__} where an object with {needed} is needed.")
            yield at, f"{path.stem}-{count}", row


def write_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, then rename it to ``path``.

    If ``path`` exists by then (another process was faster), that one is kept and ours is dropped.
    """
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        try:
            write(temporary)
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
