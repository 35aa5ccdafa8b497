"""Numbers as they are written in answers, read exactly, and the units that stand after them.

What is not covered: converting units (5 km is not 5000 m), and formulas, which are for `mathematics`.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["CURRENCY", "SHORT_UNITS", "TEXT", "number_of", "parse_number", "without_unit"]

MAX_NUMBER_LENGTH = 200
MAX_EXPONENT = 300
MAX_UNIT_LENGTH = 300
"""Characters of an answer whose end is looked at for a unit."""

CURRENCY = r"(?:\\?\$|[€£¥₹])"
_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SEPARATOR = r"(,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_GROUPED = re.compile(rf"(?<![0-9.])([0-9]{{1,3}})({_SEPARATOR}[0-9]{{3}}(?:\3[0-9]{{3}})*)(?![0-9])")
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})(?:[eE]([+-]?[0-9]+)|\s*(?:\\times|\\cdot|[×·*])\s*10\s*(?:\^|\*\*)\s*\{{?\s*([+-]?[0-9]+)\s*\}}?)?"
)
_PART = rf"(?:\s*\{{\s*({_DECIMAL})\s*\}}|\s*([0-9]))"
_LATEX_RATIO = rf"\\[dt]?frac{_PART}{_PART}"
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})|{_LATEX_RATIO}")
_MIXED = re.compile(rf"([0-9]+) ([0-9]+)/([0-9]+)|([0-9]+)\s*{_LATEX_RATIO}")

TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|textrm)\s*\{([^{}]*)\}")

# A unit: LaTeX text, degrees, or words after a space or hyphen. Letters alone may be variables ("2 n") and are no unit,
# but for those that everybody writes after numbers.
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)")
_LATEX_UNIT = re.compile(
    r"(?:[\s~/·]|\\(?:[,;!~ ]|cdot)|\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}|\^\s*\{?\s*-?[0-9]\s*\}?)+$"
)
_WORDS = re.compile(r"(?:\s+|-(?=[^\W\d_]{2}))([^\W\d_][^0-9=+*^\\{}()\[\]<>]*(?:\^[23])?)$")
_SHORT = "m s g h L mm cm km kg mg ml mL cl ft in lb oz yd mi hr am pm Hz eV kJ kW MB GB TB m/s km/h m^2 m^3 cm^2 cm^3"
SHORT_UNITS = frozenset(_SHORT.split())
_MATHS = "sqrt sin cos tan cot sec csc log exp frac arcsin arccos arctan mod and"
_MATHS_WORDS = frozenset(_MATHS.split())


def parse_number(text: str) -> Fraction | None:
    r"""The value of a text that is one number and nothing else, or None.

    Thousands may be grouped by commas or thin or non-breaking spaces (not by plain ones: "1 000" may be two numbers).
    A currency sign before and a percent sign after the number are units and change nothing: "50%" is 50, as graders of
    grade-school problems take it. Fractions "3/4" and "\frac{3}{4}", mixed numbers "2 1/2" and powers of ten are read;
    exponents beyond 300 are not (1e999999 would fill the memory).

    >>> parse_number("$1,000.50"), parse_number("2 1/2"), parse_number("1e6") == 10**6, parse_number("7 apples")
    (Fraction(2001, 2), Fraction(5, 2), True, None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = text.strip()
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    text = re.sub(r",\s*\\!\s*", ",", re.sub("[−–]", "-", text))
    match = re.fullmatch(rf"([+-]?)\s*{CURRENCY}?\s*([+-]?)\s*(.*?)\s*(?:\\?%|{CURRENCY})?", text, re.DOTALL)
    if match is None or (match[1] and match[2]):
        return None
    value = _unsigned(_GROUPED.sub(lambda m: m[1] + re.sub("[^0-9]", "", m[2]), match[3]))
    return -value if value is not None and "-" in (match[1], match[2]) else value


def _unsigned(text: str) -> Fraction | None:
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = match[2] or match[3] or "0"
        if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
            return None
        return _decimal(match[1]) * Fraction(10) ** int(exponent)
    if match := _RATIO.fullmatch(text):
        return _ratio(*(part for part in match.groups() if part is not None))
    if match := _MIXED.fullmatch(text):
        whole, over, under = (part for part in match.groups() if part is not None)
        part = _ratio(over, under)
        return None if part is None else int(whole) + part
    return None


def _ratio(over: str, under: str) -> Fraction | None:
    return _decimal(over) / _decimal(under) if _decimal(under) else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.removesuffix("."))


def without_unit(answer: str) -> str | None:
    r"""The answer without the unit it ends in; None where it ends in none.

    >>> without_unit("18 apples"), without_unit(r"\frac{270}7\text{ degrees}"), without_unit("2 n"), without_unit("18")
    ('18', '\\frac{270}7', None, None)
    """
    if len(answer) > MAX_UNIT_LENGTH:
        return None
    bare = _DEGREES.sub("", answer)
    if match := _LATEX_UNIT.search(bare):
        tail = bare[match.start() :]
        if TEXT.search(tail):
            bare = bare[: match.start()]
    if (match := _WORDS.search(bare)) and _is_unit(match[1]):
        bare = bare[: match.start()]
    return bare.strip() if bare != answer and bare.strip() else None


def _is_unit(words: str) -> bool:
    words = words.strip().rstrip(".")
    return words in SHORT_UNITS or any(
        len(word) > 2 and word.casefold() not in _MATHS_WORDS for word in re.findall(r"[^\W\d_]+", words)
    )


def number_of(answer: str) -> Fraction | None:
    """The number that an answer is, its unit aside.

    >>> number_of("18 apples"), number_of("18 + x")
    (Fraction(18, 1), None)
    """
    value = parse_number(answer)
    return value if value is not None else parse_number(without_unit(answer) or "")
