"""The final answer that the text of a solution states, by the forms that models use for numbers and formulas.

What is not covered: choices, code and the like, see `stated`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from caspo.answers.compare import key
from caspo.answers.parts import several, undecorated
from caspo.answers.quantities import quantity
from caspo.answers.units import read_unit
from caspo.answers.values import TEXT, in_words, parse_number

__all__ = ["clean", "extract_answer", "statements"]

MAX_SAID = 1000
MAX_STATEMENTS = 20
"""That are looked at, from the end."""
MAX_CLAUSES = 3

_ANSWER_IS = re.compile(
    r"\b(?:answers?|ans)\b(?:[^\n.:=]{0,60}?)(?::|=|\b(?:is|are|equals|(?:must|would|should|will|has to) be)\b)[\s:*=]*"
    r"(?:(?:therefore|thus|then|hence|indeed|clearly|given by)\b[\s:,*=]*)?",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[ \t]*(?:#+|\*\*|__)[ \t*_]*(?:the[ \t]+)?(?:final[ \t]+)?answer[ \t*_]*:?[ \t*_]*\n\s*(?:[-*•][ \t]+)?",
    re.IGNORECASE | re.MULTILINE,
)
_TAG = re.compile(r"<answer>((?:(?!<answer>)[^\n]){1,1000}?)</answer>|<answer>\s*\n([^\n]+)\n\s*</answer>", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[a-z_]{1,30}\|>|</s>")
_ARGUMENT = r"\s*(?:\{[^{}]*\}|[0-9])"
_BOX = re.compile(
    rf"\\(?:boxed|framebox|fbox)\s*(?:\{{|(\\[dt]?frac{_ARGUMENT}{_ARGUMENT}|\\sqrt{_ARGUMENT}|\\[a-zA-Z]+|[^\s{{}}\\]))"
    r"|\\.|[{}]",
    re.DOTALL,
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$*]|\\[()\[\],; ]|\\q?quad)*"
    r"(?:(?:[,;&]|\\text\s*\{[\s,]*(?:and|or)\s*\}|\b(?:and|or)\b)(?:[\s$*]|\\[()\[\],; ]|\\q?quad)*)+"
    r"(?:[a-zA-Z](?:_\{?\w+\}?)?\s*=\s*)?"
)
_CLAUSE = re.compile(
    r"\s*[,;:(–—-]*\s*\b(?:which|because|since|as|so|where|giving|meaning|and (?:so|we|this|that|it)|when rounded)\b"
)
"""What follows an answer in its sentence and is none of it."""
_ANY_NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?|(?<![\w.])[-−]?\.[0-9]+")
_COMMENT = re.compile(
    r"(?:the |as |also |therefore |indeed |not |now |thus )*(?:correct|right|wrong|incorrect|above|boxed|in the box|"
    r"verified|clear|shown|given|confirmed|consistent|reasonable|valid|same|to |in |a |an |well|complete|unique|found|"
    r"rounded|expressed|written|obtained|always|simplified)",
    re.IGNORECASE,
)
_CHECKED = re.compile(r"\b(?:check|verify|confirm|test)(?:ing)?\s+(?:that\s+)?(?:our|the|this|my)\s+$", re.IGNORECASE)
_DISPLAY = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]", re.DOTALL)
_ENDS = re.compile(r"(?<!\\)[.?](?=\$?(?:\s|$))|(?<=[^\W\d_]{2})!(?=\s|$)")
_TITLES = frozenset(["st", "dr", "mr", "mrs", "ms", "mt", "prof", "gen", "col", "rev", "vs", "approx"])
_SHORTENED = frozenset(["ft", "in", "lb", "lbs", "oz", "hr", "hrs", "min", "sec", "sq", "yd", "no", "a.m", "p.m"])
"""Before a small letter or a digit."""


def extract_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""The final answer that a solution states, or None where it states none.

    The last of: a complete ``\boxed{...}`` (several that are joined by commas or "and" are one answer), what stands after
    ``####`` or below a heading "Answer", and what follows "answer is", "answer:" or "answer =". A number is given without
    what says nothing of its value: dollar signs, degrees, the things that are counted; a unit stays. ``last_number=True``
    takes the last number of the text where nothing is stated: for base models that know none of these forms; it is a guess.

    >>> extract_answer("So she has 18. The answer is $18 a day."), extract_answer("She has 18 eggs.")
    ('18', None)
    >>> extract_answer(r"\boxed{3} and \boxed{5}"), extract_answer(r"\boxed{4}? No. The answer is 5 km.")
    ('3, 5', '5 km')
    """
    marked: str | None = None
    commented: list[str] = []
    for said, how in statements(text):
        answer = clean(said)
        if not re.search(r"[\w∞∅]", answer):
            continue
        if how == "said":
            commented.append(answer)
            continue
        marked = answer
        break
    fitting = [x for x in commented if marked is None or (not _COMMENT.match(x) and (not _exact(marked) or _exact(x)))]
    if fitting or marked is not None:
        return fitting[0] if fitting else marked
    if last_number and (numbers := _ANY_NUMBER.findall(text)):
        return clean(str(numbers[-1]).rstrip(","))
    return None


