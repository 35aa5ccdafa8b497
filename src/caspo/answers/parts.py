"""What an answer is made of: its parts, the sides of its equation, the name before it, what it is wrapped in."""

from __future__ import annotations

import re
from functools import lru_cache

from caspo.answers.units import read_unit
from caspo.answers.values import TEXT, parse_number

__all__ = ["builder", "enclosed", "label", "named", "plus_minus", "relation", "several", "tight", "undecorated"]

MAX_LENGTH = 2000
"""Characters of an answer that is taken apart; a longer one is compared as it stands."""

_PAIRS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
_HEDGE = re.compile(
    r"(?:(?:approximately|approx\.?|about|around|roughly|nearly|almost|close to|exactly|precisely|simply|only|just|equal to|"
    r"a total of|≈|≃|\\approx|\\sim(?![a-z])|\\text\s*\{\s*(?:approximately|approx\.?|about)\s*\})\s*)+(?=[-+$€£\\(.0-9])",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"(?<=[0-9a-z}%])\s*(?:approximately|approx\.?|\((?:approximately|approx\.?)\))$", re.IGNORECASE)
_WHOLE = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|textrm|textnormal|boxed|fbox|bf|displaystyle)\s*"
    r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}|\\(?:bf|rm|it)\s+([^{}\\]+)|\\(?:underline|color\s*\{[a-z]+\})\s*\{([^{}]*)\}"
)
_SPLIT = re.compile(
    r"\\[{}]|[()\[\]{}]|(?<!\\),(?!\\!)|(?<!\\);|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\(?:lor|land|vee|wedge)\b|&(?![a-z])"
)
_NO_PART = re.compile(
    r"(?:(?:an? |one )?(?:half|quarter|third)|more|less|fewer|greater|above|below|higher|lower|larger|smaller)\b.*",
    re.DOTALL,
)
_MATRIX = r"(?:[a-zA-Z]\s*=\s*)?[(\[|]?\s*\\begin.*\\end\s*\{\w+\}\s*[)\]|]?"
_THOUSANDS = re.compile(r"[0-9],(?:\\!\s*)?[0-9]{3}(?![0-9])")
_RELATION = re.compile(r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne)(?![a-zA-Z])|<=|>=|!=|[=<>≤≥≠]")
_FACTORIAL = re.compile(r"(?<=[0-9])!=")
"""5!=120"""
_SIGN = {
    "\\leqslant": "<=",
    "\\leq": "<=",
    "\\le": "<=",
    "≤": "<=",
    "\\geqslant": ">=",
    "\\geq": ">=",
    "\\ge": ">=",
    "≥": ">=",
}
_SIGN |= {"\\lt": "<", "\\gt": ">", "\\neq": "!=", "\\ne": "!=", "≠": "!="}
_NAME = (
    r"(?:\\(?:text|mathrm|mathbf|operatorname)\s*\{[^{}=<>]*\}|\\[a-zA-Z]+|[a-zA-Z])"
    r"(?:_(?:\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\?\w))?'*"
)
_LABELS = tuple(
    re.compile(pattern)
    for pattern in (
        _NAME,
        rf"{_NAME}(?:\^\{{?(?:-1|\\prime|\*)\}}?)?\s*"
        r"(?:\((?:[^()=<>]|\([^()=<>]*\))*\)|\[[^\[\]=<>]*\])",  # f(3), P(A | B), E[X]
        r"(?:P|\\Pr|\\mathbb\s*\{?P\}?)\s*\([^()]*\)",  # P(X > 2)
        r"\\mathbb\s*\{?[A-Z]\}?\s*[(\[].*[)\]]",
        r"\\(?:sin|cos|tan|cot|sec|csc)\s*\(?\s*(?:\\angle\s*)?(?:\\[a-z]+|[a-zA-Z]{1,3})\s*\)?",
        r"\\[dt]?frac\s*\{d(?:\^\{?[23]\}?)?\s*[a-z]\}\s*\{d[a-z](?:\^\{?[23]\}?)?\}",  # dy/dx
        r"\\[dt]?frac\s*\{[A-Z]{2}\}\s*\{[A-Z]{2}\}",  # AB/CD
        r"\[\s*\\triangle\s*[A-Z\s]+\]",
        r"\\text\s*\{[^{}]*\}\s*(?:\\triangle\s*)?[A-Z]*",  # the area of ABC
        r"\\?\|[^|=<>]+\\?\||\\lvert.+\\rvert|\\lfloor.+\\rfloor",  # |r - s|
        r"(?:\\angle|\\triangle|m\s*\\angle|\\overline|\\overrightarrow|\\vec|\\hat|\\bar)"
        r"\s*\{?\s*[A-Za-z ]+(?:_\{?\w+\}?)?\s*\}?",
        r"(?:\\angle|m\\angle)\s*[A-Z](?:\s*[A-Z](?:_\{?\w+\}?)?)*",
        r"\[?[A-Z](?:\s*[A-Z])+\]?",  # AB, [ABC]
        r"\([a-zA-Z](?:\s*,\s*[a-zA-Z])+\)",  # (x, y)
        r"\\?[a-zA-Z]{2,}(?:[\s_-]+[a-zA-Z]+)*",  # the area
    )
)
_CURVE = frozenset("xyz")


