r"""The final answer of a solution by the kind of its question, ``question.meta["answer_type"]``.

- ``math`` (the default): a number or formula, see `extract_answer`.
- ``choice``: one of ``meta["choices"]``; its letter where the options are lettered, else the option itself.
- ``text``: what is stated, with its words and units.
- ``literal``: a Python value, as it is written.
- ``code``: the program, see `code_of`.

What is not covered: guessing where nothing is stated ("... so probably the second one").
"""

from __future__ import annotations

import ast
import re
import string
import warnings

from caspo.answers.compare import key, normalised
from caspo.answers.extract import clean, extract_answer, statements
from caspo.answers.fenced import blocks, code_of
from caspo.answers.parts import undecorated
from caspo.answers.values import TEXT
from caspo.records import Question

__all__ = ["literal_of", "options", "stated_answer"]

MAX_LITERAL = 10000
MAX_OPTION = 1000
"""Characters of an option that is named by its words."""
MAX_SAID = 20
"""Statements that are looked at, from the end."""

_SHELLS = ("bash", "sh", "shell", "zsh", "console", "powershell", "cmd")
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:option|choice|answer)\s+)?(?:\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]|"
    r"([A-Z])(?=\s*(?:[.:),;]|$)|\s+(?:\(|(?:[-–—]|because|since|as|which|for|is|and|not|with)\s)))\s*",
    re.IGNORECASE,
)
_CHOICE_IS = re.compile(r"\b(?:answer|option|choice)\b[^\n.:=]{0,60}?(?::|=|\bis\b)[\s:*=]*", re.IGNORECASE)
_IS_RIGHT = re.compile(
    r"(?:\b(?:option|choice|answer)\s+\(?([A-Z])\)?|\(([A-Z])\)|(?<![\w'’])([B-HJ-Z])(?![\w'’]))\**\s+is\s+(?:therefore\s+|thus\s+|clearly\s+)?"
    r"(?:(?:the\s+)?(?:correct|right|best|true|final)\b(?:\s+(?:option|choice|answer|one))?|the\s+answer\b)(?!\s+(?:only\s+)?if\b)",
    re.IGNORECASE,
)
_BEST = re.compile(
    r"\b(?:correct|right|best|final|appropriate)\s+(?:option|choice)s?\s*(?::|=|\bis\b)[\s:*=]*", re.IGNORECASE
)
_SURELY = re.compile(
    r"\A(?:(?:most\s+)?(?:likely|probably)|definitely|certainly|obviously|indeed|clearly|an?\s+(?:\w+\s+)?(?=(?:yes|no)\b))\s*",
    re.IGNORECASE,
)
_THAT = re.compile(
    r"(?:that\s+)?(?:(?:it|this|he|she|they|the\s+[\w\s]{1,40}?)\s+(?:is|are|can\s+be|must\s+be)\s+)?", re.IGNORECASE
)


_MORE = ("5", "x", " or 5")
"""What may follow a text that was cut: a digit, a letter, another value."""


def stated_answer(question: Question, text: str, *, ended: bool = True) -> str | None:
    """The final answer that ``text`` states to ``question``, or None where it states none.

    ``ended=False`` is for a text that was cut at a limit: "The answer is 12" may have become 125, so an answer counts only
    where more text could not have changed it.

    >>> choice = Question("Which?", "B", meta={"answer_type": "choice", "choices": ["a cat", "a dog"]})
    >>> stated_answer(choice, "The answer is (B)."), stated_answer(choice, "The answer is a dog.")
    ('B', 'B')
    """
    answer = _stated(question, text)
    if ended or answer is None or all(_stated(question, text + more) == answer for more in _MORE):
        return answer
    return None


def _stated(question: Question, text: str) -> str | None:
    kind = question.meta.get("answer_type", "math")
    if kind == "choice":
        return _choice(question, text)
    if kind == "code":
        return code_of(text, question.meta.get("entry_point") or question.meta.get("func_name"))
    if kind == "literal":
        return _literal(text)
    if kind == "text":
        return _text(text)
    return extract_answer(text)


def options(question: Question) -> dict[str, str]:
    """What may be answered -> what it stands for: letters -> options, or each option -> itself.

    Options are lettered where the known answer is a letter and not itself an option.
    """
    choices = [str(choice) for choice in question.meta.get("choices") or ()]
    if re.fullmatch(r"[A-Z]", question.answer) and question.answer not in choices:
        return dict(zip(string.ascii_uppercase, choices, strict=False))
    return {choice: choice for choice in choices}


