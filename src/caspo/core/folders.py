"""The folder that a command works in: whose it is, what it was made from, and that one process at a time works in it.

A folder is claimed before anything in it is read, written or removed. Beside the results it then holds ``recipe.yaml`` (the
settings, all defaults filled in), ``made_from.json`` (for each command its shard and its input files with their digests),
``placement.json`` where a model sampled (`caspo.loop.settled`) and ``.caspo.lock``. A folder that was made with other
settings or other inputs is refused, and so is one that holds files of somebody else under the names that a command writes:
what stands in those places is ours, and nothing else is ever removed.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from caspo.core.config import Config, flatten, parse_yaml
from caspo.core.errors import ConfigError, ResumeError
from caspo.core.shards import Made, Shard, check_alike, check_all_there
from caspo.core.storage import PARTIAL, explain_os_error, read_json, write_json, write_text

__all__ = ["PLACEMENT", "Inputs", "check_output_file", "claimed", "refuse_overwriting", "shards_in", "was_claimed"]

Inputs = Mapping[str, Sequence[Path]]
"""What is read, by the option or key that names it: the files, of a folder those that are read."""

PLACEMENT = "placement.json"
"""With what a model samples in a folder, where its settings leave it open. It is no result: other inputs may follow."""
_RECIPE, _MADE_FROM, _LOCK = "recipe.yaml", "made_from.json", ".caspo.lock"
_OURS = (_RECIPE, _MADE_FROM, PLACEMENT)

_SHARD, _JOIN = "--shard", "--join"
_SPARES_WORK = {"completions"}
"""Ends of keys that change nothing but the time: a run may go on with another file of completions, or with none."""
_OF_MACHINES = _SPARES_WORK | {
    "accelerate", "concurrency", "device", "endpoint.url", "first_wait", "key_variable", "longest_wait", "max_rows",
    "patience", "retries", "threads", "timeout", "token_timeout", "urls",
}  # fmt: skip
"""Ends of keys that say where something runs and how it is waited for, and not what comes out: shards may differ in them."""


@contextmanager
def claimed(
    out: Path,
    settings: Config,
    command: str,
    writes: Sequence[str],
    inputs: Inputs,
    shard: Shard | None = None,
    joined: Mapping[Shard, tuple[Path, Made]] = MappingProxyType({}),
) -> Iterator[Made]:
    """Work in ``out`` as the only process, on what this very ``command`` began there, or on nothing.

    ``writes`` are the names in ``out`` that the command writes; they may be patterns (``round-*``). Half-written files that
    a killed process left under them are removed. What the work is made of comes back: the same for all shards of a run.
    ``joined`` are shards (`shards_in`) that must be made of just that.

    Raises:
        ConfigError: an input would be overwritten, another process works there, or a shard was made of something else.
        ResumeError: the folder was made with other settings or inputs; the message names them.
        StorageError: the folder cannot be written.
    """
    refuse_overwriting(out, (*writes, *_OURS), inputs)
    told = {name: {"path": _shown(files), "sha256": _digest(files)} for name, files in sorted(inputs.items())}
    if shard is not None:
        told[_SHARD] = {"path": str(shard), "sha256": hashlib.sha256(str(shard).encode()).hexdigest()}
    made_of = _made(flatten(settings.model_dump(mode="json")), told)
    for folder, made_there in joined.values():
        check_alike(str(folder), made_there, "this command", made_of)
    _refuse_other(out, settings, command, writes, told)  # before a lock is left in a folder that is not ours
    with _locked(out):
        _refuse_other(out, settings, command, writes, told)
        made = read_json(out / _MADE_FROM) if (out / _MADE_FROM).exists() else {}
        if made.get(command) != told:
            write_json(out / _MADE_FROM, {**made, command: told})
        if not (out / _RECIPE).exists():
            asked = settings.model_dump(mode="json")
            write_text(out / _RECIPE, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
        _sweep(out, (*writes, *_OURS))
        yield made_of


def shards_in(folders: Sequence[Path], command: str) -> dict[Shard, tuple[Path, Made]]:
    """The folders in which ``command`` made the shards of a run, and what each was made of, in the order of the shards.

    Raises:
        ConfigError: a folder of no shard, or not every shard of one division once.
        ResumeError: what a folder says of itself is damaged.
    """
    found = []
    for folder in folders:
        told = (_made_from(folder / _MADE_FROM) or {}).get(command, {})
        if _SHARD not in told or not (folder / _RECIPE).is_file():
            what = "it holds a run that was not divided" if told else "no such command has worked there"
            raise ConfigError(f"{folder} is no shard of `caspo {command}`: {what}. Give the folders (--out) of its shards.")
        found.append((Shard.parse(told[_SHARD]["path"]), folder, _made(_settings_in(folder / _RECIPE), told)))
    check_all_there([(str(folder), shard) for shard, folder, _ in found])
    return {shard: (folder, made) for shard, folder, made in sorted(found, key=lambda one: one[0].number)}


def _made(settings: Mapping[str, Any], told: Mapping[str, Any]) -> Made:
    """Settings and inputs as shards are compared by them: an input by its contents and not by its path."""
    kept = {key: value for key, value in settings.items() if not _ends_in(key, _OF_MACHINES) and not _ends_in(key, told)}
    return kept | {name: given["sha256"] for name, given in told.items() if not name.startswith((_SHARD, _JOIN))}


def _ends_in(key: str, names: Collection[str]) -> bool:
    return any(f".{key}".endswith(f".{name}") for name in names)


def refuse_overwriting(out: Path, writes: Sequence[str], inputs: Inputs) -> None:
    """Refuse to write what is read: one of ``inputs`` would stand under one of the names ``writes`` in ``out``.

    Raises:
        ConfigError: it says which.
    """
    folder = out.resolve()
    for name, files in inputs.items():
        for file in map(Path, files):
            real = file.resolve()
            places = [place for w in writes for place in out.glob(w) if place.resolve() in (real, *real.parents)]
            if not places and folder in real.parents:
                first = real.relative_to(folder).parts[0]
                places = [out / first for w in writes if fnmatch(first, w)]
            if places:
                raise ConfigError(
                    f"{name}: {file} would be overwritten: it is read, and {places[0]} is where the result is written. "
                    "Nothing was done. Choose another --out."
                )


def check_output_file(file: Path, inputs: Inputs) -> None:
    """Refuse a ``file`` that could not be written, or would stand over what is read: before the work, and not after it.

    Raises:
        ConfigError: a folder is there, or an input.
        StorageError: no file can be written there.
    """
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, and one file is written. Give --out the name of a file in it.")
    refuse_overwriting(file.parent, [glob.escape(file.name)], inputs)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise explain_os_error(error, file) from error


def was_claimed(folder: Path) -> bool:
    """Whether a command has ever worked in a folder, so that what stands there under its names is ours."""
    return (folder / _MADE_FROM).exists()


def _refuse_other(out: Path, settings: Config, command: str, writes: Sequence[str], told: Mapping[str, Any]) -> None:
    """Raise `ResumeError` unless ``out`` is new, or this command with these settings and inputs began it."""
    made = _made_from(out / _MADE_FROM)
    found = [place.name for name in writes for place in sorted(out.glob(name)) if _taken(place)]
    before = (made or {}).get(command)
    same = {name for name, given in told.items() if before and given["sha256"] == before.get(name, {}).get("sha256")}
    keys = _differing(out / _RECIPE, settings, same)
    if keys and made is None:
        raise ResumeError(
            f"{out / _RECIPE} is there, and it is of no run in this folder: it is your own, or an earlier version wrote it. "
            "A run keeps its settings under that name. Choose another --out, for example a new folder."
        )
    if keys:
        here = [name for name in _OURS if (out / name).exists()]
        raise ResumeError(
            f"{out} was made with another configuration; going on would mix the two. These keys differ:\n"
            + "\n".join(f"  {key}" for key in keys)
            + f"\nChoose another --out, or delete {', '.join([*found, *here])} in {out} to start over."
        )  # fmt: skip
    if before is None and found:
        raise ResumeError(
            f"{out} holds {', '.join(found)}, which `caspo {command}` writes, but it did not make them there (or an earlier "
            "version did, which did not note what from). They would be mixed or lost. Choose another --out."
        )
    if before is not None and found and (others := _changed(before, told)):
        raise ResumeError(
            f"{out} was made from other inputs; going on would mix the two. These differ:\n"
            + "\n".join(f"  {line}" for line in others)
            + f"\nChoose another --out, or delete {', '.join(found)} in {out} to start over."
        )  # fmt: skip


def _taken(place: Path) -> bool:
    """Whether somebody's results may stand there. Dotfiles in a folder are none, but a model is stored as a whole folder."""
    if not place.is_dir() or place.name == "model":
        return True
    return any(not inside.name.startswith(".") for inside in place.iterdir())


