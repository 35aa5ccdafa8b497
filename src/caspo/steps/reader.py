"""From tokens to text and to steps, while the tokens come.

A token is bytes: a character may be several tokens, and a token several characters. So texts are made of all the bytes of a
span together, and a step is a span of whole tokens: one that holds the end of a step and the beginning of the next belongs
to the step before.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from caspo.steps.parting import Parting
from caspo.steps.rules import rule_of
from caspo.steps.segmenter import Segmenter

__all__ = [
    "THINKING",
    "Characters",
    "Reading",
    "StepReader",
    "Taken",
    "in_thinking",
    "split_steps",
    "split_tokens",
    "text_of",
]

THINKING = ("<think>", "</think>")
"""What most models put around their thinking."""


def text_of(pieces: Iterable[bytes]) -> str:
    """The text of some tokens together; what is no UTF-8, such as half a character at an end, becomes U+FFFD."""
    return b"".join(pieces).decode("utf-8", errors="replace")


class Characters:
    """Makes text of bytes that come in pieces; an unfinished character waits for its rest.

    >>> characters = Characters()
    >>> characters.take("½".encode()[:1]), characters.take("½".encode()[1:])
    ('', '½')
    """

    def __init__(self) -> None:
        self._waiting = b""

    def take(self, piece: bytes) -> str:
        """The characters that are whole now."""
        if not self._waiting and piece.isascii():
            return piece.decode("ascii")
        data = self._waiting + piece
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._waiting = data[used:]
        return text


@dataclass(frozen=True)
class Reading:
    """How a model's text is read."""

    steps: str = "reasoning"
    """The rule that cuts it into steps (`caspo.steps.rules`)."""
    thinking: tuple[tuple[str, str], ...] = (THINKING,)
    """The marks that its thinking stands between, as (opening, closing)."""
    turn: str = ""
    """What begins another turn of the conversation, at the beginning of a line: a model that writes it has ended its own."""

    def reader(self, prompt_end: str = "") -> StepReader:
        """A reader of a solution whose prompt ends so: some templates open the model's thinking themselves."""
        thinking = any(prompt_end.rstrip().endswith(opening) for opening, _ in self.thinking)
        return StepReader(Segmenter(rule_of(self.steps), self.thinking, thinking=thinking))

    def answer_text(self, text: str, *, thinking: bool = False) -> str:
        """What a solution says after its thinking; nothing while that is not finished (``thinking``: it begins inside)."""
        for opening, closing in self.thinking:
            _before, mark, after = text.rpartition(closing)
            if mark:
                text, thinking = after, False
            if opening in text:
                text = text[: text.index(opening)]
        return "" if thinking else text


class Taken(NamedTuple):
    """A step that has ended."""

    end: int
    """Tokens of the solution up to its end."""
    thinking: bool


class StepReader:
    """Cuts a solution's tokens into steps while they come."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        self._characters = Characters()
        self._starts: list[int] = []
        """Characters before each token since `_base`."""
        self._base = 0
        self._last = 0
        self.thought = 0
        """Tokens of the model's thinking among those taken in, its marks included."""

    @property
    def tokens(self) -> int:
        """Tokens taken in."""
        return self._base + len(self._starts)

    @property
    def thinking(self) -> bool:
        """Whether what comes next stands in the model's thinking."""
        return self._segmenter.thinking

    @property
    def between(self) -> bool:
        """Whether what comes next begins a step, as is known by now: at the start, or where the last token holds the
        beginning of the next step already."""
        return self._last == self.tokens

    def copy(self) -> StepReader:
        """One that goes on from here by itself."""
        other = StepReader(self._segmenter.copy())
        other._characters._waiting = self._characters._waiting
        other._starts, other._base, other._last = self._starts.copy(), self._base, self._last
        other.thought = self.thought
        return other

    def take(self, piece: bytes) -> list[Taken]:
        """Take the next token's bytes in; the steps that have ended, as far as is known by now."""
        segmenter = self._segmenter
        self._starts.append(segmenter.position)
        before = segmenter.thinking
        ended = segmenter.feed(self._characters.take(piece))
        self.thought += before or segmenter.thinking
        return [] if not ended else self._in_tokens([(e.end, e.thinking) for e in ended])

    def close(self) -> list[Taken]:
        """The solution is at its end: the steps that were not told of yet; the last one has all tokens that are left."""
        segmenter = self._segmenter
        ended = segmenter.feed("\ufffd" if self._characters._waiting else "")
        ended += segmenter.close()
        if not ended:
            return []
        *others, last = ended
        taken = self._in_tokens([(e.end, e.thinking) for e in others])
        return [*taken, Taken(self.tokens, last.thinking)] if self.tokens > self._last else taken

    def _in_tokens(self, ended: Sequence[tuple[int, bool]]) -> list[Taken]:
        taken = []
        for end, thinking in ended:
            token = self._base + bisect_left(self._starts, end)
            if token > self._last:
                taken.append(Taken(token, thinking))
                self._starts = self._starts[token - self._base :]
                self._base = self._last = token
        return taken


def split_steps(text: str, steps: str = "reasoning") -> list[str]:
    """Cut a finished solution into its steps; joined they are the text, unless it is blank (then ``[]``)."""
    reading = Reading(steps)
    segmenter = Segmenter(rule_of(steps), reading.thinking, thinking=_begins_inside(text, reading))
    ends = [ended.end for ended in (*segmenter.feed(text), *segmenter.close())]
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def split_tokens(pieces: Sequence[bytes], steps: str = "reasoning") -> list[tuple[int, int]]:
    """Token spans ``(start, end)`` of the steps, given the bytes of each token; together they cover all tokens.

    Tokens without text (EOS) stay with the last step. Only blank tokens: no steps.

    >>> split_tokens([b"a", b" b\\n", b"\\n", b"c"])
    [(0, 3), (3, 4)]
    """
    reader = Reading(steps).reader()
    ends = [taken.end for piece in pieces for taken in reader.take(piece)]
    ends += [taken.end for taken in reader.close()]
    return list(zip([0, *ends], ends, strict=False))


def in_thinking(steps: Sequence[str], marks: Sequence[tuple[str, str]] = (THINKING,)) -> list[bool]:
    """Which steps of a solution, cut by whomever, stand in the model's thinking: those that begin there."""
    text = "".join(steps)
    parting = Parting(marks, thinking=_begins_inside(text, Reading(thinking=tuple(marks))))
    parts = [part for part in (*parting.feed(text), *parting.rest()) if not part.text.isspace()]
    ends = list(accumulate(map(len, steps)))
    return [next((p.thinking for p in parts if p.start < end and p.start + len(p.text) > start), False)
            for start, end in zip([0, *ends], ends, strict=False)]  # fmt: skip


def _begins_inside(text: str, reading: Reading) -> bool:
    """Whether a text closes thinking that it did not open: its prompt did."""
    closed = min((at for _, closing in reading.thinking if (at := text.find(closing)) >= 0), default=0)
    return closed > 0 and not any(opening in text[:closed] for opening, _ in reading.thinking)
