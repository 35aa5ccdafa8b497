"""Task `stories` and judge `reference`: the generator's promises, and that every kind of wrong step is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest

from caspo.answers import extract_answer
from caspo.core.errors import ConfigError, DataError
from caspo.judges.reference import ReferenceJudge
from caspo.records import Question, Verdict
from caspo.steps import equations, split_steps
from caspo.tasks.stories import MAX_LEVEL, SPLITS, StoriesTask, largest, sums

ALL = StoriesTask(range(1, MAX_LEVEL + 1))
SAMPLE = [q for split in SPLITS for q in ALL.questions(split, 105, seed=5)]
JUDGE = ReferenceJudge()


def lines(question: Question) -> list[str]:
    assert question.solution is not None
    return split_steps(question.solution)


def verdict(question: Question, at: int, step: str, *, final: bool = False) -> Verdict:
    """The verdict on ``step`` in place of the solution's line ``at``."""
    return JUDGE.judge_step(question, lines(question)[:at], step, final=final)


def test_deterministic_prefix_and_seeds() -> None:
    """Problem i depends on split, seed and i only; other seeds and splits give other problems."""
    task = StoriesTask((1, 2, 3))
    first = task.questions("train", 60, seed=1)
    assert first == task.questions("train", 60, seed=1)
    assert first[:20] == task.questions("train", 20, seed=1)
    texts = {q.text for q in first}
    assert len(texts) > 55
    assert len(texts & {q.text for q in task.questions("train", 60, seed=2)}) < 5
    assert len({q.id for split in SPLITS for q in task.questions(split, 30)}) == 4 * 30


