"""Parts a text into the model's thinking and what it says, while the text comes."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Part", "Parting"]


class Part(NamedTuple):
    """A piece of a text, all of it the one or the other."""

    start: int
    """Characters of the text before it."""
    text: str
    thinking: bool


class Parting:
    """Takes a text in in any pieces. The marks of thinking belong to neither side, nor does the white space after one.

    What may become a mark is held back, so that the parts joined are the same however the text was cut.

    Args:
        marks: what the thinking stands between, as pairs of (opening, closing).
        thinking: whether the text begins inside of it.

    >>> parting = Parting([("<think>", "</think>")])
    >>> [(part.text, part.thinking) for text in ("<think>\\n1 + 1</thi", "nk>\\n\\n2.") for part in parting.feed(text)]
    [('1 + 1', True), ('2.', False)]
    """

    def __init__(self, marks: Sequence[tuple[str, str]], *, thinking: bool = False) -> None:
        self._opening = frozenset(opening for opening, _ in marks)
        self._names = sorted({mark for pair in marks for mark in pair}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")
        self._thinking = self._after_mark = thinking
        self._position = 0
        """Characters told of, or left out."""
        self._held = ""

    def copy(self) -> Parting:
        """One that goes on from here by itself."""
        return copy.copy(self)

    @property
    def thinking(self) -> bool:
        """Whether what comes next stands in the model's thinking."""
        return self._thinking

    def plain(self, text: str) -> str:
        """A piece of a text without the marks in it, whichever side it is of."""
        return re.sub(rf"(?:{self._pattern.pattern})\s*", "", text)

    def feed(self, text: str) -> list[Part]:
        """Take a piece in; what is known by now."""
        text = self._held = self._held + text
        longest = len(self._names[0]) - 1 if self._names else 0
        ends = (text[start:] for start in range(max(0, len(text) - longest), len(text)))
        return self._read(next((len(end) for end in ends if any(mark.startswith(end) for mark in self._names)), 0))

    def rest(self) -> list[Part]:
        """What was held back, once no more text comes."""
        return self._read(0)

    def _read(self, unsure: int) -> list[Part]:
        """Tell of all but the last ``unsure`` characters, with which a mark may begin."""
        parts: list[Part] = []
        while (mark := self._pattern.search(self._held)) and mark.start() < len(self._held) - unsure:
            self._tell(parts, mark.start())
            self._thinking, self._after_mark = mark[0] in self._opening, True
            self._position += len(mark[0])
            self._held = self._held[len(mark[0]) :]
            unsure = min(unsure, len(self._held))
        self._tell(parts, len(self._held) - unsure)
        return parts

    def _tell(self, parts: list[Part], size: int) -> None:
        text, self._held = self._held[:size], self._held[size:]
        self._position += size
        if self._after_mark:
            text = text.lstrip()
        if text:
            self._after_mark = False
            parts.append(Part(self._position - len(text), text, self._thinking))
