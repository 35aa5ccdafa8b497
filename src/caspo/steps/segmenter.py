"""Where the steps of a text end, told while the text comes.

A `Segmenter` is fed a text in any pieces, and tells of each step as soon as nothing that follows can change where it ends.
What it tells depends on the text alone and not on the pieces: so the boundaries are the same whether a text is finished,
is being decoded, or arrives from a server. It looks back no further than the line that it is in.

A step ends where the next one begins: blank lines, and lines without content, belong to the step before them. So an end is
known once the content of the next step begins, a token or two later. Which lines begin one is the rule's to say.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Ended", "Rule", "Segmenter", "sentence_ends"]

_LOOKS = 16
"""Looks for a place to cut a line that has become too long, while it grows by its longest once more."""
_PATIENCE = 4
"""Times its longest line: a line without any sentence's end is cut between words then."""


class Ended(NamedTuple):
    """A step that has ended."""

    end: int
    """Characters of the text up to its end."""
    thinking: bool
    """Whether it stands in the model's thinking."""


class Rule(Protocol):
    """Says which lines begin a step, from what it has seen of those before. Copied by `copy.copy`."""

    by_line: bool
    """Whether line breaks end lines; otherwise `breaks` alone does."""

    @property
    def longest_line(self) -> int:
        """Characters of a step in the line that comes, after which it is cut at a sentence's end."""

    @property
    def longest_step(self) -> int:
        """Characters of a step, after which the next line begins another one, whatever it is."""

    def content(self, text: str) -> bool:
        """Whether a text has what a step needs: some character does, whatever stands around it."""

    def breaks(self, line: str, looked: int) -> int | None:
        """The first place where a line is to be taken for two; it was asked about the first ``looked`` characters before."""

    def begins(self, line: str, blanks: int, *, whole: bool) -> bool | None:
        """Whether a step begins with this line, of which only the beginning may be there (not ``whole``), and before which
        so many blank lines stand; None: not known yet. Only asked where the step before has content."""

    def take(self, line: str, blanks: int, *, began: bool) -> None:
        """Take in a line that has ended, no blank one; ``began``: a step began with it."""

    def blank(self) -> None:
        """Take in a blank line."""

    def reset(self) -> None:
        """No block, list or announcement goes on from here."""


