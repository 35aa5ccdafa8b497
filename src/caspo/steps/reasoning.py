"""The rule `reasoning`: a step is a unit of reasoning, whatever a model writes it as.

A blank line ends a step. A line that announces something (it ends in a colon, or is a heading) keeps what it announces,
also over blank lines. Displayed maths, fenced code, tables, and a list item with what is indented under it stay whole. A
list that was announced stays with its announcement; in a solution without blank lines only as long as its items just say
what will be done: once a numbered one works something out, each is a step. Headings ("### ...", "Step 3:", a line in bold)
begin a step. Without blank lines, where a model writes one line after the other, each line that could stand alone is a step.

Only structure decides, no list of words.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["Reasoning"]

_LONGEST_LINE = 1000
"""Characters of a line of prose: about 150 words, 200 tokens."""
_LONGEST_STEP = 4 * _LONGEST_LINE
_LONGEST_BLOCK = 16384
"""Characters of a display, a fence or a table: a longer one was never closed."""

_ITEM = re.compile(r"[-*+•·–]\s|\(?[A-Za-z][.)]\s")
_NUMBERED = re.compile(r"\(?\d{1,3}[.)]\s")
_LETTERED = re.compile(r"\(?[A-Za-z][.)]\s")
_HEADING = re.compile(r"#{1,6}\s")
_DISPLAY = re.compile(r"\\\[|\$\$|\\begin\{|\[\s*\Z")
_FENCE = re.compile(r"`{3,}|~{3,}")
_PERHAPS = re.compile(r"[-*+•·–]|\(?(?:\d{1,3}|[A-Za-z])?[.)]?|#{1,6}|`{1,2}|~{1,2}|\\(?:b(?:e(?:g(?:in?)?)?)?)?|\$|\[\s*")
"""The beginning of a line that may become any of the above."""
_LABEL = re.compile(r"[^\W\d_]+\s+\d+\s?[:)]|[*_]{1,3}[^\W\d_]+\s+\d+\s?[:.)*_]")
"""A word and a number: "Step 3:", "**Case 2.**"."""
_PERHAPS_LABEL = re.compile(r"[*_]{0,3}(?:[^\W\d_]+(?:\s+(?:\d+[*_]{0,3}\s?)?)?)?")
_LISTING = re.compile(r"[:：]\s+(?:[-*•]|\(?1[.)])\s")
"""The first item of a list, in the line that announces it."""
_BOLD = re.compile(r"(\*\*|__)(?:(?!\1).)+\1[:.]?")
_AROUND = " \t\r\n*_\"'”’)]}$\\"
"""What may stand after the point that ends a sentence."""

_Kind = Literal["text", "bullet", "numbered", "heading", "display", "fence", "table"]


class _List(NamedTuple):
    """The list that the last line belongs to."""

    indent: int
    announced: bool
    worked: bool
    """An item worked something out: it has an equation, a display, or more than its line."""


class Reasoning:
    """What the lines so far were. Implements `Rule`."""

    by_line = True

    def __init__(self) -> None:
        self._block = ""
        """What closes the block that is open: a fence or the end of a display."""
        self._last: _Kind = "text"
        self._announces: Literal["", "colon", "title", "label"] = ""
        """How the last line announces what follows."""
        self._list: _List | None = None
        self._indent = 0
        """Of the step's first line."""
        self._whole = False
        """The last line ends as a sentence does."""
        self._unfinished = False
        """The last line ends in a comma."""
        self._by_line = self._by_blank = 0
        """Steps that were ended by a line break, and by a blank line."""

    @property
    def longest_line(self) -> int:
        """More in a block."""
        return _LONGEST_BLOCK if self._block else _LONGEST_LINE

    @property
    def longest_step(self) -> int:
        """More in a block."""
        return _LONGEST_BLOCK if self._block or self._last == "table" else _LONGEST_STEP

    def content(self, text: str) -> bool:
        """A letter or a digit."""
        return any(map(str.isalnum, text))

    def breaks(self, line: str, looked: int) -> int | None:
        """Never inside a line."""
        return None

    def begins(self, line: str, blanks: int, *, whole: bool) -> bool | None:
        """Whether a step begins with this line."""
        if self._block:
            return False
        text = line.lstrip()
        kind = _kind(text, whole=whole)
        if kind is None:
            return None
        begins = self._splits(kind, text, _indent(line), blanks)
        if begins is not False or kind != "text":
            return begins
        # It goes on with the step, unless it turns out to be a heading.
        if _LABEL.match(text):
            return self._announces in ("", "label")
        if _is_bold(text):
            return not self._announces if whole else None
        return None if not whole and (_PERHAPS_LABEL.fullmatch(text) or text.startswith(("**", "__"))) else False

    def _splits(self, kind: _Kind, text: str, indent: int, blanks: int) -> bool | None:
        """Whether a line of this kind begins a step here; None: its first letter has to be known."""
        if self._announces or (self._unfinished and not blanks):
            return False
        if kind == "heading":
            return True
        inside = self._list is not None and indent >= self._list.indent + 2
        if inside or kind == "display":
            return False
        return True if blanks else self._splits_paragraph(kind, text, indent)

    def _splits_paragraph(self, kind: _Kind, text: str, indent: int) -> bool | None:
        """The same, with no blank line before."""
        listed = self._list
        if kind in ("table", "fence"):
            return False
        if kind in ("bullet", "numbered"):
            if listed is not None and listed.announced:
                return kind == "numbered" and listed.worked and self._terse
            return self._terse or (kind == "numbered" and listed is not None)
        if indent >= self._indent + 2:
            return False
        if self._last == "display":
            begun = text.lstrip("*_\"'“‘(")
            return (self._terse and self._by_line > 0 and not begun[0].islower()) if begun else None
        return self._last in ("table", "fence") or self._terse or (self._whole and listed is None)

    @property
    def _terse(self) -> bool:
        """Whether lines are ended by line breaks here, and not by blank lines."""
        return self._by_line > 2 * self._by_blank or not self._by_blank

    def take(self, line: str, blanks: int, *, began: bool) -> None:
        """Note what the line was, and what it opens or announces."""
        text, indent = line.strip(), _indent(line)
        if began:
            self._by_blank += blanks > 0
            self._by_line += not blanks and self._last == "text"
            self._indent = indent
        if self._block:
            self._in_block(text)
            return
        kind = _kind(text, whole=True) or "text"
        self._note_list(kind, text, indent, blanks)
        self._last, self._block = kind, _opened(text)
        if self._block:
            self._last = "fence" if self._block[0] in "`~" else "display"
        self._announces = _announces(kind, text)
        self._unfinished = text.rstrip(_AROUND).endswith((",", ";", "，"))
        self._whole = text.rstrip(_AROUND).endswith((".", "!", "?", "…", "。", "！", "？"))

    def _in_block(self, text: str) -> None:
        closed = text.startswith(self._block) if self._block[0] in "`~" else self._block in text
        if closed:
            self._block = ""
            self._announces = ""
            if self._list is not None:
                self._list = self._list._replace(worked=True)

    def _note_list(self, kind: _Kind, text: str, indent: int, blanks: int) -> None:
        listed, item = self._list, kind in ("bullet", "numbered")
        if listed is not None and (indent >= listed.indent + 2 or kind == "display"):
            self._list = listed._replace(worked=True)
        elif item:
            announced = bool(self._announces or _LETTERED.match(text)) if listed is None else listed.announced and not blanks
            self._list = _List(indent, announced, bool(listed and listed.worked) or _equation(text))
        elif _LISTING.search(text):
            self._list = _List(indent, True, False)
        elif not self._announces:
            self._list = None

    def blank(self) -> None:
        """Ends a display: LaTeX has none with a blank line."""
        if self._block and self._block[0] not in "`~":
            self._block = ""

    def reset(self) -> None:
        """No block, list or announcement goes on from here."""
        self._block, self._announces, self._list, self._last = "", "", None, "text"