def tight(answer: str) -> str:
    """Without white space and dollar signs."""
    return re.sub(r"[$\s]", "", answer)


@lru_cache(maxsize=65536)
def undecorated(answer: str) -> str:
    r"""Without white space, markdown, signs of LaTeX's modes, sizes and text, "approximately" and a full stop around it.

    >>> undecorated(r"**$\\text{east}$.**"), undecorated("approximately 3.14"), undecorated("U.S.")
    ('east', '3.14', 'U.S.')
    """
    before = None
    if len(answer) > MAX_LENGTH:
        return answer.strip()
    if "\\\\" in answer and "\\begin" not in answer:  # a backslash that was escaped once too often
        answer = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", answer)
    answer = re.sub(r"\{\s*\\rm\s+([^{}]*)\}|\\rm\s*\{([^{}]*)\}", r"\\text{\1\2}", answer)
    answer = re.sub(
        r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\(?:displaystyle|textstyle|quad|qquad)(?![a-zA-Z])", "", answer
    )
    while answer != before:
        before = answer
        answer = answer.strip().strip("*`_\"' ").rstrip(",;\\ \t\n").strip()
        answer = re.sub(r"(?<=[^\W\d_]{2})!+$", "", answer)  # 5! is a number
        answer = re.sub(r"^(?:\\[,;:! ]|[~\s])+|(?:\\[,;: ]|[~\s]|\\\\)+$", "", answer)
        if answer.endswith(".") and not re.search(r"\b(?:[A-Za-z]\.)+[A-Za-z]\.$|\b(?:Inc|Jr|Sr|Co|Ltd)\.$", answer):
            answer = answer.rstrip(".")
        for left, right in _PAIRS:
            if answer.startswith(left) and answer.endswith(right) and len(answer) > len(left) + len(right):
                inner = answer[len(left) : -len(right)]
                if left not in inner and right not in inner:
                    answer = inner
        if answer.endswith("$") and not answer.endswith("\\$") and answer.count("$") == 1 and not answer[:-1].isdigit():
            answer = answer[:-1]
        if match := _WHOLE.fullmatch(answer):
            answer = next(x for x in match.groups() if x is not None)
        if answer.startswith("{") and answer.endswith("}") and answer.count("{") == 1:
            answer = answer[1:-1]
        if len(answer) < 300:
            answer = _HEDGED.sub("", _HEDGE.sub("", answer, count=1) if _HEDGE.match(answer) else answer)
    return answer


def several(answer: str, *, grouped: bool = True) -> list[str]:
    r"""The parts of an answer that its commas, "and" and "or" separate, outside all brackets; one part where there are none.

    ``grouped``: commas may group thousands, "1,000" and "1,200, 3,400"; in coordinates they do not.

    >>> several("(1,2), (3,4)"), several(r"\{1, 2\}"), several("1,000"), several("x = 1 or x = 2")
    (['(1,2)', '(3,4)'], ['1', '2'], ['1,000'], ['x = 1', 'x = 2'])
    """
    answer = answer.strip().replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")
    if (
        "\\begin" in answer
        and answer.count("\\begin") == answer.count("\\end") == 1
        and re.fullmatch(_MATRIX, answer, re.DOTALL)
    ):
        return [answer]
    answer = re.sub(r"^(?:both|either)\s+(?=.*\b(?:and|or)\b)", "", answer)
    price = answer.count("$") == 1 and answer[1:2].isdigit()  # "$18/day"
    if not price and not (answer.count("$") > 2 and answer.startswith("$")):
        answer = answer.strip("$").strip()
    if grouped and parse_number(answer) is not None:
        return [answer]
    loose = grouped and re.search(
        r",\s|;|\b(?:and|or)\b|[0-9](?:\s|\\[ ,;])*(?:\\(?:text|mathrm|mbox)|[a-z]{2}|\\?%)", answer
    )
    if match := re.fullmatch(r"\\\{(.*)\\\}|\\lbrace(.*)\\rbrace", answer, re.DOTALL):
        inner = match[1] or match[2] or ""
        if "\\{" not in inner and "\\}" not in inner and not re.search(r"(?<!\\)\||\\mid|(?<![<>]):", inner):
            answer = inner
    depth, start, parts = 0, 0, []
    for match in _SPLIT.finditer(answer):
        token = match.group().removeprefix("\\")
        if token in ("(", "[", "{"):
            depth += 1
        elif token in (")", "]", "}"):
            depth -= 1
        elif depth == 0 and not (loose and token == "," and _THOUSANDS.match(answer, match.start() - 1)):
            parts.append(answer[start : match.start()])
            start = match.end()
    parts.append(answer[start:])
    parts = [part.strip() for part in parts if part.strip(" $\t\n")]
    return _joined(parts, answer) or [answer]


