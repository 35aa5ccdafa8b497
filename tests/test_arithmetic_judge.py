"""The arithmetic judge says wrong when it is sure, right when it can check everything, and unknown otherwise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Chain, Judge
from caspo.records import Question
from caspo.steps import split_steps

DATA = Path(__file__).parents[2] / "shared" / "data"
JUDGE = ArithmeticJudge()
EGGS = Question(
    "Ann's 16 ducks lay an egg a day. She eats three and sells half of the rest for $2 each. How much a week?",
    "91",
    id="eggs",
)


def _judge(step: str, *prefix: str, final: bool = False, question: Question = EGGS) -> tuple[str, str]:
    verdict = JUDGE.judge_step(question, prefix, step, final=final)
    assert verdict.judge == "arithmetic"
    assert verdict.reason
    return verdict.label, verdict.reason


def test_it_is_a_judge() -> None:
    """The interface that annotation uses."""
    judge: Judge = JUDGE
    assert isinstance(judge, Judge)


def test_true_equations_of_known_numbers_are_right() -> None:
    """Known are numbers of the question in digits and words, results of earlier steps, and what units imply."""
    assert _judge("There are 16 - 3 = 13 eggs left.")[0] == "right"
    assert _judge("Half is 13 / 2 = 6.5.", "There are 16 - 3 = 13 eggs left.")[0] == "right"
    assert _judge("So 13 * 1/2 = 6.5.", "There are 16 - 3 = 13 eggs left.")[0] == "right"
    assert _judge("A week makes 13 * 7 = 91 dollars.", "13 dollars a day.")[0] == "right"
    assert _judge("16 - 3 = 13, and 13 * 7 = 91.")[0] == "right"


def test_a_false_equation_is_wrong_and_the_reason_quotes_it() -> None:
    """Whatever the numbers are from; the reason is what a reader of the report sees."""
    assert _judge("There are 16 - 3 = 12 eggs left.") == ("wrong", "16 - 3 = 12 is false: it makes 13")
    assert _judge("There are 16 - 3 = 13 and 13 * 2 = 27.")[0] == "wrong"
    assert _judge("Then 16 / 0 = 0.") == ("wrong", "16 / 0 = 0 is false: it makes a division by zero")


def test_numbers_of_unknown_origin_make_it_unknown() -> None:
    """A number out of nowhere is often a mistake, but may be common knowledge: not sure enough for wrong."""
    label, reason = _judge("There are 16 - 4 = 12 eggs left.")
    assert label == "unknown"
    assert "where is 4 from" in reason


def test_steps_without_equations_are_unknown() -> None:
    """Words cannot be checked."""
    assert _judge("First we count the eggs.")[0] == "unknown"
    assert _judge("   \n")[0] == "unknown"


@pytest.mark.parametrize("step", ["16 / 3 = 5", "16 / 3 = 5.3", "16 / 3 = 5.34", "5.33 * 3 = 16"])
def test_rounding_is_never_called_wrong(step: str) -> None:
    """Whole numbers of buses, cut digits and rounded intermediate results may be meant."""
    assert _judge(step)[0] != "wrong"


def test_gsm8k_marks_are_read_as_what_was_meant() -> None:
    """Where the text beside a mark was typed carelessly, the mark holds; that it differs is not sure to be a mistake."""
    assert _judge("She has 16 - 3 = <<16-3=13>>13 left.")[0] == "right"
    label, reason = _judge("She makes 8*3 = <<80*3=240>>240")
    assert label == "unknown"
    assert "mark" in reason
    assert _judge("She makes 8*3 = <<8*3=25>>25")[0] == "wrong"
    assert _judge("They are 14, 400 / 80 = <<14400/80=180>>180")[0] == "unknown"
    assert _judge("He makes $100+($100*(10/100) = $<<100+(100*(10/100))=110>>110")[0] != "wrong"


@pytest.mark.parametrize(
    "step",
    [
        "He leaves at 0900-0130 = 0730 hours.",
        "She adds 20 + 10 cakes to the 29 + 24 cakes already there = 83 cakes.",
        "Every 1% is $7500/75% = $100.",
        "It makes $100+($100*0.1 = 110 dollars.",
    ],
)
def test_what_can_be_read_otherwise_is_not_wrong(step: str) -> None:
    """Seen in GSM8K's own solutions: a time of day, words for a plus, a percentage as a unit, a lost parenthesis."""
    assert _judge(step)[0] != "wrong"


def test_a_final_answer_is_compared_with_the_reference() -> None:
    """Only in the final step, and only where there is a reference."""
    assert _judge("The answer is $91.", final=True) == ("right", "the answer is 91")
    assert _judge("The answer is 90.", final=True) == ("wrong", "the answer 90 is not 91")
    assert _judge("The answer is 90.", final=False)[0] == "unknown"
    assert _judge("16 - 3 = 12. The answer is 91.", final=True)[0] == "wrong"
    assert _judge("The answer is 90 for Ann and 1 for Bob", final=True)[0] != "right"
    assert _judge("The answer is 90.", final=True, question=Question(EGGS.text, id="q"))[0] == "unknown"
    assert _judge("So she gets a lot.", final=True)[0] == "unknown"


