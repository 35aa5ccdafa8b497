"""Cuts running text into what arithmetic is made of: numbers, operators, parentheses, words. One pass, no backtracking.

The word lists say which words make the numbers beside them something else than plain quantities.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

__all__ = [
    "AFTER", "BEFORE", "CONNECTIVES", "CONVERTIBLE", "LABELS", "MARK", "MAX_DIGITS", "MAX_UNIT_WORDS", "OPERATORS", "SAYS",
    "SCALES", "Number", "Token", "read_number", "singular", "tokenize",
]  # fmt: skip

MAX_DIGITS = 40


class Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
MARK = re.compile(r"<<[^<>\n]{0,200}>>")
_TOKEN = re.compile(
    rf"""
    (?P<skip>[ \t\r\f\v\u00a0\u2009\u202f]+ | <<[^<>\n]{{0,200}}>> | \\(?:boxed|displaystyle)\b | \\[,;:!\ ]
        | ["`“”‘&] | (?<![^\W\d_])['’] | ['’](?!\() | (?<![0-9])\([^\W\d_](?:[^\W\d_]|[ '’-]){{2,60}}\))
  | (?P<text>\\(?:text|mathrm|textbf|mathbf)\{{[^{{}}]{{0,60}}\}})
  | (?P<symbol>[0-9]++:[0-9][0-9:]*+ | (?<=[0-9]),(?=[0-9]) | \^ | _ | √ | ± | [²³] | (?<=[0-9])(?:\.\.+|…)
        | (?<=[0-9)])\*\*(?=[0-9(]) | (?<=[0-9)]\ )\*\*(?=\ [0-9(]) | (?<=[^\W\d_])['’]+(?=\()
        | (?<![\w)}}\]])!(?=[0-9(]))
  | (?P<compound>[0-9]{{1,4}}-[^\W\d_]{{2,}})
  | (?P<break>\n | \\\\ | \\[\[\]()] | => | <= | >= | != | [-=]> | [.](?![0-9]) | [,;?~≈≠≤≥<>→⇒#])
  | (?P<bang>!)
  | (?P<mixed>(?:[0-9]{{1,6}}[ ][0-9]{{1,4}}/[0-9]{{1,4}}(?![0-9.,/]) | [0-9]{{0,6}}[{_VULGAR}]))
  | (?P<num>(?:[0-9]{{1,3}}(?:(?:,|\{{,\}})[0-9]{{3}})+(?![0-9]) | [0-9]+)(?:\.[0-9]+)? | \.[0-9]+)
  | (?P<bold>\*\*)
  | (?P<eq>==? | ＝ | \bequals\b | \bis\ equal\ to\b)
  | (?P<frac>\\[dt]?frac\b)
  | (?P<cur>\\?\$ | [€£¥₹¢] | \b(?:USD|EUR|Rs)\b\.?)
  | (?P<percent>\\?% | \bper\ ?cent\b)
  | (?P<op>\\times\b | \\cdot\b | \\div\b | \b(?:plus|minus|times|divided\ by|multiplied\ by)\b
        | \\\* | [-+−–—*×·⋅∙÷/:])
  | (?P<open>(?:\\left\ ?)?\\?[({{\[]) | (?P<close>(?:\\right\ ?)?\\?[)}}\]])
  | (?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)
  | (?P<other>\\[A-Za-z]+ | .)
    """,
    re.VERBOSE,
)
OPERATORS = dict.fromkeys(["\\times", "\\cdot", "\\*", "times", "multiplied by", "×", "·", "⋅", "∙"], "*")
OPERATORS |= dict.fromkeys(["\\div", "divided by", "÷"], "/") | dict.fromkeys(["minus", "−", "–", "—"], "-")
OPERATORS["plus"] = "+"
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONVERTIBLE = _words(
    "second minute hour day week month year cent dollar penny nickel dime quarter inch foot feet yard mile meter metre "
    "centimeter cm mm km kilometer gram kg kilogram ounce oz pound lb lbs ton liter litre ml milliliter gallon quart "
    "pint cup dozen pair min hr sec"
)
# After these words a number is a name ("Day 1"), not a quantity.
LABELS = _words(
    "step day week month year part case box shelf group room class team player person friend question problem option "
    "equation column page chapter round game trip type brand store number grade floor"
)
# A number soon after one of these words is not what it seems: half of 10 + 3, 17 mod 5 + 1, plus the 4 + 5.
BEFORE = _words(
    "half twice thrice double triple quadruple third fourth fifth quarter root sqrt square cube mod modulo log ln sin "
    "cos tan gcd lcm power average mean plus minus times div choose"
)
# Nor is a number right before one of these: 5 squared + 3, 17 mod 5 + 1, 2 thirds + 1.
AFTER = _words("half halves third thirds fourth fourths fifth fifths squared cubed mod modulo factorial choose")
# After these words something new is said: "half of them is 13 / 2".
SAYS = _words("is are was were so then because since therefore thus that means and")
# After these words a clause goes on with something else; no unit of measure contains them.
CONNECTIVES = _words(
    "and or so then but if is are was were which that because since therefore thus hence let where when while has have "
    "had gives leaves makes plus minus the he she they it we this of"
)
MAX_UNIT_WORDS = 6


def tokenize(text: str, start: int, end: int) -> list[Token]:
    tokens = []
    for match in _TOKEN.finditer(text, start, end):
        kind = match.lastgroup or "other"
        value = match.group()
        if kind in ("skip", "bold"):
            continue
        if kind in ("num", "mixed") and len(value) > MAX_DIGITS:
            kind = "other"
        tokens.append(Token(kind, value, match.start(), match.end()))
    return tokens


class Number(NamedTuple):
    value: Fraction
    decimals: int = 0
    percent: bool = False
    unit: str = ""
    scaled: bool = False
    """Followed by "thousand", "million" ..."""

    def as_fraction(self, percent_is_unit: bool) -> Fraction:
        return self.value / 100 if self.percent and not percent_is_unit else self.value


def read_number(token: Token) -> Number | None:
    text = token.text.replace("{,}", "").replace(",", "")
    if token.kind == "mixed":
        if text[-1] in _VULGAR:
            part = Fraction(unicodedata.numeric(text[-1])).limit_denominator(10)
            return Number(Fraction(text[:-1] or 0) + part)
        whole, over, under = (int(part) for part in re.split("[ /]", text))
        return Number(whole + Fraction(over, under)) if over < under else None
    return Number(Fraction(text), len(text.partition(".")[2]))


def singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
