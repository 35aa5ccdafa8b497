"""Folders of models made here: each appears whole or not at all, is checked when used, and rebuilt when damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from caspo.core.errors import DataError, ModelError, StorageError
from caspo.core.storage import PARTIAL, read_json, write_directory, write_json

__all__ = ["cache_dir", "cached_folder", "check_room", "digest_of", "intact", "sha256"]

_MANIFEST = "manifest.json"
_CONVERSION = "1"
"""Part of every cache key: raise it when a conversion changes, and old folders are no longer used."""
_HASH_ON_USE = 64 * 2**20
"""Bytes. Files up to this size are hashed whenever a cached folder is used; of larger ones the size is compared."""


def cache_dir() -> Path:
    """Where converted models live: `$CASPO_CACHE`, else `~/.cache/caspo/models`."""
    chosen = os.environ.get("CASPO_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "caspo" / "models"


def cached_folder(name: str, digest: str, build: Callable[[Path], object]) -> Path:
    """The cache folder for ``name`` and ``digest``, built by ``build`` if it is missing or damaged.

    Processes that start together wait for the one that builds, instead of each needing its time and memory. The rename
    in `write_directory` keeps a folder whole even where file locks do not work.
    """
    key = hashlib.sha256(f"{_CONVERSION}:{digest}".encode()).hexdigest()[:12]
    folder = cache_dir() / f"{name}-{key}"
    if intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not intact(folder):
                # The damaged folder, and what killed builders left behind: under the lock nobody else is building.
                for stale in (folder, *folder.parent.glob(f"{PARTIAL}{folder.name}.*")):
                    if stale.is_dir():
                        shutil.rmtree(stale)
                write_directory(folder, lambda temporary: _build(build, temporary))
    except (StorageError, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, OSError) and cause.errno is None:  # raised by transformers, not by the disk
            raise ModelError(f"Could not convert the model {name!r}: {cause}.") from error
        reason = (cause.strerror if isinstance(cause, OSError) else None) or cause or error
        raise StorageError(
            f"Could not prepare the model {name!r} in the cache {folder.parent}: {reason}. Free some space there or set "
            "CASPO_CACHE to a folder you may write to, then run the same command again."
        ) from error
    return folder


def check_room(folder: Path, needed: int) -> None:
    """Refuse to begin what needs so many bytes in ``folder`` if they are not free.

    Raises:
        OSError: they are not; `cached_folder` says what to do.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"it needs {needed / 1e9:.1f} GB of disk there, and {free / 1e9:.1f} GB are free")


def _build(build: Callable[[Path], object], folder: Path) -> None:
    """Run ``build`` and write down what it made: the size and sha256 of every file."""
    build(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, and a cache may be shared
    made = {file.name: {"size": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps({"files": made}, indent=2) + "\n", encoding="utf-8")


def intact(folder: Path) -> bool:
    """Whether a cached folder is as it was built: all sizes agree, and the hashes of all but the very large files."""
    try:
        files = read_json(folder / _MANIFEST)["files"]
        return all(
            (folder / name).stat().st_size == made["size"]
            and (made["size"] > _HASH_ON_USE or sha256(folder / name) == made["sha256"])
            for name, made in files.items()
        )
    except (DataError, OSError):
        return False


def digest_of(files: Sequence[Path]) -> str:
    """A digest of the names and bytes of files, which may be large.

    The sha256 of each is kept in the cache and taken from there for as long as the file's inode, size and times are the
    same. A part of a file would not do instead: two trainings of one model may differ in a few layers in its middle.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{_remembered(file)}\n".encode())
    return digest.hexdigest()


def _remembered(file: Path) -> str:
    place, status = str(file.resolve()), file.stat()
    known = [place, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    note = cache_dir() / "digests" / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    with suppress(DataError, KeyError, TypeError):
        found = read_json(note)
        if found["file"] == known:
            return str(found["sha256"])
    digest = sha256(file)
    with suppress(StorageError):  # then it is made again the next time
        write_json(note, {"file": known, "sha256": digest})
    return digest


def sha256(file: Path) -> str:
    """The digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
