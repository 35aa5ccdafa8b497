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

from caspo.answers.compare import normalised, same_answer
from caspo.answers.extract import clean, extract_answer, last_boxed, last_marked, last_said, undecorated
from caspo.answers.fenced import blocks, code_of
from caspo.records import Question

__all__ = ["literal_of", "options", "stated_answer"]

MAX_LITERAL = 10000
_SHELLS = ("bash", "sh", "shell", "zsh", "console", "powershell", "cmd")

# A full stop after an initial ("James A. Garfield") or before a small letter ("st. gallen") ends no sentence.
_TEXT_END = re.compile(r"(?<!\b[^\W\d_])[.!?](?=\s*$|\s+[A-Z])")
_LETTER = re.compile(
    r"(?:option|choice|answer)?\s*(?:\(\s*([A-Z])\s*\)|\[\s*([A-Z])\s*\]|([A-Z])(?=\s*(?:[.:),]|$)))\s*", re.IGNORECASE
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
    for said in (last_boxed(text), last_marked(text), last_said(text, _TEXT_END)):
        if said and (found := _option(undecorated(said), known, aliases)):
            return found
    lines = text.strip().splitlines()
    return _option(undecorated(lines[-1]), known, aliases, whole=True) if lines else None


def _option(said: str, known: dict[str, str], aliases: dict[str, str], *, whole: bool = False) -> str | None:
    """The option that is meant: its letter, its words, or an answer that begins with either (not if ``whole``)."""
    said = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", said).strip()
    words = {normalised(key): key for key in reversed(aliases)}
    words |= {normalised(known[key]): key for key in reversed(known)}
    lettered = any(key != option for key, option in known.items())
    plain = re.fullmatch(r"\(?([A-Z])\)?[.:]?", said)
    found = plain[1] if lettered and plain and plain[1] in known else words.get(normalised(undecorated(said)))
    if not found:
        found = _letter(said, known, whole) if lettered else None
    if not found and not whole:
        found = _by_value(said, known) if lettered else _first_word(said, words)
    return aliases.get(found, found) if found else None


def _letter(said: str, known: dict[str, str], whole: bool) -> str | None:
    if (match := _LETTER.match(said)) and (not whole or not said[match.end() :].strip(" .:)")):
        letter = str(match[1] or match[2] or match[3]).upper()
        return letter if letter in known else None
    match = re.match(r"([A-Z])\s+(.+)", said)  # "B a dog", but not "A dog" for the first option
    named = match and match[1] in known and normalised(match[2]) == normalised(known[match[1]])
    return match[1] if match and named else None


def _by_value(said: str, known: dict[str, str]) -> str | None:
    """A value that is spelt differently, "1/2" for "0.5", if it is that of one option only."""
    same = [key for key, option in known.items() if same_answer(clean(said), option)]
    return same[0] if len(same) == 1 else None


def _first_word(said: str, words: dict[str, str]) -> str | None:
    """The option of "yes, because ..."."""
    first = re.match(r"[^\W\d_]+", said)
    return words.get(normalised(first.group())) if first else None


def _text(text: str) -> str | None:
    for said in (last_boxed(text), last_marked(text), last_said(text, _TEXT_END)):
        if said and (answer := undecorated(said)):
            return answer
    return None


def _literal(text: str) -> str | None:
    """The value after the last "answer is", in the last box, [ANSWER] or fence, or after ``==`` in the last line."""
    candidates = [match[-1] for match in [re.findall(r"\[ANSWER\](.*?)\[/ANSWER\]", text, re.DOTALL)] if match]
    boxed = text.rpartition("\\boxed{")[2] if "\\boxed{" in text else ""
    candidates += [boxed[: boxed.rfind("}")]] if "}" in boxed else []
    candidates += [said for said in (last_marked(text), _said_line(text)) if said]
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