def _made_from(file: Path) -> dict[str, Any] | None:
    if not file.exists():
        return None
    try:
        found = read_json(file)
    except Exception:
        found = None
    if not isinstance(found, dict):
        raise ResumeError(f"{file} is damaged, so what the folder was made from cannot be told. Choose another --out.")
    return found


def _differing(file: Path, settings: Config, same: set[str]) -> list[str]:
    """How the settings in a file differ from these, a line each; not of inputs that are the ``same`` by another path."""
    if not file.exists():
        return []
    before, now = _settings_in(file), flatten(settings.model_dump(mode="json"))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    keys = [key for key in keys if not _ends_in(key, same | _SPARES_WORK)]
    return [f"{key}: {before.get(key, '(absent)')} there, {now.get(key, '(absent)')} now" for key in keys]


def _settings_in(file: Path) -> dict[str, Any]:
    try:
        found = parse_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ResumeError(f"{file} is damaged. Choose another --out, or delete the file and what was made with it.")
    return flatten(found)


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the inputs of now differ from those of before, a line each. A file that was moved is the same."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            shown = [str(given["path"]) if given else "(none)" for given in (old, new)]
            lines.append(f"{name}: {shown[0]} there, {shown[1]} now")
        elif old["sha256"] != new["sha256"]:
            same = old["path"] == new["path"]
            lines.append(f"{name}: {new['path']} was changed" if same else f"{name}: {old['path']} there, {new['path']} now")
    return lines


def _shown(files: Sequence[Path]) -> str:
    return str(files[0] if len(files) == 1 else Path(os.path.commonpath(files)) if files else "(no files)")


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files and, where there are several, their names."""
    whole = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256")
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}. Check the path.") from error
        whole.update(digest.digest() + (file.name.encode() if len(files) > 1 else b""))
    return whole.hexdigest()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of a folder; the kernel takes it from a process that dies, however it dies."""
    import fcntl

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise explain_os_error(error, out / _LOCK) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace") or "(not known)"
            raise ConfigError(
                f"{out} is in use by process {holder}. Wait until it has ended or stop it; or choose another --out."
            ) from None
        except OSError as error:
            raise explain_os_error(error, out / _LOCK) from error
        yield
    finally:
        os.close(lock)


def _sweep(out: Path, writes: Sequence[str]) -> None:
    """Remove what a killed process left half-written: files and folders that `PARTIAL` marks, where we write."""
    for name in writes:
        stale = list(out.glob(f"{PARTIAL}{name}.*"))
        stale += [left for place in out.glob(name) if place.is_dir() for left in place.rglob(f"{PARTIAL}*")]
        for left in stale:
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
