"""Numbers with what stands around them: currencies, percent, units, the things that are counted, number bases.

A unit is one of the list in `units`. Other words after a number are what is counted ("18 apples") and say nothing of its
value, unless they change it ("5 or more", "7 factorial") or tell two answers apart ("3 left", "3 right").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from caspo.answers.units import PERCENT, Unit, currency, read_unit
from caspo.answers.values import CURRENCY, TEXT, in_words, parse_number, scaled

__all__ = ["Quantity", "quantity"]

MAX_LENGTH = 300
"""Characters of an answer that is looked at for a unit."""


@dataclass(frozen=True)
class Quantity:
    """A number, or a formula, and its unit."""

    number: str
    """As it is written, or its value where it was said in words."""
    unit: Unit
    named: bool
    """Whether a unit of the list is named; False where things are counted, or angles are in degrees."""
    words: str = ""
    """Words that tell answers apart."""


_TIGHT = r"(?:\\(?:[,;:!~ ]|cdot(?![a-zA-Z]))|[\s~/·])"
_LATEX_TEXT = r"\\(?:text|mathrm|mbox|textrm|textbf|textit|textnormal|hbox)\s*\{[^{}]*\}"
_LATEX_UNIT = re.compile(rf"(?>{_TIGHT}|{_LATEX_TEXT}|\^\s*\{{?\s*-?[0-9]\s*\}}?|\\%|\^\s*\{{?\s*\\circ\s*\}}?|°)++$")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\^?\s*\\degree|°)\s*$")
_NUMBER = (
    r"[+−–-]?\s*(?:\\?[$€£¥₹]\s*)?[+−–-]?[0-9.¼-¾⅐-⅞]"
    r"(?:[0-9.,/\u00a0\u2009\u202f¼-¾⅐-⅞]|[eE](?=[+-]?[0-9])|\\!\s*(?=[0-9])| (?=[0-9]+/[0-9]))*+"
)
_WORD = r"[^0-9=+*^\\{}()\[\]<>|$]"
_WORDY = re.compile(
    rf"({_NUMBER}|.*[0-9)}}])(?>\s*[\s-]\s*|(?=°))((?:°\s*)?[^\W\d_%¢]{_WORD}*(?:\^\{{?-?[0-9]\}}?{_WORD}*)*)", re.DOTALL
)
_GLUED = re.compile(rf"({_NUMBER})([^\W\d_]{{2,}}(?:/[a-z]+)?(?:\^?[23])?|[°℃℉]\s*[CF]?|[¢€£¥₹])$")
_CODE = re.compile(r"(USD|EUR|GBP|JPY|INR|US\$|Rs\.?)\s*([0-9].*)$")
_NEGATIVE = re.compile(r"(?:minus|negative)\s+(?=[$.0-9])", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:the\s+)?([0-9]+)\s*\^?\s*\{?\s*(?:\\[a-z]+\s*\{\s*)?(?:st|nd|rd|th)\s*\}*")
_BEFORE = re.compile(rf"[+−–-]?\s*({CURRENCY})")

_CHANGING = """doubled tripled halved quadrupled
    or least most than over under above below up to from until between not no without except plus minus factorial
    squared cubed choose mod modulo remainder power root divided multiplied by if when where and but both negative sqrt sin
    cos tan cot sec csc log exp frac arcsin arccos arctan th hundred thousand million billion trillion dozen half thirds nor
    onward onwards maximum minimum max min inclusive exclusive infinity infinite undefined approximately about equals is are
    was"""
_CHANGES = frozenset(_CHANGING.split())
"""Words that change a number, or make a statement of it."""
_TELLING = """left right north south east west northeast northwest southeast southwest up down clockwise counterclockwise
    anticlockwise ad bc ce bce heads tails even odd st nd rd prime composite more less fewer larger smaller older younger
    longer shorter greater bigger profit loss losses lost gain gained ahead behind wins won early late fast slow"""
_APART = frozenset(_TELLING.split())
"""Words that tell answers with the same number apart."""


@lru_cache(maxsize=65536)
def quantity(text: str) -> Quantity | None:
    r"""The number and the unit of an answer that is one with something around it; None for a bare number and all else.

    >>> quantity("3 million").number, quantity("18 apples").number, quantity("5 or more"), quantity("2 n")
    ('3000000', '18', None, None)
    >>> quantity("5 km").unit.factor, quantity("50%").unit.factor, quantity("$5").named
    (Fraction(1000, 1), Fraction(1, 100), True)
    """
    if not text or len(text) > MAX_LENGTH:
        return None
    if again := _said_again(text):
        return quantity(again) or Quantity(again, Unit(), named=False)
    if match := _CODE.match(text):
        text = f"{match[2]} {match[1].replace('US$', 'USD')}"
    if (match := _NEGATIVE.match(text)) and parse_number(text := f"-{text[match.end() :]}") is not None:
        return Quantity(text, Unit(), named=False)
    if match := _ORDINAL.fullmatch(text):
        return Quantity(match[1], Unit(), named=False)
    for found in (_percent(text), _money(text), _latex(text), _worded(text), _spoken(text)):
        if found is not None:
            return found
    bare = _DEGREES.sub("", text) if not re.search(r"sin|cos|tan|cot|sec|csc", text) else text
    return Quantity(bare.strip(), Unit(), named=False) if bare != text and bare.strip() else None


def _said_again(text: str) -> str | None:
    """The number of "5 (five)"."""
    match = re.fullmatch(r"([^()]*?)\s*\(([^()]+)\)\s*((?:[a-z]+\s*)*)", text)
    if match is None:
        return None
    for digits, words in ((match[1], match[2]), (match[2], match[1])):
        said = in_words(re.findall(r"[^\W\d_]+", words)) if not re.search(r"\d", words) else None
        if said and said[0] == parse_number(digits):
            return f"{digits} {match[3]}".strip()
    return None


def _percent(text: str) -> Quantity | None:
    match = re.fullmatch(r"(.*?)\s*(?:\\?%|\\text\{\s*\\?%\s*\})", text, re.DOTALL)
    return Quantity(match[1], PERCENT, named=True) if match and match[1].strip() else None


def _money(text: str) -> Quantity | None:
    """A currency's sign before the number, with scale words and what it is paid for after it; or a sign after it."""
    if match := re.fullmatch(rf"({_NUMBER})\s*(\\?[$€£¥₹¢])", text):
        unit = currency(match[2])
        return Quantity(match[1], unit, named=True) if unit and parse_number(match[1]) is not None else None
    match = _BEFORE.match(text)
    unit = currency(match[1]) if match else None
    if match is None or unit is None or text.count("$") > 1:
        return None
    bare = text[: match.start(1)] + re.sub(r"\s*/\s*(?=[a-z])", " per ", text[match.end() :]).strip()
    if parse_number(bare) is not None:
        return Quantity(bare, unit, named=True)
    worded = _worded(bare)
    if worded is None or (worded.named and worded.unit != unit and worded.unit.dimension):
        return None
    return Quantity(worded.number, unit, named=True, words=worded.words)


