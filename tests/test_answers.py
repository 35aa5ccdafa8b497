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
    ".5": F(1, 2), "12.": 12, " 18 ": 18, "007": 7,
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
SAME += [
    ("x = 5", "5"), ("f(x)=2x", "2 x"), ("1, -2", "-2, 1"), (r"\{1, 2\}", "2, 1"), ("x=1, x=2", "2, 1"),
    ("(1,2),(3,4)", "(3, 4), (1, 2)"), ("3 or 4", "4, 3"), (r"3\text{ and }4", "3,4"), ("62.5%", "62.5"), (r"8 \%", "8"),
    (r"90^\circ", "90"), (r"90^{\circ}", "90 degrees"), ("90°", r"90^\circ"), (r"5.4 \text{ cents}", "5.4"),
    (r"15\mbox{ cm}^2", "15"), (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"), (r"1.6 \mathrm{~cm}", "1.6"),
    (r"\frac43", "4/3"), (r"1\frac{4}{5}", "1.8"), (r"137 \frac{1}{2}", "137.5"), (r"\$32,\!348", "32348"),
    (r"4.5 \times 10^{33}", "4.5e33"), ("52_8", "52"), ("4210_{5}", "4210_5"), ("-1./3", "-1/3"), ("12 m/s", "12"),
    (r"90^\circ, 60^\circ", r"60^{\circ}, 90^{\circ}"), ("5 km", "5.0 km"),
]  # fmt: skip
FORMULAS = [
    (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
    (r"(2,12) \cup (12,102)", r"(12,102)\cup(2,12)"),
    (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ 2 \end{bmatrix}"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"k \geqslant 2", "k ≥ 2"),
    ("y = 2x + 3", "2x - y + 3 = 0"),
    ("sqrt(8)", r"2\sqrt{2}"),
    ("np.arcsin(10/13)", r"\arcsin(10/13)"),
    (r"\frac{100!}{2^{50}}", "100!/2^{50}"),
    ("2^{1009}", r"2 \cdot 2^{1008}"),
]
FORMULAS += [(r"\frac12", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), ("x+1", "1+x")]
OTHER = [("18", "180"), ("", ""), ("18", ""), (" ", " "), (None, None), ("18", None), ("3 left", "3 right"), ("50%", "0.5")]
OTHER += [("0.33", "1/3"), ("north", "south"), ("7 or 8", "7"), ("9" * 5000, "9" * 5001), ("10!", "9!"), ("(3,4)", "(4,3)")]
OTHER += [
    ("(3,4]", "(3,4)"), ("2 n", "2"), ("2 xy", "2"), ("x = 5", "y = 5"), ("1, 2, 3", "1, 2"), ("1, 2", "12"), ("5, 5", "5"),
    ("52_8", "52_9"), ("52_8", "42"), ("5 km", "5 m"), ("-1./3", "-1./3+1"), (r"\frac{1}{2", "2"), (r"L_{\odot} + 1", "1"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), ("6 - 5i", "6+5i"),
    (r"\hbar \frac{E_{0}^{2} e^{2}}{2 m}", r"\hbar \frac{E_{0}^{2} e^{2}}{2 m}+1"), ("x \\ge 2", "x > 2"),
]  # fmt: skip


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
