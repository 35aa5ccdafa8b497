"""Whether two answers are the same: exactly as numbers, as normalised text, part by part, then as mathematics.

What is not covered: rounding (0.33 is not 1/3; graders that allow it say so) and conversion of units (a unit is ignored
only where the other answer has none).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from caspo.answers.mathematics import same_mathematics
from caspo.answers.values import TEXT, parse_number, without_unit

__all__ = ["group_answers", "normalised", "same_answer", "several"]

MAX_PARTS = 20
"""Answers in one answer; more are compared as one formula. Each may cost a comparison with each."""

_NAMED = re.compile(r"\s*([a-zA-Z](?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?)\s*=(?!=)\s*([^=]+)")
_SEVERAL_IN_ONE = re.compile(r"\\pm|\\mp|±|[(\[{]")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\bdegrees?\b")
_BASED = re.compile(r"([0-9A-Fa-f]+)_\{?([0-9]+)\}?")


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers have the same value. Nothing equals an empty or missing answer, not even another one.

    Several answers, separated by commas, may come in any order; coordinates may not. "x = 5" is 5.

    >>> same_answer("1e6", "1,000,000"), same_answer("18 apples", "$18.0"), same_answer("18", "180")
    (True, True, False)
    >>> same_answer("x = 1, x = 2", "2, 1"), same_answer("(1, 2)", "(2, 1)")
    (True, False)
    """
    if a is None or b is None or not a.strip() or not b.strip():
        return False
    x, y = parse_number(a), parse_number(b)
    if x is not None and y is not None:
        return x == y
    if normalised(a) == normalised(b):
        return True
    forms = _same_form(a, b)
    return same_answer(*forms) if forms else _same_formula(a, b)


def _same_formula(a: str, b: str) -> bool:
    based_a, based_b = _BASED.fullmatch(_tight(a)), _BASED.fullmatch(_tight(b))
    if based_a or based_b:  # the same digits in another base are another number
        return _digits(a, based_a, based_b) == _digits(b, based_b, based_a)
    parts_a, parts_b = several(a), several(b)
    if 1 < len(parts_a) == len(parts_b) <= MAX_PARTS:
        return _same_parts(parts_a, parts_b)
    fewer = a if len(parts_a) < len(parts_b) else b
    return (len(parts_a) == len(parts_b) or bool(_SEVERAL_IN_ONE.search(fewer))) and same_mathematics(a, b)


def _same_form(a: str, b: str) -> tuple[str, str] | None:
    """Both without the unit, or the "x =", that only one of them has, or with one name both; None where nothing changes."""
    bare_a, bare_b = without_unit(a), without_unit(b)
    if (bare_a is None) != (bare_b is None):
        return bare_a or a, bare_b or b
    named_a, named_b = _NAMED.fullmatch(a), _NAMED.fullmatch(b)
    if (named_a is None) != (named_b is None) or (named_a and named_b and named_a[1] == named_b[1]):
        return named_a[2] if named_a else a, named_b[2] if named_b else b
    return None


def _digits(text: str, mine: re.Match[str] | None, other: re.Match[str] | None) -> tuple[str, ...]:
    """Digits, and the base where both sides name one."""
    return (mine.groups() if other else (mine[1],)) if mine else (_tight(text),)


def several(answer: str) -> list[str]:
    r"""The parts of an answer that its commas, "and" and "or" separate, outside all brackets; one part where there are none.

    >>> several("(1,2), (3,4)"), several(r"\{1, 2\}"), several("1,000"), several("x = 1 or x = 2")
    (['(1,2)', '(3,4)'], ['1', '2'], ['1,000'], ['x = 1', 'x = 2'])
    """
    answer = answer.strip().strip("$").strip()
    if parse_number(answer) is not None:
        return [answer]
    if match := re.fullmatch(r"\\(?:left)?\\\{(.*?)\\(?:right)?\\\}|\\\{(.*)\\\}", answer, re.DOTALL):
        inner = match[1] or match[2] or ""
        if "\\{" not in inner and "\\}" not in inner:
            answer = inner
    depth, start, parts = 0, 0, []
    for match in re.finditer(r"\\[{}]|[()\[\]{}]|,(?!\\!)|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b", answer):
        token = match.group().removeprefix("\\")
        if token in ("(", "[", "{"):
            depth += 1
        elif token in (")", "]", "}"):
            depth -= 1
        elif depth == 0:
            parts.append(answer[start : match.start()])
            start = match.end()
    parts.append(answer[start:])
    return [part.strip() for part in parts if part.strip()] or [answer]


def _same_parts(a: Sequence[str], b: Sequence[str]) -> bool:
    left = list(b)
    for part in a:
        found = next((i for i, other in enumerate(left) if same_answer(part, other)), None)
        if found is None:
            return False
        del left[found]
    return True


def _tight(answer: str) -> str:
    return re.sub(r"[$\s]", "", answer)


def normalised(answer: str) -> str:
    """Text as it is compared: without LaTeX's spacing and sizes, white space and case; "(B)" is "b"."""
    answer = _DEGREES.sub("°", TEXT.sub(r"\1", answer.strip().rstrip(".")))
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    answer = re.sub(r"\\left|\\right|\\[,;!]|[$\s]", "", answer).casefold()
    return answer[1:-1] if re.fullmatch(r"\([a-z]\)", answer) else answer


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """For each answer the index of its group, numbered in order of appearance; equal answers share a group.

    An answer is compared with the first of each group. Empty and missing answers stay alone: they get no votes.

    >>> group_answers(["18", "$18.00", "20", "", "18"])
    [0, 0, 1, 2, 0]
    """
    groups: list[int] = []
    firsts: list[str | None] = []
    seen: dict[str, int] = {}
    for answer in answers:
        group = seen.get(answer) if answer is not None else None
        if group is None:
            group = next((i for i, first in enumerate(firsts) if same_answer(answer, first)), len(firsts))
            if group == len(firsts):
                firsts.append(answer)
            if answer is not None and answer.strip():
                seen[answer] = group
        groups.append(group)
    return groups
