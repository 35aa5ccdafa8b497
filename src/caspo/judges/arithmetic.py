"""Checks what a step calculates: do its equations hold, and where do their numbers come from?

For questions without known intermediate values. It says "wrong" only of an equation that is false beyond any rounding
or of a final answer that differs from the reference; "right" only of a step whose equations all hold and use nothing
but quantities of the question and of earlier steps. It does not know whether an operation makes sense: 3 + 4 = 7 is
right to it where 3 * 4 was called for, so its "right" is weaker evidence than its "wrong".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache

from caspo.answers import parse_number, right_answer, stated_answer
from caspo.answers.quantities import quantity
from caspo.judges.base import StepJudge
from caspo.records import Label, Question, Verdict
from caspo.steps import Equation, Expression, equations, false_equations, worth

__all__ = ["ArithmeticJudge", "parts"]

MAX_SPELLED = 10**15
"""Number words are joined up to here: "million million million ..." must not fill the memory."""

_DIGITS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3}){1,9}(?![0-9])(?:\.[0-9]{1,30})?|[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30}")
_RATIO = re.compile(r"(?:(?<![0-9.])([0-9]{1,6})[ -])?(?<![0-9.])([0-9]{1,9})/([0-9]{1,9})(?![0-9.])")
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, start=2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}

# Words that bring numbers along: amounts, and units with what they are converted by.
_IMPLIED: dict[str, tuple[str, ...]] = {
    "half halves halfway semester": ("1/2", "2"),
    "twice double doubled doubles both pair pairs couple couples either average halfway other": ("2",),
    "third thirds triple tripled triples thrice": ("1/3", "3"),
    "quarter quarters quarterly": ("1/4", "4", "25", "0.25"),
    "fourth fourths quadruple quadrupled": ("1/4", "4"),
    "fifth fifths": ("1/5", "5"),
    "sixth sixths": ("1/6", "6"),
    "eighth eighths": ("1/8", "8"),
    "tenth tenths": ("1/10", "10"),
    "dozen dozens": ("12",),
    "percent percentage per-cent cent cents penny pennies dollar dollars meter meters century centuries": ("100",),
    "dime dimes": ("10", "0.1"),
    "nickel nickels": ("5", "0.05"),
    "decade decades": ("10",),
    "second seconds minute minutes hour hours hourly": ("60", "3600"),
    "day days daily": ("7", "24", "365"),
    "week weeks weekly": ("7", "52"),
    "weekday weekdays workday workdays": ("5",),
    "weekend weekends": ("2",),
    "month months monthly": ("4", "12", "30", "31"),
    "year years yearly annual annually annum": ("12", "52", "365"),
    "inch inches foot feet": ("12",),
    "yard yards": ("3", "36"),
    "mile miles": ("5280",),
    "ounce ounces pound pounds": ("16",),
    "gallon gallons quart quarts pint pints cup cups": ("2", "4", "8", "16"),
    "kilogram kilograms kg kilometer kilometers km gram grams liter liters milliliters ml ton tons": ("1000",),
    "square rectangle rectangular": ("4", "2"),
    "triangle triangular": ("3", "2"),
    "leg legs": ("2", "4"),
}
_IMPLIED_BY: dict[str, set[Fraction]] = {}
for _words, _numbers in _IMPLIED.items():
    for _word in _words.split():
        _IMPLIED_BY.setdefault(_word, set()).update(Fraction(x) for x in _numbers)


class ArithmeticJudge(StepJudge):
    """Judges steps by their equations. Stateless; what it reads in a question or a prefix is cached."""

    name = "arithmetic"

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """Wrong: a false equation or answer. Right: the right answer, or true equations of known numbers."""
        found = equations(step)
        false = false_equations(found, step, question.text)
        for equation, doubt in false:
            if doubt is None:
                return self._verdict("wrong", f"{_shown(equation, step)} is false: it makes {_value(equation)}")
        if false:
            return self._verdict("unknown", f"{_shown(false[0][0], step)} {false[0][1]}")
        answer = stated_answer(question, step) if final and question.answer.strip() else None
        if answer is not None:
            return self._judge_answer(answer, question.answer)
        if not found:
            return self._verdict("unknown", "no equation to check")
        return self._judge_operands(question, prefix, step, found)

    def _judge_answer(self, answer: str, reference: str) -> Verdict:
        if right_answer(answer, reference):
            return self._verdict("right", f"the answer is {reference}")
        # Two numbers, or two words, can be told apart; "4 blue and 6 red" may be 10, and two formulas may be the same.
        kinds = {_kind(answer), _kind(reference)}
        label: Label = "wrong" if kinds in ({"number"}, {"word"}) else "unknown"
        return self._verdict(label, f"the answer {answer} is not {reference}")

    def _judge_operands(self, question: Question, prefix: Sequence[str], step: str, found: Sequence[Equation]) -> Verdict:
        known = set(self._given(question))
        for text in prefix:
            known |= _stated(text)
        for equation in found:
            unexplained = _unexplained(equation.expression, known)
            if unexplained:
                numbers = ", ".join(_plain(x) for x in unexplained)
                return self._verdict("unknown", f"{_shown(equation, step)} holds, but where is {numbers} from?")
            doubt = self._unsupported(question, equation)
            if doubt:
                return self._verdict("unknown", f"{_shown(equation, step)} {doubt}")
            known |= {abs(equation.result)} | parts(equation.expression)
        return self._verdict("right", f"{_shown(found[-1], step)} holds, of known numbers")

    def _given(self, question: Question) -> frozenset[Fraction]:
        """The numbers that a step may use before it has calculated any."""
        return _quantities(question.text)

    def _unsupported(self, question: Question, equation: Equation) -> str | None:
        """Why a true equation of known numbers is not enough to call its step right, or None."""
        return None


def _kind(answer: str) -> str:
    found = quantity(answer)
    number = parse_number(answer if found is None or found.words else found.number)
    return "number" if number is not None else "word" if answer.isalpha() else "other"


def _unexplained(expression: Expression, known: set[Fraction]) -> list[Fraction]:
    """The leaves that are not known, except within a part whose value is (1/2, where the text says half)."""
    if isinstance(expression, Fraction):
        return [] if abs(expression) in known or expression in (0, 1) else [abs(expression)]
    value = worth(expression)
    if value is not None and abs(value) in known:
        return []
    return _unexplained(expression[1], known) + _unexplained(expression[2], known)


def parts(expression: Expression) -> set[Fraction]:
    """The values of all parts of an expression: ``2 * 3 + 4 = 6 + 4`` goes on from the 6."""
    value = worth(expression)
    found = set() if value is None else {abs(value)}
    return found if isinstance(expression, Fraction) else found | parts(expression[1]) | parts(expression[2])


@lru_cache(maxsize=4096)
def _quantities(text: str) -> frozenset[Fraction]:
    """Numbers that a question gives, in digits or words, and those that its units imply."""
    words = re.findall(r"[a-z]+", text.lower())
    found = set(_stated(text)) | set(_spelled(words))
    for word in words:
        found |= _IMPLIED_BY.get(word, set())
    return frozenset(found)


@lru_cache(maxsize=65536)
def _stated(text: str) -> frozenset[Fraction]:
    """Every number in digits, fractions also by value, percentages also as a share and as what is left of it."""
    found: set[Fraction] = set()
    for match in _DIGITS.finditer(text):
        value = Fraction(match.group().replace(",", ""))
        found.add(value)
        if re.match(r"\s*(?:%|\\%|per\s?cent)", text[match.end() : match.end() + 10]):
            found |= {Fraction(100), value / 100, 100 - value, 1 - value / 100, 100 + value, 1 + value / 100}
        elif re.match(r"\s*(?:¢|cents?\b)", text[match.end() : match.end() + 10]):
            found.add(value / 100)
    for match in _RATIO.finditer(text):
        if int(match[3]):
            part = Fraction(int(match[2]), int(match[3]))
            found |= {part, int(match[1] or 0) + part, abs(1 - part)}
    for equation in equations(text):
        found |= {abs(equation.result)} | parts(equation.expression)
    return frozenset(found)


def _spelled(words: Iterable[str]) -> Iterable[Fraction]:
    """Number words: each by itself and, where they follow each other, joined (two hundred forty-five)."""
    total = 0
    for word in words:
        if word in _SMALL:
            yield Fraction(_SMALL[word])
            total += _SMALL[word]
        elif word in _SCALES:
            total = max(1, total) * _SCALES[word]
            yield Fraction(_SCALES[word])
        if total > MAX_SPELLED or not (word in _SMALL or word in _SCALES or word == "and"):
            total = 0
        if total:
            yield Fraction(total)


def _shown(equation: Equation, step: str) -> str:
    return step[slice(*equation.span)].strip()


def _value(equation: Equation) -> str:
    value = equation.value
    return "a division by zero" if value is None else _plain(value)


def _plain(value: Fraction) -> str:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > 500:  # Python refuses to print or convert some
        return "a number of more than 150 digits"
    return str(value) if value.denominator == 1 else f"{float(value):.6g}"
