"""Files are whole or absent, and every refusal of the disk is a `StorageError` that says what to do."""

from __future__ import annotations

import errno
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from caspo.core.errors import DataError, StorageError
from caspo.core.storage import read_json, write_directory, write_file, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_read(tmp_path: Path) -> None:
    """Folders are made, text is UTF-8, a second write replaces the first, nothing else is left."""
    file = tmp_path / "a" / "b.json"
    write_json(file, {"ä": 1})
    write_json(file, {"ä": [2, None]})
    assert read_json(file) == {"ä": [2, None]}
    assert "ä" in file.read_text(encoding="utf-8")
    assert names(file.parent) == ["b.json"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_failure_in_the_middle_keeps_the_old_file(tmp_path: Path) -> None:
    """Whatever stops the writer, the old content stays and no temporary file does."""
    file = tmp_path / "x"
    write_text(file, "old")

    def half(path: Path) -> None:
        path.write_text("ne", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(file, half)
    assert file.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full after ``size`` bytes, near enough: larger files are refused by the kernel."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk(tmp_path: Path) -> None:
    """The kernel refuses in the middle of a write: a StorageError, the old file, no temporary file."""
    file = tmp_path / "x"
    write_text(file, "old")
    with files_of_at_most(1000), pytest.raises(StorageError, match=r"Could not write .*x: File too large\. Nothing was"):
        write_text(file, "new" * 1000)
    assert file.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_under_a_folder(tmp_path: Path) -> None:
    """A folder that could not be finished does not appear."""
    with files_of_at_most(1000), pytest.raises(StorageError):
        write_directory(tmp_path / "d", lambda folder: (folder / "f").write_bytes(b"0" * 5000))
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Read-only, forbidden, full: from wherever in the write it comes."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, "refused")

    for function in ("tempfile.mkstemp", "tempfile.mkdtemp", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(f"caspo.core.storage.{function}", refuse)
            if function != "tempfile.mkdtemp":
                with pytest.raises(StorageError, match=r"refused\. Nothing was lost"):
                    write_text(tmp_path / "x", "new")
            if function != "tempfile.mkstemp":
                with pytest.raises(StorageError, match="--out"):
                    write_directory(tmp_path / "d", lambda folder: (folder / "f").write_text("1"))
    assert names(tmp_path) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    """A file where a folder must be."""
    write_text(tmp_path / "x", "1")
    with pytest.raises(StorageError):
        write_text(tmp_path / "x" / "y", "2")
    with pytest.raises(StorageError):
        write_directory(tmp_path / "x", lambda folder: (folder / "f").write_text("1"))
    assert names(tmp_path) == ["x"]


def test_reading_damaged_json(tmp_path: Path) -> None:
    """Missing, truncated and binary files are named."""
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "none")
    for content in (b'{"a": 1', b"", b"\xff\xfe"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(tmp_path / "x")


def test_nan_is_refused(tmp_path: Path) -> None:
    """No file that other programs cannot read."""
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x", float("nan"))
    assert names(tmp_path) == []


def test_folders_race(tmp_path: Path) -> None:
    """Several writers of one folder: it is one writer's, whole, and nobody fails or leaves anything behind."""
    start, failures = threading.Barrier(4), list[Exception]()

    def write(number: int) -> None:
        def fill(folder: Path) -> None:
            (folder / "sub").mkdir()
            for i in range(5):
                (folder / "sub" / f"{i}").write_text(str(number))
            start.wait()

        try:
            write_directory(tmp_path / "d", fill)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(tmp_path) == ["d"]
    assert len({(tmp_path / "d" / "sub" / f"{i}").read_text() for i in range(5)}) == 1