class Segmenter:
    """Cuts one text into steps.

    Args:
        rule: which lines begin a step.
        marks: what the model's thinking stands between, as pairs of (opening, closing).
        thinking: whether the text begins inside of it.
    """

    def __init__(self, rule: Rule, marks: Sequence[tuple[str, str]] = (), *, thinking: bool = False) -> None:
        self._rule = rule
        self._opening, self._closing = (_any_of([pair[side] for pair in marks]) for side in (0, 1))
        self._names = [mark for pair in marks for mark in pair]
        self._mark_starts, self._mark_ends = ({mark[place] for mark in self._names} for place in (0, -1))
        self._longest_mark = max(map(len, self._names), default=0)
        self.position = 0
        """Characters taken in."""
        self.thinking = thinking
        """Whether what comes next stands in the model's thinking."""
        self._step_thinking = thinking
        self._step = 0
        """Where the step begins that is being written."""
        self._written = False
        """Something stands there that is no white space."""
        self._has_content = False
        """The step has what a step needs."""
        self._cut: int | None = None
        """Where the next step begins, if content follows."""
        self._pinned = False
        """It does so there whatever the next lines are: the model's thinking begins."""
        self._forced = False
        """The next line begins a step, whatever it is."""
        self._line = ""
        self._empty = 0
        """Characters at its beginning that are known to have no content."""
        self._blanks = 0
        self._began: bool | None = None
        """Whether a step began with this line; None: not known yet."""
        self._limit = rule.longest_line
        """Characters of the line at which the next look for a place to cut it is due."""

    def copy(self) -> Segmenter:
        """One that goes on from here by itself."""
        other = copy.copy(self)
        other._rule = copy.copy(self._rule)
        return other

    def feed(self, text: str) -> list[Ended]:
        """Take a piece of the text in; the steps that have ended, as far as is known by now."""
        ended: list[Ended] = []
        while text:
            newline = text.find("\n") + 1 if self._rule.by_line else 0
            piece = text[:newline] if newline else text
            piece = piece[: max(1, self._limit - len(self._line))]
            mark = self._mark(piece)
            if mark is not None:
                piece = piece[: mark.end() - len(self._line)]
            text = text[len(piece) :]
            self.position += len(piece)
            looked = max(0, len(self._line) - self._longest_mark)
            self._line += piece
            if mark is not None:
                self._pass(mark, ended)
                continue
            known = len(self._line) - self._held()
            self._line, rest = self._line[:known], self._line[known:]
            self._break(ended, looked, len(rest))
            if self._line:
                self._read(ended, len(rest), whole=bool(newline) and self._line[-1] == "\n")
            self._line += rest
        return ended

    def close(self) -> list[Ended]:
        """The text is at its end: what was not told of yet, the last step included; nothing of a blank text."""
        ended: list[Ended] = []
        if self._line.strip():
            self._read(ended, whole=True)
        if self._written:
            ended.append(Ended(self.position, self._step_thinking))
        return ended

    def _break(self, ended: list[Ended], looked: int, after: int = 0) -> None:
        """Read what the rule takes for lines of their own, and leave the rest."""
        while (end := self._rule.breaks(self._line, looked)) is not None:
            self._line, rest, looked = self._line[:end], self._line[end:], 0
            self._read(ended, len(rest) + after, whole=True)
            self._line = rest

    def _held(self) -> int:
        """Characters at the end of the line that may become a mark: nothing is concluded from them yet."""
        tail = self._line[-self._longest_mark :]
        if self._mark_starts.isdisjoint(tail):
            return 0
        return max((n for mark in self._names for n in range(1, len(mark)) if tail.endswith(mark[:n])), default=0)

    def _mark(self, piece: str) -> re.Match[str] | None:
        """The first mark of the model's thinking that ends in this piece of the line."""
        if self._mark_ends.isdisjoint(piece):
            return None
        line, start = self._line + piece, max(0, len(self._line) - self._longest_mark)
        found = (pattern.search(line, start) for pattern in (self._opening, self._closing))
        return min((m for m in found if m and m.end() > len(self._line)), key=lambda m: m.end(), default=None)

    def _pass(self, mark: re.Match[str], ended: list[Ended]) -> None:
        """The line ends in a mark: a step ends before one that opens, after one that closes."""
        opens = mark.re is self._opening
        name, self._line = self._line[mark.start() :], self._line[: mark.start()]
        self._break(ended, 0, len(name))
        if self._line.strip():
            self._read(ended, len(name), whole=True)
        self._rule.reset()
        self._cut = self.position - len(name) if opens and self._has_content else None
        self._pinned = self._cut is not None
        self._forced = not opens and self._has_content
        self._line, self._began, self._blanks, self.thinking, self._written = "", None, 0, opens, True
        self._limit, self._empty = self._rule.longest_line, 0

    def _read(self, ended: list[Ended], after: int = 0, *, whole: bool) -> None:
        """Look at the line so far, before which all was looked at; ``after`` characters of the text stand behind it."""
        rule, line = self._rule, self._line
        start = self.position - after - len(line)
        if not line.strip():
            whole = whole or len(line) >= self._limit
            if whole and self._written:
                self._blanks += 1
                rule.blank()
            self._line = "" if whole else line
            return
        self._written = True
        if self._began is None:
            self._began = self._begins(line, start, whole=whole)
            if self._began:  # line breaks behind a mark belong to the step before, as blank lines do
                self._cut = start + len(line) - len(line.lstrip("\r\n"))
        content = rule.content(line[self._empty :])
        if not content:
            self._empty = len(line)
        if content and self._cut is not None and self._began is not None:
            self._end(self._cut, ended)
            self._cut = None
        if content and self._cut is None and not self._has_content:
            self._has_content, self._step_thinking = True, self.thinking
        if len(line) >= self._limit:
            whole = self._shorten(line, start, ended) or whole
        if whole:
            rule.take(self._line, self._blanks, began=bool(self._began))
            self._line, self._blanks, self._began, self._limit, self._empty = "", 0, None, rule.longest_line, 0

    def _begins(self, line: str, start: int, *, whole: bool) -> bool | None:
        if not self._has_content or self._pinned:
            return False
        if self._forced or start - self._step >= self._rule.longest_step:
            if not self._forced:
                self._rule.reset()
            self._forced = False
            return True
        began = self._rule.begins(line, self._blanks, whole=whole)
        return bool(began) if whole or len(line) >= self._limit else began

    def _end(self, end: int, ended: list[Ended]) -> None:
        """The step ends here, and another one begins."""
        ended.append(Ended(end, self._step_thinking))
        self._pinned = False
        self._step, self._has_content, self._step_thinking = end, False, self.thinking

    def _shorten(self, line: str, start: int, ended: list[Ended]) -> bool:
        """Cut a line that has become too long at the last sentence's end, or, if there is none for long, between words.

        Whether it is to be taken for a whole line: there is no place to cut it, nor will there be soon.
        """
        rule, longest = self._rule, self._rule.longest_line
        self._limit += max(1, longest // _LOOKS)
        stuck = len(line) >= _PATIENCE * longest
        if self._cut is not None or self._empty == len(line):
            return stuck
        places = list(sentence_ends(line))
        if not places and stuck:
            places = [line.rfind(" ", 0, -1) + 1 or len(line) - 1]
        after, end = False, len(line)
        for place in reversed(places):
            after, end = after or rule.content(line[place:end]), place
            if after and not rule.content(line[:place]):
                break
            if after:
                self._end(start + place, ended)
                self._has_content = True
                self._line, self._limit, self._empty = line[place:], longest, 0
                return False
        return stuck


def sentence_ends(text: str, looked: int = 0) -> Iterator[int]:
    """Where sentences begin after the first one: each is known once the character that begins it is there.

    Of the first ``looked`` characters those are left out that were known from them.

    A single letter, an abbreviation with points in it and a capitalised word of up to three letters ("Mr.") end none.
    """
    for match in _SENTENCE_END.finditer(text, len(text[:looked].rstrip(_AT_END))):
        word = _LAST_WORD.search(text, max(0, match.start() - 20), match.start())
        if match[1] or word is None or not _ABBREVIATION.fullmatch(word[0]):
            yield match.end()


_SENTENCE_END = re.compile(
    r"""(?<![.!?])[.!?]++["'”’)\]*_$]*+\s++(?=[^\sa-z])|(?<![。！？])([。！？]++["”’）」』]*+\s*+)(?=[^\sa-z])"""
)
"""Without backtracking: of what is read again with each token, a run of points must not cost its square."""
_AT_END = ".!?。！？\"'”’)]*_$）」』" + "".join(filter(str.isspace, map(chr, range(0x3001))))
_LAST_WORD = re.compile(r"[^\s(\"'“‘\[*_]+\Z")
_ABBREVIATION = re.compile(r"[^\W\d_]|[A-Z][a-z]{1,2}|[^\W\d_]+(\.[^\W\d_]+)+")


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)) or r"(?!)")
