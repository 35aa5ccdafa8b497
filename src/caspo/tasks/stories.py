"""`stories`: grade-school word problems made by rule, with exact truth for every step.

A problem of level L has L + 1 steps of arithmetic (2 to 8). Every number in it is distinct from every other, so a number
names one quantity; ``Question.meta`` lists the quantities with the formula that made them, and the `reference` judge
decides from that whether a step follows, whatever its wording (see judges/reference.py).

Splits: ``train``, ``validation`` and ``test`` tell the same scenes, and share no question (a digest of the question
decides where it may appear); ``test_out`` tells scenes that the others do not have. Problem i of a split depends on
the seed and i only.

Numbers stay small where the problem is short (`largest`), so that a small model errs in its reasoning (which quantity,
which operation, whose apples) rather than in its sums: that is what step preferences can mend.

What is not covered: fractions, decimals, negative numbers, numbers over 100.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from caspo.answers import right_answer
from caspo.core.errors import ConfigError
from caspo.records import Question
from caspo.tasks.stories_scenes import NAMES, SCENES, Move, Relations, Scene

__all__ = ["MAX_LEVEL", "SPLITS", "StoriesTask", "largest", "sums"]

MAX_LEVEL = 7
SPLITS = ("train", "validation", "test", "test_out")
_SHARE = {"validation": range(90, 93), "test": range(93, 100), "train": range(90)}


def largest(level: int) -> int:
    """The largest number of a problem; more steps need more room, because all numbers differ."""
    return 30 if level <= 3 else 50 if level == 4 else 100


class _Retry(Exception):
    """The numbers drawn do not fit the story; draw again."""


@dataclass
class _Draft:
    """A problem in the making: sentences, solution lines and quantities so far."""

    rng: random.Random
    names: dict[str, str]
    things: str
    limit: int
    """Largest number allowed."""
    sentences: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    quantities: list[dict[str, Any]] = field(default_factory=list)

    def new_value(self, low: int, high: int) -> int:
        free = [v for v in range(low, min(high, self.limit) + 1) if not any(q["value"] == v for q in self.quantities)]
        if not free:
            raise _Retry
        return self.rng.choice(free)

    def add(self, value: int, kind: str, formula: str | None = None) -> int:
        """Register a quantity; its index. ``kind``: given, constant, distractor or derived."""
        if not 2 <= value <= self.limit or any(q["value"] == value and kind != "constant" for q in self.quantities):
            raise _Retry
        self.quantities.append({"value": value, "kind": kind} | ({"formula": formula} if formula else {}))
        return len(self.quantities) - 1

    def constant(self, value: int) -> int:
        for index, quantity in enumerate(self.quantities):
            if quantity["value"] == value:
                if quantity["kind"] != "constant":
                    raise _Retry
                return index
        return self.add(value, "constant")

    def compute(self, left: int, operator: str, right: int) -> tuple[int, str]:
        """Derive a quantity from two others; its index and the equation as text."""
        a, b = self.quantities[left]["value"], self.quantities[right]["value"]
        if operator == "/" and a % b:
            raise _Retry
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        index = self.add(value, "derived", f"#{left} {operator} #{right}")
        return index, f"{a} {operator} {b} = {value}"

    def fill(self, sentence: str, **numbers: object) -> str:
        return sentence.format(**self.names, things=self.things, **numbers)

    def tell(self, move: Move, symbols: dict[str, int]) -> int | None:
        """Ask a move's sentence, solve its steps; the index of the last result (None for a move without steps)."""
        for name in sorted(set(re.findall(r"\{([xkmp])\}", move.ask))):
            low, high = {"x": (3, 30), "k": (2, 6), "m": (2, 8), "p": (3, 12)}[name]
            if name == "x" and any(formula.startswith("x -") for formula, _ in move.steps):
                low, high = self.quantities[symbols["s"]]["value"] + 2, self.limit
            if name == "k" and any("/ k" in formula for formula, _ in move.steps):
                high = 10
            symbols[name] = self.add(self.new_value(low, high), "given")
        shown = {name: self.quantities[index]["value"] for name, index in symbols.items()}
        self.sentences.append(self.fill(move.ask, **shown))
        result = None
        for formula, sentence in move.steps:
            left, operator, right = formula.split()
            operands = [symbols[o] if o in symbols else self.constant(int(o)) for o in (left, right)]
            result, equation = self.compute(operands[0], operator, operands[1])
            self.lines.append(self.fill(sentence, eq=equation))
            symbols["t"] = result
        return result


def _pick(rng: random.Random, moves: Sequence[Move], steps: int) -> Move:
    fitting = [move for move in moves if len(move.steps) <= steps]
    if not fitting:
        raise _Retry
    return rng.choice(fitting)


def _tell_running(draft: _Draft, scene: Scene, steps: int) -> None:
    """A story of one running amount: an opening, moves, a closing question; ``steps`` in all."""
    rng = draft.rng
    opening = _pick(rng, scene.openings, steps - 1)
    if opening.steps:
        state = draft.tell(opening, {})
    else:
        state = draft.add(draft.new_value(8, 60), "given")
        draft.sentences.append(draft.fill(opening.ask, s=draft.quantities[state]["value"]))
    assert state is not None
    closing = _pick(rng, scene.closings, steps - len(draft.lines) - 1)
    last: Move | None = None
    while (left := steps - len(draft.lines) - len(closing.steps)) > 0:
        last = _pick(rng, [move for move in scene.moves if move is not last], left)
        result = draft.tell(last, {"s": state})
        assert result is not None
        state = result
    draft.tell(closing, {"s": state})


