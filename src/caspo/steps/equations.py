"""Finds the equations that a step states in running text.

What it is not: a computer algebra system, or a parser of LaTeX. It reads the arithmetic that grade-school solutions
write, and where a text can be read in several ways (a variable, a dash that may be a minus, hours mixed with minutes)
it keeps quiet unless one of the readings holds: a missed equation makes a judge say "unknown", a misread one would make
it say "wrong". It takes one pass over the text, never raises, and gives up on a clause with too many parts, open
parentheses or digits (`MAX_ITEMS`, `MAX_DEPTH`, `MAX_DIGITS`).

tokens.py cuts the text, runs.py joins tokens to the two sides of an equals sign, this file makes equations of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

from caspo.steps.runs import Item, Reader, Run
from caspo.steps.tokens import CONVERTIBLE, MARK, Number, Token, tokenize
from caspo.steps.tried import only_tried

__all__ = ["Equation", "Expression", "equations", "worth"]

Expression: TypeAlias = "Fraction | tuple[str, Expression, Expression]"
"""A number, or ``(op, left, right)`` with op one of ``+ - * /``."""


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
        return worth(self.expression)

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


def worth(expression: Expression) -> Fraction | None:
    """What an expression comes to, exactly; None where it divides by zero."""
    if isinstance(expression, Fraction):
        return expression
    op, left, right = expression[0], worth(expression[1]), worth(expression[2])
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
    A false one that the text itself asks about, supposes or rejects ("2 + 1 = 1 (False)") is no statement of it.
    ``5 = 2 + 3`` counts turned around. GSM8K's ``<<2+3=5>>`` marks are read on their own, besides the text around them.

    >>> [(e.numbers, e.result, e.holds()) for e in equations("She has 3 boxes * $4 = $12 left.")]
    [((Fraction(3, 1), Fraction(4, 1)), Fraction(12, 1), True)]
    """
    found: list[Equation] = []
    for mark in MARK.finditer(text):
        found += _clause_equations(tokenize(text, mark.start() + 2, mark.end() - 2))
    found += _clause_equations(tokenize(text, 0, len(text)))
    stated = (equation for equation in found if equation.holds() or not only_tried(text, equation.span))
    return sorted(stated, key=lambda equation: equation.span)


def _clause_equations(tokens: list[Token]) -> list[Equation]:
    segments: list[list[Token]] = [[]]
    for token in tokens:
        if token.kind == "eq":
            segments.append([])
        else:
            segments[-1].append(token)
    sides = [Reader(segment, after_equals=i > 0).read() for i, segment in enumerate(segments)]
    links = (_link(left[1], right[0]) for left, right in pairwise(sides))
    return [equation for equation in links if equation is not None]


def _link(left: Run | None, right: Run | None) -> Equation | None:
    """The equation between the run that ends at an equals sign and the run that starts after it."""
    if left is None or right is None or not (left.has_operator or right.has_operator):
        return None
    span = (left.start, right.end)
    turned = not left.has_operator
    # 5 = 2 + 3, but also "sibling 5 = 2 + 3" and "14 hours = 14 * 60"
    sure = left.sure and right.sure and not (turned and (left.led or left.unit_words))
    if turned:
        left, right = right, left
    numbers = [item for item in (*left.items, *right.items) if isinstance(item, Number)]
    stated = next(item for item in right.items if isinstance(item, Number))
    additive = not {"*", "/"} & set(left.items)
    percents = {n.percent for n in numbers}
    # A percent sign is a hundredth (20% * 50 = 10), or a mere unit (10 / 50 * 100 = 20%, 100 - 20% = 80%).
    hundred = any(n.percent and n.value == 100 for n in left.items if isinstance(n, Number))  # 3 / 21 * 100% = 14.29
    per_cent = any(op == "/" and isinstance(n, Number) and n.percent for op, n in pairwise(left.items))  # 300 / 75% = 4
    may_be_unit = len(percents) == 2 and (additive or stated.percent or hundred or per_cent)
    sure = sure and not may_be_unit and len({n.unit for n in numbers} & CONVERTIBLE) < 2
    sure = sure and (stated.scaled <= any(n.scaled for n in numbers if n is not stated))  # 2 * 10 = $20 million
    match _parse(left.items, False):
        case ("/", Fraction() as part, Fraction() as whole):  # "1/5 = 12 hectares": a part of a whole, no division
            sure = sure and (part >= whole or stated.value < 1)
    first: Equation | None = None
    for percent_is_unit in (False, True) if may_be_unit else (False,):
        for items in left.readings():
            expression, other = _parse(items, percent_is_unit), _parse(right.items, percent_is_unit)
            decimals = stated.decimals + 2 * (stated.percent and not percent_is_unit)
            value = worth(other)
            readings = [] if value is None else [Equation(expression, value, span, 0 if right.has_operator else decimals)]
            if right.has_operator and isinstance(right.items[0], Number):  # a running total
                readings.append(Equation(expression, stated.as_fraction(percent_is_unit), span, decimals))
            for equation in readings:
                if equation.holds():
                    return equation
                first = first or equation
    return first if sure else None


def _parse(items: Sequence[Item], percent_is_unit: bool) -> Expression:
    """Recursive descent over well-formed items; `Reader` lets no others through."""
    position = 0

    def peek() -> Item | None:
        return items[position] if position < len(items) else None

    def take() -> Item:
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
        if isinstance(item, Number):
            return item.as_fraction(percent_is_unit)
        if item == "neg":
            inner = factor()
            return -inner if isinstance(inner, Fraction) else ("-", Fraction(0), inner)
        inner = total()
        take()
        return inner

    return total()