def test_an_answer_that_cannot_be_compared_is_unknown() -> None:
    """ "4 blue and 6 red" may be the 10 that was asked for."""
    assert _judge("The answer is 85 from ducks and 6 from hens", final=True)[0] == "unknown"
    sides = Question("Where?", "north", id="q")
    assert _judge("The answer is south.", final=True, question=sides)[0] == "wrong"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("He has two hundred forty-five nuts and eats twenty-one.", "245 - 21 = 224"),
        ("A coat of $80 is 25% off.", "80 * 75/100 = 60"),
        ("A coat of $80 is 25% off.", "80 * 0.25 = 20"),
        ("She runs 2 1/2 miles twice a day.", "2.5 * 2 = 5"),
        ("Bread costs 50 cents. He buys 4.", "4 * 0.5 = 2"),
        ("He works 8 hours at $1,200 a year.", "1200 / 12 = 100"),
        ("He buys a dozen eggs and 3 more.", "12 + 3 = 15"),
    ],
)  # fmt: skip
def test_quantities_are_found_in_words_percentages_and_units(text: str, step: str) -> None:
    """Otherwise most right steps of real problems would be unknown."""
    assert _judge(step, question=Question(text, id="q"))[0] == "right"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=40), max_size=3), st.text(max_size=60), st.booleans())
def test_no_text_makes_it_raise(question: str, prefix: list[str], step: str, final: bool) -> None:
    """Models write anything, and so do data sets."""
    _judge(step, *prefix, final=final, question=Question(question, "7", id="q"))


def test_absurd_numbers_are_judged_too() -> None:
    """Thousands of digits or of number words: Python refuses to print such integers, we do not fail."""
    big = "9" * 39
    assert _judge(" * ".join([big] * 60) + " = 7")[0] == "wrong"
    assert _judge("16 - 3 = 13", question=Question("million " * 20000 + "16 ducks, three foxes", id="q"))[0] == "right"


def _rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_reference_solutions_of_gsm8k_are_hardly_ever_wrong() -> None:
    """Seen: of 6126 steps 93% right, 7% unknown (most without an equation), 3 wrong, which are mistakes of GSM8K."""
    labels: Counter[str] = Counter()
    for row in _rows("gsm8k_test.jsonl"):
        question, steps = Question(row["question"], row["answer"], id=row["id"]), split_steps(row["solution"])
        for i, step in enumerate(steps):
            labels[_judge(step, *steps[:i], final=i + 1 == len(steps), question=question)[0]] += 1
    print(dict(labels))
    assert labels.total() == 6126
    assert labels["wrong"] <= 6
    assert labels["right"] >= 0.9 * labels.total()


def _compare(rows: list[dict[str, Any]]) -> Counter[tuple[bool, str]]:
    """(people found the step right, our label), for all steps up to the first wrong one."""
    found: Counter[tuple[bool, str]] = Counter()
    for row in rows:
        question, steps, first = (
            Question(row["question"], row["answer"] or "", id=row["id"]),
            row["steps"],
            row["first_error"],
        )
        for i in range(len(steps) if first < 0 else first + 1):
            label = _judge(steps[i], *steps[:i], final=i + 1 == len(steps), question=question)[0]
            found[i != first, label] += 1
    return found


@pytest.mark.parametrize(
    ("name", "source", "precision"),
    [
        ("processbench_steps.jsonl", "processbench-gsm8k", 0.9),
        ("mr_gsm8k_partial_steps.jsonl", "", 0.9),
        pytest.param("processbench_steps.jsonl", "processbench-math", 0.75, marks=pytest.mark.slow),
    ],
)
def test_people_agree_when_it_says_wrong(name: str, source: str, precision: float) -> None:
    """A step called wrong is the first error that people marked. Seen: 25 of 25 in ProcessBench's gsm8k half, on which
    the reader of equations was tuned, and 105 of 108 in MR-GSM8K, which it had not seen; 34 of 37 in the math half.
    It finds 12%, 18% and 6% of the errors: most are no matter of arithmetic.
    """
    found = _compare([row for row in _rows(name) if row["id"].startswith(source)])
    wrong, false_alarms = found[False, "wrong"], found[True, "wrong"]
    print(name, source, dict(found))
    assert wrong >= 20
    assert wrong / (wrong + false_alarms) >= precision