def _choice(question: Question, text: str) -> str | None:
    known = options(question)
    aliases = {str(key): str(value) for key, value in question.meta.get("aliases", {}).items()}
    right = list(_IS_RIGHT.finditer(text))[-1:]
    after = text[right[0].end() :] if right else text
    if best := list(_BEST.finditer(after))[-1:]:  # after a box, say
        after_best = after[best[0].end() :]
        if not any(True for _ in statements(after_best)) and (
            found := _option(undecorated(after_best.partition("\n")[0]), known, aliases)
        ):
            return found
    for said, _ in statements(after, names=True):
        if found := _option(undecorated(said), known, aliases):
            return found
    if right:
        letter = next(x for x in right[0].groups() if x).upper()
        return letter if letter in known and letter != known[letter] else None
    for match in reversed(list(_CHOICE_IS.finditer(text))[-MAX_SAID:]):
        if found := _option(undecorated(text[match.end() :].partition("\n")[0]), known, aliases):
            return found
    lines = text.strip().splitlines()
    return _option(undecorated(lines[-1]), known, aliases, whole=True) if lines else None


def _option(said: str, known: dict[str, str], aliases: dict[str, str], *, whole: bool = False) -> str | None:
    """The option that is meant: its letter, its words, or an answer that begins with either (not if ``whole``)."""
    said = _SURELY.sub("", TEXT.sub(r"\1", re.sub(r"\s+", " ", said))[:MAX_OPTION].strip(), count=1)
    words = {normalised(key): key for key in reversed(aliases)}
    words |= {normalised(known[key]): key for key in reversed(known)}
    lettered = any(key != option for key, option in known.items())
    plain = re.fullmatch(r"\(?([A-Z])\)?[.:]?", said)
    found = plain[1] if lettered and plain and plain[1] in known else words.get(normalised(undecorated(said)))
    if not found:
        found = _letter(said, known, whole) if lettered else None
    if not found and whole and not lettered and (first := re.match(r"([^\W\d_]+)\s*[,.;:!—–]", said)):
        found = words.get(normalised(first[1]))
    if not found and not whole:
        found = _by_value(said, known) if lettered else _first_word(said, words, known)
    return aliases.get(found, found) if found else None


def _letter(said: str, known: dict[str, str], whole: bool) -> str | None:
    match = re.match(r"\(?([A-Z])\)?[.:)]?\s+(.+)", said)  # "B a dog", "(B) a dog", but not "A dog" for the first option
    if match and match[1] in known and normalised(match[2]) == normalised(known[match[1]]):
        return match[1]
    if (match := _LETTER.match(said)) and (not whole or not said[match.end() :].strip(" .:)")):
        letter = str(match[1] or match[2] or match[3]).upper()
        return letter if letter in known else None
    return None


def _by_value(said: str, known: dict[str, str]) -> str | None:
    """A value that is spelt differently, "1/2" for "0.5", if it is that of one option only."""
    mine = key(clean(said))
    if mine is None or mine[0] == "text":  # words were looked up
        return None
    same = [name for name, option in known.items() if key(option) == mine]
    return same[0] if len(same) == 1 else None


def _first_word(said: str, words: dict[str, str], known: dict[str, str]) -> str | None:
    """The option of "yes, because ..." and of "that it is disproved" (but no "no" of "that no one knows")."""
    rest = _THAT.sub("", said, count=1)
    first = re.match(r"[^\W\d_]+(?!\s+(?:one|body|matter|idea|more|less|such|way)\b)\b", rest)
    found = words.get(normalised(first.group())) if first else None
    return found if rest == said or found in known else None


def _text(text: str) -> str | None:
    return next((answer for said, _ in statements(text, names=True) if (answer := undecorated(said))), None)


def _literal(text: str) -> str | None:
    """The value after the last "answer is", in the last box, [ANSWER] or fence, or after ``==`` in the last line."""
    candidates = [match[-1] for match in [re.findall(r"\[ANSWER\](.*?)\[/ANSWER\]", text, re.DOTALL)] if match]
    boxed = text.rpartition("\\boxed{")[2] if "\\boxed{" in text else ""
    candidates += [boxed[: boxed.rfind("}")]] if "}" in boxed else []
    candidates += [said for said, how in statements(text, names=True) if how == "mark"]
    candidates += [said for said in (_said_line(text),) if said]
    candidates += [block for language, block in blocks(text) if language not in _SHELLS][-1:]
    for candidate in candidates:
        for form in (candidate, candidate.rpartition("==")[2]):
            for spelt in (form, form.strip().rstrip("."), form.strip().strip("`").rstrip("."), undecorated(form)):
                if literal_of(value := spelt.strip().strip("`").strip()) is not None:
                    return value
    return next((answer for candidate in candidates if (answer := undecorated(candidate))), None)


def _said_line(text: str) -> str | None:
    """The rest of the line after the last "answer is": values hold full stops, equals signs and "answer" themselves."""
    found = re.findall(r"\banswer\s*(?:is|:|=)[ \t]*\**[ \t]*([^\n]+)", text, re.IGNORECASE)
    return found[-1] if found else None


def literal_of(text: str) -> tuple[object] | None:
    """The value of a Python literal, in a tuple of its own; None where the text is none."""
    if len(text) > MAX_LITERAL:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody's string
            return (ast.literal_eval(text.strip()),)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
