"""Completions kept in a file, so that no experiment pays for what another one decoded.

One SQLite file, shared by as many processes as like. A completion is kept under everything that it depends on: who decoded
it (`identity`: model, engine, precision), its prefix, the settings of its draw and the seed; the seed of a greedy one is no
part of it, nor are limits that it did not meet. Killed at any moment, the file holds what was finished.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caspo.core.errors import DataError, StorageError
from caspo.engines.base import Completion, Request
from caspo.records import TRACE_COLUMNS, TokenTrace

__all__ = ["CompletionFile"]

_SCHEMA = 1
_PATIENCE = 120.0
"""Seconds to wait for another process that writes."""


class Kept(NamedTuple):
    """A completion, and what was asked for of it."""

    limit: int
    """New tokens at most."""
    top_k: int
    whole: Completion

    def serves(self, request: Request) -> bool:
        """Whether it is what ``request`` would be given, which differs in its limit, ``top_k`` and watch at most."""
        if request.top_k not in (0, self.top_k):
            return False
        short = self.whole.finish != "length" and self.whole.decoded <= request.max_new_tokens
        return short or request.max_new_tokens == self.limit


class CompletionFile:
    """What one engine decoded, kept in ``path``.

    Args:
        path: the file; made where there is none.
        identity: of the engine: completions of others in the same file are never given.

    Raises:
        DataError: the file is damaged, or no such file.
        StorageError: the disk refuses.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            found = self._database.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _SCHEMA):
                raise DataError(
                    f"{path} is of another version of caspo (schema {found}, not {_SCHEMA}). Choose another file."
                )
            self._database.execute(f"PRAGMA user_version={_SCHEMA}")
            self._database.execute("CREATE TABLE IF NOT EXISTS completions (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, request: Request) -> Completion | None:
        """What ``request`` would be given, its watch apart; None if that is not known."""
        with self._told():
            row = self._database.execute("SELECT value FROM completions WHERE key = ?", (self._key(request),)).fetchone()
        if row is None:
            return None
        try:
            kept = _unpacked(row[0])
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise DataError(f"{self.path} is damaged ({error}). Delete it: what it held is decoded again.") from error
        return kept.whole if kept.serves(request) else None

    def put(self, request: Request, whole: Completion) -> None:
        """Keep what was decoded for ``request``, all of it; it takes the place of what was kept with another limit."""
        value = _packed(Kept(request.max_new_tokens, request.top_k, whole))
        with self._told():
            self._database.execute("INSERT OR REPLACE INTO completions VALUES (?, ?)", (self._key(request), value))

    def forget(self) -> None:
        """Nothing: a file is for good."""

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, request: Request) -> bytes:
        drawn = [request.temperature, request.top_p, request.seed] if request.temperature > 0 else []
        settings = [self.identity, drawn, request.stop, request.rank, request.step is not None]
        digest = hashlib.sha256(json.dumps(settings).encode())
        digest.update(np.asarray(request.prefix_ids, dtype="<i8").tobytes())
        return digest.digest()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self.path}: {error}. What was kept before is still there. Free some space, or choose a file that you "
                "may write to, then run the same command again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path} is no file of completions, or is damaged ({error}). Choose another file, or delete it: what "
                "it held is decoded again."
            ) from error
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}. Choose a file that you may write to.") from error


def _packed(kept: Kept) -> bytes:
    whole = kept.whole
    traces = (whole.trace, whole.ahead_trace)
    told: dict[str, Any] = {
        "limit": kept.limit,
        "top_k": kept.top_k,
        "text": whole.text,
        "finish": whole.finish,
        "ids": whole.token_ids,
        "ahead": whole.ahead,
        "traces": [(trace.kind, trace.k, trace.entropy_upper is not None) for trace in traces],
    }
    arrays = [array for trace in traces for array in _columns(trace)]
    if whole.top_k_logprob is not None:
        arrays.append(whole.top_k_logprob)
    floats = np.concatenate([np.asarray(array, dtype="<f4") for array in arrays]).tobytes()
    header = json.dumps(told).encode()
    return zlib.compress(len(header).to_bytes(4, "little") + header + floats)


def _unpacked(value: bytes) -> Kept:
    data = zlib.decompress(value)
    size = int.from_bytes(data[:4], "little")
    told = json.loads(data[4 : 4 + size])
    floats = np.frombuffer(data, dtype="<f4", offset=4 + size).astype(np.float32)
    ids, ahead = tuple(told["ids"]), tuple(told["ahead"])
    lengths = [
        len(tokens)
        for tokens, (_, _, upper) in zip((ids, ahead), told["traces"], strict=True)
        for _ in range(len(TRACE_COLUMNS) + upper)
    ]
    lengths += [len(ids)] * bool(told["top_k"])
    if sum(lengths) != len(floats):
        raise ValueError("a completion has another number of figures than it should")
    arrays = iter(np.split(floats, np.cumsum(lengths)[:-1]))
    traces = []
    for kind, k, upper in told["traces"]:
        columns: dict[str, Any] = {name: next(arrays) for name in TRACE_COLUMNS}
        traces.append(TokenTrace(**columns, kind=kind, k=k, entropy_upper=next(arrays) if upper else None))
    top_k = next(arrays) if told["top_k"] else None
    return Kept(
        told["limit"], told["top_k"], Completion(ids, told["text"], traces[0], told["finish"], top_k, ahead, traces[1])
    )


def _columns(trace: TokenTrace) -> list[Any]:
    columns = [getattr(trace, name) for name in TRACE_COLUMNS]
    return columns if trace.entropy_upper is None else [*columns, trace.entropy_upper]
