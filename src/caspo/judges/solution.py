"""Judges steps by a written reference solution: do they come to values that it comes to as well?

The `reference` judge uses this for questions that have a solution with calculations (GSM8K's, with its marks such as
``<<48/2=24>>``) and no list of quantities. It is the arithmetic judge with one more condition on "right": the result must
be a value of the reference solution. So a true sum that leads nowhere is not right; but neither is it wrong, since there
may be another way to the answer. What it cannot see is a right value reached by a wrong operation (2 + 2 for 2 * 2).
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from caspo.judges.arithmetic import ArithmeticJudge, parts
from caspo.records import Question
from caspo.steps import Equation, equations

__all__ = ["SolutionJudge"]


class SolutionJudge(ArithmeticJudge):
    """Judges steps of questions with a reference solution; of one that calculates nothing, the answer only."""

    name = "reference"

    def _given(self, question: Question) -> frozenset[Fraction]:
        """Also what the solution takes from nowhere: 365 days, 5280 feet."""
        return super()._given(question) | _values(question.solution or "")[1]

    def _unsupported(self, question: Question, equation: Equation) -> str | None:
        values = _values(question.solution or "")[0]
        return None if abs(equation.result) in values else "holds, but the reference solution comes to no such value"


@lru_cache(maxsize=4096)
def _values(solution: str) -> tuple[frozenset[Fraction], frozenset[Fraction]]:
    """What the calculations of a solution come to, their parts included, and the numbers they use."""
    found = [equation for equation in equations(solution) if equation.holds()]
    values = {abs(value) for equation in found for value in (equation.result, *_compound(equation))}
    return frozenset(values), frozenset(abs(number) for equation in found for number in equation.numbers)


def _compound(equation: Equation) -> set[Fraction]:
    """The values of the parts of an expression that calculate something: the 6 of ``2 * 3 + 4``."""
    if isinstance(equation.expression, Fraction):
        return set()
    return parts(equation.expression) - set(equation.numbers)