@pytest.mark.parametrize("n", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_splits_share_nothing(n: int) -> None:
    """No question of train, validation and test is in another of them; test_out tells other scenes."""
    task = StoriesTask((1, 2, 3))
    found = {split: task.questions(split, n) for split in SPLITS}
    texts = {split: {q.text for q in questions} for split, questions in found.items()}
    for a, b in combinations(SPLITS, 2):
        assert not texts[a] & texts[b], f"{a} and {b} share questions"
    scenes = {split: {q.meta["scene"] for q in questions} for split, questions in found.items()}
    assert scenes["train"] == scenes["validation"] == scenes["test"]
    assert not scenes["test_out"] & scenes["train"]
    assert len(texts["test"]) > 0.96 * n, "few repetitions within a split"


def test_sums_are_true_and_small() -> None:
    """A sheet has ten true equations within the numbers of the short problems; sheets differ, and seeds do."""
    sheets = sums(50, seed=3)
    for sheet in sheets:
        found = [e for line in split_steps(sheet.solution or "") for e in equations(line)]
        assert len(found) == 10
        assert all(e.holds() and 2 <= e.result <= largest(1) for e in found)
    assert len({sheet.solution for sheet in [*sheets, *sums(50, seed=4)]}) == 100


def test_levels_and_bounds() -> None:
    """Level L has L + 1 equations and an answer line; all numbers are distinct integers from 2 to the level's largest."""
    for question in SAMPLE:
        steps = lines(question)
        assert len(steps) == question.meta["level"] + 2
        assert [len(equations(step)) for step in steps] == [1] * (len(steps) - 1) + [0]
        values = [q["value"] for q in question.meta["quantities"]]
        assert all(isinstance(v, int) and 2 <= v <= largest(question.meta["level"]) for v in values)
        assert len(set(values)) == len(values)
        assert "{" not in question.text + (question.solution or "")
        for quantity in question.meta["quantities"]:
            if quantity["kind"] in ("given", "distractor"):
                assert re.search(rf"\b{quantity['value']}\b", question.text), "what is given is told"
    levels = [q.meta["level"] for q in ALL.questions("train", 14)]
    assert levels == [*range(1, 8)] * 2


def test_written_solutions_are_right() -> None:
    """Every line of every solution is right by the judge, only the last one answers, and the grader agrees."""
    for question in SAMPLE:
        steps = lines(question)
        for at, step in enumerate(steps):
            final = at == len(steps) - 1
            got = verdict(question, at, step, final=final)
            assert got.label == "right", (question.text, step, got)
            assert (extract_answer(step) is not None) == final, step
        assert ALL.grade(question, extract_answer(question.solution or ""))
        assert not ALL.grade(question, str(int(question.answer) + 1))
        assert not ALL.grade(question, None)


def change_result(equation: Any, question: Question) -> str:
    a, b = equation.numbers
    operator = equation.expression[0]
    return f"That is {a} {operator} {b} = {equation.result + 1}."


def follows_anyway(equation: Any, question: Question) -> bool:
    """60 - (30 - 8) = 30 + 8 where 60 is twice 30: another way to a value that the solution needs, or to a part of one."""
    a, b = equation.numbers
    operator = {"+": "*", "*": "+", "-": "+", "/": "*"}[equation.expression[0]]
    values = {q["value"] for q in question.meta["quantities"]}
    return (a + b if operator == "+" else a * b) in values | {p - q for p in values for q in values}


def other_operation(equation: Any, question: Question) -> str:
    a, b = equation.numbers
    operator = {"+": "*", "*": "+", "-": "+", "/": "*"}[equation.expression[0]]
    return f"That is {a} {operator} {b} = {a + b if operator == '+' else a * b}."


def unknown_number(equation: Any, question: Question) -> str:
    a, b = equation.numbers
    used = {q["value"] for q in question.meta["quantities"]} | {a, b}
    other = next(n for n in range(2, 200) if n not in used)
    return f"That is {a} + {other} = {a + other}."


@pytest.mark.parametrize(
    ("perturb", "reason"),
    [
        (change_result, r"the calculation gives \d+, not \d+"),
        (other_operation, r"comes about by another operation"),
        (unknown_number, r"is not a quantity of the problem"),
    ],
)
def test_wrong_calculations(perturb: Callable[[Any, Question], str], reason: str) -> None:
    """A wrong result, a wrong operation and a number from nowhere are wrong, at every step of every problem."""
    for question in SAMPLE:
        for at, step in enumerate(lines(question)[:-1]):
            if perturb is other_operation and follows_anyway(equations(step)[0], question):
                continue
            wrong = perturb(equations(step)[0], question)
            got = verdict(question, at, wrong)
            assert got.label == "wrong", (question.text, step, wrong)
            assert re.search(reason, got.reason), (wrong, got.reason)


def test_distractors() -> None:
    """Some problems tell a number that has nothing to do with them; a step that uses it is wrong, and says why."""
    with_distractor = 0
    for question in SAMPLE:
        for quantity in question.meta["quantities"]:
            if quantity["kind"] != "distractor":
                continue
            with_distractor += 1
            first = equations(lines(question)[0])[0]
            a, x = first.numbers[0], quantity["value"]
            got = verdict(question, 0, f"That is {a} + {x} = {a + x}.")
            assert got.label == "wrong"
            assert got.reason == f"{x} has nothing to do with the question"
    assert 0.2 < with_distractor / len(SAMPLE) < 0.7


def test_repeated_steps() -> None:
    """A result that was had already is no progress."""
    for question in SAMPLE:
        steps = lines(question)
        got = verdict(question, 1, steps[0])
        assert (got.label, got.reason.split()[-3:]) == ("wrong", ["was", "already", "known"])


def test_answers() -> None:
    """An answer is right by its value only; ending without one is wrong; a step without either is unknown."""
    for question in SAMPLE[::5]:
        last = len(lines(question)) - 1
        other = next(q["value"] for q in question.meta["quantities"] if str(q["value"]) != question.answer)
        early = verdict(question, 1, f"The answer is {other}.", final=True)
        assert early.label == "wrong"
        assert early.reason == f"answers {other}; the answer is {question.answer}"
        assert verdict(question, last, f"The answer is {question.answer}.0.", final=True).label == "right"
        assert verdict(question, last, "That is all.", final=True).reason == "ends without an answer"
        assert verdict(question, 1, lines(question)[1], final=True).label == "wrong", "a right step that ends too early"
        assert verdict(question, 0, "Let us see.").label == "unknown"
        assert verdict(question, 0, "   \n").label == "unknown"


def test_any_wording_and_order_of_sums() -> None:
    """Operands of sums and products swapped, other words, several equations in a line: still right."""
    for question in SAMPLE:
        for at, step in enumerate(lines(question)[:-1]):
            equation = equations(step)[0]
            a, b = equation.numbers
            operator = equation.expression[0]
            if operator in "+*":
                a, b = b, a
            assert verdict(question, at, f"So we get {a} {operator} {b} = {equation.result}").label == "right"
        both = " Then ".join(line.strip() for line in lines(question)[:2])
        assert verdict(question, 0, both).label == "right"


def test_sums_in_any_order() -> None:
    """Totals of several actors may be added up in any order."""
    seen = 0
    for question in ALL.questions("train", 400, seed=9):
        terms = next((q["terms"] for q in question.meta["quantities"] if "terms" in q), None)
        if terms is None or len(terms) < 3:
            continue
        values = [question.meta["quantities"][t]["value"] for t in terms]
        first_sum = next(i for i, s in enumerate(lines(question)) if "together" in s)
        total = values[-1]
        prefix = lines(question)[:first_sum]
        for value in values[-2::-1]:
            step = f"That makes {total} + {value} = {total + value}."
            if total + value in {q["value"] for q in question.meta["quantities"] if q["value"] != int(question.answer)}:
                break  # a partial sum that equals another quantity names two things: not decided rightly
            got = JUDGE.judge_step(question, prefix, step, final=False)
            assert got.label == "right", (question.text, prefix, step, got)
            prefix.append(step)
            total += value
        seen += 1
    assert seen > 5


def test_same_number_by_chance_is_not_enough() -> None:
    """2 + 2 for 2 * 2: an equation that holds, with numbers and a result of the problem, by the wrong operation."""
    quantities = [{"value": 2, "kind": "given"}, {"value": 4, "kind": "derived", "formula": "#0 * #0"}]
    question = Question("?", "4", id="q", meta={"quantities": quantities})
    assert JUDGE.judge_step(question, [], "2 * 2 = 4", final=False).label == "right"
    assert JUDGE.judge_step(question, [], "2 + 2 = 4", final=False).label == "wrong"


def test_bad_input() -> None:
    """Unknown splits and levels, and questions without intermediate values, are named."""
    with pytest.raises(ConfigError, match="no split 'dev'"):
        ALL.questions("dev", 1)
    for levels in ((), (0,), (8,)):
        with pytest.raises(ConfigError, match="levels 1 to 7"):
            StoriesTask(levels)
    with pytest.raises(DataError, match="arithmetic judge"):
        JUDGE.judge_step(Question("?", "1", id="q"), [], "1 + 1 = 2", final=False)


def test_values_are_exact() -> None:
    """Written equations hold in exact arithmetic."""
    for question in SAMPLE:
        for step in lines(question)[:-1]:
            equation = equations(step)[0]
            assert equation.holds()
            assert isinstance(equation.value, Fraction)
