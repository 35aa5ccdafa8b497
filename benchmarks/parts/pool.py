"""Sampled solutions in files that are small enough to be committed, at about two bytes a token.

A pool is a folder of parts. A part is a Parquet file that is never rewritten, so that git stores it once: what is sampled
later makes another part. It has one row, whose cells hold columns: those of the samples, and those of all tokens.

Token ids are exact. A figure of a token is kept in one byte, and comes back off by 3% or 0.003 at most, whichever is more
(nats; of a margin 3% of its distance to 0 or 1); entropy by 2.3% or 0.0023, varentropy by 9.1% or 0.009 (nats squared). None
is left out: signals refuse NaN. They take little room because each is stored in the order of those before it, where like
stands with like: how sure the model was of a token says most of the rest. A larger part takes fewer bytes a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from caspo.core.errors import DataError
from caspo.core.storage import write_file
from caspo.engines.base import Completion, Request
from caspo.records import TRACE_COLUMNS, TokenTrace
from caspo.steps import text_of

__all__ = ["Key", "key_of", "keys_in", "read_pool", "write_pool"]

Codes = NDArray[np.uint8]
Floats = NDArray[np.float64]

_VERSION = {b"caspo_pool": b"1"}
_FIGURES = ("entropy", "max_logprob", "margin", "logprob", "varentropy", "top_k_logprob")
"""In the order in which they are stored."""
_NEGATIVE = ("max_logprob", "logprob", "top_k_logprob")
_KNEE = 0.1
_STEP = 0.058
"""Between two levels on the scale of `_warped`: half of it, and of it times `_KNEE`, is the largest error."""
_STEPS = {"entropy": 0.045, "varentropy": 3 * _STEP}
_CONTEXT = 3
"""Figures, the first of those before it, that the tokens are sorted by for one."""


class Key(NamedTuple):
    """Which sample it is: what no other one of a pool shares. Its seed follows from question and number."""

    model: str
    """Its name and precision."""
    question_id: str
    number: int
    """Among the samples of its question; -1: the greedy one."""
    prompt: str
    """A digest of the prompt's tokens."""
    temperature: float
    top_p: float
    limit: int
    """New tokens at most."""
    top_k: int
    """Tokens that the mean log p was measured of."""


def key_of(model: str, question_id: str, number: int, request: Request) -> Key:
    """The key of a sample that ``model`` decoded for ``request``."""
    prompt = hashlib.sha256(np.asarray(request.prefix_ids, dtype="<i8").tobytes()).hexdigest()[:16]
    drawn = (request.temperature, request.top_p)
    return Key(model, question_id, number, prompt, *drawn, request.max_new_tokens, request.top_k)


_SCHEMA = pa.schema(
    [
        ("model", pa.list_(pa.string())),
        ("question_id", pa.list_(pa.string())),
        ("number", pa.list_(pa.int32())),
        ("prompt", pa.list_(pa.string())),
        ("temperature", pa.list_(pa.float64())),
        ("top_p", pa.list_(pa.float64())),
        ("limit", pa.list_(pa.int32())),
        ("top_k", pa.list_(pa.int32())),
        ("finish", pa.list_(pa.string())),
        ("tokens", pa.list_(pa.int32())),  # of the sample
        ("ahead", pa.list_(pa.int32())),  # decoded beyond its end
        ("vocabulary", pa.list_(pa.int32())),
        ("token", pa.list_(pa.int32())),  # its place in the vocabulary
        *((name, pa.binary()) for name in _FIGURES),
    ],
    metadata=_VERSION,
)


def write_pool(path: Path, samples: Mapping[Key, Completion]) -> None:
    """Write a part, atomically. Put the samples of a question together: they repeat each other.

    Raises:
        DataError: a figure is NaN or infinite, or of the most probable tokens only.
    """
    found = list(samples.values())
    ids, place = np.unique([token for one in found for token in (*one.token_ids, *one.ahead)], return_inverse=True)
    row: dict[str, Any] = {name: list(column) for name, column in zip(Key._fields, zip(*samples, strict=True), strict=True)}
    row["finish"] = [one.finish for one in found]
    row["tokens"], row["ahead"] = [len(one.token_ids) for one in found], [len(one.ahead) for one in found]
    row["vocabulary"], row["token"] = ids.astype(np.int32), place.astype(np.int32)
    codes: dict[str, Codes] = {}
    for name in _FIGURES:
        codes[name] = _code(name, np.concatenate([_column(one, name) for one in found]))
        stored = codes[name] - codes["max_logprob"] if name == "logprob" else codes[name]  # 0 where the best was taken
        row[name] = stored[_order(codes, name)].tobytes()
    table = pa.Table.from_pylist([row], schema=_SCHEMA)
    packed = {"compression": "brotli", "compression_level": 11, "use_dictionary": False, "data_page_size": 1 << 30}
    write_file(path, lambda temporary: pq.write_table(table, temporary, write_statistics=False, **packed))


