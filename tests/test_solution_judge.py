"""The reference judge on questions with a written solution: GSM8K's, whose marks say what was calculated."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caspo.core.errors import DataError
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Chain, StepJudge
from caspo.judges.reference import ReferenceJudge
from caspo.records import Question
from caspo.steps import split_steps

DATA = Path(__file__).parents[2] / "shared" / "data"
SOLUTION = "She has 16 - 3 = <<16-3=13>>13 eggs left.\nShe sells 13 * 7 = <<13*7=91>>91 a week.\n#### 91"
EGGS = Question(
    "Ann's 16 ducks lay an egg each. She eats 3 of them. How many are left in a week?", "91", id="eggs", solution=SOLUTION
)


def told(*steps: str, question: Question = EGGS, ended: bool = False) -> list[str]:
    return [verdict.label for verdict in ReferenceJudge().judge([Chain(question, steps, ended)])[0]]


def test_values_of_the_solution_from_known_numbers_are_right() -> None:
    """In any wording; the solution's own numbers may be used without saying where they are from."""
    assert told("16 - 3 = 13", "13 * 7 = 91") == ["right", "right"]
    assert told("After breakfast 16 - 3 = 13.", "So 13 * 7 = 91 a week.", "The answer is 91.", ended=True) == ["right"] * 3
    assert told("(16 - 3) * 7 = 91") == ["right"]


def test_another_way_to_the_answer_is_unknown_not_wrong() -> None:
    """True sums that the solution does not make: 16 * 7 - 3 * 7 leads to the same answer."""
    assert told("16 * 7 = 112", "3 * 7 = 21", "112 - 21 = 91", "The answer is 91.", ended=True) == [
        "unknown",
        "unknown",
        "right",
        "right",
    ]
    assert told("16 - 4 = 12") == ["unknown"]
    assert told("We count them.", "") == ["unknown", "unknown"]


def test_false_equations_and_other_answers_are_wrong() -> None:
    assert told("16 - 3 = 12") == ["wrong"]
    assert told("16 - 3 = 13", "The answer is 90.", ended=True) == ["right", "wrong"]
    assert told("16 - 3 = 13", "So that is it.", ended=True) == ["right", "unknown"]


def test_a_solution_in_words_leaves_the_answer_to_judge() -> None:
    words = replace(EGGS, solution="Solve for x; it is ninety-one.")
    assert told("16 - 3 = 13", "The answer is 90.", question=words, ended=True) == ["unknown", "wrong"]
    with pytest.raises(DataError, match="arithmetic judge"):
        told("16 - 3 = 13", question=replace(EGGS, solution=None))


def test_a_list_of_quantities_comes_first() -> None:
    """Stories have both; the exact truth decides."""
    meta = {
        "quantities": [
            {"value": 16, "kind": "given"},
            {"value": 3, "kind": "given"},
            {"value": 13, "kind": "derived", "formula": "#0 - #1"},
        ]
    }
    assert told("16 - 3 = 13", "13 * 7 = 91", question=replace(EGGS, meta=meta)) == ["right", "wrong"]


def _rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


FALSE_IN_GSM8K = frozenset(
    {167, 198, 224, 502, 716, 1817, 3334, 3409, 3859, 4593, 4691, 4973, 5350, 5781, 6157, 6256, 6700, 6713, 6760, 6842, 7178,
     7444}
)  # fmt: skip
"""Reference solutions with an equation that is false as it is written ("So he played 14*20=140 minutes")."""


@pytest.mark.slow
@pytest.mark.parametrize(("judge", "right"), [(ArithmeticJudge(), 0.83), (ReferenceJudge(), 0.88)])
def test_reference_solutions_are_never_wrong_but_where_they_are(judge: StepJudge, right: float) -> None:
    """All 7473 of the training set. Seen: 6261 (arithmetic) and 6627 (reference) right in every step."""
    found: Counter[str] = Counter()
    wrong = set()
    for number, row in enumerate(_rows("gsm8k_train.jsonl")):
        question = Question(row["question"], row["answer"], id=row["id"], solution=row["solution"])
        (verdicts,) = judge.judge([Chain(question, tuple(split_steps(row["solution"])), True)])
        labels = {verdict.label for verdict in verdicts}
        found["wrong" if "wrong" in labels else "unknown" if "unknown" in labels else "right"] += 1
        if "wrong" in labels:
            wrong.add(number)
    print(dict(found))
    assert wrong == FALSE_IN_GSM8K
    assert found["right"] / found.total() >= right


def test_people_agree_with_its_right_more_than_with_the_arithmetic_judges() -> None:
    """Solutions of GSM8K that people judged. Seen, of 207 wrong steps: 39 called right, against 113; of 1361 right ones: 743
    against 831, and none wrong."""
    solutions = {row["question"].strip(): row["solution"] for row in _rows("gsm8k_test.jsonl")}
    found: Counter[tuple[str, bool, str]] = Counter()
    for row in _rows("processbench_steps.jsonl"):
        text, first = row["question"].strip(), row["first_error"]
        if not row["id"].startswith("processbench-gsm8k"):
            continue
        question = Question(row["question"], row["answer"], id=row["id"], solution=solutions[text])
        length = len(row["steps"]) if first < 0 else first + 1
        for i in range(length):
            chain = Chain(question, tuple(row["steps"][: i + 1]), i + 1 == len(row["steps"]), given=i)
            for judge in (ArithmeticJudge(), ReferenceJudge()):
                found[judge.name, i != first, judge.judge([chain])[0][0].label] += 1
    print(dict(found))
    assert found["reference", True, "wrong"] == 0
    assert found["reference", False, "right"] <= 45
    assert found["reference", False, "wrong"] >= 25
    assert found["reference", True, "right"] >= 700
