"""Questions with options to choose from: how they are shown to a model, and the letter of the right one."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from caspo.answers import options
from caspo.core.errors import DataError
from caspo.records import Question

__all__ = ["LETTER", "listed", "with_letters"]

LETTER = "Answer with the letter of the right option."
"""Stands after a question whose options are lettered."""

_SAID = re.compile(r"\(?([A-Za-z])\)?[.:)]?")
_NAMED = re.compile(r"\(?([A-Za-z])[.):]\s*(?=\S)")
"""What may stand before an option that has its letter already: "A) 5", "(A) 5", "A. 5"."""


def listed(question: Question, where: str) -> str:
    """The options, each with its letter; nothing where they are words like yes and no, or the question lists them itself.

    Raises:
        DataError: there are none, or the known answer is none of them.
    """
    known = options(question)
    if not known:
        raise DataError(f"{where} has no choices. A question of choice needs them: add 'choices', a list.")
    if question.answer not in known:
        raise DataError(
            f"{where}: the answer {question.answer!r} is none of {', '.join(map(repr, known))}. "
            "Correct the answer or the choices."
        )
    lettered = {key: option.strip() for key, option in known.items() if key != option}
    if not lettered or all(_stands(key, option, question.text) for key, option in lettered.items()):
        return ""
    return "\n\n" + "\n".join(f"({key}) {option}" for key, option in lettered.items())


def with_letters(question: Question, where: str) -> Question:
    """A row with ``choices`` as it is asked: the options under the question, and the letter of the right one as its answer.

    The row may name the right one by its letter or by its text; of options that read the same the first is named. Letters
    that the options have already ("A) 5") are not shown twice. Where an option is a letter itself, letters are no names:
    they stay as they are.

    Raises:
        DataError: the choices are no list of texts, or more than there are letters; the answer is none of them.
    """
    written = _texts(question.meta["choices"], where)
    choices = _without_letters(written)
    answer, said = question.answer, _SAID.fullmatch(question.answer)
    letters = string.ascii_uppercase[: len(choices)]
    if answer in written:
        answer = choices[written.index(answer)]
    if any(re.fullmatch(r"[A-Z]", choice) for choice in choices):
        if answer not in choices:
            raise DataError(
                f"{where}: the answer {answer!r} is none of the choices {', '.join(choices)}. Correct one of them."
            )
        text = f"{question.text.rstrip()}\n\nOptions: {', '.join(choices)}"
        return replace(question, text=text, meta={**question.meta, "choices": choices, "answer_type": "choice"})
    if answer in choices:
        answer = letters[choices.index(answer)]
    elif said and said[1].upper() in letters:
        answer = said[1].upper()
    else:
        raise DataError(
            f"{where}: the answer {answer!r} is neither one of the choices ({', '.join(map(repr, choices))[:200]}) nor the "
            f"letter of one ({letters[0]} to {letters[-1]}). Correct one of them."
        )
    asked = replace(question, answer=answer, meta={**question.meta, "choices": choices, "answer_type": "choice"})
    return replace(asked, text=f"{question.text.rstrip()}{listed(asked, where)}\n\n{LETTER}")


def _texts(choices: Any, where: str) -> list[str]:
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise DataError(
            f"{where}: 'choices' is of type {type(choices).__name__}, not a list. Make it a list of the options."
        )
    found = [str(c).strip() if isinstance(c, str | int | float) and not isinstance(c, bool) else "" for c in choices]
    if len(found) < 2 or not all(found):
        raise DataError(f"{where}: 'choices' must hold two options or more, each a text: it is {choices!r:.80}.")
    if len(found) > len(string.ascii_uppercase):
        raise DataError(
            f"{where}: {len(found)} choices are more than there are letters to name them by. Leave some out, or ask for the "
            "answer itself: rename 'choices'."
        )
    return found


def _without_letters(choices: Sequence[str]) -> list[str]:
    """The options without the letters that they have already, where all have theirs."""
    named = [_NAMED.match(choice) for choice in choices]
    if [name and name[1].upper() for name in named] != list(string.ascii_uppercase[: len(choices)]):
        return list(choices)
    return [choice[name.end() :] if name else choice for choice, name in zip(choices, named, strict=True)]


def _stands(letter: str, option: str, text: str) -> bool:
    """Whether a text lists an option under its letter: "A. 5", "(A) 5", "A) 5", "A: 5"."""
    words = r"\s+".join(map(re.escape, option.split()))
    return re.search(rf"(?:^|[\s(]){letter}[.):]\s*{words}(?!\w)", text) is not None
