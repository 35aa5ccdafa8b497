"""Which tokens stand in llama.cpp's memory: sequences that share the cells of what they begin with.

A cell holds the keys and values of one token at one place, for every sequence that it belongs to. A sequence that begins
like another one shares its cells and computes only the rest. Finished ones are kept while there is room, and leave least
recently used first. llama.cpp does not say how many cells are taken, so they are counted here.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from caspo.engines.rows import shared_length

__all__ = ["Cells", "Strand"]


@dataclass(eq=False)
class Strand:
    """A sequence in llama.cpp's memory."""

    id: int
    """llama.cpp's name for it."""
    ids: list[int] = field(default_factory=list)
    """Its tokens."""
    cells: list[int] = field(default_factory=list)
    """A number for the cell of each: the same one in two strands if they share it."""


class Cells:
    """The memory of one llama.cpp context.

    Args:
        api: the module `llama_cpp.llama_cpp`.
        memory: llama.cpp's handle of the memory.
        strands: sequences at once, kept ones included.
        cells: tokens at once.
    """

    def __init__(self, api: Any, memory: Any, strands: int, cells: int) -> None:
        self._api, self._memory, self.size = api, memory, cells
        self._free = list(range(strands))
        self._uses: Counter[int] = Counter()
        self._made = 0
        self._live: set[Strand] = set()
        self._kept: OrderedDict[tuple[int, ...], Strand] = OrderedDict()
        self._sorted: list[tuple[int, ...]] = []

    @property
    def used(self) -> int:
        """Cells that belong to any sequence."""
        return len(self._uses)

    def begin(self, ids: Sequence[int]) -> Strand | None:
        """A strand that holds as much of the beginning of ``ids`` as is kept; None if there are too many strands."""
        wanted = tuple(ids)
        shared, source = self._longest(wanted)
        if source is not None:
            self._kept.move_to_end(tuple(source.ids))
        strand = self._new(spared=source)
        if strand is not None and source is not None:
            self._share(source, strand, shared)
        return strand

    def longest(self, ids: Sequence[int]) -> int:
        """How many tokens at the beginning of ``ids`` stand at the beginning of a kept strand."""
        return self._longest(tuple(ids))[0]

    def room(self, count: int) -> bool:
        """Whether ``count`` more cells are free; kept strands give way to them."""
        while self.used + count > self.size and self._kept:
            self._evict()
        return self.used + count <= self.size

    def extend(self, strand: Strand, ids: Sequence[int]) -> None:
        """Note that llama.cpp wrote ``ids`` at the end of a strand."""
        new = range(self._made, self._made + len(ids))
        self._made += len(ids)
        strand.ids += ids
        strand.cells += new
        self._uses.update(new)

    def keep_copy(self, strand: Strand) -> None:
        """Keep what a strand holds by now, while it goes on."""
        if self.longest(strand.ids) < len(strand.ids):
            copy = self._new()
            if copy is not None:
                self._share(strand, copy, len(strand.ids))
                self.keep(copy)

    def keep(self, strand: Strand) -> None:
        """Keep a strand that is done, to be continued by others."""
        ids = tuple(strand.ids)
        if self.longest(ids) == len(ids):
            self.free(strand)
            return
        self._live.discard(strand)
        at = bisect_left(self._sorted, ids)
        while at and ids[: len(self._sorted[at - 1])] == self._sorted[at - 1]:  # it holds the cells of these too
            self._drop(self._sorted[at - 1])
            at -= 1
        self._kept[ids] = strand
        insort(self._sorted, ids)

    def free(self, strand: Strand) -> None:
        """Give up a strand; cells that no other one shares are free."""
        self._api.llama_memory_seq_rm(self._memory, strand.id, -1, -1)
        self._release(strand)
        self._live.discard(strand)
        self._free.append(strand.id)

    def forget(self) -> None:
        """Give up all kept strands."""
        while self._kept:
            self._evict()

    def wipe(self) -> None:
        """Erase all cells, their numbers included. Strands that are not kept live on, empty."""
        self.forget()
        self._api.llama_memory_clear(self._memory, True)
        for strand in self._live:
            self._release(strand)

    def _new(self, spared: Strand | None = None) -> Strand | None:
        """An empty strand; for its name the least recently used one that is kept gives way, but never ``spared``."""
        if not self._free and self._kept and next(iter(self._kept.values())) is not spared:
            self._evict()
        if not self._free:
            return None
        strand = Strand(self._free.pop())
        self._live.add(strand)
        return strand

    def _share(self, source: Strand, target: Strand, count: int) -> None:
        self._api.llama_memory_seq_cp(self._memory, source.id, target.id, 0, count)
        target.ids, target.cells = source.ids[:count], source.cells[:count]
        self._uses.update(target.cells)

    def _longest(self, ids: tuple[int, ...]) -> tuple[int, Strand | None]:
        at = bisect_left(self._sorted, ids)  # what shares most with ids stands next to where it would
        found = [(shared_length(ids, other), other) for other in self._sorted[max(0, at - 1) : at + 1]]
        shared, other = max(found, default=(0, ()))
        return shared, self._kept[other] if shared else None

    def _evict(self) -> None:
        self._drop(next(iter(self._kept)))

    def _drop(self, ids: tuple[int, ...]) -> None:
        del self._sorted[bisect_left(self._sorted, ids)]
        self.free(self._kept.pop(ids))

    def _release(self, strand: Strand) -> None:
        for cell in strand.cells:
            self._uses[cell] -= 1
            if not self._uses[cell]:
                del self._uses[cell]
        strand.ids, strand.cells = [], []
