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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from caspo.answers import extract_answer, same_answer
from caspo.core.errors import DataError
from caspo.judges.base import StepJudge
from caspo.judges.quantities import Quantities
from caspo.judges.solution import SolutionJudge
from caspo.judges.statement import Cast, Claim, claim_at, claims, compare, says_nothing, strangers
from caspo.records import Label, Question, Verdict
from caspo.steps import Equation, equations, split_steps

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
        self.lines: dict[Fraction, Claim] = {}
        """What the solution says of each of its results, by moved value."""
        for line in split_steps(question.solution or ""):
            found = _equations(line)
            said = claims(line, self.cast)
            if len(found) == len(said) == 1:
                for value in self.quantities.read(found[0].expression):
                    self.lines.setdefault(value, said[0])
        self.words = frozenset(word.lower() for claim in self.lines.values() for word in claim.words)
        self.things = frozenset(claim.thing for claim in self.lines.values() if claim.thing)
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

    def judge(self, prefix: Sequence[str], step: str, final: bool) -> _Told:
        known = self._after(prefix)
        found = _equations(step)
        told: list[_Told] = []
        new = False
        for equation in found:
            told.append(self._follows(equation))
            if told[-1][0] == "wrong":
                return told[-1]
            new |= equation.result not in known
            self._establish(equation)
        if found and not new:
            return "wrong", f"{_shown(found[-1].result)} was already known"
        if self.lines and (names := strangers(step, self.cast, self.words)):
            return "wrong", f"the problem tells of no {names[0]}"
        for said, equation in _stated(step, found, self.cast):
            told.append(self._says(said, equation))
            if told[-1][0] == "wrong":
                return told[-1]
        answer = extract_answer(step)
        if answer is not None:
            told.append(self._answers(step, answer))
            if told[-1][0] == "wrong":
                return told[-1]
        elif final:
            return "wrong", "ends without an answer"
        elif not found:
            return "unknown", "neither calculates nor answers"
        doubtful = next((one for one in told if one[0] == "unknown"), None)
        return doubtful or (told[-1] if answer is not None else ("right", "follows from the problem"))

    def _after(self, prefix: Sequence[str]) -> set[Fraction]:
        """Take the results of right steps as known; they are returned."""
        self.quantities.names = dict(self.given)
        known = set()
        for line in prefix:
            for equation in _equations(line):
                if equation.holds():
                    self._establish(equation)
                    known.add(equation.result)
        return known

    def _establish(self, equation: Equation) -> None:
        values = self._values(equation)
        for value in self._needed(values) or values:
            self.quantities.name(equation.result, value)

    def _values(self, equation: Equation) -> set[Fraction]:
        return self.quantities.read(equation.expression) | self.quantities.repeated(equation)

    def _needed(self, values: set[Fraction]) -> set[Fraction]:
        return values & (self.quantities.parts | set(self.quantities.derived))

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
        values = self._values(equation)
        if self._needed(values):
            return "right", ""
        if values & self.quantities.shares:
            return "unknown", f"{_shown(equation.result)} is that of a part only"
        return "wrong", f"{_shown(equation.result)} comes about by another operation than the problem's"

    def _says(self, said: Claim, equation: Equation) -> _Told:
        """Whether what a step says of its result is so."""
        if not self.lines:
            return "right", ""
        values = self._values(equation)
        label, reason = self._of_none(said)
        for value in sorted(self._needed(values)):
            if value in self.sums:
                label, reason = self._of_sum(said, value)
            elif value in self.lines:
                label, reason = compare(said, self.lines[value], self.cast, self.things)
            if label == "right":
                break
        return label, reason

    def _of_sum(self, said: Claim, value: Fraction) -> _Told:
        """A sum of several people's amounts: of all of them, or "with" one of them."""
        people = self.sums[value]
        line = self.lines.get(value) or next(iter(self.lines.values()))
        lead = [word for word in said.before if word in self.cast.people and word not in said.people]
        if set(lead) - set(people):
            return "wrong", f"the sum is that of {' and '.join(people)}"
        return compare(said, replace(line, people=people), self.cast, self.things)

    def _of_none(self, said: Claim) -> _Told:
        """A result that the solution has no line for, a part of one that it has: right if it is said of nobody."""
        general = Claim((), next(iter(self.lines.values())).after[:1])
        label, reason = compare(Claim((), said.after, said.money), general, self.cast, self.things)
        if label == "wrong":
            return label, reason
        if any(line.before == said.before for line in self.lines.values()) and not says_nothing(said):
            return "wrong", "another result is what this is said of"
        return (label, reason) if says_nothing(said) else ("unknown", "whether it is what the step says is not known")

    def _answers(self, step: str, answer: str) -> _Told:
        right = same_answer(answer, self.question.answer)
        reason = f"answers {answer}; the answer is {self.question.answer}"
        at = step.rfind(answer)
        last = self.lines.get(self.quantities.derived[-1]) if self.quantities.derived else None
        if right and last is not None and at >= 0:
            said = claim_at(step, (at, at + len(answer)), self.cast)
            label, why = compare(Claim((), said.after, said.money), last, self.cast, self.things)
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
