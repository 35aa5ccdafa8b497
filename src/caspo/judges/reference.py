"""Judge `reference`: decides a step exactly, from the quantities of a generated problem.

A step is right if each of its equations follows from the problem, not merely holds for its numbers: every quantity that
the problem gives is replaced by another value, and the equation must still produce a quantity that the solution needs.
So any wording and any order of sums pass, ``2 + 2`` for ``2 * 2`` does not, and neither does a true sum of apples and
minutes. Works for questions whose ``meta["quantities"]`` lists ``{"value", "kind", "formula"}`` with all values distinct
(see tasks/stories.py).

Questions with a reference solution that calculates (GSM8K's, with its ``<<48/2=24>>`` marks) are judged by that, less
surely: see solution.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations
from typing import Any

from caspo.answers import extract_answer, right_answer
from caspo.core.errors import DataError
from caspo.judges.base import StepJudge
from caspo.judges.solution import SolutionJudge
from caspo.records import Question, Verdict
from caspo.steps import Equation, Expression, equations

__all__ = ["ReferenceJudge"]

_OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Fraction | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
}


class ReferenceJudge(StepJudge):
    """Judges steps of problems whose intermediate values are known."""

    name = "reference"

    def __init__(self) -> None:
        self._by_solution = SolutionJudge()

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """The verdict on ``step`` after the right steps ``prefix``.

        A repeated result, a number from nowhere, a distractor and a quantity the solution does not need are wrong; a
        step that neither calculates nor answers is unknown.
        """
        if not question.meta.get("quantities") and question.solution:
            return self._by_solution.judge_step(question, prefix, step, final=final)
        world = _World(question)
        for line in prefix:
            for equation in _equations(line):
                world.establish(equation)
        found = _equations(step)
        for equation in found:
            reason = world.error(equation)
            if reason:
                return self._verdict("wrong", reason)
            world.establish(equation)
        answer = extract_answer(step)
        if answer is not None:
            right = right_answer(answer, question.answer)
            return self._verdict("right" if right else "wrong", f"answers {answer}; the answer is {question.answer}")
        if final:
            return self._verdict("wrong", "ends without an answer")
        if not found:
            return self._verdict("unknown", "neither calculates nor answers")
        return self._verdict("right", "follows from the problem")


@lru_cache(maxsize=4096)
def _equations(line: str) -> tuple[Equation, ...]:
    """A right step is read again in every prefix that it stands in."""
    return tuple(equations(line))


class _World:
    """The problem's quantities, and the same with other numbers in place of the given ones."""

    def __init__(self, question: Question) -> None:
        quantities: Sequence[Mapping[str, Any]] | None = question.meta.get("quantities")
        if not quantities:
            raise DataError(
                f"Question {question.id} has no intermediate values and no solution, one of which the reference judge "
                "needs. Use the arithmetic judge for questions that come with an answer only."
            )
        self.other: dict[Fraction, Fraction] = {}
        self.distractors: set[Fraction] = set()
        self.needed: set[Fraction] = set()
        self.established: set[Fraction] = set()
        values: list[Fraction] = []
        for index, quantity in enumerate(quantities):
            value = Fraction(quantity["value"])
            if quantity["kind"] == "derived":
                left, operator, right = quantity["formula"].split()
                moved = _OPERATIONS[operator](values[int(left[1:])], values[int(right[1:])])
                assert moved is not None
                self.needed.add(moved)
            else:
                moved = value if quantity["kind"] == "constant" else value + 13 + 101 * (index + 1) ** 2
                if quantity["kind"] == "distractor":
                    self.distractors.add(value)
            values.append(moved)
            self.other[value] = moved
            if terms := quantity.get("terms"):
                for size in range(2, len(terms)):
                    self.needed |= {sum((values[t] for t in some), Fraction(0)) for some in combinations(terms, size)}

    def establish(self, equation: Equation) -> None:
        """Take an equation of a right step as known."""
        moved = self._evaluate(equation.expression)
        if moved is not None:
            self.other.setdefault(equation.result, moved)
        self.established.add(equation.result)

    def error(self, equation: Equation) -> str | None:
        """What is wrong with an equation, or None."""
        if not equation.holds():
            return f"the calculation gives {_shown(equation.value)}, not {_shown(equation.result)}"
        for number in equation.numbers:
            if number not in self.other:
                return f"{_shown(number)} is not a quantity of the problem"
            if number in self.distractors:
                return f"{_shown(number)} has nothing to do with the question"
        if self._evaluate(equation.expression) not in self.needed:
            return f"{_shown(equation.result)} comes about by another operation than the problem's"
        if equation.result in self.established:
            return f"{_shown(equation.result)} was already known"
        return None

    def _evaluate(self, expression: Expression) -> Fraction | None:
        if isinstance(expression, Fraction):
            return self.other.get(expression)
        operator, left, right = expression
        a, b = self._evaluate(left), self._evaluate(right)
        return None if a is None or b is None else _OPERATIONS[operator](a, b)


def _shown(value: Fraction | None) -> str:
    return "nothing" if value is None else str(value)
