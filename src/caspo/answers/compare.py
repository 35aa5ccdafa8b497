r"""Whether two answers are the same.

Every answer has a key: its number and unit, the keys of its parts, the fingerprint of its formula, or its words. Answers are
the same exactly if their keys are equal, so that sameness is an equivalence relation: groups do not depend on the order.

- A number is a number however it is written; units are converted; percent is hundredths ("60%" is "0.6"), cents are
  hundredths of a dollar. Dollars, degrees and the things that are counted say nothing of a number ("$5", "5 eggs", "5").
- The name before "=" says nothing ("x = 5", "f(3) = 5", "5"); several names do ("x = 1, y = 2" is not "x = 2, y = 1").
  A curve is an equation ("y = 2x + 3"). Times and ratios are no numbers ("3:30", "3:4").
- Parts that commas, "and", "or" and braces make come in any order; coordinates do not. "x < 3" is "(-\infty, 3)".
- Nothing is rounded.

What is right for a known answer is said in `known`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from caspo.answers.mathematics import fingerprint
from caspo.answers.parts import (
    MAX_LENGTH,
    builder,
    enclosed,
    label,
    named,
    plus_minus,
    relation,
    several,
    tight,
    undecorated,
)
from caspo.answers.quantities import quantity
from caspo.answers.values import TEXT, in_words, parse_number

__all__ = ["BASED", "TIME", "Key", "group_answers", "key", "normalised", "same_answer", "values_by_name"]

Key = tuple[object, ...]
"""What an answer is compared by: its kind, then what makes it up."""

MAX_DEPTH = 6
"""Of brackets in brackets."""

_INFINITE = re.compile(r"([+-]?)\s*(?:\\infty|∞|infinity|\\inf|inf|oo)")
_EVERYTHING = re.compile(r"\\mathbb\s*\{?R\}?|\\R|ℝ|all\s+real\s+numbers|all\s+reals|\\text\{\s*all real numbers\s*\}")
_NOTHING = re.compile(
    r"\\emptyset|\\varnothing|∅|\\\{\s*\\\}|(?:the )?empty set|\\text\{\s*(?:the )?empty set\s*\}", re.IGNORECASE
)
_ALL_BUT = re.compile(
    r"(?:[a-zA-Z]\s*(?:\\in|∈)\s*)?(?:\\mathbb\s*\{?R\}?|ℝ|all\s+real\s+numbers)\s*(?:\\setminus|\\backslash|\\|-|except|but)\s*((?:\\\{)?.+)"
)
TIME = re.compile(
    r"([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?"
    r"(?:(?:\s|\\[,; ])*(?:\\(?:text|mathrm)\s*\{\s*)?([aApP])\.?\s?[mM]\.?\}?)?"
)
BASED = re.compile(
    r"(?:\\text\{)?\(?([0-9A-Fa-f]+)\)?\}?_(?:\{?\(?([0-9]+)\)?\}?|\{?(?:\\text\{)?\(?([a-z]{3,9})\)?\}{0,2})"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\bdegrees?\b")


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers say the same. Nothing equals an empty or missing answer, not even another one.

    >>> same_answer("1e6", "1,000,000"), same_answer("18 apples", "$18.0"), same_answer("18", "180")
    (True, True, False)
    >>> same_answer("x = 1, x = 2", "2, 1"), same_answer("(1, 2)", "(2, 1)"), same_answer("5 km", "5000 m")
    (True, False, True)
    """
    mine = key(a)
    return mine is not None and mine == key(b)


def key(answer: str | None) -> Key | None:
    """What an answer is compared by; None where it says nothing."""
    return _key(answer, 0) if answer is not None and not answer.isspace() and answer else None


@lru_cache(maxsize=65536)
def _key(answer: str, depth: int) -> Key | None:
    number = parse_number(answer) if answer[-1:].isdigit() else None
    if number is not None and not answer.lstrip("-+").startswith(("€", "£", "¥", "₹")):
        return "number", number
    text = undecorated(answer)
    if not text:
        return ("text", answer.strip()) if answer.strip() else None
    if len(text) > MAX_LENGTH or depth > MAX_DEPTH:
        return "text", normalised(text)
    for read in _READERS:
        found = read(text, depth + 1)
        if found is not None:
            return found
    return "text", normalised(text)


def _number(text: str, _: int) -> Key | None:
    if match := _INFINITE.fullmatch(text):
        return "number", "-oo" if match[1] == "-" else "oo"
    if re.fullmatch(r"[+-]?[0-9]{1,3}(?:\\? [0-9]{3})+(?:\.[0-9]+)?", text):  # "9 500": as an answer, one number
        text = text.replace("\\", "").replace(" ", "")
    value = None if re.search(r"[%€£¥₹¢]", text) else parse_number(text)
    return ("number", value) if value is not None else None


def _sets(text: str, _: int) -> Key | None:
    if _EVERYTHING.fullmatch(text):
        return "(", ("number", "-oo"), ("number", "oo"), ")"
    if match := _ALL_BUT.fullmatch(text):
        return _all_but([key(part) for part in several(match[1])])
    return ("list",) if _NOTHING.fullmatch(text) else None


