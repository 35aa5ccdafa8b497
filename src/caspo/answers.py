"""Final answers: found in a solution, read as numbers, compared and grouped by value.

Numbers are compared exactly as fractions; everything else as normalised text, then by math-verify, which is imported
on first need. What is not covered: rounding (0.33 is not 1/3) and units (5 km is not 5000 m; a unit after a number is
ignored only where the other answer has none).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from fractions import Fraction

__all__ = ["extract_answer", "group_answers", "parse_number", "same_answer"]

MAX_NUMBER_LENGTH = 200
MAX_EXPONENT = 300
MAX_MATH_LENGTH = 300
MAX_SAID = 1000

_CURRENCY = r"(?:\\?\$|[€£¥₹])"
_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SEPARATOR = r"(,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_GROUPED = re.compile(rf"(?<![0-9.])([0-9]{{1,3}})({_SEPARATOR}[0-9]{{3}}(?:\3[0-9]{{3}})*)(?![0-9])")
_SCIENTIFIC = re.compile(rf"({_DECIMAL})(?:[eE]([+-]?[0-9]+))?")
_BRACED = rf"\s*\{{\s*({_DECIMAL})\s*\}}"
_RATIO = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})|\\[dt]?frac{_BRACED}{_BRACED}")
_MIXED = re.compile(r"([0-9]+) ([0-9]+)/([0-9]+)")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit)\s*\{([^{}]*)\}")


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else, or None.

    Thousands may be grouped by commas or thin or non-breaking spaces (not by plain ones: "1 000" may be two numbers).
    A currency sign before and a percent sign after the number are units and change nothing: "50%" is 50, as graders of
    grade-school problems take it. Fractions "3/4" and mixed numbers "2 1/2" are read; exponents beyond 300 are not
    (1e999999 would fill the memory).

    >>> parse_number("$1,000.50"), parse_number("2 1/2"), parse_number("1e6") == 10**6, parse_number("7 apples")
    (Fraction(2001, 2), Fraction(5, 2), True, None)
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = text.strip()
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    text = re.sub("[−–]", "-", text)
    match = re.fullmatch(rf"([+-]?)\s*{_CURRENCY}?\s*([+-]?)\s*(.*?)\s*(?:\\?%|{_CURRENCY})?", text, re.DOTALL)
    if match is None or (match[1] and match[2]):
        return None
    value = _unsigned(_GROUPED.sub(lambda m: m[1] + re.sub("[^0-9]", "", m[2]), match[3]))
    return -value if value is not None and "-" in (match[1], match[2]) else value


def _unsigned(text: str) -> Fraction | None:
    if match := _SCIENTIFIC.fullmatch(text):
        exponent = match[2] or "0"
        if len(exponent) > 5 or abs(int(exponent)) > MAX_EXPONENT:
            return None
        return _decimal(match[1]) * Fraction(10) ** int(exponent)
    if match := _RATIO.fullmatch(text):
        over, under = _decimal(match[1] or match[3]), _decimal(match[2] or match[4])
        return over / under if under else None
    if (match := _MIXED.fullmatch(text)) and int(match[3]):
        return int(match[1]) + Fraction(int(match[2]), int(match[3]))
    return None


def _decimal(text: str) -> Fraction:
    return Fraction(text.removesuffix("."))


# ------------------------------------------------------------------------------------------------------- extraction

_ANSWER_IS = re.compile(r"\banswer\b(?:[^\n.:=]{0,60}?)(?::|=|\bis\b|\bare\b)[\s:*=]*", re.IGNORECASE)
_NUMBER_HERE = rf"[-+−]?\s*{_CURRENCY}?\s*[-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_UNIT = r"\s*\\?%|\s+[^\W\d_].*|-[^\W\d_]{2}.*"
_NUMBER_AND_UNIT = re.compile(rf"({_NUMBER_HERE}(?:\s[0-9]+)?(?:/[0-9]+)?)(?:{_UNIT})?", re.DOTALL)
_ANY_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?|(?<![\w.])[-−]?\.[0-9]+")


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""The final answer that a solution states, or None where it states none.

    In this order: the last complete ``\boxed{...}``, the last ``#### ...``, the last "answer is ...", "answer: ..." or
    "answer = ...". A number is given without its currency sign and the words after it. ``last_number=True`` takes the
    last number of the text where nothing is stated: for base models that know none of these forms; it is a guess.

    >>> extract_answer("So she has 18. The answer is $18 a day."), extract_answer("She has 18 eggs.")
    ('18', None)
    """
    for found in (_last_boxed(text), _last_marked(text), _last_said(text)):
        if found:
            return found
    if last_number and (numbers := _ANY_NUMBER.findall(text)):
        return _clean(str(numbers[-1]).rstrip(","))
    return None


def _last_boxed(text: str) -> str | None:
    r"""One pass with a stack of open braces: text may hold thousands of ``\boxed{`` without an end."""
    starts: list[int | None] = []
    found: list[str] = []
    for match in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        token = match.group()
        if token == "{" or token.startswith("\\boxed"):
            starts.append(None if token == "{" else match.end())
        elif token == "}" and starts:
            start = starts.pop()
            if start is not None and (answer := _clean(text[start : match.start()])):
                found = [answer]
    return found[0] if found else None


