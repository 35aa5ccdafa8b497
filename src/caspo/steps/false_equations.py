"""Tells an equation that is false from one that may be meant otherwise: rounded, cut, in another base or modulus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from caspo.steps.equations import Equation, Expression, equations, worth

__all__ = ["false_equations", "states_falsehood"]

CLOSE = Fraction(1, 100)
"""A relative error below this may come from decimals that were rounded on the way (33.33 * 3 = 100)."""

_THOUSANDS = re.compile(r"(?<![0-9.])([1-9][0-9]{0,2})\.([0-9]{3})(?![0-9.])")
_BASE = re.compile(r"\bbase[- ]?(?:\$?[0-9]|two|three|eight|ten)|\bbinary|\bhexadecimal|_\{?[0-9]", re.IGNORECASE)
_MODULUS = re.compile(r"(?:modul[oi]|mod(?:ulus)?\b)[^0-9a-z]{0,8}([0-9]{1,9})|modul[oi] [a-z]\b|clock", re.IGNORECASE)


def false_equations(found: Sequence[Equation], step: str, question: str) -> list[tuple[Equation, str | None]]:
    """Those that do not hold, each with why it may be no mistake all the same, or None.

    Args:
        found: all equations of the step.
        step: its text.
        question: the text of the question: it may count around a clock, say.
    """
    return [(e, _doubt(e, found, step) or _modular(e, question + step)) for e in found if not e.holds()]


@lru_cache(maxsize=4096)  # asked while a path is decoded, when it has ended, and at every threshold that is tried
def states_falsehood(step: str, question: str) -> bool:
    """Whether a step states an equation that is false beyond doubt.

    >>> states_falsehood("She has 3 * 4 = 13 left.", ""), states_falsehood("10 / 3 = 3.3", "")
    (True, False)
    """
    return any(doubt is None for _, doubt in false_equations(equations(step), step, question))


def _doubt(equation: Equation, found: Sequence[Equation], step: str) -> str | None:
    """Why an equation that does not hold may be no mistake, or None; ``found``: all equations of its step."""
    start, end = equation.span
    plain = _THOUSANDS.sub(r"\1\2", step[start:end])  # 1.500 + 500 = 2.000, as some write
    if plain != step[start:end] and any(e.holds() for e in equations(plain)):
        return "holds where the points group digits"
    inside = (other for other in found if other is not equation and start <= other.span[0] and other.span[1] <= end)
    if any(other.holds() and other.result == equation.result for other in inside):
        return "is not what its own mark calculates"  # 8 * 3 = <<80*3=240>>240
    value = equation.value
    if value is None:
        return None
    error = abs(value - equation.result)
    # 42/5 + 42/25 = 8 + 1: each of the terms may be cut
    parts_cut = sum(x is not None and x.denominator > 1 for x in map(worth, _terms(equation.expression)))
    if error < max(1, parts_cut) * Fraction(1, 10**equation.decimals) and (equation.decimals or value.denominator > 1):
        return "is cut or rounded to a whole number, which may be meant"
    whole = all(x.denominator == 1 for x in (*equation.numbers, equation.result))
    if not whole and error <= CLOSE * abs(value):
        return "is off by little, perhaps by rounding on the way"
    return None


def _modular(equation: Equation, text: str) -> str | None:
    """Why it may hold all the same where a text counts in another base or around a clock, or None."""
    value = equation.value
    moduli = [int(m[1] or 0) or None for m in _MODULUS.finditer(text)]
    if _BASE.search(text) or (value is not None and any(m is None or (value - equation.result) % m == 0 for m in moduli)):
        return "may be meant in another base or modulus"
    return None


def _terms(expression: Expression) -> list[Expression]:
    """What an expression adds up."""
    if isinstance(expression, Fraction) or expression[0] != "+":
        return [expression]
    return _terms(expression[1]) + _terms(expression[2])
