"""Answers are found where a solution states them, and compared by value."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.answers import extract_answer, group_answers, mathematics, parse_number, same_answer

F = Fraction

NUMBERS = {
    "1,000,000": 10**6, "1e6": 10**6, "1E-3": F(1, 1000), "1\u202f000\u202f000": 10**6, "1\u00a0000": 1000,
    "1{,}000": 1000, "$5.50": F(11, 2), r"\$18": 18, "5€": 5, "-$5": -5, "$-5": -5, "$18$": 18, "50%": 50, r"18\%": 18,
    "3/4": F(3, 4), r"\frac{3}{4}": F(3, 4), "2 1/2": F(5, 2), "-2 1/2": F(-5, 2), "-7": -7, "−7": -7, "+7": 7,
    ".5": F(1, 2), "12.": 12, "½": F(1, 2), "2½": F(5, 2), "⅓": F(1, 3), r"0.\overline{3}": F(1, 3),
    r"1.1\overline{6}": F(7, 6),
    " 18 ": 18, "007": 7,
}  # fmt: skip
NO_NUMBERS = ["", " ", "-", "$", ".", "%", "1 000", "1,00", "10,000,00", "1.5.2", "--5", "3/0", "1/2/3", "1e", "18 apples"]
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
    assert same_answer(text, str(number)) is (number == 0 or "%" not in text)


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
    "The answer is 3.5. We checked it.": "3.5",
    "The answer is 5. No, the answer is 7.": "7",
    "answer:\n7": "7",
    "The answer is 1,200 people.": "1,200",
    "The answer is 2 1/2 pies.": "2 1/2",
    "The answer is -5.": "-5",
    "The answer is -5 degrees.": "-5",
    "The answer is twenty-five dollars.": "25",
    "The answer is north.": "north",
    "The answer is 12:30 pm": "12:30 pm",
    "The answer is 3, 4": "3, 4",
    "The answer is x = 5.": "x = 5",
    "The answer is f(x)=x, f(x)=-x.": "f(x)=x, f(x)=-x",
    "The answer is 5x - 7y + 4 = 0.": "5x - 7y + 4 = 0",
    "The answer is x = 3 + 2 = 5.": "5",
    "The answer is 5 eggs + 3 eggs = 8 eggs.": "8",
    "The answer is 2 n.": "2 n",
    "The answer is 11,\\! 111,\\! 100.": "11,\\! 111,\\! 100",
    r"so \framebox{204} minutes": "204",
    "#### 5\nno\n#### 1,000 ": "1,000",
    "The answer is 4.\n#### 5": "5",
    "#### 5\nNo. The answer is 6.": "6",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"so $\boxed{18\text{ dollars}}$.": "18",
    r"\boxed{5} and \boxed{18": "5",
    # units and what changes a number stay
    "The answer is 5 km.": "5 km",
    "The answer is 5 km/h. So it is.": "5 km/h",
    "The answer is 25 cents.": "25 cents",
    "The answer is 50%.": "50%",
    "The answer is 3 million.": "3000000",
    "The answer is 5 or more.": "5 or more",
    "The answer is 7 factorial.": "7 factorial",
    # several answers
    "The answer is x = 0 or x = 2.": "x = 0 or x = 2",
    "The answer is x = 0 and x = 2.": "x = 0 and x = 2",
    "The answer is $x = 0$ or $x = 2$.": "$x = 0$ or $x = 2$",
    "The answers are 3 and 5.": "3 and 5",
    r"Thus \boxed{3}, \boxed{5}, \boxed{7}.": "3, 5, 7",
    r"$\boxed{3}$ and $\boxed{5}$": "3, 5",
    r"\boxed{3}. Then \boxed{5}": "5",
    r"\boxed{1\frac12}, or \boxed{\frac32}": r"\frac32",
    # headings, boxes without braces, hedges, names
    "### Answer\n5": "5",
    "## Final Answer\n\n**5**": "5",
    "**Answer**\n5": "5",
    "The answer is\n$$\n5\n$$": "5",
    "### Answer\n\\[\n5\n\\]\nIt is odd.": "5",
    "The final answer is $5.$ I hope it is correct.": "5",
    r"The answer is $(3,\frac{\pi}{2}).$ I hope it is correct.": r"(3,\frac{\pi}{2})",
    r"The answer is $\cos(t)=0$ when $t=\pi$.": r"$\cos(t)=0$ when $t=\pi$",
    r"\boxed{5} #### ##": "5",
    r"so \boxed 4": "4",
    r"so $\boxed 4$.": "4",
    "The answer is approximately 3.14.": "3.14",
    "The answer is 5 (five).": "5",
    "The answer is St. Louis.": "St. Louis",
    "The answer is Dr. Smith. He won.": "Dr. Smith",
    "The answer is the U.S. Open.": "the U.S. Open",
    "The answer is James A. Garfield.": "James A. Garfield",
    "The answer is A. No, the answer is B.": "B",
    "The answer is 5 ft. tall.": "5 ft. tall",
    # the last statement wins, a comment on a box is none
    r"\boxed{1} and \boxed{a_{1}}, the answer is 3": "3",
    r"So \boxed{5}. Wait, that is wrong. The answer is 7.": "7",
    r"The answer is 7. No: \boxed{5}.": "5",
    r"So \boxed{5}. I hope the answer is correct.": "5",
    r"So \boxed{5}. We check the answer: 2 + 3 = 5, so our answer is right.": "5",
    r"The answer is $\boxed{5}$, which is odd.": "5",
    # boxes with names or LaTeX between them, headings, tags, clauses
    r"$x = \boxed{3}$ or $x = \boxed{5}$": "3, 5",
    r"\(\boxed{3}\) and \(\boxed{5}\)": "3, 5",
    r"\[\boxed{3} \quad \text{and} \quad \boxed{5}\]": "3, 5",
    r"**\boxed{3}**, **\boxed{5}**": "3, 5",
    r"\boxed\frac12": r"\frac12",
    r"\boxed{\text{The answer is } 5}": "5",
    r"The answer is \(x = 0\) or \(x = 2\).": r"\(x = 0\) or \(x = 2\)",
    "### **Final Answer:**\n5": "5",
    "__Answer__\n5": "5",
    "### Answer\n- 5": "5",
    "<answer>5</answer>": "5",
    "Answer: 5<|im_end|>": "5",
    "Ans: 5": "5",
    "The answer must be 5.": "5",
    "The answer is therefore 5.": "5",
    "The answer is 5, which is prime.": "5",
    "The answer is 5 (since 2+3=5).": "5",
    "The answer is 5 and we are done.": "5",
    "The answer is that she has 5 apples.": "5",
    "The answer is that 5 km are left.": "5 km",
    "The answer is $2n$, which is even.": "2n",
    "The answer is $f(x)=a x+b, where b is prime$.": "f(x)=a x+b, where b is prime",
    "The answer is J. K. Rowling.": "J. K. Rowling",
    "The answer is Ft. Worth.": "Ft. Worth",
    r"\boxed{5}. Note: the answer is rounded to 2 decimal places.": "5",
}


@pytest.mark.parametrize("text", STATED)
def test_a_stated_answer_is_found(text: str) -> None:
    """The last statement, of any form; numbers without what says nothing of their value, and with what does."""
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


FORMULAS = [("2^{1009}", r"2 \cdot 2^{1008}"), (r"2\sqrt{2}", r"\sqrt{8}"), ("x+1", "1+x")]


def test_formulas_compare_outside_the_main_thread() -> None:
    """A time limit by signals would need the main thread: servers grade in threads."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(same_answer(a, b) for a, b in [*FORMULAS, ("x+1", "x+2")]))
    thread.start()
    thread.join(timeout=60)
    assert found == [True] * len(FORMULAS) + [False]


def test_formulas_that_never_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may write a tower of powers; grading goes on, in the main thread and in others, and works afterwards."""
    monkeypatch.setattr(mathematics, "SECONDS", 0.5)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(same_answer("9^{9^{9^{9}}}", "1+x")))
    thread.start()
    thread.join(timeout=60)
    assert found == [False]
    assert not same_answer("2^{99999999}", "2^{99999998}")
    monkeypatch.undo()
    assert same_answer("(x+1)^2", "x^2+2x+1")


def test_the_process_that_compares_formulas_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed from outside (out of memory), the next comparison starts another one."""
    assert same_answer("a+b", "b+a")
    process = mathematics._child._process
    assert process is not None
    process.kill()
    process.wait()
    assert same_answer("c+b+a", "a+b+c")


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
