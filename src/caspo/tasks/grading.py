"""How the answers of benchmarks are graded: choices, text, literals, maths. Code is in `programs`.

A grader takes the question and the answer that `stated_answer` found, never a whole solution. Tolerance exists only where
the benchmark's own grader has it:

- Minerva-Math: 1% of a number, the threshold of the public grader after arXiv 2206.14858 (there for numbers near zero; here
  for all, as the reference answers are rounded).
- OlympiadBench: the absolute error that a row names (one row does).
- TableBench: 10% in its three numeric kinds of data analysis; its other kinds are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from caspo.answers import options, parse_number, right_answer, several
from caspo.answers.compare import key
from caspo.answers.parts import undecorated
from caspo.answers.quantities import quantity
from caspo.answers.stated import literal_of
from caspo.records import Question

__all__ = ["GRADERS", "grade_choice", "grade_literal", "grade_maths", "grade_text", "in_order"]

_TOLERANT = ("CorrelationAnalysis", "TrendForecasting", "StatisticalAnalysis")
_GROUPED = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_NAMED = r"[a-zA-Z](?:_\{?\w+\}?|\(\w+\))?"
_ASKED = re.compile(
    r"\b(?:determine|find|compute|calculate|what (?:is|are)|state|give)\s+(?:both\s+)?(?:the\s+)?"
    rf"(?:values?\s+of\s+)?(?:both\s+)?"
    rf"({_NAMED}(?:\s*,\s*(?:and\s+)?{_NAMED})*\s*(?:,\s*)?and\s+{_NAMED})(?![a-zA-Z_(^])",
    re.IGNORECASE,
)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def grade_maths(question: Question, answer: str | None) -> bool:
    """As `right_answer` has it; several answers in any order, unless the question names what it wants one by one.

    ``meta["tolerance"]`` is relative; ``meta["error"]`` is absolute, as OlympiadBench has it.
    """
    if right_answer(answer, question.answer, ordered=in_order(question)):
        return True
    relative, absolute = question.meta.get("tolerance"), question.meta.get("error")
    if answer is None or not (relative or absolute):
        return False
    x, gold = _number(answer), _number(question.answer)
    if x is None or gold is None:
        return False
    return abs(x - gold) <= (abs(gold) * Fraction(str(relative)) if relative else Fraction(str(absolute)))


def in_order(question: Question) -> bool:
    """Whether the parts of the known answer are in the order of a question that asks for as many things by their names.

    "Determine the values of $T(10), T(11)$ and $T(12)$", "What are the values of $a, h$ and $k$?", "respectively". A file
    may say it: ``meta["ordered"]``.
    """
    if "ordered" in question.meta:
        return bool(question.meta["ordered"])
    parts = several(question.answer)
    wanted = len(parts)
    if wanted < 2 or any(part.startswith(("(", "[")) for part in parts):  # coordinates are named within one part
        return False
    text = question.text.replace("$", "")
    for match in _ASKED.finditer(text):
        if len(re.split(r",\s*and\b|,|\band\b", match[1])) == wanted:
            return True
    return re.search(r"\brespectively\b[^.]*[.?]?\s*$|\bin (?:that|this) order\b", text) is not None


def _number(answer: str) -> Fraction | None:
    """The number that an answer is, as it is written, its unit aside; one that a formula comes to. "23rd" is none."""
    text = undecorated(answer)
    if re.search(r"\d(?:st|nd|rd|th)$", text):
        return None
    found = quantity(text)
    number = parse_number(found.number if found else text)
    if number is not None:
        return number
    value = key(found.number if found else text)
    return value[1] if value and value[0] == "number" and isinstance(value[1], Fraction) else None


def grade_choice(question: Question, answer: str | None) -> bool:
    """The letter or the option of the known answer; an option that reads the same is the same."""
    if answer is None:
        return False
    known = options(question)
    key = {name.casefold(): name for name in known}.get(answer.strip().casefold())
    return key is not None and known[key] == known.get(question.answer, question.answer)


def grade_literal(question: Question, answer: str | None) -> bool:
    """Equal as Python values, as CRUXEval's ``assert f(input) == output`` has it; as text where one is no literal."""
    if answer is None:
        return False
    mine, gold = literal_of(answer), literal_of(question.answer)
    if mine is None or gold is None:
        return answer.strip() == question.answer.strip()
    try:
        return bool(mine == gold)
    except RecursionError:
        return False


def grade_text(question: Question, answer: str | None) -> bool:
    """TableBench: each part equal as a number, or as text without case, punctuation and articles; parts in order.

    The benchmark's own comparison drops all punctuation, so that 3.76 would equal 376; numbers are compared as numbers here.
    """
    if answer is None or not answer.strip():
        return False
    if question.meta.get("qsubtype") in _TOLERANT:
        x, gold = _number(answer), _number(question.answer)
        if x is not None and gold is not None:
            return abs(x - gold) <= abs(gold) / 10
    if _plain(answer) == _plain(question.answer):
        return True
    return _same_row(answer, question.answer) or _same_row(*(_GROUPED.sub("", x) for x in (answer, question.answer)))


def _same_row(answer: str, gold: str) -> bool:
    mine, wanted = several(answer), several(gold)
    return len(mine) == len(wanted) and all(_same_text(a, b) for a, b in zip(mine, wanted, strict=True))


def _same_text(a: str, b: str) -> bool:
    x, y = _number(a.rstrip(".")), _number(b.rstrip("."))
    if x is not None and y is not None and (parse_number(a.rstrip(".")) or parse_number(b.rstrip("."))) is not None:
        return x == y
    return bool(_plain(a)) and _plain(a) == _plain(b)


def _plain(text: str) -> str:
    """Words and numbers; a point, sign or percent that belongs to a number stays."""
    text = re.sub(r"(?<![0-9])[.](?![0-9])|(?<=[0-9])[.,](?![0-9])|(?<=[0-9]),(?=[0-9]{3}\b)", " ", text.casefold())
    text = re.sub(r"(?<=\w)\s*[-–]\s*(?=\w)", " ", text)
    return " ".join(_ARTICLES.sub(" ", re.sub(r"[^\w\s.+−-]", " ", text)).split())


GRADERS: dict[str, Callable[[Question, str | None], bool]] = {
    "math": grade_maths,
    "choice": grade_choice,
    "literal": grade_literal,
    "text": grade_text,
}
