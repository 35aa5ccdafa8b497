"""Where a solution's steps begin and end, and what they calculate.

A step is a line. `split_steps` cuts text, `split_tokens` cuts generated tokens by the same rule. `equations` finds the
statements ``lhs = rhs`` that a step makes in running text.

What the equation reader is not: a computer algebra system, or a parser of LaTeX. It reads the arithmetic that
grade-school solutions write, and where a text can be read in several ways (a variable, a dash that may be a minus,
hours mixed with minutes) it keeps quiet unless one of the readings holds: a missed equation makes a judge say
"unknown", a misread one would make it say "wrong". It takes one pass over the text, never raises, and gives up on a
clause with more than `MAX_ITEMS` parts, `MAX_DEPTH` open parentheses or `MAX_DIGITS` digits in a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Equation", "Expression", "equations", "split_steps", "split_tokens", "step_key"]

MAX_ITEMS = 128
MAX_DEPTH = 24
MAX_DIGITS = 40

Expression: TypeAlias = "Fraction | tuple[str, Expression, Expression]"
"""A number, or ``(op, left, right)`` with op one of ``+ - * /``."""


# ---------------------------------------------------------------------------------------------------------- steps


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


# ------------------------------------------------------------------------------------------------------ equations


@dataclass(frozen=True)
class Equation:
    """A statement that ``expression`` equals ``result``, found at ``span`` of the text."""

    expression: Expression
    result: Fraction
    span: tuple[int, int]
    decimals: int = 0
    """How many digits after the decimal point ``result`` was written with (two more for a percentage)."""

    @property
    def numbers(self) -> tuple[Fraction, ...]:
        """The numbers of the expression, from left to right."""
        return tuple(_leaves(self.expression))

    @property
    def value(self) -> Fraction | None:
        """What the expression comes to, exactly; None where it divides by zero."""
        return _evaluate(self.expression)

    def holds(self, tolerance: Fraction = Fraction(0)) -> bool:
        """Whether the statement is true: exactly, or rounded to the decimals it was written with.

        ``10 / 3 = 3.33`` holds, ``10 / 3 = 3`` does not: a whole number claims to be exact. ``tolerance`` is an
        absolute difference that is accepted besides.
        """
        value = self.value
        if value is None:
            return False
        rounding = Fraction(1, 2 * 10**self.decimals) if self.decimals else Fraction(0)
        return abs(value - self.result) <= max(rounding, tolerance)


def _leaves(expression: Expression) -> list[Fraction]:
    if isinstance(expression, Fraction):
        return [expression]
    return _leaves(expression[1]) + _leaves(expression[2])


def _evaluate(expression: Expression) -> Fraction | None:
    if isinstance(expression, Fraction):
        return expression
    op, left, right = expression[0], _evaluate(expression[1]), _evaluate(expression[2])
    if left is None or right is None or (op == "/" and right == 0):
        return None
    if op == "+":
        return left + right
    if op == "-":
        return left - right
    return left * right if op == "*" else left / right


def equations(text: str) -> list[Equation]:
    """All equations with at least one operator on one side, in the order of the text.

    ``2 + 3 = 5 + 1 = 6`` gives one equation a link; where a link is false as written but its right side goes on from
    the left one's value (a running total), the value is taken as what was stated: 2 + 3 = 5 and 5 + 1 = 6.
    ``5 = 2 + 3`` counts turned around. GSM8K's ``<<2+3=5>>`` marks are read on their own, besides the text around them.

    >>> [(e.numbers, e.result, e.holds()) for e in equations("She has 3 boxes * $4 = $12 left.")]
    [((Fraction(3, 1), Fraction(4, 1)), Fraction(12, 1), True)]
    """
    found: list[Equation] = []
    for mark in _MARK.finditer(text):
        found += _clause_equations(_tokenize(text, mark.start() + 2, mark.end() - 2))
    found += _clause_equations(_tokenize(text, 0, len(text)))
    return sorted(found, key=lambda equation: equation.span)


def _clause_equations(tokens: list[_Token]) -> list[Equation]:
    segments: list[list[_Token]] = [[]]
    for token in tokens:
        if token.kind == "eq":
            segments.append([])
        else:
            segments[-1].append(token)
    sides = [_Reader(segment, after_equals=i > 0).read() for i, segment in enumerate(segments)]
    links = (_link(left[1], right[0]) for left, right in pairwise(sides))
    return [equation for equation in links if equation is not None]


def _link(left: _Run | None, right: _Run | None) -> Equation | None:
    """The equation between the run that ends at an equals sign and the run that starts after it."""
    if left is None or right is None or not (left.has_operator or right.has_operator):
        return None
    span = (left.start, right.end)
    turned = not left.has_operator
    # 5 = 2 + 3, but also "sibling 5 = 2 + 3" and "14 hours = 14 * 60"
    sure = left.sure and right.sure and not (turned and (left.led or left.unit_words))
    if turned:
        left, right = right, left
    numbers = [item for item in (*left.items, *right.items) if isinstance(item, _Number)]
    stated = next(item for item in right.items if isinstance(item, _Number))
    additive = not {"*", "/"} & set(left.items)
    percents = {n.percent for n in numbers}
    # A percent sign is a hundredth (20% * 50 = 10), or a mere unit (10 / 50 * 100 = 20%, 100 - 20% = 80%).
    hundred = any(n.percent and n.value == 100 for n in left.items if isinstance(n, _Number))  # 3 / 21 * 100% = 14.29
    may_be_unit = len(percents) == 2 and (additive or stated.percent or hundred)
    sure = sure and not may_be_unit and len({n.unit for n in numbers} & _CONVERTIBLE) < 2
    sure = sure and (stated.scaled <= any(n.scaled for n in numbers if n is not stated))  # 2 * 10 = $20 million
    match _parse(left.items, False):
        case ("/", Fraction() as part, Fraction() as whole):  # "1/5 = 12 hectares": a part of a whole, no division
            sure = sure and (part >= whole or stated.value < 1)
    first: Equation | None = None
    for percent_is_unit in (False, True) if may_be_unit else (False,):
        for items in left.readings():
            expression, other = _parse(items, percent_is_unit), _parse(right.items, percent_is_unit)
            decimals = stated.decimals + 2 * (stated.percent and not percent_is_unit)
            value = _evaluate(other)
            readings = (
                [] if value is None else [Equation(expression, value, span, 0 if right.has_operator else decimals)]
            )
            if right.has_operator and isinstance(right.items[0], _Number):  # a running total
                readings.append(Equation(expression, stated.as_fraction(percent_is_unit), span, decimals))
            for equation in readings:
                if equation.holds():
                    return equation
                first = first or equation
    return first if sure else None


# --------------------------------------------------------------------------------------------------------- tokens


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_MARK = re.compile(r"<<[^<>\n]{0,200}>>")
_TOKEN = re.compile(
    rf"""
    (?P<skip>[ \t\r\f\v\u00a0\u2009\u202f]+ | <<[^<>\n]{{0,200}}>> | \\(?:boxed|displaystyle)\b | \\[,;:!\ ]
        | ["'`“”‘’&] | (?<![0-9])\([^\W\d_](?:[^\W\d_]|[ '’-]){{2,60}}\))
  | (?P<text>\\(?:text|mathrm|textbf|mathbf)\{{[^{{}}]{{0,60}}\}})
  | (?P<symbol>[0-9]++:[0-9][0-9:]*+ | (?<=[0-9]),(?=[0-9]) | \^ | _ | √ | ± | [²³] | (?<=[0-9])(?:\.\.+|…)
        | (?<=[0-9)])\*\*(?=[0-9(]) | (?<=[0-9)]\ )\*\*(?=\ [0-9(]))
  | (?P<compound>[0-9]{{1,4}}-[^\W\d_]{{2,}})
  | (?P<break>\n | \\\\ | \\[\[\]()] | => | <= | >= | != | [-=]> | [.](?![0-9]) | [,;?!~≈≠≤≥<>→⇒#])
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
_OPERATORS = dict.fromkeys(["\\times", "\\cdot", "\\*", "times", "multiplied by", "×", "·", "⋅", "∙"], "*")
_OPERATORS |= dict.fromkeys(["\\div", "divided by", "÷"], "/") | dict.fromkeys(["minus", "−", "–", "—"], "-")
_OPERATORS["plus"] = "+"
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONVERTIBLE = _words(
    "second minute hour day week month year cent dollar penny nickel dime quarter inch foot feet yard mile meter metre "
    "centimeter cm mm km kilometer gram kg kilogram ounce oz pound lb lbs ton liter litre ml milliliter gallon quart "
    "pint cup dozen pair min hr sec"
)
# After these words a number is a name ("Day 1"), not a quantity.
_LABELS = _words(
    "step day week month year part case box shelf group room class team player person friend question problem option "
    "equation column page chapter round game trip type brand store number grade floor"
)
# A number soon after one of these words is not what it seems: half of 10 + 3, 17 mod 5 + 1, plus the 4 + 5.
_BEFORE = _words(
    "half twice thrice double triple quadruple third fourth fifth quarter root sqrt square cube mod modulo log ln sin "
    "cos tan gcd lcm power average mean plus minus times"
)
# Nor is a number right before one of these: 5 squared + 3, 17 mod 5 + 1, 2 thirds + 1.
_AFTER = _words("half halves third thirds fourth fourths fifth fifths squared cubed mod modulo factorial")
# After these words a clause goes on with something else; no unit of measure contains them.
_CONNECTIVES = _words(
    "and or so then but if is are was were which that because since therefore thus hence let where when while has have "
    "had gives leaves makes plus minus the he she they it we this of"
)
MAX_UNIT_WORDS = 6


def _tokenize(text: str, start: int, end: int) -> list[_Token]:
    tokens = []
    for match in _TOKEN.finditer(text, start, end):
        kind = match.lastgroup or "other"
        value = match.group()
        if kind in ("skip", "bold"):
            continue
        if kind in ("num", "mixed") and len(value) > MAX_DIGITS:
            kind = "other"
        tokens.append(_Token(kind, value, match.start(), match.end()))
    return tokens


class _Number(NamedTuple):
    value: Fraction
    decimals: int = 0
    percent: bool = False
    unit: str = ""
    scaled: bool = False
    """Followed by "thousand", "million" ..."""

    def as_fraction(self, percent_is_unit: bool) -> Fraction:
        return self.value / 100 if self.percent and not percent_is_unit else self.value


def _number(token: _Token) -> _Number | None:
    text = token.text.replace("{,}", "").replace(",", "")
    if token.kind == "mixed":
        if text[-1] in _VULGAR:
            part = Fraction(unicodedata.numeric(text[-1])).limit_denominator(10)
            return _Number(Fraction(text[:-1] or 0) + part)
        whole, over, under = (int(part) for part in re.split("[ /]", text))
        return _Number(whole + Fraction(over, under)) if over < under else None
    return _Number(Fraction(text), len(text.partition(".")[2]))


# ----------------------------------------------------------------------------------------------------------- runs

_Item: TypeAlias = "_Number | Literal['+', '-', '*', '/', '(', ')', 'neg']"


@dataclass
class _Run:
    """Operands and operators that follow each other without a gap; one side of an equation."""

    start: int
    led: bool
    """Words stand before it in its clause."""
    at_head: bool
    """Nothing stands between it and the equals sign before it."""
    sure: bool
    end: int = 0
    dash: int = 0
    """Where the items begin anew if a dash after a word ("3 kids - 4 + 5 = 9") is no minus; 0: there is none."""

    def __post_init__(self) -> None:
        self.items: list[_Item] = []
        self.open: list[tuple[str, int, int]] = []
        """Open parentheses: kind (see `_Reader.on_open`), index of the item after it, position in the text."""
        self.unit_words = 0
        self.last_word = ""
        self.unreadable = False
        self.fractions: list[int] = []
        """Indices of the division signs written without spaces: 3 / 1/2 may mean 3 / (1/2)."""

    @property
    def expecting(self) -> bool:
        """Whether an operand must come next."""
        return not self.items or not (isinstance(self.items[-1], _Number) or self.items[-1] == ")")

    def readings(self) -> list[list[_Item]]:
        """The items as written, and the other ways to take them."""
        found = [self.items]
        if self.dash:
            found.append(self.items[self.dash :])
        if self.fractions and self.items.count("/") > 1:
            bound = list(self.items)
            for i in reversed(self.fractions):
                match bound[i - 1 : i + 2]:  # anything else: a sign taken back ($5/hour), a parenthesis
                    case [_Number() as over, "/", _Number() as under]:
                        bound[i - 1 : i + 2] = ["(", over, "/", under, ")"]
            found.append(bound)
        return found

    @property
    def has_operator(self) -> bool:
        return bool({"+", "-", "*", "/"} & set(self.items))


class _Reader:
    """Reads the tokens between two equals signs into the run that starts there and the run that ends there."""

    def __init__(self, tokens: Sequence[_Token], after_equals: bool) -> None:
        self.tokens = tokens
        self.head: _Run | None = None
        self.run: _Run | None = None
        self.lead: list[str] = []  # words of the clause since the last run
        self.poisoned = False  # something unreadable in this clause
        self.fresh = after_equals  # nothing but white space and currency since the equals sign
        self.unsure_next = False
        self.part_of_next = False  # "1/2 of the 10 ..."
        self.currency = ""

    def read(self) -> tuple[_Run | None, _Run | None]:
        for i, token in enumerate(self.tokens):
            self.before = self.tokens[i - 1] if i else None
            self.after = self.tokens[i + 1] if i + 1 < len(self.tokens) else None
            getattr(self, f"on_{token.kind}", self.poison)(token)
            if token.kind != "cur" and self.run is None:
                self.fresh = False
            if self.run is not None and len(self.run.items) > MAX_ITEMS:
                self.poison(token)
        tail, readable = self.run, not self.poisoned
        self.finish()
        if tail is None or not readable or tail.unreadable or tail.expecting:
            return self.head, None
        return self.head, _strip(tail)

    def poison(self, token: _Token) -> None:
        self.poisoned = True

    def finish(self) -> None:
        """The current run ends; it is the head if it began right after the equals sign."""
        run, self.run = self.run, None
        if run is None or self.poisoned or run.unreadable or run.expecting or run.open:
            return
        if run.at_head and self.head is None:
            self.head = run

    def start(self, token: _Token) -> _Run:
        sure = not self.unsure_next and self.lead != ["and"]  # "the sum of 3 and 4 * 5"
        self.run = _Run(token.start, bool(self.lead), self.fresh, sure)
        self.run.unreadable = self.part_of_next or bool(_BEFORE & set(self.lead[-4:]))
        self.lead, self.unsure_next, self.part_of_next = [], False, False
        return self.run

    def _adjacent(self, token: _Token) -> bool:
        return self.before is not None and self.before.end == token.start

    def _operand_follows(self) -> bool:
        return self.after is not None and self.after.kind in ("num", "mixed", "open", "frac", "cur")

    def on_break(self, token: _Token) -> None:
        self.finish()
        self.lead, self.poisoned, self.currency = [], False, ""
        self.unsure_next = self.part_of_next = False

    def on_cur(self, token: _Token) -> None:
        unit = "cent" if token.text == "¢" else "dollar"
        if self.run is not None and not self.run.expecting and not self._operand_follows():
            self._set_unit(unit)
        else:
            self.currency = unit

    def on_num(self, token: _Token) -> None:
        number, run = _number(token), self.run
        glued = self.before is not None and self.before.kind == "word" and self._adjacent(token)
        if number is None or (glued and not (run is not None and run.expecting)):
            return self.poison(token)  # A1; but 3x4 is a product, its x taken already
        if run is not None and not run.expecting:
            if not run.unit_words:
                return self.poison(token)
            self.unsure_next = run.has_operator  # "add 20 + 10 cakes to the 29 + 24 cakes"
            self.lead = ["#", run.last_word]
            self.finish()
            run = None
        if run is None:
            if self.lead and _singular(self.lead[-1]) in _LABELS and not self.currency:
                self.lead.append("#")
                return None
            run = self.start(token)
        elif run.open and run.open[-1][0] == "fraction":
            return self.poison(token)
        run.items.append(number._replace(unit=self.currency))
        run.end, run.unit_words, self.currency = token.end, 0, ""
        return None

    on_mixed = on_num

    def on_compound(self, token: _Token) -> None:
        """15 4-packs, a 1000-foot wall: a word that ends the run, not a number."""
        if self.run is not None and self.run.expecting:
            return self.poison(token)
        self.finish()
        self.lead.append(token.text)
        return None

    def on_percent(self, token: _Token) -> None:
        if self.run is None or self.run.unit_words or not isinstance(self.run.items[-1], _Number):
            return self.poison(token)
        self.run.items[-1] = self.run.items[-1]._replace(percent=True)
        self.run.end = token.end
        return None

    def on_op(self, token: _Token) -> None:
        if token.text[0].isalpha() and not self._operand_follows():
            return self.on_word(token)  # "rang 12 times", "a $10 fee plus another $7"
        op, run = _OPERATORS.get(token.text, token.text), self.run
        close_right = self.after is not None and self.after.start == token.end
        if op == ":":
            spaced = not close_right and not self._adjacent(token)
            if run is None or run.expecting or not (spaced and self._operand_follows()):
                return self.on_break(token)
            op, run.sure = "/", False
        if run is None:
            return self._leading_operator(op, token, close_right)
        if run.expecting or (run.open and run.open[-1][0] == "fraction"):
            if op != "-" or run.items[-1:] == ["neg"]:
                return self.poison(token)
            run.items.append("neg")
            return None
        if op == "/" and close_right and self._adjacent(token):
            run.fractions.append(len(run.items))
        run.items.append(op)  # type: ignore[arg-type]
        if op == "-" and run.unit_words and not close_right and not run.open:
            run.dash = len(run.items)
        run.unit_words = 0
        return None

    def _leading_operator(self, op: str, token: _Token, close_right: bool) -> None:
        line_start = not self.fresh and (self.before is None or self.before.text == "\n")
        if line_start and op in "-*" and not close_right:
            return  # a bullet
        if op == "-" and (self.fresh or (close_right and not self._adjacent(token))):
            self.unsure_next = self.unsure_next or bool(self.lead)
            self.start(token).items.append("neg")
        elif op == "-":
            self.unsure_next = True  # "apples - 3 + 4 = 7": a dash, or an unknown number of apples
        else:
            self.poison(token)

    def on_frac(self, token: _Token) -> None:
        if self.run is not None and not self.run.expecting:
            return self.poison(token)
        self._push(self.run or self.start(token), "fraction", token)
        return None

    def on_open(self, token: _Token) -> None:
        """Kinds: group; fraction, and inside it over and under; comment: "7 (3 + 4 = 7)", no product."""
        run, kind = self.run, "group"
        if run is None:
            if self.before is not None and self.before.kind == "word" and self._adjacent(token):
                return self.poison(token)  # f(x)
            run = self.start(token)
        elif run.open and run.open[-1][0] == "fraction":
            kind = "over" if run.items[-1] == "(" else "under"
        elif not run.expecting:
            if self._adjacent(token) and not run.unit_words:
                run.items.append("*")
            else:
                self.finish()
                self.lead.append("(")
                run, kind = self.start(token), "comment"
        self._push(run, kind, token)
        return None

    def _push(self, run: _Run, kind: str, token: _Token) -> None:
        run.items.append("(")
        run.open.append((kind, len(run.items), token.end))
        if len(run.open) > MAX_DEPTH:
            self.poison(token)

    def on_close(self, token: _Token) -> None:
        run = self.run
        if run is None or not run.open:
            self.finish()
            self.lead.append(")")
            return None
        kind = run.open.pop()[0]
        if run.expecting or kind in ("comment", "fraction"):
            return self.poison(token)
        run.items.append(")")
        if kind == "over":
            run.items.append("/")
        elif kind == "under":
            run.items.append(")")
            run.open.pop()
        run.end, run.unit_words = token.end, 0
        return None

    def on_text(self, token: _Token) -> None:
        r"""``\text{...}``: the unit of the number before it, or the name of something unknown."""
        if self.run is not None and self.run.expecting:
            return self.poison(token)
        for word in re.findall(r"[^\W\d_]+", token.text.partition("{")[2].lower()):
            if self.run is None:
                self.lead.append(word)
            else:
                self._unit_word(word, token, adjacent=False)
        return None

    def on_word(self, token: _Token) -> None:
        word, run = token.text.lower(), self.run
        if run is None:
            self.lead.append(word)
            return None
        if run.expecting:
            return self._word_for_operand(word, token)
        if word == "of" and not run.unit_words and self._operand_follows():
            run.sure = run.sure and not run.at_head  # 1 - 2/3 = 1/3 of $150
            run.items.append("*")
            return None
        if word == "x" and self._operand_follows():
            run.items.append("*")
            run.unit_words = 0
            return None
        return self._unit_word(word, token, self._adjacent(token))

    def _word_for_operand(self, word: str, token: _Token) -> None:
        run = self.run
        assert run is not None
        op = run.items[-1] if run.items else ""
        before = self.before
        glued = before is not None and self._adjacent(token)
        if len(word) > 1 and len(run.items) > 1 and op in ("-", "/") and glued:
            run.items.pop()  # $5/hour, 3-day
            return self._unit_word(word, token, False)
        if len(word) > 1 and op == "-" and len(run.items) > 1 and not run.open:
            run.items.pop()  # a dash: "= 7 - that is"
            self.finish()
            self.lead = [word]
            return None
        return self.poison(token)

    def _unit_word(self, word: str, token: _Token, adjacent: bool) -> None:
        run = self.run
        assert run is not None
        last = run.items[-1]
        if word in _SCALES and not run.unit_words and isinstance(last, _Number):
            zeros = len(str(_SCALES[word])) - 1
            value, decimals = last.value * _SCALES[word], max(0, last.decimals - zeros)
            run.items[-1] = last._replace(value=value, decimals=decimals, scaled=True)
            run.end = token.end
        elif len(word) == 1 and (adjacent or word not in ("a", "i")):
            if word not in ("m", "g", "h", "s", "l"):
                return self.poison(token)  # 2x + 3 = 7
            run.sure = False
            run.unit_words += 1
        elif adjacent and len(word) < 4 and isinstance(last, _Number) and _singular(word) not in _CONVERTIBLE:
            return self.poison(token)  # 3ab + 7
        elif word in _AFTER and not run.unit_words:
            return self.poison(token)
        elif (word in _CONNECTIVES and not (word == "of" and run.unit_words)) or run.unit_words >= MAX_UNIT_WORDS:
            part = isinstance(last, _Number) and (last.percent or last.value.denominator > 1 or "/" in run.items)
            run.sure = run.sure and not (word == "and" and self._operand_follows())  # 4 / 3 = 1 and 1/3
            self.finish()
            self.lead = [word]
            self.part_of_next = word == "of" and part
        else:
            run.unit_words += 1
            run.last_word = word
            self._set_unit(_singular(word))
        return None

    def _set_unit(self, unit: str) -> None:
        last = self.run.items[-1] if self.run is not None else None
        if self.run is not None and isinstance(last, _Number) and unit in _CONVERTIBLE:
            self.run.items[-1] = last._replace(unit=unit)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word


def _strip(run: _Run) -> _Run | None:
    """The part of a run after its last open parenthesis: "7 (3 + 4" before an equals sign is 3 + 4."""
    if any(kind not in ("group", "comment") for kind, _, _ in run.open):
        return None
    if run.open:
        _, index, position = run.open[-1]
        run.items, run.start, run.led, run.dash = run.items[index:], position, False, max(0, run.dash - index)
        run.fractions = [i - index for i in run.fractions if i > index]
    return run


def _parse(items: Sequence[_Item], percent_is_unit: bool) -> Expression:
    """Recursive descent over well-formed items; `_Reader` lets no others through."""
    position = 0

    def peek() -> _Item | None:
        return items[position] if position < len(items) else None

    def take() -> _Item:
        nonlocal position
        position += 1
        return items[position - 1]

    def total() -> Expression:
        left = product()
        while peek() in ("+", "-"):
            left = (str(take()), left, product())
        return left

    def product() -> Expression:
        left = factor()
        while peek() in ("*", "/"):
            left = (str(take()), left, factor())
        return left

    def factor() -> Expression:
        item = take()
        if isinstance(item, _Number):
            return item.as_fraction(percent_is_unit)
        if item == "neg":
            inner = factor()
            return -inner if isinstance(inner, Fraction) else ("-", Fraction(0), inner)
        inner = total()
        take()
        return inner

    return total()
