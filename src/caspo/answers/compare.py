r"""Whether two answers are the same.

Every answer has a key: its number and unit, the keys of its parts, the fingerprint of its formula, or its words. Answers are
the same exactly if their keys are equal, so that sameness is an equivalence relation: groups do not depend on the order.

- A number is a number however it is written; units are converted; percent is hundredths ("60%" is "0.6"), cents are
  hundredths of a dollar. Dollars, degrees and the things that are counted say nothing of a number ("$5", "5 eggs", "5").
- The name before "=" says nothing ("x = 5", "f(3) = 5", "5"), but a curve is an equation ("y = 2x + 3").
- Parts that commas, "and", "or" and braces make come in any order; coordinates do not. "x < 3" is "(-\infty, 3)".
- Nothing is rounded.

`right_answer` is for known answers. It takes what is the same, and by one rule what is said with less or more than the
known answer has: see there.
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

__all__ = ["Key", "group_answers", "key", "normalised", "right_answer", "same_answer"]

Key = tuple[object, ...]
"""What an answer is compared by: its kind, then what makes it up."""

MAX_DEPTH = 6
"""Of brackets in brackets."""
MIN_DIGITS = 6
"""Of a decimal that may stand for a number without an end."""

_INFINITE = re.compile(r"([+-]?)\s*(?:\\infty|∞|infinity|\\inf|inf|oo)")
_EVERYTHING = re.compile(r"\\mathbb\s*\{?R\}?|\\R|ℝ|all\s+real\s+numbers|all\s+reals|\\text\{\s*all real numbers\s*\}")
_NOTHING = re.compile(
    r"\\emptyset|\\varnothing|∅|\\\{\s*\\\}|(?:the )?empty set|\\text\{\s*(?:the )?empty set\s*\}", re.IGNORECASE
)
_ALL_BUT = re.compile(
    r"(?:[a-zA-Z]\s*(?:\\in|∈)\s*)?(?:\\mathbb\s*\{?R\}?|ℝ|all\s+real\s+numbers)\s*(?:\\setminus|\\backslash|\\|-|except|but)\s*((?:\\\{)?.+)"
)
_TIME = re.compile(
    r"([01]?[0-9]|2[0-4]):([0-5][0-9])(?::([0-5][0-9]))?(?:(?:\s|\\[,; ])*(?:\\(?:text|mathrm)\s*\{\s*)?([aApP])\.?\s?[mM]\.?\}?)?"
)
_BASED = re.compile(
    r"(?:\\text\{)?\(?([0-9A-Fa-f]+)\)?\}?_(?:\{?\(?([0-9]+)\)?\}?|\{?(?:\\text\{)?\(?(two|three|four|five|six|seven|eight|nine|twelve|sixteen)\)?\}{0,2})"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\bdegrees?\b")
_RATE = re.compile(r"(?:per|each|every|an?)[\s}~]+(second|minute|hour|day|week|month|year)s?\}?$", re.IGNORECASE)
_TO = re.compile(r"\s*\\text\s*\{\s*to\s*\}\s*|\s+to\s+")
_DECIMAL = re.compile(r"-?[0-9]*\.([0-9]+)")


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers say the same. Nothing equals an empty or missing answer, not even another one.

    >>> same_answer("1e6", "1,000,000"), same_answer("18 apples", "$18.0"), same_answer("18", "180")
    (True, True, False)
    >>> same_answer("x = 1, x = 2", "2, 1"), same_answer("(1, 2)", "(2, 1)"), same_answer("5 km", "5000 m")
    (True, False, True)
    """
    mine = key(a)
    return mine is not None and mine == key(b)


def right_answer(answer: str | None, known: str | None, *, ordered: bool = False) -> bool:
    r"""Whether an answer is right where ``known`` is: if it is the same, or the same but for what only one of them names.

    That is a unit (known "5 km", answer "5": then the numbers are compared as they are written), a number base, the words
    after a number ("3 left"), the left side of an equation (known "y = 2x", answer "2x"), and what is rounded: a decimal
    of six or more significant digits may stand for a number whose decimals never end (\sqrt2 for 1.41421, 1/3 for
    0.333333). Where both name one, they must agree. ``ordered``: the parts come in the order of the known answer.

    >>> right_answer("5", "5 km"), right_answer("5 m", "5 km"), right_answer("0.333333", "1/3"), right_answer("0.33", "1/3")
    (True, False, True, False)
    """
    mine, gold = key(answer), key(known)
    if mine is None or gold is None or answer is None or known is None:
        return False
    parts, wanted = several(undecorated(answer)), several(undecorated(known))
    if _contradict(_names(parts), _names(wanted)) or _at_other_rates(answer, known):
        return False
    if not (ordered and len(wanted) > 1) and (mine == gold or _leniently(answer, known)):
        return True
    if len(parts) != len(wanted) or len(parts) < 2:
        return False
    left = list(parts)
    for part in wanted:
        found = next((i for i, x in enumerate(left[:1] if ordered else left) if right_answer(x, part)), None)
        if found is None:
            return False
        del left[found]
    return True