def _kind(text: str, *, whole: bool) -> _Kind | None:
    """What a line is by its beginning; None: more of it has to be known."""
    if not whole and _PERHAPS.fullmatch(text):
        return None
    patterns: dict[_Kind, re.Pattern[str]] = {
        "bullet": _ITEM, "numbered": _NUMBERED, "heading": _HEADING, "display": _DISPLAY, "fence": _FENCE
    }  # fmt: skip
    if text.startswith("|"):
        return "table"
    return next((kind for kind, pattern in patterns.items() if pattern.match(text)), "text")


def _opened(text: str) -> str:
    """What closes the block that this line opens and does not close; empty: it opens none."""
    fence = re.match(r"(?:[-*+]\s+|\d+[.)]\s+)?(`{3,}|~{3,})", text)
    if fence:
        return "" if fence[1] in text[fence.end() :] else fence[1]
    if text in ("[", "\\["):
        return "]" if text == "[" else "\\]"
    if text.rfind("\\[") > text.rfind("\\]"):
        return "\\]"
    if text.count("$$") % 2:
        return "$$"
    begun = text.rfind("\\begin{")
    return "\\end{" if begun > text.rfind("\\end{") else ""


def _announces(kind: _Kind, text: str) -> Literal["", "colon", "title", "label"]:
    if text.rstrip("*_ ").endswith((":", "：")):
        return "colon"
    if kind == "heading" or _is_bold(_NUMBERED.sub("", text, count=1)):
        return "title"
    if _LABEL.match(text) and not _equation(text) and not text.rstrip(_AROUND).endswith((".", "!", "?")):
        return "label"
    return ""


def _is_bold(text: str) -> bool:
    """Whether all of a line is in bold: a heading."""
    return _BOLD.fullmatch(text.strip()) is not None


def _equation(text: str) -> bool:
    return "=" in text and any(map(str.isdigit, text))


def _indent(line: str) -> int:
    """Columns before the text; a tab is four."""
    return len(line[: len(line) - len(line.lstrip())].expandtabs(4))
