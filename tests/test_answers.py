"""Answers are found where a solution states them, and compared by value."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.answers import extract_answer, group_answers, parse_number, same_answer

F = Fraction

NUMBERS = {
    "1,000,000": 10**6, "1e6": 10**6, "1E-3": F(1, 1000), "1\u202f000\u202f000": 10**6, "1\u00a0000": 1000,
    "1{,}000": 1000, "$5.50": F(11, 2), r"\$18": 18, "5€": 5, "-$5": -5, "$-5": -5, "$18$": 18, "50%": 50, r"18\%": 18,
    "3/4": F(3, 4), r"\frac{3}{4}": F(3, 4), "2 1/2": F(5, 2), "-2 1/2": F(-5, 2), "-7": -7, "−7": -7, "+7": 7,
    ".5": F(1, 2), "12.": 12, " 18 ": 18, "007": 7,
}  # fmt: skip
NO_NUMBERS = [
    "",
    " ",
    "-",
    "$",
    ".",
    "%",
    "1 000",
    "1,00",
    "10,000,00",
    "1.5.2",
    "--5",
    "3/0",
    "1/2/3",
    "1e",
    "18 apples",
]
NO_NUMBERS += ["x", "3x", "12:30", "1,2", "nan", "inf", "1e999999", "1e-999999", "1e" + "9" * 50, "9" * 10000]


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_read_in_every_common_spelling(text: str) -> None:
    """Percent and currency signs are units; groups, fractions, mixed numbers and exponents are arithmetic."""
    assert parse_number(text) == NUMBERS[text]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_not_exactly_one_number_is_none(text: str) -> None:
    """Nothing is guessed, and huge exponents neither hang nor fill the memory."""
    start = time.perf_counter()
    assert parse_number(text) is None
    assert time.perf_counter() - start < 1


@given(st.integers(-(10**15), 10**15), st.sampled_from(["{}", "{:,}", "${:,}", "{}.0", "{:_}", "{}%", "{}/1"]))
def test_whole_numbers_survive_formatting(number: int, form: str) -> None:
    """What we write is what we read, whatever the decoration (thin spaces stand for underscores here)."""
    text = form.format(number).replace("_", "\u202f")
    assert parse_number(text) == number
    assert same_answer(text, str(number))


@given(st.decimals("-99999", "99999", places=3, allow_nan=False))
def test_decimals_are_read_exactly(number: object) -> None:
    """No float comes in between: 0.1 is one tenth."""
    assert parse_number(str(number)) == F(str(number))


STATED = {
    "The answer is 18.": "18",
    "The answer is $18 a day.": "18",
    "**Answer:** 18": "18",
    "Final Answer: The final answer is 9. I hope it is correct.": "9",
    r"The final answer is: $\frac{1}{2}$.": r"\frac{1}{2}",
    "Answer = 3x + 4": "3x + 4",
    "The answer is 18 + 4 = 22 apples.": "22",
    "The answer to the question is 3.5.": "3.5",
    "The answer is 5. No, the answer is 7.": "7",
    "answer:\n7": "7",
    "The answer is 1,200 people.": "1,200",
    "The answer is 2 1/2 cups.": "2 1/2",
    "The answer is -5.": "-5",
    "The answer is north.": "north",
    "The answer is 12:30 pm": "12:30 pm",
    "The answer is 3, 4": "3, 4",
    "#### 5\nno\n#### 1,000 ": "1,000",
    "The answer is 4.\n#### 5": "5",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{1} and \boxed{a_{1}}, the answer is 3": "a_{1}",
    r"so $\boxed{18\text{ dollars}}$.": "18",
    r"\boxed{5} and \boxed{18": "5",
}


@pytest.mark.parametrize("text", STATED)
def test_a_stated_answer_is_found(text: str) -> None:
    """Boxed before #### before "answer is"; the last of each; numbers without currency and unit."""
    assert extract_answer(text) == STATED[text]