def _all_but(points: Sequence[Key | None]) -> Key | None:
    """All real numbers but some, as intervals."""
    numbers = sorted(p[1] for p in points if p is not None and p[0] == "number" and isinstance(p[1], Fraction))
    if not numbers or len(numbers) < len(points):
        return None
    ends: list[Key] = [("number", "-oo"), *(("number", n) for n in numbers), ("number", "oo")]
    return "list", *sorted((("(", a, b, ")") for a, b in itertools.pairwise(ends)), key=repr)


def _time(text: str, _: int) -> Key | None:
    """ "3:30 p.m.", "15:30"; half past three and half past fifteen are two times, and no ratios."""
    match = TIME.fullmatch(text)
    if match is None:
        return None
    hour, half = int(match[1]), (match[4] or "").casefold()
    if half and 1 <= hour <= 12:
        hour, half = hour % 12 + (12 if half == "p" else 0), ""
        half = "" if hour > 12 else "am" if hour < 12 else "pm"
    return "time", hour, int(match[2]), int(match[3] or 0), half


def _ratio(text: str, depth: int) -> Key | None:
    """ "3:4" is "6:8", and no number."""
    parts = re.split(r":|\\colon(?![a-z])", text)
    if not 2 <= len(parts) <= 5 or not all(part.strip() and re.search(r"[0-9a-z]", part) for part in parts):
        return None
    keys = [_key(part, depth) for part in parts]
    numbers = [k[1] for k in keys if k is not None and k[0] == "number" and isinstance(k[1], Fraction)]
    if len(numbers) == len(keys) and numbers[-1]:
        return "ratio", *(n / numbers[-1] for n in numbers)
    return ("ratio", *keys) if all(k is not None and k[0] in ("number", "formula") for k in keys) else None


def _list(text: str, depth: int) -> Key | None:
    parts = several(text)
    if len(parts) < 2 and parts[0] != text:
        return _key(parts[0], depth)
    if (length := _compound(parts if len(parts) > 1 else re.split(r"(?<=[a-z.])\s+(?=[0-9])", text))) is not None:
        return length
    if len(parts) < 2:
        return None
    if names := values_by_name(parts):
        return "named", *sorted(((name, _key(value, depth)) for name, value in names), key=repr)
    keys = [_key(part, depth) for part in parts]
    flat = [x for k in keys if k is not None for x in (k[1:] if k[0] == "list" else (k,))]
    return "list", *sorted(flat, key=repr)


def values_by_name(parts: Sequence[str]) -> list[tuple[str, str]] | None:
    """ "x = 1, y = 2": the values of different names, that are not only the roots x_1 and x_2 of one."""
    found = [pair for part in parts if (pair := named(part)) and pair[0]]
    names = [(re.sub(r"\\[({\[]|\\[)}\]]", "", tight(name)), value) for name, value in found]
    bases = {re.sub(r"_\{?\d+\}?$", "", name) for name, _ in names}
    return names if len(names) == len(parts) > 1 and len(bases) == len(parts) else None


def _compound(parts: Sequence[str]) -> Key | None:
    """ "2 hours and 30 minutes", "5 feet, 3 inches": one quantity, said with smaller and smaller units."""
    found = [quantity(part) for part in parts] if len(parts) > 1 else [None]
    total, last = Fraction(0), None
    for one in found:
        value = parse_number(one.number) if one is not None else None
        if one is None or value is None or not one.unit.dimension or (last and one.unit.dimension != last.dimension):
            return None
        if last is not None and one.unit.factor >= last.factor:
            return None
        total, last = total + value * one.unit.factor, one.unit
    return ("quantity", total, last.dimension, "") if last else None


def _union(text: str, depth: int) -> Key | None:
    parts = re.split(r"\\cup(?![a-zA-Z])|∪|\bU\b(?=\s*[(\[])", text)
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    keys = [_key(part, depth) for part in parts]
    flat = [x for k in keys if k is not None for x in (k[1:] if k[0] == "list" else (k,))]
    return "list", *sorted(flat, key=repr)


def _both_signs(text: str, depth: int) -> Key | None:
    two = plus_minus(text)
    keys = [_key(one, depth) for one in two] if two else []
    return ("list", *sorted((k for k in keys if k is not None), key=repr)) if keys else None


def _bracketed(text: str, depth: int) -> Key | None:
    """Coordinates, or an interval with two ends."""
    match = re.fullmatch(r"([(\[])(.*)([)\]])", text, re.DOTALL) if enclosed(text) else None
    parts = several(match[2], grouped=False) if match and match[2].strip() else []
    if match is None or len(parts) < 2 or re.search(r"\b(?:and|or)\b", match[2]):
        return None
    return match[1], *(_key(part, depth) for part in parts), match[3]