def keys_in(path: Path) -> list[Key]:
    """The samples of a part; the rest of it is not read."""
    row = _row(path, Key._fields)
    return [Key(*values) for values in zip(*(row[name] for name in Key._fields), strict=True)]


def read_pool(path: Path, pieces: Callable[[Sequence[int]], Sequence[bytes]]) -> dict[Key, Completion]:
    """The samples of a part, with the figures as far as they are kept. ``pieces`` are the bytes of the model's tokens.

    Raises:
        DataError: it is no part, or damaged.
    """
    row, keys = _row(path, _SCHEMA.names), keys_in(path)
    token = np.asarray(row["vocabulary"])[row["token"]].tolist()
    codes: dict[str, Codes] = {}
    for name in _FIGURES:
        codes[name] = np.empty(len(token), np.uint8)
        codes[name][_order(codes, name)] = np.frombuffer(row[name], np.uint8)
        if name == "logprob":
            codes[name] += codes["max_logprob"]
    figures = {name: _value(name, codes[name]).astype(np.float32) for name in _FIGURES}
    samples, start = {}, 0
    for key, finish, tokens, ahead in zip(keys, row["finish"], row["tokens"], row["ahead"], strict=True):
        end = start + tokens
        own, beyond = slice(start, end), slice(end, end + ahead)
        traces = [TokenTrace(**{name: figures[name][span] for name in TRACE_COLUMNS}) for span in (own, beyond)]
        text, top_k = text_of(pieces(token[own])), figures["top_k_logprob"][own]
        samples[key] = Completion(tuple(token[own]), text, traces[0], finish, top_k, tuple(token[beyond]), traces[1])
        start = end + ahead
    return samples


def _row(path: Path, names: Sequence[str]) -> dict[str, Any]:
    try:
        table = pq.read_table(path, columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no part of a pool, or is damaged ({error}). Take it from git again.") from error
    if (table.schema.metadata or {}).get(b"caspo_pool") != _VERSION[b"caspo_pool"] or len(table) != 1:
        raise DataError(f"{path} is no part of a pool, or of another version. Take it out of the folder.")
    return {name: table[name][0].as_py() for name in names}


def _column(one: Completion, name: str) -> Floats:
    """(T,) a figure of all tokens of a completion, those beyond its end included."""
    if one.trace.kind != "full" or one.top_k_logprob is None:
        raise DataError("A pool holds exact figures, and DeepConf's: this engine, or this request, gives others.")
    if name == "top_k_logprob":
        return np.concatenate([one.top_k_logprob, np.zeros(len(one.ahead))])
    return np.concatenate([getattr(one.trace, name), getattr(one.ahead_trace, name)], dtype=np.float64)


def _order(codes: Mapping[str, Codes], name: str) -> NDArray[np.intp]:
    """The places of the tokens in the order in which a figure is stored: sorted by the first figures before it."""
    before = [codes[other] for other in _FIGURES[: _FIGURES.index(name)][:_CONTEXT]]
    return np.lexsort(before[::-1]) if before else np.arange(len(codes[name]))


def _code(name: str, values: Floats) -> Codes:
    """(T,) each figure as the nearest of at most 256 levels."""
    if not np.isfinite(values).all():
        raise DataError(f"A {name} is NaN or infinite: a pool has no byte for it.")
    x = np.maximum(-values if name in _NEGATIVE else values, 0.0)
    warped = _warped(x)
    if name == "margin":
        warped = np.where(x < 0.5, warped, 2 * _warped(0.5) - _warped(1 - x))
    return np.minimum(np.rint(warped / _STEPS.get(name, _STEP)), 255).astype(np.uint8)


def _value(name: str, codes: Codes) -> Floats:
    """(T,) the figures that the levels stand for."""
    x = codes * _STEPS.get(name, _STEP)
    if name == "margin":
        return np.clip(np.where(x < _warped(0.5), _unwarped(x), 1 - _unwarped(2 * _warped(0.5) - x)), 0.0, 1.0)
    return -_unwarped(x) if name in _NEGATIVE else _unwarped(x)


def _warped(x: ArrayLike) -> Floats:
    """(T,) x on a scale that is linear up to `_KNEE` and logarithmic beyond, on which levels are equally far apart."""
    ratio = np.asarray(x) / _KNEE
    return np.where(ratio < 1, ratio, 1 + np.log(np.maximum(ratio, 1)))


def _unwarped(y: ArrayLike) -> Floats:
    """(T,) the inverse of `_warped`."""
    return _KNEE * np.where(np.asarray(y) < 1, y, np.exp(np.maximum(y, 1) - 1))