def _joined(parts: list[str], answer: str) -> list[str]:
    """ "two and a half" and "two hundred and five" are one number, "5 or more" is one statement."""
    if len(parts) == 2 and re.search(r"\b(?:and|or)\b", answer) and "," not in answer:
        if _NO_PART.fullmatch(parts[1]):
            return [answer]
        if re.search(r"(?:hundred|thousand|million|billion)$", parts[0]) and not re.search(r"\d", parts[1]):
            return [answer]
    return parts


def enclosed(text: str) -> bool:
    """Whether the bracket that a text begins with is closed by the one that it ends with."""
    depth = 0
    for match in re.finditer(r"\\[{}]|[()\[\]{}]", text):
        depth += 1 if match.group()[-1] in "([{" else -1
        if depth <= 0:
            return match.end() == len(text) and match.start() > 0
    return False


def plus_minus(text: str) -> tuple[str, str] | None:
    r"""Both values of a formula with \pm, and \mp as its opposite."""
    text = text.replace("±", "\\pm ").replace("∓", "\\mp ")
    if not re.search(r"\\pm(?![a-zA-Z])", text):
        return None
    upper = re.sub(r"\\mp(?![a-zA-Z])", "-", re.sub(r"\\pm(?![a-zA-Z])", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])", "+", re.sub(r"\\pm(?![a-zA-Z])", "-", text))
    return re.sub(r"(^|=)\s*\+", r"\1 ", upper), lower


def relation(text: str) -> tuple[str, ...] | None:
    """Both sides of an equation or inequality with its sign between them, or five such parts; None for all else."""
    text = _FACTORIAL.sub("! =", text)
    found, depth = [], 0
    for match in re.finditer(rf"[()\[\]{{}}]|{_RELATION.pattern}", text):
        token = match.group()
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif depth == 0:
            found.append(match)
    if not 1 <= len(found) <= 2:
        return None
    parts, start = [], 0
    for match in found:
        parts += [text[start : match.start()], _SIGN.get(match.group(), match.group())]
        start = match.end()
    parts.append(text[start:])
    return tuple(parts) if all(part.strip() for part in parts) else None


def label(text: str) -> str | None:
    r"""What stands after a name and "=" or \in, or what a chain of equations comes to; None where there is no name.

    >>> label("f(3) = 5"), label("|r-s| = 16"), label("x + y = 5"), label("y = 2x + 3"), label("5 = x")
    ('5', '16', None, None, '5')
    """
    return found[1] if (found := named(text)) else None


def named(text: str) -> tuple[str, str] | None:  # noqa: PLR0911
    """The name and what it is, see `label`; the name is empty where a chain of equations only calculates."""
    if match := re.fullmatch(rf"({_NAME})\s*(?:\\in|∈)(?![a-zA-Z])\s*(.+)", text, re.DOTALL):
        return match[1], match[2].strip()
    if match := re.fullmatch(r"([A-Za-z]{3,}(?: [A-Za-z]+)*)\s*:\s*([^:]+)", text, re.DOTALL):
        return match[1], match[2].strip()
    text = _FACTORIAL.sub("! =", text)
    sides = [side.strip() for side in re.split(r"(?<![<>!:\\])=(?!=)|:=|\\approx|≈", text)]
    if len(sides) < 2 or not all(sides) or _RELATION.search(re.sub(r"\([^()]*\)", "", "".join(sides))):
        return None
    first, last = sides[0], sides[-1]
    if _is_label(first) and not _is_curve(first, last):
        return first, last
    if len(sides) == 2 and _is_label(last) and not _is_label(first) and not _is_curve(last, first):
        return last, first
    if not _letters(first) and not _letters(last):
        return "", last  # 2 + 3 = 5
    return ("", last) if len(sides) > 2 and not _letters(last) else None


def _is_label(side: str) -> bool:
    return len(side) < 100 and any(pattern.fullmatch(side) for pattern in _LABELS)


def _is_curve(name: str, formula: str) -> bool:
    """y = 2x + 3."""
    return name in _CURVE and bool(_CURVE & set(_letters(formula)))


def _letters(formula: str) -> list[str]:
    """Names of variables."""
    return [
        x
        for x in re.findall(r"\\[a-zA-Z]+|[^\W\d_]+", TEXT.sub("", formula))
        if x not in ("\\frac", "\\sqrt", "\\cdot", "\\pi")
        and not (len(x) > 1 and read_unit(x))
        and not x.startswith(("\\d", "\\t", "\\l", "\\r"))
    ]


def builder(text: str) -> str | None:
    r"""The condition of \{x | -1 < x < 1\}."""
    match = re.fullmatch(
        r"\\\{\s*([a-zA-Z])\s*(?:(?:\\in|∈)\s*(?:\\mathbb\s*\{?[A-Z]\}?|[A-Zℝ]))?\s*(?:\||\\mid|:|\\vert)\s*(.+?)\s*\\\}",
        text,
        re.DOTALL,
    )
    return match[2] if match else None