def _related(text: str, depth: int) -> Key | None:  # noqa: PLR0911
    """A name and what it is; an inequality of one variable as an interval; an equation up to a factor."""
    if inner := builder(text):
        return _key(inner, depth)
    if inner := label(text):
        return _key(inner, depth)
    sides = relation(text)
    if sides is None:
        return None
    if len(sides) == 5:  # a < x < b
        low, first, middle, second, high = sides
        if not (first[0] == second[0] and first[0] in "<>") or not _is_name(middle):
            return None
        if first[0] == ">":
            low, first, second, high = high, second, first, low
        return "[" if "=" in first else "(", _key(low, depth), _key(high, depth), "]" if "=" in second else ")"
    left, sign, right = sides
    if sign == "=":
        return _formula(f"({left}) - ({right})", "=")
    if _is_name(right) and not _is_name(left):
        left, sign, right = right, sign.translate(str.maketrans("<>", "><")), left
    bound = _key(right, depth)
    if sign[0] in "<>" and _is_name(left) and bound is not None and _is_constant(bound):
        upward, closed = sign[0] == ">", "=" in sign
        ends: tuple[object, object] = (bound, ("number", "oo")) if upward else (("number", "-oo"), bound)
        return "[" if upward and closed else "(", *ends, "]" if closed and not upward else ")"
    if sign == "!=" and _is_name(left) and (intervals := _all_but([bound])):
        return intervals
    if sign == "!=":
        return _formula(f"({left}) - ({right})", "=", "not")
    if sign[0] == ">":
        left, right = right, left
    return _formula(f"({left}) - ({right})", "<", "<=" if "=" in sign else "<")


def _is_name(text: str) -> bool:
    return re.fullmatch(r"\s*(?:\\[a-zA-Z]+|[a-zA-Z])(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?\s*", text) is not None


def _is_constant(found: Key) -> bool:
    return found[0] in ("number", "quantity") or (
        found[0] == "formula" and not str(found[1]).startswith(("values", "matrix"))
    )


def _quantity(text: str, depth: int) -> Key | None:
    found = quantity(text)
    if found is None:
        return None
    unit, value = found.unit, parse_number(found.number)
    if value is None:
        bare = _key(found.number, depth)
        if unit.factor != 1 and bare is not None and bare[0] == "formula":
            bare = _formula(f"({found.number}) \\cdot \\frac{{{unit.factor.numerator}}}{{{unit.factor.denominator}}}")
        if bare is None or bare[0] not in ("number", "formula"):
            return None
        if bare[0] == "formula":
            return ("quantity", bare[1], unit.dimension, found.words) if unit.dimension or found.words else bare
        value = bare[1] if isinstance(bare[1], Fraction) else None
        if value is None:
            return None
    if not unit.dimension and not found.words:
        return "number", value * unit.factor
    return "quantity", value * unit.factor, unit.dimension, found.words


def _based(text: str, _: int) -> Key | None:
    match = BASED.fullmatch(tight(text))
    if match is None or not any(c.isdigit() for c in match[1]):
        return None
    said = in_words([match[3]]) if match[3] else None
    base = int(said[0]) if said else int(match[2]) if len(match[2]) < 4 else None
    return ("base", match[1].upper(), base) if base else None


def _as_formula(text: str, _: int) -> Key | None:
    letters = re.fullmatch(r"\([a-zA-Z]\)|[^\W\d_²³¹]+", text) and text != "π"  # of a choice, or a word
    return _formula(text) if not letters and re.search(r"[0-9\\a-zA-Zπ]", text) else None


def _formula(latex: str, kind: str = "value", said: str = "") -> Key | None:
    found = fingerprint(latex, kind)
    if found is None:
        return None
    if found.startswith("number ") and kind == "value":
        return "number", Fraction(found.removeprefix("number "))
    return ("formula", found) if kind == "value" else (f"relation {kind}{said}", found)


_READERS: tuple[Callable[[str, int], Key | None], ...] = (
    _number, _sets, _time, _ratio, _bracketed, _list, _union, _both_signs, _quantity, _related, _based, _as_formula,
)  # fmt: skip


def normalised(answer: str) -> str:
    """Text as it is compared: without LaTeX's spacing and sizes, white space and case; "(B)" is "b"."""
    answer = _DEGREES.sub("°", TEXT.sub(r"\1", answer.strip().rstrip(".")))
    answer = re.sub(r"\\[dt]frac", r"\\frac", answer)
    answer = re.sub(r"\\left|\\right|\\[,;!]|[$\s]", "", answer).casefold()
    return answer[1:-1] if re.fullmatch(r"\([a-z]\)", answer) else answer


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """For each answer the index of its group, numbered in order of appearance; the same answers share a group.

    Empty and missing answers stay alone: they get no votes.

    >>> group_answers(["18", "$18.00", "20", "", "18"])
    [0, 0, 1, 2, 0]
    """
    seen: dict[Key, int] = {}
    groups: list[int] = []
    count = 0
    for answer in answers:
        mine = key(answer)
        group = count if mine is None else seen.setdefault(mine, count)
        count += group == count
        groups.append(group)
    return groups