def _latex(text: str) -> Quantity | None:
    r"""``18\text{ dollars}``, ``864 \mbox{ inches}^2``, ``1.6~\mathrm{kg}``."""
    text = re.sub(r"\^\{(-?[0-9])\}(?=[^{}]*\})", r"^\1", text)  # \mathrm{m s^{-2}}
    match = _LATEX_UNIT.search(text)
    if match is None or not TEXT.search(match.group()) or not text[: match.start()].strip():
        return None
    number, tail = text[: match.start()].strip(), match.group()
    if number.endswith(("\\", "^", "_", "(", "=", "+", "-", ",")):
        return None
    if tail.lstrip().startswith("^") and not re.match(r"\s*\^\s*\{?\s*\\circ", tail):  # a power before the unit
        power = re.match(r"\s*\^\s*\{?\s*-?[0-9]\s*\}?", tail)
        number, tail = (number + power.group(), tail[power.end() :]) if power else (number, tail)
    said = re.sub(r"\s+", " ", TEXT.sub(r"\1", re.sub(r"\\[,;:! ]|~", " ", tail))).strip()
    return _with_words(number, said, re.sub(r"^[\s~]+", "", tail), formula=True)


def _worded(text: str) -> Quantity | None:
    if match := _GLUED.fullmatch(text):
        unit = read_unit(match[2])
        if unit and not unit[1] and parse_number(match[1]) is not None:
            return Quantity(match[1], unit[0], named=bool(unit[0].dimension or unit[0].factor != 1 or match[2] in "€£¥₹"))
    match = _WORDY.fullmatch(text)
    if match is None or (match[1].endswith("}") and parse_number(match[1]) is None and "\\" not in match[1]):
        return None
    return _with_words(match[1].strip(), match[2].strip(), match[2].strip(), formula=False)


