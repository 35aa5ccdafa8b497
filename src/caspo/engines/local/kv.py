"""Key-value memory of the decode loop: rows that end at one common column, and prefixes kept for later.

All rows of the batch write the same column, so a row of length n occupies columns end - n to end: rows of any length
can be admitted at any time, and a row that leaves frees its place for another. Nothing is copied per decode step.

Keys are stored after rotary embedding, which used the row's own positions, so columns mean nothing but order; sliding
windows measure distances within a row, which are the same in columns.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from caspo.engines.rows import shared_length

__all__ = ["Prefix", "PrefixStore", "RowPool", "owned"]

Prefix = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of a token sequence of length n: per layer two tensors (H, n, D)."""


class _PoolLayer(CacheLayerMixin):
    """One layer's view of the pool, in the shape that transformers' attention expects of a cache."""

    is_sliding = False

    def __init__(self, pool: RowPool) -> None:
        super().__init__()
        self.pool = pool

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self.pool.allocate(key_states), self.pool.allocate(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.pair
        pool, end = self.pool, self.pool.end
        keys[: pool.rows, :, end : end + 1] = key_states
        values[: pool.rows, :, end : end + 1] = value_states
        window = slice(pool.low, end + 1)
        return keys[: pool.rows, :, window], values[: pool.rows, :, window]

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, which are there from the first row on."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.pool.end - self.pool.low

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.pool.end - self.pool.low + query_length, 0

    def get_max_length(self) -> int:
        return -1


class RowPool:
    """Keys and values of up to ``capacity`` rows over ``columns`` columns, for every layer.

    The first ``rows`` places are in use. ``starts[i]`` is the column of row i's first token; ``end`` the column that
    the next token of every row is written to; ``low`` the first column that any row uses.
    """

    def __init__(self, layers: int, capacity: int, columns: int, device: torch.device) -> None:
        self.capacity, self.columns, self.device = capacity, columns, device
        self.layers = [_PoolLayer(self) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.starts: list[int] = []
        self.end = 0
        self._arena: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.starts)

    @property
    def low(self) -> int:
        return min(self.starts, default=self.end)

    def clear(self) -> None:
        """Drop all rows."""
        self.starts, self.end = [], 0

    def widen(self, columns: int, capacity: int) -> None:
        """Make room for longer rows: ``columns`` for each of ``capacity``, which covers the rows there are."""
        assert columns >= self.columns
        assert capacity >= self.rows
        self.columns, self.capacity, self._arena = columns, capacity, None
        used = slice(self.low, self.end)
        for layer in self.layers:
            if layer.is_initialized:
                old = layer.pair
                layer.lazy_initialization(*old)
                for wide, narrow in zip(layer.pair, old, strict=True):
                    wide[: self.rows, :, used] = narrow[: self.rows, :, used]

    def allocate(self, like: torch.Tensor) -> torch.Tensor:
        """Keys or values of one layer, zeroed: masked columns meet the values with weight 0, and 0 times NaN is NaN.

        All layers are cut from one arena, which the system gets back when the pool goes: pieces of some megabytes would
        stay in the heap.
        """
        _, heads, _, width = like.shape
        shape = (self.capacity, heads, self.columns, width)
        size = math.prod(shape)
        if self._arena is None or len(self._arena) < size or self._arena.dtype != like.dtype:
            self._arena = torch.zeros(2 * len(self.layers) * size, dtype=like.dtype, device=self.device)
        taken, self._arena = self._arena[:size].view(shape), self._arena[size:]
        return taken

    def admit(self, prefixes: list[Prefix]) -> None:
        """Add rows with the keys and values of their prefixes: per row and layer, two tensors (H, n, D)."""
        lengths = [prefix[0][0].shape[1] for prefix in prefixes]
        longest = max([self.end - self.low, *lengths])
        if longest > self.end or not self.starts:
            self._move(longest)
        for prefix, length in zip(prefixes, lengths, strict=True):
            row = self.rows
            for layer, (keys, values) in zip(self.layers, prefix, strict=True):
                if not layer.is_initialized:
                    layer.lazy_initialization(keys[None], values[None])
                for whole, part in zip(layer.pair, (keys, values), strict=True):
                    whole[row, :, self.end - length : self.end] = part
            self.starts.append(self.end - length)

    def advance(self) -> None:
        """One token was written to every row."""
        self.end += 1
        if self.end == self.columns:
            self._move(self.end - self.low)

    def remove(self, row: int) -> None:
        """Free a row; the last one takes its place."""
        last = self.rows - 1
        if row != last:
            used = slice(self.starts[last], self.end)
            for tensor in (tensor for layer in self.layers for tensor in layer.pair):
                tensor[row, :, used] = tensor[last, :, used]
            self.starts[row] = self.starts[last]
        self.starts.pop()

    def take(self, row: int) -> Prefix:
        """A copy of a row's keys and values, to continue from later."""
        used = slice(self.starts[row], self.end)
        return owned([(keys[row, :, used], values[row, :, used]) for keys, values in (layer.pair for layer in self.layers)])

    def mask(self) -> torch.Tensor:
        """(rows, end - low + 1): which columns belong to each row, the one about to be written included."""
        columns = torch.arange(self.low, self.end + 1, device=self.device)
        return columns[None, :] >= torch.tensor(self.starts, device=self.device)[:, None]

    def positions(self) -> torch.Tensor:
        """(rows, 1): the position of the token about to be written."""
        return self.end - torch.tensor(self.starts, device=self.device)[:, None]

    def _move(self, end: int) -> None:
        """Shift all rows so that they end at column ``end``."""
        assert end < self.columns, "the pool is too narrow for its rows"
        shift, low, old = end - self.end, self.low, self.end
        if shift and self.starts:
            for tensor in (tensor for layer in self.layers for tensor in layer.pair):
                for row in range(self.rows):  # row by row: a clone of everything would double the memory
                    tensor[row, :, low + shift : end] = tensor[row, :, low:old].clone()
        self.starts = [start + shift for start in self.starts]
        self.end = end


def owned(prefix: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Prefix:
    """A copy of a prefix in one piece of memory: two small pieces per layer would leave the heap full of holes."""
    tensors = [tensor for pair in prefix for tensor in pair]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = [f.view(t.shape) for f, t in zip(torch.split(flat, [t.numel() for t in tensors]), tensors, strict=True)]
    return list(zip(parts[::2], parts[1::2], strict=True))


class PrefixStore:
    """Keys and values of token sequences and all their prefixes, least recently used out first, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._sorted: list[tuple[int, ...]] = []
        self._bytes = 0

    def get(self, ids: tuple[int, ...]) -> Prefix | None:
        """Views of the keys and values of ``ids``, from a stored sequence that is it or begins with it; or None."""
        at = bisect_left(self._sorted, ids)  # in sorted order, what begins with ids comes right after it
        if at == len(self._sorted) or self._sorted[at][: len(ids)] != ids:
            return None
        self._kept.move_to_end(self._sorted[at])
        return [(keys[:, : len(ids)], values[:, : len(ids)]) for keys, values in self._kept[self._sorted[at]]]

    def longest(self, ids: tuple[int, ...]) -> int:
        """How many tokens at the beginning of ``ids`` stand at the beginning of a stored sequence."""
        at = bisect_left(self._sorted, ids)  # what shares most with ids stands next to where it would
        return max((shared_length(ids, other) for other in self._sorted[max(0, at - 1) : at + 1]), default=0)

    def put(self, ids: tuple[int, ...], prefix: Prefix) -> None:
        """Keep a sequence, dropping the oldest ones over the budget."""
        if ids in self._kept:
            return
        self._kept[ids] = prefix
        insort(self._sorted, ids)
        self._bytes += _size(prefix)
        while self._bytes > self.budget_bytes and self._kept:
            key, dropped = self._kept.popitem(last=False)
            del self._sorted[bisect_left(self._sorted, key)]
            self._bytes -= _size(dropped)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._sorted.clear()
        self._bytes = 0


def _size(prefix: Prefix) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in prefix)