def _tell_relations(draft: _Draft, relations: Relations, steps: int) -> None:
    """Several actors told by comparison; the question asks for the sum of all or the difference of two."""
    rng = draft.rng
    actors = rng.sample(NAMES, MAX_LEVEL + 1)
    difference = steps == 2 or rng.random() < 0.35
    people = steps if difference else (steps + 2) // 2
    if people > len(actors) or (not difference and (people - 1) * 2 != steps):
        raise _Retry
    amounts = [draft.add(draft.new_value(4, 40), "given")]
    draft.names = {"A": actors[0]}
    draft.sentences.append(draft.fill(relations.has, x=draft.quantities[amounts[0]]["value"]))
    for person in range(1, people):
        other = person - 1 if rng.random() < 0.6 else rng.randrange(person)
        draft.names = {"A": actors[other], "B": actors[person]}
        move = rng.choice((relations.more, relations.fewer, relations.times, relations.half))
        result = draft.tell(move, {"a": amounts[other]})
        assert result is not None
        amounts.append(result)
    values = [draft.quantities[a]["value"] for a in amounts]
    if difference:
        first, second = people - 1, rng.randrange(people - 1)
        if values[first] < values[second]:
            first, second = second, first
        draft.names = {"A": actors[first], "B": actors[second]}
        _, equation = draft.compute(amounts[first], "-", amounts[second])
        draft.lines.append(draft.fill(relations.gap, eq=equation))
        draft.sentences.append(draft.fill(relations.difference))
        return
    total = amounts[0]
    for person in range(1, people):
        draft.names = {"A": actors[0], "B": actors[person]}
        total, equation = draft.compute(total, "+", amounts[person])
        draft.lines.append(draft.fill(relations.sums[0 if person == 1 else 1], eq=equation))
    draft.quantities[total]["terms"] = amounts
    names = " and ".join([", ".join(actors[: people - 1]), actors[people - 1]])
    draft.sentences.append(draft.fill(relations.total, all=names))


def _write(rng: random.Random, scene: Scene, level: int) -> Question:
    actors = rng.sample(NAMES, 3)
    draft = _Draft(rng, dict(zip("ABC", actors, strict=True)), rng.choice(scene.things), largest(level))
    steps = level + 1
    if scene.relations is None:
        _tell_running(draft, scene, steps)
    else:
        _tell_relations(draft, scene.relations, steps)
    assert len(draft.lines) == steps
    if rng.random() < 0.5:
        draft.names = dict(zip("ABC", actors, strict=True))
        value = draft.add(draft.new_value(3, 40), "distractor")
        sentence = draft.fill(rng.choice(scene.distractors), x=draft.quantities[value]["value"])
        draft.sentences.insert(rng.randrange(1, len(draft.sentences)), sentence)
    answer = str(next(q["value"] for q in reversed(draft.quantities) if q["kind"] == "derived"))
    return Question(
        text=" ".join(draft.sentences),
        answer=answer,
        solution="\n".join([*draft.lines, f"The answer is {answer}."]),
        meta={"scene": scene.name, "level": level, "quantities": draft.quantities},
    )


class StoriesTask:
    """Word problems of the given difficulty levels, in equal shares (level L: L + 1 steps of arithmetic)."""

    name = "stories"

    def __init__(self, levels: Sequence[int] = (1, 2, 3)) -> None:
        if not levels or not all(1 <= level <= MAX_LEVEL for level in levels):
            raise ConfigError(f"stories has levels 1 to {MAX_LEVEL}, not {list(levels)}. Choose some of these.")
        self.levels = tuple(levels)

    def questions(self, split: str, n: int, seed: int = 0) -> list[Question]:
        """The first ``n`` problems of a split."""
        if split not in SPLITS:
            raise ConfigError(f"stories has no split {split!r}. Choose one of {', '.join(SPLITS)}.")
        return [self._question(split, seed, index) for index in range(n)]

    def grade(self, question: Question, answer: str | None) -> bool:
        """Whether ``answer`` has the value of the problem's answer."""
        return right_answer(answer, question.answer)

    def _question(self, split: str, seed: int, index: int) -> Question:
        scenes = [scene for scene in SCENES if scene.out_of_distribution == (split == "test_out")]
        level = self.levels[index % len(self.levels)]
        rng = random.Random(f"stories {split} {seed} {level} {index}")
        scene = rng.choice(scenes)
        while True:
            try:
                question = _write(rng, scene, level)
            except _Retry:
                continue
            if split == "test_out" or _bucket(question.text) in _SHARE[split]:
                break
        return replace(question, id=f"{split}-{seed}-{index}")


def sums(n: int, seed: int = 0) -> list[Question]:
    """Sheets of ten sums with the numbers of the short problems, to learn arithmetic from before reasoning is tested.

    Their ``solution`` has one equation a line; there is no answer to grade.
    """
    sheets = []
    for index in range(n):
        rng = random.Random(f"sums {seed} {index}")
        lines: list[str] = []
        while len(lines) < 10:
            a, b = rng.randint(2, largest(1)), rng.randint(2, largest(1))
            operator, value = rng.choice(
                [("+", a + b), ("-", a - b), ("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b)]
            )
            if 2 <= value <= largest(1) and not (operator == "/" and a % b):
                lines.append(f"{a} {operator} {b} = {value}")
        sheets.append(Question("Work out the sums.", id=f"sums-{seed}-{index}", solution="\n".join(lines)))
    return sheets


def _bucket(text: str) -> int:
    """0 to 99, from the question's text: which split it may appear in."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
