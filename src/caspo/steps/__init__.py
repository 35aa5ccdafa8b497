"""Where a solution's steps begin and end, and what they calculate.

A step is a line. `split_steps` cuts text, `split_tokens` cuts generated tokens by the same rule. `equations` finds the
statements ``lhs = rhs`` that a step makes in running text (equations.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from caspo.steps.equations import Equation, Expression, equations

__all__ = ["Equation", "Expression", "StepReader", "equations", "split_steps", "split_tokens", "step_key"]


def split_steps(text: str) -> list[str]:
    """Cut a solution into its lines; ``"".join(split_steps(text)) == text`` unless the text is blank (then ``[]``).

    A step keeps its line break. A blank line belongs to the step before it, or, at the very start, to the one after.
    """
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    return [text[a:b] for a, b in _spans(lines, [len(line) for line in lines])]


def split_tokens(token_ids: Sequence[int], pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Token spans ``(start, end)`` of the steps, given the text of each token; together they cover all tokens.

    A token with a line break anywhere in it ends its step and stays in it whole. Blank steps go by the rule of
    `split_steps`; tokens without text (EOS) therefore stay with the last step. Only blank tokens: no steps.

    >>> split_tokens([5, 6, 7, 8], ["a", " b\\n", "\\n", "c"])
    [(0, 3), (3, 4)]
    """
    assert len(token_ids) == len(pieces), f"{len(token_ids)} tokens but {len(pieces)} pieces of text"
    lines, sizes, start = [], [], 0
    for i, piece in enumerate(pieces):
        if "\n" in piece or i + 1 == len(pieces):
            lines.append("".join(pieces[start : i + 1]))
            sizes.append(i + 1 - start)
            start = i + 1
    return _spans(lines, sizes)


class StepReader:
    """Cuts tokens into the steps of `split_tokens` while they come: a step has ended once text follows its line break."""

    def __init__(self) -> None:
        self._size = 0
        """Tokens of the step that is being written."""
        self._line_start = 0
        """Where its last line begins; 0 while it has no line with text before that."""
        self._line_written = False

    def take(self, piece: str) -> int:
        """Take the next token's text in; how many tokens the step has that ended before it, 0 if none did."""
        ended = 0
        if piece.strip() and not self._line_written:
            self._line_written = True
            ended = self._line_start
            self._size -= ended
            self._line_start = 0
        self._size += 1
        if "\n" in piece and (self._line_written or self._line_start):
            self._line_start, self._line_written = self._size, False
        return ended


def _spans(lines: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Merge blank lines into their neighbours; positions are in the unit of ``sizes``."""
    starts: list[int] = []
    position = 0
    for line, size in zip(lines, sizes, strict=True):
        if line.strip():
            starts.append(position if starts else 0)
        position += size
    return list(zip(starts, [*starts[1:], position], strict=True)) if starts else []


def step_key(text: str) -> str:
    """Two sampled steps with the same key are the same step: the text with its white space normalised."""
    return " ".join(text.split())
