"""The quantities of a generated problem, and which calculations with them follow from it.

Every quantity that the problem gives is replaced by another number, and a step's equation is worked out with these: what
it comes to then names one quantity, where the written numbers may meet by chance. A calculation follows from the problem
if it comes to a quantity that the solution needs, or to a part of one: some of the terms of its sum, some of the factors
of its product. So another order, several steps in one and ``5 - 3`` for "finds 5, loses 3" follow; ``2 + 3`` for ``2 * 3``
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import reduce
from itertools import chain, combinations, product
from typing import Any

from caspo.steps import Equation, Expression

__all__ = ["Quantities"]

MAX_PARTS = 10
"""A quantity made of more terms (factors) than these has no parts: there would be too many of them."""

MAX_READINGS = 64
"""Combinations of what the numbers of one expression may name that are tried."""

_Operation = Callable[[Fraction, Fraction], Fraction | None]
_OPERATIONS: Mapping[str, _Operation] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


class Quantities:
    """What a problem's numbers name. Values are `moved`: worked out from other given numbers.

    Args:
        quantities: ``{"value", "kind", "formula"}`` each, as in ``Question.meta``. Kinds: given, constant, distractor,
            derived; a formula is ``#i op #j`` over the quantities before it.
    """

    def __init__(self, quantities: Sequence[Mapping[str, Any]]) -> None:
        self.moved: list[Fraction] = []
        """In the order of the quantities."""
        self.names: dict[Fraction, frozenset[Fraction]] = {}
        """A number as written, and the moved values that it may stand for."""
        self.derived: list[Fraction] = []
        """Those that the solution calculates, in its order."""
        self.distractors: set[Fraction] = set()
        self.parts: set[Fraction] = set()
        """Parts of sums and products that the solution needs."""
        self.shares: set[Fraction] = set()
        """A term of a sum, times or divided by what the whole sum is: the half of one of two heaps. It may be a step on
        another way, or a step that forgets the rest."""
        self.owners: dict[Fraction, frozenset[int]] = {}
        """Sums of several of the amounts that a total adds up, and the indices of these."""
        self._formulas: list[tuple[int, str, int] | None] = []
        self._amounts = {term for quantity in quantities for term in quantity.get("terms", ())}
        for index, quantity in enumerate(quantities):
            self._add(index, quantity)
        for index, formula in enumerate(self._formulas):
            if formula is not None:
                self.parts |= _sums(_left(self._terms(index))) | _products(list(self._factors(index)))
                self.shares |= set(self._shares(formula))

    def _add(self, index: int, quantity: Mapping[str, Any]) -> None:
        value = Fraction(quantity["value"])
        formula = None
        if quantity["kind"] == "derived":
            left, operator, right = quantity["formula"].split()
            formula = (int(left[1:]), operator, int(right[1:]))
            found = _OPERATIONS[operator](self.moved[formula[0]], self.moved[formula[2]])
            assert found is not None
            moved = found
            self.derived.append(moved)
        else:
            moved = value if quantity["kind"] == "constant" else value + 13 + 101 * (index + 1) ** 2
            if quantity["kind"] == "distractor":
                self.distractors.add(moved)
        self.moved.append(moved)
        self._formulas.append(formula)
        self.name(value, moved)
        terms = quantity.get("terms", ())
        for size in range(2, len(terms) + 1):
            for some in combinations(terms, size):
                total = sum((self.moved[t] for t in some), Fraction(0))
                self.owners[total] = frozenset(some)
                self.parts.add(total)

    def name(self, value: Fraction, moved: Fraction) -> None:
        """From here on the number ``value`` may stand for ``moved``."""
        self.names[value] = self.names.get(value, frozenset()) | {moved}

    def read(self, expression: Expression) -> set[Fraction]:
        """What an expression may come to, in moved values; empty where a number of it names nothing."""
        numbers = _leaves(expression)
        if any(number not in self.names for number in numbers):
            return set()
        found = set()
        readings = product(*(sorted(self.names[number] - self.distractors) for number in numbers))
        for _, reading in zip(range(MAX_READINGS), readings, strict=False):
            moved = _evaluate(expression, iter(reading))
            if moved is not None:
                found.add(moved)
        return found

    def repeated(self, equation: Equation) -> set[Fraction]:
        """What a sum of one number with itself may come to as a product: 4 + 4 + 4 for 3 * 4."""
        numbers, count = set(equation.numbers), Fraction(len(equation.numbers))
        if len(numbers) != 1 or not _only_plus(equation.expression) or numbers == {count}:
            return set()
        (number,) = numbers
        return {a * b for a in self.names.get(number, ()) for b in self.names.get(count, ())}

    def _terms(self, index: int) -> Iterator[Fraction]:
        """The terms of a quantity that is a sum, with their signs; an amount that a total adds up is one of its terms."""
        formula = self._formulas[index]
        if formula is None or formula[1] in "*/":
            yield self.moved[index]
            return
        for of, sign in ((formula[0], 1), (formula[2], 1 if formula[1] == "+" else -1)):
            terms = [self.moved[of]] if of in self._amounts else self._terms(of)
            yield from (sign * term for term in terms)

    def _factors(self, index: int, divided: bool = False) -> Iterator[tuple[Fraction, bool]]:
        """The factors of a quantity that is a product, and whether it is divided by them."""
        formula = self._formulas[index]
        if formula is None or formula[1] in "+-":
            yield self.moved[index], divided
        else:
            yield from self._factors(formula[0], divided)
            yield from self._factors(formula[2], divided != (formula[1] == "/"))

    def _shares(self, formula: tuple[int, str, int]) -> Iterator[Fraction]:
        left, operator, right = formula
        if operator not in "*/":
            return
        for whole, other in ((left, right), (right, left)) if operator == "*" else ((left, right),):
            terms = _left(self._terms(whole))
            for term in chain(terms, _sums(terms)) if len(terms) > 1 else ():
                found = _OPERATIONS[operator](abs(term), self.moved[other])
                if found is not None:
                    yield found


def _leaves(expression: Expression) -> list[Fraction]:
    return [expression] if isinstance(expression, Fraction) else _leaves(expression[1]) + _leaves(expression[2])


def _only_plus(expression: Expression) -> bool:
    return isinstance(expression, Fraction) or (
        expression[0] == "+" and _only_plus(expression[1]) and _only_plus(expression[2])
    )


def _evaluate(expression: Expression, numbers: Iterator[Fraction]) -> Fraction | None:
    """With these numbers in place of its own, from left to right."""
    if isinstance(expression, Fraction):
        return next(numbers)
    a, b = _evaluate(expression[1], numbers), _evaluate(expression[2], numbers)
    return None if a is None or b is None else _OPERATIONS[expression[0]](a, b)


def _left(terms: Iterable[Fraction]) -> list[Fraction]:
    """The terms without those that cancel out: what both of two amounts are made of is not in their difference."""
    left: list[Fraction] = []
    for term in terms:
        if -term in left:
            left.remove(-term)
        else:
            left.append(term)
    return left


def _some(items: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """All selections of two or more of the items, the whole apart."""
    sizes = range(2, len(items)) if len(items) <= MAX_PARTS else ()
    return chain.from_iterable(combinations(items, size) for size in sizes)


def _sums(terms: Sequence[Fraction]) -> set[Fraction]:
    """What some of the terms come to, and the same turned round (5 - 3 of ... - 5 + 3)."""
    found = {sum(some, Fraction(0)) for some in _some(terms)}
    return found | {-value for value in found}


def _products(factors: Sequence[tuple[Fraction, bool]]) -> set[Fraction]:
    found = set()
    for some in _some(factors):
        if not all(divided for _, divided in some):
            found.add(reduce(lambda a, f: a / f[0] if f[1] else a * f[0], some, Fraction(1)))
        else:  # shared by 2, then by 3: by 6 at once
            found.add(reduce(lambda a, f: a * f[0], some, Fraction(1)))
    return found
