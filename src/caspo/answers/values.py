"""Numbers as they are written in answers, read exactly: in digits, with scale words, or in words.

What is not covered: units, see `units` and `quantities`, and formulas, which are for `mathematics`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["CURRENCY", "TEXT", "in_words", "parse_number", "repeating", "scaled"]

MAX_NUMBER_LENGTH = 200
MAX_EXPONENT = 300

CURRENCY = r"(?:\\?\$|[€£¥₹])"
_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SEPARATOR = r"(,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_GROUPED = re.compile(rf"(?<![0-9.])([0-9]{{1,3}})({_SEPARATOR}[0-9]{{3}}(?:\3[0-9]{{3}})*)(?![0-9])")
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})(?:[eE]([+-]?[0-9]+)|\s*(?:\\times|\\cdot|[×·*x])\s*10\s*(?:\^|\*\*)\s*\{{?\s*([+-]?[0-9]+)\s*\}}?)?"
)
_PART = rf"(?:\s*\{{\s*({_DECIMAL})\s*\}}|\s*([0-9]))"
_LATEX_RATIO = rf"\\[dtc]?frac{_PART}{_PART}"
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})|{_LATEX_RATIO}")
_MIXED = re.compile(rf"([0-9]+) ([0-9]+)/([0-9]+)|([0-9]+)\s*{_LATEX_RATIO}")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\s*(?:\{([0-9]+)\}|([0-9]))")

TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|textrm|textnormal|hbox)\s*\{([^{}]*)\}")

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_SMALL = {word: Fraction(n) for n, word in enumerate(f"{_ONES} eighteen nineteen".split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL |= {word: Fraction(n * 10) for n, word in enumerate(_TENS.split(), start=2)}
_POWERS = {"thousand": 3, "lakh": 5, "crore": 7, "million": 6, "billion": 9, "trillion": 12, "quadrillion": 15}
_SCALES = {"hundred": Fraction(100), "dozen": Fraction(12), "score": Fraction(20), "gross": Fraction(144)}
_SCALES |= {word: Fraction(10) ** n for word, n in _POWERS.items()}
_PARTS = {"half": 2, "halves": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8}
_PARTS |= {"ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100, "thousandth": 1000, "millionth": 10**6}


def parse_number(text: str) -> Fraction | None:
    r"""The value of a text that is one number and nothing else, or None.

    Thousands may be grouped by commas or thin or non-breaking spaces (not by plain ones: "1 000" may be two numbers).
    A currency sign before and a percent sign after the number are units and change nothing here: "50%" is 50 (what they
    mean is for `quantities`). Fractions "3/4", "½" and "\frac{3}{4}", mixed numbers "2 1/2", repeating decimals
    "0.\overline{3}" and powers of ten are read; exponents beyond 300 are not (1e999999 would fill the memory).

    >>> parse_number("$1,000.50"), parse_number("2 1/2"), parse_number("1e6") == 10**6, parse_number("7 apples")
    (Fraction(2001, 2), Fraction(5, 2), True, None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = text.strip()
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    text = re.sub(r",\s*\\!\s*", ",", re.sub("[−–]", "-", text))
    if not text.isascii():
        text = _spelt_out(text)
    match = re.fullmatch(rf"([+-]?)\s*{CURRENCY}?\s*([+-]?)\s*(.*?)\s*(?:\\?%|{CURRENCY})?", text, re.DOTALL)
    if match is None or (match[1] and match[2]):
        return None
    value = _unsigned(_GROUPED.sub(lambda m: m[1] + re.sub("[^0-9]", "", m[2]), match[3]))
    return -value if value is not None and "-" in (match[1], match[2]) else value


def _spelt_out(text: str) -> str:
    """One half as a sign becomes 1/2."""
    return re.sub(
        "([0-9]?)\\s*([¼-¾⅐-⅞])",
        lambda m: f"{m[1]}{' ' if m[1] else ''}{unicodedata.normalize('NFKC', m[2]).replace(chr(0x2044), '/')}",
        text,
    )


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
    return repeating(text)


def repeating(text: str) -> Fraction | None:
    r"""The value of "0.1\overline{6}": digits that repeat for ever."""
    match = _REPEATING.fullmatch(text)
    if match is None:
        return None
    whole, fixed = match[1], match[2]
    again = match[3] or match[4]
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    return value + Fraction(int(again), 10 ** len(fixed) * (10 ** len(again) - 1))


def _ratio(over: str, under: str) -> Fraction | None:
    return _decimal(over) / _decimal(under) if _decimal(under) else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.removesuffix("."))


def in_words(words: Sequence[str]) -> tuple[Fraction, int] | None:
    """The number that words begin with, and how many of them it takes; None where they begin with none.

    >>> in_words("two hundred and five eggs".split()), in_words("two thirds".split()), in_words(["half", "of"])
    ((Fraction(205, 1), 4), (Fraction(2, 3), 2), (Fraction(1, 2), 1))
    """
    total, group, at = Fraction(0), Fraction(0), 0
    low = [word.casefold() for word in words]
    if len(low) > 1 and low[0] in ("a", "an") and (low[1] in _SCALES or low[1] in _PARTS):
        group, at = Fraction(1), 1
    elif len(low) > 2 and low[0] == "half" and low[1] in ("a", "an") and low[2] in _SCALES:
        return _SCALES[low[2]] / 2, 3
    elif low and low[0] in ("half", "hundred", "dozen"):
        group = Fraction(1)
    started = at
    while at < len(low):
        word = low[at]
        if word == "and" and at > started and at + 1 < len(low) and low[at + 1] in _SMALL and low[at - 1] in _SCALES:
            at += 1
        elif word in _SMALL and (
            not group or ((group % 100 == 0 or (group % 100 >= 20 and group % 10 == 0)) and _SMALL[word] < 100)
        ):
            if group and group % 100 and _SMALL[word] >= 10:
                break
            group += _SMALL[word]
            at += 1
        elif word in _POWERS and group:
            total, group, at = total + group * _SCALES[word], Fraction(0), at + 1
        elif word in _SCALES and (group or total):
            group, at = (group or total) * _SCALES[word], at + 1
            total = Fraction(0) if group > total else total
        else:
            break
    if not at and not group:
        return None
    value, more = scaled(total + group, low[at:])
    return (value, at + more) if at + more else None


def scaled(number: Fraction, words: Sequence[str]) -> tuple[Fraction, int]:
    """A number with the scale words after it ("3 million", "2 thirds", "2 and a half"), and how many words they are."""
    at = 0
    while at < len(words) and (scale := _scale(words[at].casefold())):
        number, at = number * scale, at + 1
    rest = [word.casefold() for word in words[at : at + 3]]
    if rest[:1] and (under := _part(rest[0], number)):
        return number / under, at + 1
    if (
        rest[:1] == ["and"]
        and len(rest) == 3
        and (rest[1] in ("a", "an") or rest[1] in _SMALL)
        and _part(rest[2], Fraction(9))
    ):
        return number + _SMALL.get(rest[1], Fraction(1)) / (_part(rest[2], Fraction(9)) or 1), at + 3
    return number, at


def _scale(word: str) -> Fraction | None:
    return _SCALES.get(word) or _SCALES.get(word.removesuffix("s"))


def _part(word: str, number: Fraction) -> int | None:
    """What "thirds" divides by. "5 quarters" are coins as often as not; "three quarters" is 3/4 here."""
    if word in ("quarters", "quarter"):
        return 4 if number in (1, 3, 9) else None
    return _PARTS.get(word) or _PARTS.get(word.removesuffix("s"))