def _exact(answer: str) -> bool:
    """Whether it holds a number or formula: a comment after a box ("the answer is correct") does not."""
    return bool(re.search(r"[0-9\\]", answer)) or len(answer) < 3 or in_words(re.findall(r"[a-zA-Z]+", answer)) is not None


def statements(text: str, *, names: bool = False) -> Iterator[tuple[str, str]]:
    """What a text states as its answer, the last first, each with how: "box", "mark" or "said".

    ``names``: the answer may be a name, in which a full stop after one letter or before a small letter ends nothing; else
    it is maths, where a calculation comes to what stands after its last "=".
    """
    text = _SPECIAL.sub("\n", text)
    boxes = _boxes(text)
    found = [(start, end, said, "box") for start, end, said in boxes[-1:]]
    for match in list(re.finditer(r"####[ \t]*([^\n]*)", text))[-MAX_STATEMENTS:]:
        if not re.fullmatch(r"[\s*#]*(?:final\s+)?answer[\s:*]*", match[1], re.IGNORECASE):
            found.append((match.start(), match.end(), match[1], "mark"))
    for match in list(_TAG.finditer(text))[-MAX_STATEMENTS:]:
        if not any(match.start() < start < match.end() for start, _, _ in boxes):
            found.append((match.start(), match.end(), match[1] or match[2], "mark"))
    for match in list(_HEADING.finditer(text))[-MAX_STATEMENTS:]:
        display = _DISPLAY.match(text, match.end(), match.end() + MAX_SAID)
        line = display.group() if display else text[match.end() : match.end() + MAX_SAID].partition("\n")[0]
        found.append((match.start(), match.end() + len(line), line, "mark"))
    for match in list(_ANSWER_IS.finditer(text))[-MAX_STATEMENTS:]:
        if _CHECKED.search(text, max(0, match.start() - 30), match.start()):
            continue
        if any(start < match.start() < end for start, end, _ in boxes):
            continue  # "\boxed{\text{The answer is } 5}": a box
        display = _DISPLAY.match(text, match.end(), match.end() + MAX_SAID)
        line = display.group() if display else text[match.end() : match.end() + MAX_SAID].partition("\n")[0]
        said = line if display else _sentence(line, names)
        if not any(
            match.start() < start <= match.end() + len(said) + 2 for start, _, _ in boxes
        ):  # "the answer is \boxed{5}"
            found.append((match.start(), match.end() + len(said), said if names else _result(said), "said"))
    for _, _, said, how in sorted(found, key=lambda x: -x[0]):
        yield said, how


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of every complete ``\boxed{...}`` with something in it; a list of boxes counts as one.

    One pass with a stack of open braces: text may hold thousands of ``\boxed{`` without an end.
    """
    opened: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, str]] = []
    for match in _BOX.finditer(text):
        token = match.group()
        if match[1]:
            found.append((match.start(), match.end(), match[1]))
        elif token == "{" or (token.endswith("{") and len(token) > 2):
            opened.append(None if token == "{" else (match.start(), match.end()))
        elif token == "}" and opened:
            box = opened.pop()
            if box is not None and undecorated(text[box[1] : match.start()]):
                found.append((box[0], match.end(), text[box[1] : match.start()]))
    return _joined(text, found)


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Boxes with only a comma, "and" or "or" between them as one."""
    joined: list[tuple[int, int, str]] = []
    for start, end, said in boxes:
        last = joined[-1] if joined else None
        if last and last[1] <= start and _BETWEEN_BOXES.fullmatch(text, last[1], min(start, last[1] + 60)):
            again = key(said) == key(last[2])  # "\boxed{1.5}, or \boxed{\frac32}"
            joined[-1] = (last[0], end, said if again else f"{last[2]}, {said}")
        else:
            joined.append((start, end, said))
    return joined


def _sentence(line: str, names: bool) -> str:
    """Up to the end of the first sentence."""
    for match in _ENDS.finditer(line):
        if line[match.start()] != "." or not _goes_on(line[: match.start()], line[match.end() :], names):
            return line[: match.start()] + ("$" if line.startswith("$", match.end()) else "")  # "$5.$ So it is."
    return line


def _goes_on(before: str, after: str, names: bool) -> bool:
    """Whether a full stop belongs to a title, an initial or a shortened word."""
    if not after.strip():
        return False
    following = after.lstrip()[0]
    word = re.search(r"(?:[^\W\d_]\.)*[^\W\d_]+$", before)
    last = word.group() if word else ""
    if names and following.islower():
        return True
    if last.casefold() in _TITLES or (last.casefold() in _SHORTENED and not following.isupper()):
        return True
    if re.fullmatch(r"(?:[A-Z]\.)+[A-Z]", last):
        return True
    if last == "Ft" or (before.strip() == last and last.isupper() and re.match(r"\s*[A-Z]\.", after)):
        return True  # "Ft. Worth", "J. K. Rowling"
    initial = re.fullmatch(r"[^\W\d_]", last)
    return bool(
        initial
        and (names or (last.isupper() and following.isupper() and re.search(r"(?:[A-Z][a-z]+\s+|[A-Z]\.\s*)[A-Z]$", before)))
    )


def _result(said: str) -> str:
    """What a calculation comes to ("18 + 4 = 22": 22); an equation with an unknown is an answer by itself ("x = 5")."""
    said = _without_clause(said)
    parts = several(said)
    if len(parts) > 1 and all("=" in part for part in parts):
        results = [_result(part) for part in parts]
        return said if results == parts else ", ".join(results)
    left, equals, right = said.rpartition("=")
    if not equals or left.endswith((":", "<", ">", "!")):
        return said
    letters = re.findall(r"\\[a-zA-Z]+|[^\W\d_]+", TEXT.sub("", left))
    unknown = any((len(x) < 3 and read_unit(x) is None) or x.startswith("\\") or x in ("x", "m", "h", "s") for x in letters)
    if re.search(r";|[a-zA-Z]{3,}\s*\$|\$\s*(?:or|and|when|for|where|with|if)\b|\b(?:when|for|where|or|and)\b", said):
        return said  # a statement, not one calculation
    chain = left.count("=") > left.count(",")
    return right if chain or not letters or (not unknown and parse_number(clean(right)) is not None) else said


def _without_clause(said: str) -> str:
    """ "5, which is odd" and "that 5 apples are left": the value alone; all of it where no value stands alone."""
    if said.startswith("that ") and len(numbers := list(_ANY_NUMBER.finditer(said))) == 1:
        said = re.split(r"\s+(?:is|are|was|were|will|remain)\b", said[numbers[0].start() :])[0]
    for match in islice(_CLAUSE.finditer(said), MAX_CLAUSES):
        value = key(said[: match.start()])
        if value is not None and (
            value[0] in ("number", "quantity")
            or (value[0] == "formula" and said.count("$", 0, match.start()) % 2 == 0 < said.count("$"))
        ):
            return said[: match.start()]
    return said


def clean(answer: str) -> str:
    """Without decoration; a number also without what says nothing of its value."""
    answer = undecorated(answer)
    if said := _ANSWER_IS.match(
        re.sub(r"^\s*the\s+(?:final\s+)?(?=answer)", "", TEXT.sub(r"\1", answer), flags=re.IGNORECASE)
    ):
        answer = undecorated(said.string[said.end() :])  # inside a box
    found = quantity(answer)
    if found is None or found.words or parse_number(found.number) is None:
        return answer
    bare = undecorated(re.sub(r"^[+]?\s*\\?\$\s*", "", found.number))
    return bare if key(bare) == key(answer) else answer
