"""Labelled solutions: what every public format is read into and written from, and what their readers share.

A step is right, wrong or unknown, given that every step before it is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from caspo.core.errors import DataError
from caspo.records import Label, Question, Tree

__all__ = [
    "RATINGS", "Format", "LabelledSolution", "Record", "bare", "get", "labels_until", "question_of", "separated",
    "steps_of", "text_of",
]  # fmt: skip

Record = dict[str, Any]

RATINGS: Mapping[object, Label] = MappingProxyType({1: "right", -1: "wrong"})


@dataclass(frozen=True)
class LabelledSolution:
    """The steps of a solution, and what somebody said of each."""

    id: str
    question: Question
    steps: tuple[str, ...]
    """Each with the line breaks behind it, where the file says which: joined they are the solution's text."""
    labels: tuple[Label, ...]
    """One a step; unknown where nobody said."""
    subset: str
    """What figures are given for one by one: ``gsm8k``, ``math``."""
    ended: bool = True
    """The solution ended with its last step; False for the beginning of one."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of the solution: ``generator``, ``final_answer_correct``."""

    @property
    def first_error(self) -> int | None:
        """Index of the first wrong step, from 0; None: no step is wrong."""
        return self.labels.index("wrong") if "wrong" in self.labels else None


@dataclass(frozen=True)
class Format:
    """A public format: how it is told, read and written."""

    name: str
    """On the command line."""
    title: str
    keys: tuple[str, ...]
    """Those of its records that tell it."""
    read: Callable[[Mapping[str, Any], str, str], list[LabelledSolution]]
    """The solutions of a record, given where it stands and an id for what has none; none for one without steps."""
    write: Callable[[LabelledSolution, str], Record | None] | None = None
    """The record of a solution, given the model that wrote its steps; None where it could not be read back."""
    write_tree: Callable[[Tree], Iterator[Record]] | None = None
    """The records of a whole tree, where the format holds more than its paths."""
    known_only: bool = False
    """Its records hold no unknown step: of a path what stands before the first one."""
    partial: bool = False
    """It can say of a solution that it did not end."""
    nested: bool = False
    """Its ``question`` is an object."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a record is of this format."""
        return all(key in row for key in self.keys) and isinstance(row.get("question"), dict) == self.nested


def get(row: Mapping[str, Any], key: str, where: str) -> Any:
    """What stands under a key that a record must have; ``where`` names the record in messages."""
    if key not in row:
        raise DataError(f"{where}: no {key!r}, which the records before it have. Add it or remove the record.")
    return row[key]


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text that is not empty."""
    value = get(row, key, where)
    if not isinstance(value, str) or not value.strip():
        what = "empty" if isinstance(value, str) else f"of type {type(value).__name__}, not text"
        raise DataError(f"{where}: {key!r} is {what}.")
    return value


def steps_of(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """At least one step, none of them empty."""
    values = get(row, key, where)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise DataError(f"{where}: {key!r} must be a list with at least one step; it is {values!r:.80}.")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            what = "empty" if isinstance(value, str) else f"of type {type(value).__name__}, not text"
            raise DataError(f"{where}: step {number} of {key!r} is {what}. Labels count steps: none may be left out.")
    return tuple(values)


def bare(step: str) -> str:
    """A step without the blank lines before it and the white space behind it; it keeps its indentation."""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", step).rstrip()


def separated(steps: Sequence[str], separator: str | None = None) -> tuple[str, ...]:
    """The steps with what stood between them in the text: a reader of text must find the same steps in it.

    ``separator`` is what the format's solutions have there. Without one, a step that ends in a line break says it itself;
    else it is a blank line where steps are paragraphs (one has a line break inside), and a line break where they are lines.
    Behind the last step stands nothing.
    """
    *first, last = steps
    if separator is not None:
        return (*(bare(step) + separator for step in first), bare(last))
    between = "\n\n" if any("\n" in bare(step) for step in first) else "\n"
    return (*(step if step.endswith("\n") else bare(step) + between for step in first), bare(last))


def labels_until(first: object, length: int, where: str, key: str) -> tuple[Label, ...]:
    """The labels of ``length`` steps of which only the first wrong one is known, -1 if none is: unknown after it."""
    if isinstance(first, bool) or not isinstance(first, int) or not -1 <= first < length:
        raise DataError(
            f"{where}: {key!r} is {first!r}, but there are {length} steps: it must be from -1 (none) to {length - 1}."
        )
    known = length if first == -1 else first
    return tuple("right" if step < known else "wrong" if step == known else "unknown" for step in range(length))


def question_of(
    row: Mapping[str, Any], key: str, identity: str, where: str, answer: str = "answer", solution: str = "solution"
) -> Question:
    """The question; an unknown answer is an empty text."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: the question is of type {type(row).__name__}, not an object.")
    known, worked = row.get(answer), row.get(solution)
    return Question(
        text_of(row, key, where),
        "" if known is None else str(known),
        id=identity,
        solution=worked if isinstance(worked, str) else None,
    )