def _with_words(number: str, said: str, unit_text: str, *, formula: bool) -> Quantity | None:  # noqa: PLR0911
    """A number and the words after it; ``formula``: the words are marked as text, so that any formula may precede them."""
    value = parse_number(number)
    words = said.rstrip(".").split() if "." not in said[:-1] else said.split()
    if value is not None and words:
        value, used = scaled(value, [w.strip(",") for w in said.replace("-", " ").split()])
        if used:
            rest = " ".join(said.replace("-", " ").split()[used:]).rstrip(".")
            if not rest:
                return Quantity(str(value), Unit(), named=False)
            if rest.split()[0].casefold() in ("of", "and"):
                return None
            return _with_words(str(value), rest, rest, formula=formula)
    found = read_unit(unit_text)
    letters = re.findall(r"[^\W\d_]+", said)
    if found is not None and (found[1] == "" or value is not None):
        unit, rest = found
        if "\\" in number and re.fullmatch(r"[a-zA-Z]", unit_text):
            return None  # a variable: \frac{37}{4} m
        more = re.findall(r"[^\W\d_]+", rest.casefold())
        if rest.startswith("of ") and unit == PERCENT:
            return None
        if (
            not _CHANGES & set(more)
            and not any(len(word) == 1 and word != "a" for word in more)
            and (value is not None or formula or len(said) > 1)
        ):
            named = bool(unit.dimension) or unit.factor != 1 or re.match(r"(?:dollar|USD|usd|buck)", said) is not None
            apart = " ".join(word for word in more if word in _APART)
            return Quantity(number, unit, named=named, words=apart)
    low = [word.casefold() for word in letters]
    if not letters or _CHANGES & set(low) or low[0] == "of" or (value is None and not formula):
        return None
    if not any(len(word) > 2 for word in low) or any(len(word) == 1 and word not in ("a", "s") for word in low):
        return None
    apart = " ".join(word for word in low if word in _APART)
    return Quantity(number, Unit(), named=False, words=apart)


def _spoken(text: str) -> Quantity | None:
    """ "twenty-five eggs", "a dozen"."""
    words = re.findall(r"[^\W\d_]+|\S", TEXT.sub(r"\1", text).replace("-", " "))
    negative = len(words) > 1 and words[0].casefold() in ("minus", "negative")
    found = in_words(words[negative:])
    if found is None:
        return None
    value, used = (-found[0], found[1] + 1) if negative else found
    rest = " ".join(words[used:])
    if not rest:
        return Quantity(str(value), Unit(), named=False)
    if not re.fullmatch(r"[^\W\d_][\w\s]*|%", rest):
        return None
    return Quantity(str(value), PERCENT, named=True) if rest == "%" else _with_words(str(value), rest, rest, formula=False)