TAKEN_BACK = [
    "2 + 1 = 1 (False)", "2 + 1 = 1 is false.", "2 + 1 = 1, which is not true", "$2 + 1 = 1$, a contradiction.",
    "Check if 3 + 4 = 8? No", "Is 3 + 4 = 8? No, it is 7.", "We test whether 3 + 4 = 8.", "3 + 4 = 8: no", "3 + 4 = 8 ✗",
    "3 + 4 does not equal 8", "3 + 4 is not equal to 8", "3 + 4 ≠ 8", "3 + 4 \\neq 8", "3 + 4 does not = 8",
    "Suppose 3 + 4 = 8.", "Suppose that 3 + 4 = 8. Then 4 = 5.", "Assume 3 + 4 = 8", "If 3 + 4 = 8, all is lost.",
    "It is not the case that 3 + 4 = 8", "3 + 4 = 8 does not hold.", "3 + 4 = 8 (incorrect)",
    "3 + 4 = 8. This is impossible.",
    "3 + 4 = 8. But this cannot be true.", "Then 3 + 4 = 8. Wait, 3 + 4 = 7.", "A common mistake is 3 + 4 = 8.",
    "The student wrote 3 + 4 = 8.", "2 + 2 = 5 \\text{ (False)}", "3 + 4 == 8 returns False", "8 + 8 = 6 (mod 10)",
]  # fmt: skip


@pytest.mark.parametrize("step", TAKEN_BACK)
def test_an_equation_that_the_step_asks_supposes_or_rejects_is_no_mistake(step: str) -> None:
    """Nor is it evidence for the step."""
    assert _judge(step)[0] in ("unknown", "right")
    assert "is false" not in _judge(step)[1]


@pytest.mark.parametrize(
    "step",
    [
        "13 ! / 11 ! = 156", "10 * 9 = 10 ! / 8 !", "5 + !5 = 49", "!5 + 3 = 47", "1 * 2 * 3 * 4 = 4 !",
        "12 * 11 * 10! = 1320",
        "\\frac{9}{4} a=36", "36 = \\frac{9}{4} a", "3 + 4 a = 36", "4 * 3 A = 36", "2 + 3 i = 8",
        "36 = \\frac{6}{2} [2a+5d]", "\\frac{6}{2} [2a+5d] = 36", "36 = \\frac{6}{2} (2a+5d)", "f'(3) + 1 = 5",
        "12 * 11 / 2 = 12 choose 2", "1.500 + 500 = 2.000", "The values are (3 - 2), (0 - 2), (5 - 2) = 1, -2, 3",
        "The 5s in 42! are 42/5 + 42/25 = 8 + 1 = 9", "7 div 2 + 1 = 4",
    ],
)  # fmt: skip
def test_formulas_that_are_no_plain_sums_are_not_wrong(step: str) -> None:
    """Factorials, variables called a, products with brackets: a missed equation is unknown, a misread one would be wrong."""
    assert _judge(step)[0] == "unknown"


@pytest.mark.parametrize(
    "step",
    [
        "He earns 5 * 8 = 41 a day.", "He earns 5 * 8 a day = 41.", "That makes 3 + 4 = 8 apples!",
        "If he buys 3 bags, then 3 * 5 = 16.",
        "He does not sell any, so 3 * 5 = 16.", "3 * 5 = 16. No apples are left.", "She got 10 - 3 = 8 wrong answers.",
        "Check: 3 * 5 = 16.", "He would pay 3 * 5 = 16 dollars.", "We verify that 3 * 5 = 16.",
        "3 * 5 = 16, so there are not enough.",
        "Suppose he buys 3 bags of 5. Then 3 * 5 = 16.", "The number not in the team is 12 + 12 - 7 = 15.",
        "3 * 5 = 16, which is not what he paid.",
    ],
)  # fmt: skip
def test_a_false_sum_beside_such_words_is_wrong_all_the_same(step: str) -> None:
    """True catches are not lost: it is the sum that must be asked, supposed or rejected."""
    assert _judge(step)[0] == "wrong"


def test_sums_around_a_clock() -> None:
    """In a problem about a modulus a sum may be meant by it, but not one that is off by something else."""
    ring = Question("What is the last digit, modulo 10?", "6", id="q")
    assert _judge("8 + 8 = 6", question=ring)[0] == "unknown"
    assert _judge("8 + 8 = 7", question=ring)[0] == "wrong"
    assert _judge("7 + 1 = 10", question=Question("Add in base 8.", "10", id="q"))[0] == "unknown"


def test_unfinished_thinking_answers_nothing() -> None:
    """A number that was considered is no final answer, right or wrong."""
    chain = Chain(Question("2 + 3?", "6", id="q"), ("<think>\n2 + 3 = 5.\n\n", "The answer is 5."), ended=True)
    (found,) = ArithmeticJudge().judge([chain])
    assert [verdict.label for verdict in found] == ["right", "unknown"]
    finished = Chain(chain.question, ("<think>\n2 + 3 = 5.\n</think>\n\n", "The answer is 5."), ended=True)
    assert ArithmeticJudge().judge([finished])[0][1].label == "wrong"
