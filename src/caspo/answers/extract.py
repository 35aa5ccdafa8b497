"""The final answer that the text of a solution states, by the forms that models use for numbers and formulas.

What is not covered: choices, code and the like, see `stated`.
"""

from __future__ import annotations

import re

from caspo.answers.values import CURRENCY, SHORT_UNITS, TEXT, parse_number, without_unit

__all__ = ["clean", "extract_answer", "last_boxed", "last_marked", "last_said", "undecorated"]

MAX_SAID = 1000

_ANSWER_IS = re.compile(r"\banswer\b(?:[^\n.:=]{0,60}?)(?::|=|\bis\b|\bare\b)[\s:*=]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!?](?:\s|$)")
_ANY_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?|(?<![\w.])[-−]?\.[0-9]+")


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""The final answer that a solution states, or None where it states none.

    In this order: the last complete ``\boxed{...}``, the last ``#### ...``, the last "answer is ...", "answer: ..." or
    "answer = ...". A number is given without its currency sign and the words after it. ``last_number=True`` takes the
    last number of the text where nothing is stated: for base models that know none of these forms; it is a guess.

    >>> extract_answer("So she has 18. The answer is $18 a day."), extract_answer("She has 18 eggs.")
    ('18', None)
    """
    for found in (last_boxed(text), last_marked(text), last_said(text)):
        if found and (answer := clean(found)):
            return answer
    if last_number and (numbers := _ANY_NUMBER.findall(text)):
        return clean(str(numbers[-1]).rstrip(","))
    return None


def last_boxed(text: str) -> str | None:
    r"""What the last complete ``\boxed{...}`` (or ``\framebox``) with something in it holds.

    One pass with a stack of open braces: text may hold thousands of ``\boxed{`` without an end.
    """
    starts: list[int | None] = []
    found: str | None = None
    for match in re.finditer(r"\\(?:boxed|framebox|fbox)\s*\{|\\.|[{}]", text, re.DOTALL):
        token = match.group()
        if token == "{" or (token.endswith("{") and len(token) > 2):
            starts.append(None if token == "{" else match.end())
        elif token == "}" and starts:
            start = starts.pop()
            if start is not None and clean(text[start : match.start()]):
                found = text[start : match.start()]
    return found


def last_marked(text: str) -> str | None:
    """What stands after the last ``####``."""
    found = [line for line in re.findall(r"####[ \t]*([^\n]*)", text) if clean(line)]
    return found[-1] if found else None


def last_said(text: str, sentence_end: re.Pattern[str] | None = None) -> str | None:
    """What stands after the last "answer is" or the like, up to the end of the sentence or line.

    By default it is taken for maths, where a calculation comes to what stands after its last "=".
    """
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        line = text[match.end() : match.end() + MAX_SAID].partition("\n")[0]
        said = sentence_end.split(line, maxsplit=1)[0] if sentence_end else _result(_SENTENCE_END.split(line, maxsplit=1)[0])
        if clean(said):
            return said
    return None


def _result(said: str) -> str:
    """What a calculation comes to ("18 + 4 = 22": 22); an equation with an unknown is an answer by itself ("x = 5")."""
    left, equals, right = said.rpartition("=")
    if not equals or left.endswith((":", "<", ">", "!")):
        return said
    letters = re.findall(r"\\[a-zA-Z]+|[^\W\d_]+", TEXT.sub("", left))
    unknown = any((len(x) < 3 and x not in SHORT_UNITS) or x.startswith("\\") for x in letters)
    chain = left.count("=") > left.count(",")
    return right if chain or not letters or (not unknown and parse_number(clean(right)) is not None) else said


def undecorated(answer: str) -> str:
    """Without white space, markdown, dollar signs of LaTeX and a full stop around it."""
    answer = answer.strip().strip("*`_\"' ").rstrip(".,;!").strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if answer.startswith(left) and answer.endswith(right) and len(answer) > len(left) + len(right):
            answer = answer[len(left) : -len(right)].strip()
    return answer.strip("*").rstrip(".").strip()


def clean(answer: str) -> str:
    """Without decoration; a number also without its unit and currency sign."""
    answer = undecorated(answer)
    bare = without_unit(answer) or re.sub(r"\s*\\?%$", "", answer)
    if parse_number(bare) is None:
        return answer
    return re.sub(rf"\s*{CURRENCY}\s*", "", bare).strip()