def _last_marked(text: str) -> str | None:
    found = [cleaned for x in re.findall(r"####[ \t]*([^\n]*)", text) if (cleaned := _clean(x))]
    return found[-1] if found else None


def _last_said(text: str) -> str | None:
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        line = text[match.end() : match.end() + MAX_SAID].partition("\n")[0]
        said = re.split(r"[.!?](?:\s|$)", line, maxsplit=1)[0]
        if answer := _clean(said.rpartition("=")[2]):
            return answer
    return None


def _clean(answer: str) -> str:
    """Without decoration: white space, markdown, dollar signs of LaTeX, a full stop; a number without its unit."""
    answer = answer.strip().strip("*`_\"' ").rstrip(".,;!").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if answer.startswith(left) and answer.endswith(right) and len(answer) > len(left) + len(right):
            answer = answer[len(left) : -len(right)].strip()
    answer = answer.strip("*").rstrip(".").strip()
    return _without_unit(answer) or answer


def _without_unit(answer: str) -> str | None:
    """The number of "18 apples", "$18" or "18%"; None where the text is not a number with a unit ("3x + 4", "3, 4")."""
    match = _NUMBER_AND_UNIT.fullmatch(_TEXT.sub(r" \1", answer).strip())
    if match is None or re.search(r"[0-9=+*/\\^]", match.group()[match.end(1) - match.start() :].replace("\\%", "")):
        return None
    return re.sub(rf"\s*{_CURRENCY}\s*", "", match[1]).strip()


# ------------------------------------------------------------------------------------------------------- comparison


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers have the same value. Nothing equals an empty or missing answer, not even another one.

    >>> same_answer("1e6", "1,000,000"), same_answer("18 apples", "$18.0"), same_answer("18", "180")
    (True, True, False)
    """
    if a is None or b is None or not a.strip() or not b.strip():
        return False
    x, y = parse_number(a), parse_number(b)
    if x is None or y is None:
        if _normalised(a) == _normalised(b):
            return True
        if x is not None or y is not None:  # a number and, perhaps, a number with a unit
            x = x if x is not None else parse_number(_without_unit(a) or "")
            y = y if y is not None else parse_number(_without_unit(b) or "")
    if x is not None and y is not None:
        return x == y
    return _same_mathematics(a, b)


def _normalised(answer: str) -> str:
    answer = _TEXT.sub(r"\1", answer.strip().rstrip(".")).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    answer = re.sub(r"\\left|\\right|\\[,;!]|[$\s]", "", answer).casefold()
    return answer[1:-1] if re.fullmatch(r"\([a-z]\)", answer) else answer


# What a symbolic engine may take for ever with: towers of powers, powers with huge exponents, factorials.
_COSTLY = re.compile(r"\^[^=]*\^|\*\*[^=]*\*\*|(?:\^|\*\*)\s*[{(]?\s*-?[0-9]{4}|[0-9)}]!|[0-9]{60}")
_PROSE = re.compile(r"(?<!\\)\b(?!(?:sqrt|sin|cos|tan|log|ln|exp|pi|frac)\b)[^\W\d_]{3,}")


def _same_mathematics(a: str, b: str) -> bool:
    """math-verify's opinion on two formulas; prose is not asked about: it would be compared by its first number.

    Its time limits are signals and work only in the main thread; elsewhere it runs without, hence `_COSTLY`.
    """
    if any(len(x) > MAX_MATH_LENGTH or _COSTLY.search(x) or _PROSE.search(_TEXT.sub("", x)) for x in (a, b)):
        return False
    from math_verify import parse, verify

    # It warns once a call that it runs without a time limit, which is what we asked for.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    limit = 5 if threading.current_thread() is threading.main_thread() else None
    try:
        x, y = (parse(f"${text.strip().strip('$')}$", parsing_timeout=limit) for text in (a, b))
        return bool(x and y and verify(x, y, timeout_seconds=limit) and verify(y, x, timeout_seconds=limit))
    except Exception as error:  # sympy raises anything; an answer that cannot be read is not the same answer
        logging.getLogger(__name__).debug("math-verify failed on %r and %r: %s", a, b, error)
        return False


def group_answers(answers: Sequence[str | None]) -> list[int]:
    """For each answer the index of its group, numbered in order of appearance; equal answers share a group.

    An answer is compared with the first of each group. Empty and missing answers stay alone: they get no votes.

    >>> group_answers(["18", "$18.00", "20", "", "18"])
    [0, 0, 1, 2, 0]
    """
    groups: list[int] = []
    firsts: list[str | None] = []
    seen: dict[str, int] = {}
    for answer in answers:
        group = seen.get(answer) if answer is not None else None
        if group is None:
            group = next((i for i, first in enumerate(firsts) if same_answer(answer, first)), len(firsts))
            if group == len(firsts):
                firsts.append(answer)
            if answer is not None and answer.strip():
                seen[answer] = group
        groups.append(group)
    return groups
