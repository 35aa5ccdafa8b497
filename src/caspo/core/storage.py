"""Files that are either whole or absent: written beside their target, flushed, and renamed into place.

A process killed at any moment leaves the old file or the new one. Every refusal of the disk becomes a `StorageError`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from caspo.core.errors import DataError, StorageError

__all__ = [
    "PARTIAL", "explain_os_error", "is_refusal", "read_json", "write_directory", "write_file", "write_json", "write_text",
]  # fmt: skip

PARTIAL = ".caspo-partial."
"""How the names of half-written files and folders begin, which stand beside what they will be. Only these are swept up."""


def is_refusal(error: BaseException) -> bool:
    """Whether an error of a write says that the disk refused: each library has its own way to report that."""
    told = str(error)
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or "PytorchStreamWriter" in told  # torch.save
        or re.search(r"\(os error [0-9]+\)", told) is not None  # tokenizers
    )


def explain_os_error(error: BaseException, path: Path) -> StorageError:
    """The `StorageError` for a refused write to ``path``, with what to do about it."""
    return StorageError(
        f"Could not write {path}: {getattr(error, 'strerror', None) or error}. Nothing was lost: what was finished before "
        "is kept. Free some space or choose a folder you may write to (--out), then run the same command again."
    )


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_refusal(error):
            raise
        raise explain_os_error(error, path) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then rename it to ``path``."""
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}.")
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
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    # Bytes of a file's name that are no text come as lone surrogates; replaced like this they are escapes of JSON.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file, or raise a `DataError` that says which file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist. Check the path, or run the command that writes it.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}): it was truncated or edited. Delete it and run the command again."
        ) from error


def write_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``path``, then rename it to ``path``.

    If ``path`` exists by then (another process was faster), that one is kept and ours is dropped.
    """
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}."))
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