@pytest.mark.parametrize(
    "text", ["", "She has 18 eggs.", "So 3 + 4 = 7.", "The answer is .", r"\boxed{}", r"\boxed{18", "####"]
)
def test_a_solution_that_states_no_answer_has_none(text: str) -> None:
    """A number in the last line is no answer: a solution that was cut off must not be graded as if it had ended."""
    assert extract_answer(text) is None


def test_the_last_number_is_a_fallback_on_request_only() -> None:
    """For base models that know none of the forms."""
    assert extract_answer("She has 18 eggs, or 1,200.50.", last_number=True) == "1,200.50"
    assert extract_answer("It costs $1,200, he said.", last_number=True) == "1,200"
    assert extract_answer("The answer is 3, not 4.", last_number=True) == "3, not 4"
    assert extract_answer("none", last_number=True) is None


SAME = [("1e6", "1,000,000"), ("0.5", "1/2"), ("18", "18.0"), ("18", "$18"), ("18 apples", "18"), ("North.", "north")]
SAME += [
    ("(A)", "a"),
    (r"\text{(B)}", "B"),
    ("(3,4)", "(3, 4)"),
    (r"18\text{ dollars}", "$18.00"),
    (r"\dfrac{x}{2}", r"\frac{x}{2}"),
]
FORMULAS = [(r"\frac12", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), ("x+1", "1+x")]
OTHER = [
    ("18", "180"),
    ("", ""),
    ("18", ""),
    (" ", " "),
    (None, None),
    ("18", None),
    ("3 left", "3 right"),
    ("50%", "0.5"),
]
OTHER += [
    ("0.33", "1/3"),
    ("north", "south"),
    ("7 or 8", "7"),
    ("9" * 5000, "9" * 5001),
    ("10!", "9!"),
    ("(3,4)", "(4,3)"),
]


@pytest.mark.parametrize(("a", "b"), SAME + FORMULAS)
def test_equal_values_are_the_same_answer(a: str, b: str) -> None:
    """Spelling, currency, a unit on one side and equivalent formulas do not matter; nor does the order."""
    assert same_answer(a, b)
    assert same_answer(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_different_values_are_not_the_same_answer(a: str | None, b: str | None) -> None:
    """Above all: nothing equals a missing answer, and 18 is not 180."""
    assert not same_answer(a, b)
    assert not same_answer(b, a)


def test_formulas_compare_outside_the_main_thread() -> None:
    """math-verify's time limits are signals, which threads do not have: servers grade in threads."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(same_answer(a, b) for a, b in [*FORMULAS, ("x+1", "x+2")]))
    thread.start()
    thread.join(timeout=60)
    assert found == [True, True, True, False]


@pytest.mark.parametrize("costly", ["9^{9^{9^{9}}}", "2^{99999999}", "(10^5)!", "9**9**9**9"])
def test_formulas_that_never_end_are_not_evaluated(costly: str) -> None:
    """A model may write a tower of powers; grading must go on."""
    start = time.perf_counter()
    assert not same_answer(costly, "1+x")
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("piece", [r"\boxed{", "answer ", "answer is ", "1 ", "####", "1,", "$", "-", "9", "_*"])
def test_hostile_solutions_take_linear_time(piece: str) -> None:
    """No regular expression runs away on what a model repeats."""
    start = time.perf_counter()
    extract_answer(piece * 10000, last_number=True)
    assert time.perf_counter() - start < 2


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["{}", "{}.0", "${}", "{} apples"])), max_size=12))
def test_a_vote_groups_by_value(answers: list[tuple[int, str]]) -> None:
    """Two answers share a group exactly if they have the same value; groups are numbered as they appear."""
    groups = group_answers([form.format(value) for value, form in answers])
    for (v, _), g in zip(answers, groups, strict=True):
        for (w, _), h in zip(answers, groups, strict=True):
            assert (g == h) == (v == w)
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))


def test_missing_answers_get_no_votes() -> None:
    """Every one is a group of its own: ten solutions without an answer must not win the vote."""
    assert group_answers(["18", "", None, "", "18.0", None]) == [0, 1, 2, 3, 0, 4]
