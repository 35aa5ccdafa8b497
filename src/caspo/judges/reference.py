"""Judge `reference`: decides a step by the quantities of a generated problem and by what its solution says of them.

A step is right if each of its equations follows from the problem, not merely holds for its numbers (see quantities.py),
and if it says of the result what the written solution says of it: the same person, the same thing (see statement.py). So
any order of sums, several steps in one and other words for the same pass; ``2 + 2`` for ``2 * 2`` does not, nor does a
true sum that is said to be the bananas of Napoleon where the problem has neither. A step that is understood in part is
unknown. Works for questions whose ``meta["quantities"]`` lists ``{"value", "kind", "formula"}`` (see tasks/stories.py);
the statement is judged where ``solution`` has a line for each result.

Questions with a reference solution that calculates (GSM8K's, with its ``<<48/2=24>>`` marks) are judged by that, less
surely: see solution.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from caspo.answers import extract_answer, right_answer
from caspo.core.errors import DataError
from caspo.judges.base import StepJudge
from caspo.judges.quantities import Quantities
from caspo.judges.solution import SolutionJudge
from caspo.judges.statement import Cast, Claim, claim_at, claims, compare, lead_stems, says_nothing, strangers
from caspo.records import Label, Question, Verdict
from caspo.steps import Equation, Expression, equations, split_steps

__all__ = ["ReferenceJudge"]

_Told = tuple[Label, str]


class ReferenceJudge(StepJudge):
    """Judges steps of problems whose intermediate values are known."""

    name = "reference"

    def __init__(self) -> None:
        self._by_solution = SolutionJudge()
        self._problem: _Problem | None = None

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """The verdict on ``step`` after the right steps ``prefix``.

        A result that was had already, a number from nowhere, a distractor, a quantity the solution does not need, and a
        person or thing that the result is not of are wrong; a step that neither calculates nor answers, and a statement
        that is not understood, are unknown.
        """
        if not question.meta.get("quantities") and question.solution:
            return self._by_solution.judge_step(question, prefix, step, final=final)
        if self._problem is None or self._problem.question is not question:
            self._problem = _Problem(question)
        return self._verdict(*self._problem.judge(prefix, step, final))


class _Problem:
    """What is known of one question."""

    def __init__(self, question: Question) -> None:
        quantities: Sequence[Mapping[str, Any]] | None = question.meta.get("quantities")
        if not quantities:
            raise DataError(
                f"Question {question.id} has no intermediate values and no solution, one of which the reference judge "
                "needs. Use the arithmetic judge for questions that come with an answer only."
            )
        self.question = question
        self.cast = Cast.of(question.text)
        self.quantities = Quantities(quantities)
        self.given = dict(self.quantities.names)
        self.told_of = {Fraction(q["value"]) for q in quantities if q["kind"] != "derived"}
        """The numbers that the problem gives."""
        self.lines: dict[Fraction, Claim] = {}
        """What the solution says of each of its results, by moved value."""
        self.changes: dict[tuple[str, Fraction], list[Claim]] = {}
        """What it says where something is added or taken away, by the sign and what that is."""
        for line in split_steps(question.solution or ""):
            found = _equations(line)
            said = claims(line, self.cast)
            if len(found) == len(said) == 1:
                for value in self.quantities.read(found[0].expression):
                    self.lines.setdefault(value, said[0])
                for change in self._changes(found[0].expression, second=True):
                    self.changes.setdefault(change, []).append(said[0])
        self.words = frozenset(word.lower() for claim in self.lines.values() for word in claim.words)
        self.told = tuple(self.lines.values())
        owners = {index: self._owner(index, quantities[index]["value"]) for some in self.quantities.owners.values()
                  for index in some}  # fmt: skip
        self.sums = {value: tuple(owners[i] for i in some) for value, some in self.quantities.owners.items()}
        """The people whose amounts a sum adds up."""

    def _owner(self, index: int, value: int) -> str:
        """Whose amount a quantity is; "" where that is not said."""
        if line := self.lines.get(self.quantities.moved[index]):
            return line.people[0] if line.people else ""
        told = next((s for s in re.split(r"[.?!]", self.question.text) if re.search(rf"\b{value}\b", s)), "")
        return next((word for word in re.findall(r"[^\W\d_]+", told) if word in self.cast.people), "")

    def _changes(self, expression: Expression, *, second: bool = False) -> list[tuple[str, Fraction]]:
        """What may be the change in a sum or difference: either term, or the ``second`` alone."""
        if isinstance(expression, Fraction) or expression[0] not in "+-":
            return []
        sides = expression[1:] if expression[0] == "+" and not second else expression[2:]
        return [(expression[0], value) for side in sides for value in self.quantities.read(side)]

    def judge(self, prefix: Sequence[str], step: str, final: bool) -> _Told:
        """A label and its reason: the first that is wrong decides, then the first that is unknown."""
        doubtful: _Told | None = None
        last: _Told = ("right", "follows from the problem")
        for last in self._told_of_step(prefix, step, final):
            if last[0] == "wrong":
                return last
            doubtful = doubtful or (last if last[0] == "unknown" else None)
        return doubtful or last

    def _told_of_step(self, prefix: Sequence[str], step: str, final: bool) -> Iterator[_Told]:
        """What is to be said of each of its equations, statements and answers, in turn."""
        used = self._after(prefix)
        found, known = _equations(step), set(self.established)
        new = False
        for equation in found:
            yield self._follows(equation)
            needed = self._needed(equation)
            new |= not needed or not needed <= known
            self._establish(equation)
        if found and not new:
            yield "wrong", f"{_shown(found[-1].result)} was already known"
        if self.lines and (names := strangers(step, self.cast, self.words)):
            yield "wrong", f"the problem tells of no {names[0]}"
        for said, equation in _stated(step, found, self.cast):
            yield self._says(said, equation, used)
        answer = extract_answer(step)
        if answer is not None:
            yield self._answers(step, answer)
        elif final:
            yield "wrong", "ends without an answer"
        else:
            yield ("right", "follows from the problem") if found else ("unknown", "neither calculates nor answers")

    def _after(self, prefix: Sequence[str]) -> set[Fraction]:
        """Take the results of earlier steps as known; the numbers that these calculated with."""
        self.quantities.names, self.numbers, self.established = dict(self.given), set(self.told_of), set[Fraction]()
        used: set[Fraction] = set()
        for equation in (e for line in prefix for e in _equations(line) if e.holds()):
            self._establish(equation)
            used.update(equation.numbers)
        return used

    def _establish(self, equation: Equation) -> None:
        for value in self._needed(equation) or self._values(equation):
            self.quantities.name(equation.result, value)
            self.established.add(value)
        self.numbers.add(equation.result)

    def _values(self, equation: Equation) -> set[Fraction]:
        return self.quantities.read(equation.expression) | self.quantities.repeated(equation)

    def _needed(self, equation: Equation) -> set[Fraction]:
        """The quantities that it may come to of those that the solution needs; parts of these from known numbers only."""
        found = self._values(equation)
        known = set(equation.numbers) <= self.numbers
        return found & (set(self.quantities.derived) | (self.quantities.parts if known else set()))

    def _follows(self, equation: Equation) -> _Told:
        """Whether an equation follows from the problem."""
        if not equation.holds():
            return "wrong", f"the calculation gives {_shown(equation.value)}, not {_shown(equation.result)}"
        names, distractors = self.quantities.names, self.quantities.distractors
        for number in equation.numbers:
            if number not in names:
                return "wrong", f"{_shown(number)} is not a quantity of the problem"
            if names[number] <= distractors:
                return "wrong", f"{_shown(number)} has nothing to do with the question"
        if self._needed(equation):
            return "right", ""
        if self._values(equation) & self.quantities.shares:
            return "unknown", f"{_shown(equation.result)} is that of a part only"
        return "wrong", f"{_shown(equation.result)} comes about by another operation than the problem's"

    def _says(self, said: Claim, equation: Equation, used: set[Fraction]) -> _Told:
        """Whether what a step says of its result is so; ``used`` are the numbers that earlier steps calculated with."""
        if not self.lines:
            return "right", ""
        changes = [line for c in self._changes(equation.expression) for line in self.changes.get(c, ())]
        told: list[_Told] = []
        for value in sorted(self._needed(equation)):
            if value in self.sums:
                told.append(self._of_sum(said, value))
            elif value in self.lines:
                told.append(compare(said, self.lines[value], self.cast, self.told))
                if told[-1][0] == "unknown":  # in another order
                    told += [compare(said, line, self.cast, self.told) for line in changes]
            else:
                told += self._of_part(said, changes, bool(used & set(equation.numbers)))
        told = told or self._of_part(said, changes, False)
        return next((one for one in told if one[0] == "right"), told[0])

    def _of_sum(self, said: Claim, value: Fraction) -> _Told:
        """A sum of several people's amounts: of all of them, or "with" one of them."""
        people = self.sums[value]
        line = self.lines.get(value) or next(iter(self.lines.values()))
        lead = [word for word in said.before if word in self.cast.people and word not in said.people]
        if set(lead) - set(people):
            return "wrong", f"the sum is that of {' and '.join(people)}"
        return compare(said, replace(line, people=people), self.cast, self.told)

    def _of_part(self, said: Claim, changes: Sequence[Claim], again: bool) -> list[_Told]:
        """A part of a result: right if it is said of nobody, or as the solution says it of the same change in another order;
        ``again``: of numbers that were used already."""
        if again:
            return [("unknown", "it goes back behind an earlier step")]
        if says_nothing(said):
            general = Claim((), self.told[0].after[:1])
            return [compare(Claim((), said.after, said.money), general, self.cast, self.told)]
        own = lead_stems(said, self.cast)
        told = [compare(said, line, self.cast, self.told) for line in changes if own <= lead_stems(line, self.cast)]
        return told or [("unknown", "whether it is what the step says is not known")]

    def _answers(self, step: str, answer: str) -> _Told:
        right = right_answer(answer, self.question.answer)
        reason = f"answers {answer}; the answer is {self.question.answer}"
        at = step.rfind(answer)
        last = self.lines.get(self.quantities.derived[-1]) if self.quantities.derived else None
        if right and last is not None and at >= 0:
            said = claim_at(step, (at, at + len(answer)), self.cast)
            label, why = compare(Claim((), said.after, said.money), last, self.cast, self.told)
            if label == "wrong":
                return "wrong", why
        return ("right" if right else "wrong"), reason


def _stated(step: str, found: Sequence[Equation], cast: Cast) -> list[tuple[Claim, Equation]]:
    """The claims of a step with the equation that each is about, the last of its chain."""
    last: list[Equation] = []
    for equation in found:
        if last and equation.span[0] <= last[-1].span[1]:
            last[-1] = max(last[-1], equation, key=lambda e: e.span[1])
        else:
            last.append(equation)
    return list(zip(claims(step, cast), last, strict=True))


@lru_cache(maxsize=4096)
def _equations(line: str) -> tuple[Equation, ...]:
    """A right step is read again in every prefix that it stands in."""
    return tuple(equations(line))


def _shown(value: Fraction | None) -> str:
    return "nothing" if value is None else str(value)