def _names(parts: Sequence[str]) -> list[str]:
    """The names before "=" in parts of an answer."""
    return sorted(tight(found[0]) for part in parts if (found := named(part)))


def _contradict(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the names before "=" differ: single letters, or names with other digits ("x_1", "x_2")."""
    return any(
        a != b and (len(a) == len(b) == 1 or re.sub(r"\d", "", a) == re.sub(r"\d", "", b))
        for a, b in zip(names, others, strict=False)
        if len(names) == len(others)
    )


def _at_other_rates(answer: str, known: str) -> bool:
    """ "5 pages per day" is not "5 pages per week"."""
    a, b = _RATE.search(answer), _RATE.search(known)
    return a is not None and b is not None and a[1].casefold() != b[1].casefold()


def _leniently(answer: str, known: str) -> bool:
    """Without what only one of the two names, or rounded."""
    if " to " in answer + known and ":" in answer + known:
        answer, known = _TO.sub(":", answer), _TO.sub(":", known)
        if key(answer) == key(known):
            return True
    if _pair(answer) == _pair(known) is not None:
        return True
    a, b = _bare(answer), _bare(known)
    if (a is None) != (b is None):
        bare = a or b
        other = key(known if a is not None else answer)
        if bare == other or (bare and other and _rounded(bare, other, answer if a is None else known)):
            return True
    mine, gold = key(answer), key(known)
    return mine is not None and gold is not None and (_rounded(mine, gold, answer) or _rounded(gold, mine, known))


def _pair(answer: str) -> Key | None:
    """Coordinates, also where they are named: "x = 1, y = 2" for (1, 2)."""
    if names := _values_by_name(several(undecorated(answer))):
        return "(", *(key(value) for _, value in sorted(names)), ")"
    found = key(answer)
    return found if found and found[0] == "(" and found[-1] == ")" else None


def _bare(answer: str) -> Key | None:
    """The key of an answer without the unit, base, words or left side that it names; None where it names none."""
    text = undecorated(answer)
    found = quantity(text)
    if found is not None:
        return key(found.number) if found.named or found.words else None
    if match := _BASED.fullmatch(tight(text)):
        return key(match[1])
    if (match := _TIME.fullmatch(text)) and match[4]:
        return key(text[: match.end(3) if match[3] else match.end(2)])
    if (said := key(text)) is not None and said[0] == "ratio" and len(said) == 3:
        return "number", said[1]
    if names := _values_by_name(several(text)):
        return key(", ".join(value for _, value in names))
    sides = relation(text)
    if sides is not None and sides[1] == "=" and re.fullmatch(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?", sides[0].strip()):
        return key(sides[2])
    return None


def _rounded(decimal: Key, other: Key, written: str) -> bool:
    """Whether a decimal, as it is written, is another number to as many places, rounded or cut off."""
    match = _DECIMAL.fullmatch(undecorated(written).replace(",", ""))
    if match is None or decimal[0] != "number" or other[0] not in ("number", "formula"):
        return False
    digits = re.sub(r"\D", "", match[0]).lstrip("0")
    value = _approximately(other)
    if len(digits) < MIN_DIGITS or value is None:
        return False
    unit = Fraction(1, 10 ** len(match[1]))
    cut = (abs(value) // unit) * unit
    return decimal[1] in (round(value / unit) * unit, cut if value >= 0 else -cut)


def _approximately(found: Key) -> Fraction | None:
    """The value of a number without a finite decimal, to 30 digits."""
    if found[0] == "number" and isinstance(found[1], Fraction):
        under = found[1].denominator
        for prime in (2, 5):
            while under % prime == 0:
                under //= prime
        return found[1] if under > 1 else None
    said = str(found[1])
    return (
        Fraction(said.removeprefix("irrational ")) if re.fullmatch(r"irrational -?[0-9.]+(?:e[+-]?\d{1,3})?", said) else None
    )


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
    match = _TIME.fullmatch(text)
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
    if names := _values_by_name(parts):
        return "named", *sorted(((name, _key(value, depth)) for name, value in names), key=repr)
    keys = [_key(part, depth) for part in parts]
    flat = [x for k in keys if k is not None for x in (k[1:] if k[0] == "list" else (k,))]
    return "list", *sorted(flat, key=repr)


def _values_by_name(parts: Sequence[str]) -> list[tuple[str, str]] | None:
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
    match = _BASED.fullmatch(tight(text))
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
