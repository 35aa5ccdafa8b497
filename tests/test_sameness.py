"""Whether two answers are the same is an equivalence relation; what is right for a known answer is said by one rule."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.answers import extract_answer, group_answers, mathematics, right_answer, same_answer
from caspo.answers.compare import key
from caspo.answers.quantities import quantity
from caspo.answers.units import read_unit

SAME = {
    "numbers": [
        ("1e6", "1,000,000"), ("0.5", "1/2"), ("18", "18.0"), (r"\frac43", "4/3"), (r"1\frac{4}{5}", "1.8"),
        ("-1./3", "-1/3"),
        (r"137 \frac{1}{2}", "137.5"), (r"4.5 \times 10^{33}", "4.5e33"), (r"0.\overline{3}", "1/3"),
        (r"0.1\overline{6}", "1/6"),
        ("½", "0.5"), ("⅓", "1/3"), ("2½", "5/2"), ("approximately 3.14", "3.14"), (r"\approx 3.14", "3.14"),
        ("about 7", "7"),
        ("5 (five)", "5"), ("1000(26)", "26000"), ("3 million", "3000000"), ("5 hundred", "500"), ("2 thirds", "2/3"),
        ("2 dozen", "24"), ("a dozen", "12"), ("twenty-five", "25"), ("two hundred and five", "205"),
        ("2 and a half", "2.5"),
        ("$3 million", "3000000"), ("3.5 billion dollars", "3500000000"), ("1 million people", "1000000"), ("2**10", "1024"),
        ("2^10", "1024"), (r"12^{\mathrm{th}}", "12th"), ("5!", "120"), (r"\infty", "∞"), ("1,200 people", "1200"),
        ("118 000", "118,000"), (r"(5, \\infty)", r"(5, \infty)"),
        (r"0.\bar3", "1/3"), ("approx. 5", "5"), ("almost 5", "5"), ("5 (approximately)", "5"), ("five (5)", "5"),
        ("5 (five) apples", "5"), ("the 12th", "12"), ("(1000)(26)", "26000"), ("2(3)(4)", "24"), ("minus 18", "-18"),
        ("negative 18", "-18"), ("half a million", "500000"), ("3 dozens", "36"), ("2 gross", "288"), ("3 lakh", "300000"),
        ("6.02 x 10^23", "6.02e23"), ("6.02 × 10²³", "6.02e23"), (r"1\ 000", "1000"), (r"18\,", "18"), (r"{\bf 18}", "18"),
        (r"\underline{18}", "18"), (r"{5 \choose 2}", "10"), (r"\tbinom52", "10"), ("(1010)_2", "1010_2"),
        (r"1010_{\text{two}}", "1010_2"), ("5!=120", "120"),
    ],
    "units": [
        ("18 apples", "18"), ("18", "$18"), (r"18\text{ dollars}", "$18.00"), ("$18 a day", "18"), (r"\$32,\!348", "32348"),
        (r"90^\circ", "90"), (r"90^{\circ}", "90 degrees"), ("90°", r"90^\circ"),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}"),
        ("0.6", "60%"), (r"60\%", "3/5"), ("10 percent", "0.1"), ("25 cents", "$0.25"), ("50¢", "$.5"),
        ("USD 5", "5 dollars"),
        ("€5", "5 euros"), ("5 km", "5.0 km"), ("5 km", "5000 m"), ("2 hours", "120 minutes"),
        ("60 mph", "60 miles per hour"),
        ("2 hours and 30 minutes", "150 minutes"), ("5 feet 3 inches", "63 inches"), ("5 cm^2", r"5\text{ cm}^2"),
        ("5 square feet", "5 ft²"), (r"1.6 \mathrm{~cm}", "1.6cm"), (r"9.8\,\mathrm{m}/\mathrm{s}^2", r"9.8 \text{ m/s}^2"),
        (r"125\textnormal{ miles}", "125 mi"), (r"3\sqrt{2} cm", r"\sqrt{18}\text{ cm}"),
        (r"\sqrt{2}\text{ m}", r"100\sqrt2\text{ cm}"),
        ("1.5 kg", "1500 grams"), ("3 p.m.", "3 PM"), ("20 °C", r"20^\circ\text{C}"), ("5-year-old", "5 years"),
        (r"125 \textbf{ miles}", "125 miles"), (r"125 {\rm miles}", "125 mi"), (r"45\degree", "45"),
        ("3:30 p.m.", "3:30 PM"),
        ("15:30", r"3:30\text{ PM}"), (r"9.8\ \mathrm{m\,s^{-2}}", "9.8 m/s^2"), ("5 light years", "5 ly"),
        ("$18/day", "$18 per day"),
    ],
    "words": [
        ("North.", "north"), ("(A)", "a"), (r"\text{(B)}", "B"), (r"\text{east}", "East"), (r"\emptyset", "∅"),
        ("St. Louis", "St. Louis.")
    ],
    "names": [
        ("x = 5", "5"), ("5 = x", "5"), ("f(x)=2x", "2 x"), ("f(3)=5", "5"), ("|r-s| = 16", "16"), (r"\angle ABC=5", "5"),
        (r"m_{\max}=5", "5"), (r"m_{\max }=n^{2}-n-1", "n^2-n-1"), ("AB = 5", "5"), (r"\overline{AB}=5", "5"),
        ("P(A|B) = 1/2", "0.5"),
        (r"\text{The area} = 5", "5"), ("x_1 = 5", "5"), ("Area: 5", "5"), (r"x \in [-2,7]", "[-2,7]"), ("2 + 3 = 5", "5"),
        (r"\lfloor x \rfloor = 5", "5"), ("x = y = 3", "3"),
        (r"[\triangle ABC] = 5", "5"), (r"\text{Area of } ABC = 5", "5"), (r"P(X>2) = 1/2", "1/2"), ("E[X] = 3", "3"),
        (r"\mathbb{E}[X] = 3", "3"), ("f(f(3))=5", "5"), (r"\sin \theta = \frac{3}{5}", "3/5"),
        (r"\frac{dy}{dx} = 2x", "2x"),
        (r"\frac{AB}{CD} = 2", "2"), ("x=1, y=2", "y = 2 and x = 1"), ("x_1 = 1, x_2 = 2", "2, 1"),
    ],
    "parts": [
        ("1, -2", "-2, 1"), (r"\{1, 2\}", "2, 1"), ("x=1, x=2", "2, 1"), ("x = 0 or x = 2", "0, 2"),
        ("(1,2),(3,4)", "(3, 4), (1, 2)"),
        ("3 or 4", "4, 3"), (r"3\text{ and }4", "3,4"), ("$x = 0$ or $x = 2$", "0, 2"),
        (r"90^\circ, 60^\circ", r"60^{\circ}, 90^{\circ}"),
        (r"3 \pm 2\sqrt{2}", r"3-2\sqrt2, 3+2\sqrt2"), (r"\{1\pm\sqrt{5},-2\}", r"-2, 1+\sqrt5, 1-\sqrt5"),
        (r"x = \pm 3", "3, -3"),
        ("E_{1},E_{2}", "E_2, E_1"), ("1,200 and 3", "3, 1200"), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        ("(3,4)", "(3, 4)"),
        (r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ 2 \end{bmatrix}"),
        (r"\begin{pmatrix} 1/2 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix} \frac12&2\\3&4 \end{bmatrix}"),
        ("both 1 and 2", "1, 2"), ("either 1 or 2", "1, 2"), (r"\(x = 0\) or \(x = 2\)", "0, 2"), ("3:4", r"6 \colon 8"),
    ],
    "intervals": [
        ("x<3", r"(-\infty,3)"), ("3 > x", r"(-\infty,3)"), (r"x \le 3", r"(-\infty, 3]"), ("0<x<12.5", "(0,12.5)"),
        (r"2 \le x < 3", "[2,3)"),
        (r"\{x|-1<x<1\}", "(-1,1)"), (r"\{x \mid -1 < x < 1\}", "(-1,1)"), (r"\{x : x > 2\}", r"(2,\infty)"),
        ("k ≥ 2", r"k \geqslant 2"),
        (r"(2,12) \cup (12,102)", r"(12,102)\cup(2,12)"), ("x>-2 or x<-5", r"(-\infty,-5)\cup(-2,\infty)"),
        (r"\mathbb{R}", r"(-\infty, \infty)"), ("all real numbers", r"\mathbb{R}"),
        (r"x \neq 2", r"(-\infty,2)\cup(2,\infty)"), (r"\mathbb{R} \setminus \{2\}", r"x \ne 2"),
        (r"\lbrace x \mid -1<x<1\rbrace", "(-1,1)"),
    ],
    "formulas": [
        ("x + m", "m + x"), (r"\frac{n+1}n", r"\frac{n+1}{n}"), (r"\frac{n+1}n", "1+1/n"), (r"\dfrac{x}{2}", "x/2"),
        ("(x+1)(x-1)", "x^2-1"),
        ("y = 2x + 3", "2x - y + 3 = 0"), ("x+y=5", "2x + 2y = 10"), ("2x < y", "y > 2x"), ("sqrt(8)", r"2\sqrt{2}"),
        (r"\log_{2} 8", "3"),
        ("np.arcsin(10/13)", r"\arcsin(10/13)"), (r"\frac{100!}{2^{50}}", "100!/2^{50}"), ("2^{1009}", r"2 \cdot 2^{1008}"),
        (r"\frac{1}{2}(\exp{a*t} - \exp{-a*t})", r"\frac{e^{at}-e^{-at}}{2}"), (r"1+\sqrt{3} i", r"1+i\sqrt{3}"),
        (r"\sin\pi", "0"),
        (r"\sqrt{3+2\sqrt2}-\sqrt2", "1"), (r"\sin^2 x+\cos^2 x", "1"), (r"L_{\odot} + 1", r"1+L_{\odot}"),
        (r"2\pi r h", r"2\pi h r"),
        ("2^{99999999}", r"4^{49999999} \cdot 2"), (r"1.5 x", r"\frac{3x}{2}"), (r"\sum_{k=1}^{10} k", "55"),
        (r"\sin 30^\circ", "0.5"),
        ("x²", "x^2"),
    ],
}  # fmt: skip
OTHER = {
    "what changes a number": [
        ("3 million", "3"), ("5 hundred", "5"), ("2 thirds", "2"), ("5 or more", "5"), ("3 or fewer", "3"),
        ("7 factorial", "7"), ("5 squared", "5"),
        ("10 percent of x", "10"), ("10 percent of x", "0.1"), ("twice x", "2"), ("5 dozen", "5"), ("half", "1/3"),
        ("2 n", "2"), ("2 xy", "2"),
        ("2x", "2"), (r"\frac{37}{4} m", r"\frac{37}{4}"), ("5 per x", "5"), ("at least 5", "5"), ("3 left", "3 right"),
        ("3 more", "3 less"),
        (r"5 \text{ or more}", "5"), ("5 to 7", "5"), ("more than 5", "5"), ("7 or 8", "7"), ("x to the 5", "5"),
        ("5 heads", "5 tails"),
        ("5 doubled", "5"), ("3 to 4", "2 to 6"), (r"3 \text{ to } 4", r"2 \text{ to } 6"), ("3 4", "12"), ("3 lakh", "3"),
        ("$5 profit", "$5 loss"), ("5 wins", "5 losses"),
    ],
    "units": [
        ("25 cents", "$25"), ("25 cents", "25"), ("50%", "$50"), ("50%", "50"), ("5 km", "$5"), ("5 km", "5 m"),
        ("5 kg", "5 g"), ("5 AM", "5 PM"),
        ("5 in", "5 ft"), ("€5", "£5"), ("€5", "5"), ("5 hours", "5 minutes"), ("5 cm^2", "5 cm"), ("20 °C", "20 °F"),
        ("5 mW", "5 MW"),
        ("60 miles per hour", "60 miles"), ("5 m", "5 m/s"), ("52_8", "52_9"), ("52_8", "42"), ("52_8", "52"),
        ("3:30", "1:10"), ("3:30", "1/10"), ("3:30 AM", "3:30 PM"), ("5:1", "5"), ("3:4", "4:3"), ("3:4", "0.75"),
        ("5 pence", "£5"), ("5 stones", "5 pounds"), ("5 light years", "5 years"),
    ],
    "formulas": [
        (r"\pi r^2", r"\pi r^2 h"), (r"\binom{2n}{n} h", r"\binom{2n}{n}"), ("2.88e-19", "10^{-30}"),
        (r"\frac1{20!}", r"\frac1{25!}"),
        ("10^{-40}", "10^{-41}"), ("e^{-100}", "0"), ("e^{-100}", "e^{-101}"), ("5", "x+y=5"), ("x+y=5", "x-y=5"),
        ("y=2x+3", "y=2x+4"),
        ("2y=4x+6", "y=2x"), ("2x<y", "2x>y"), ("|x|", "x"), ("6 - 5i", "6+5i"), ("10!", "9!"), (r"\pi", "3.14159"),
        ("1/3", "0.333333"),
        (r"\sqrt2", "1.414214"), ("0.33", "1/3"), ("-1./3", "-1./3+1"), (r"\frac{1}{2", "2"), (r"L_{\odot} + 1", "1"),
        ("x_1 + 1", "x_2 + 1"),
        (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor\sqrt{n-2}\rfloor"), ("9" * 5000, "9" * 5001), ("10^{30}+1", "10^{30}"),
        ("R + 1", "r + 1"),
        (r"\hbar \frac{E_{0}^{2} e^{2}}{2 m}", r"\hbar \frac{E_{0}^{2} e^{2}}{2 m}+1"), ("2^{99999999}", "2^{99999998}"),
    ],
    "parts": [
        ("(3,4)", "(4,3)"), ("(3,4]", "(3,4)"), ("1, 2, 3", "1, 2"), ("1, 2", "12"), ("5, 5", "5"), ("x=1,y=2", "x=1"),
        ("x<3", "x>3"),
        (r"x \le 3", "x<3"), (r"x \ge 2", "x > 2"), (r"x \ne 3", "x = 3"), ("A and B", "A"), (r"(1,2)\cup(3,4)", "(1,2)"),
        ("(1,200)", "1200"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"), ("x=1, y=2", "x=2, y=1"),
        ("f(1)=2, f(2)=3", "f(1)=3, f(2)=2"), (r"\mathbb{R} \setminus \{2\}", r"\mathbb{R}"),
    ],
    "words": [
        ("No", "No solution"), ("converges", "converges absolutely"), ("no real solutions", "no solutions"),
        ("north", "south"),
        ("", ""), ("18", ""), (" ", " "), (None, None), ("18", None),
    ],
}  # fmt: skip


def _cases(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    return [pytest.param(a, b, id=f"{kind}-{i}") for kind, pairs in table.items() for i, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize(("a", "b"), _cases(SAME))
def test_what_says_the_same_is_the_same(a: str, b: str) -> None:
    """Also right, where either is the known answer."""
    assert same_answer(a, b), (key(a), key(b))
    assert same_answer(b, a)
    assert right_answer(a, b)
    assert right_answer(b, a)


@pytest.mark.parametrize(("a", "b"), _cases(OTHER))
def test_what_says_something_else_is_another_answer(a: str | None, b: str | None) -> None:
    """Nothing is taken off that matters, and nothing equals a missing answer."""
    assert not same_answer(a, b), (key(a), key(b))
    assert not same_answer(b, a)


RIGHT = [
    ("5 km", "5"), ("5", "5 km"), ("18", "18 apples"), ("3", "3 left"), ("50%", "50"), ("50%", "0.5"), ("62.5%", "62.5"),
    ("25", "25 cents"),
    (r"5.4 \text{ cents}", "5.4"), (r"864 \mbox{ inches}^2", "864"), (r"15\mbox{ cm}^2", "15"), ("12 m/s", "12"),
    ("52_8", "52"),
    ("y = 2x + 3", "2x+3"), ("k=n+1", "n+1"), ("1/3", "0.333333"), ("2/3", "0.666666"), ("2/3", "0.666667"),
    (r"\sqrt2", "1.414214"),
    ("-1/3", "-0.333333"), (r"\pi", "3.14159"), ("1.414214", r"\sqrt2"), ("5 km, 7 km", "7, 5"), ("2,4,3", "2,3,4"),
    ("3 hours", "180 minutes"),
    (r"12^{\mathrm{th}}", "12"), ("3 cm", "30 mm"),
    ("3:30 PM", "3:30"), ("3/4", "3:4"), ("3:4", "3 to 4"), ("x=1, y=2", "1, 2"), ("(1,2)", "x = 1 and y = 2"),
    ("x=1, y=2", "(1,2)"), ("5 pages per day", "5 pages"),
]  # fmt: skip
WRONG = [
    ("5 km", "5 m"), ("$50", "50%"), ("$25", "25 cents"), ("10 feet", "10 meters"), ("1/3", "0.33333"), (r"\pi", "3.1416"),
    (r"\sqrt2", "1.414215"), ("0.125", "0.1250001"), ("1000.125", "1000.13"), ("5", "5 or more"), ("3", "3 million"),
    ("x = 5", "y = 5"),
    (r"\angle A_{1}=90", r"\angle A_{2}=90"), ("5 km, 7 km", "7"), ("52_8", "52_9"), ("5", "x + y = 5"), ("5", None),
    (None, "5"),
    (r"\frac{37}{4} m", "9.25"), ("2.88e-19", "10^{-30}"),
    ("x=1, y=2", "x=2, y=1"), ("(1,2)", "x=2, y=1"), ("5 pages per day", "5 pages per week"), ("3:4", "4 to 3"),
    ("$5 per day", "$5 per week"),
]  # fmt: skip


@pytest.mark.parametrize(("known", "answer"), RIGHT)
def test_one_side_may_leave_out_a_unit_and_round_what_never_ends(known: str, answer: str) -> None:
    """The one rule by which a right answer need not be the same."""
    assert right_answer(answer, known)


@pytest.mark.parametrize(("known", "answer"), WRONG)
def test_where_both_say_it_they_must_agree(known: str | None, answer: str | None) -> None:
    """Units, names, bases; and nothing that has an end is rounded."""
    assert not right_answer(answer, known)


def test_parts_may_have_an_order() -> None:
    """Which is the question's business."""
    assert right_answer("2, 4, 3.0", "2,4,3", ordered=True)
    assert not right_answer("2,3,4", "2,4,3", ordered=True)
    assert right_answer("(1,2)", "(1,2)", ordered=True)


def test_groups_do_not_depend_on_the_order() -> None:
    """Of all orders of answers that once were all equal to "5"."""
    answers = ["5 km", "5", "5 m", "$5", "5 or more", "5%"]
    for order in itertools.permutations(range(len(answers))):
        groups = dict(zip(order, group_answers([answers[i] for i in order]), strict=True))
        assert groups[1] == groups[3]
        assert len(set(groups.values())) == 5


NUMBERS = st.sampled_from(
    ["0", "5", "5.0", "-5", "0.5", "1/2", "50", "500", "1/3", "0.333333", "1e3", "1,000", "five", "half"]
)
FORMS = r"{} | {} |${}|{}%|€{}|{} km|{} m|{} cents|{} dollars|{} apples|{} left|{}^\circ|{} hundred|{} dozen|x = {}|y={}"
FORMS += r"|{} or more|{}\text{ cm}|({}, 1)|{}, 1|1, {}|\{{}, 1\}|x < {}|(-\infty, {})|about {}|{}_8|{} hours|{}.|\boxed{{}}"
AROUND = st.sampled_from(FORMS.split("|"))
PLAIN = st.builds(lambda form, number: form.replace("{}", number), AROUND, NUMBERS)
WORDS = st.sampled_from(
    ["No", "no.", "No solution", "converges", "St. Louis", "(B)", "B", "", " ", "∅", "north", r"\text{north}"]
)
ANSWERS = st.one_of(PLAIN, WORDS, st.text("0123456789.,-/$% =x()\\{}kmor", max_size=8))
FORMULAS = st.sampled_from(
    [r"\sqrt{2}", r"2/\sqrt2", "1.414214", "x + m", "m+x", r"\frac{n+1}n", "1+1/n", "10^{-30}", "2.88e-19", r"\frac1{20!}",
     "y=2x+3",
     "2x-y+3=0", "2x+3", "x+y=5", "5", r"2\pi r", r"2\pi r h", r"\pm 3", "3, -3", "x<3", r"(-\infty,3)", "|x|", "x",
     r"\pi", "3.14159"]
)  # fmt: skip


@given(st.lists(ANSWERS, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_sameness_is_an_equivalence_relation(answers: list[str]) -> None:
    """Reflexive, symmetric, transitive; groups are its classes, in any order."""
    _check(answers)


@given(st.lists(FORMULAS, min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_so_it_is_of_formulas(answers: list[str]) -> None:
    """Which a process of its own compares."""
    _check(answers)


def _check(answers: list[str]) -> None:
    for a in answers:
        assert same_answer(a, a) is bool(a.strip())
    for a, b in itertools.product(answers, repeat=2):
        assert same_answer(a, b) is same_answer(b, a)
        assert right_answer(a, b) or not same_answer(a, b) or key(a) is None or _named_otherwise(a, b)
    for a, b, c in itertools.product(answers, repeat=3):
        assert not (same_answer(a, b) and same_answer(b, c)) or same_answer(a, c)
    groups = group_answers(answers)
    shuffled = random.Random(0).sample(range(len(answers)), len(answers))
    again = dict(zip(shuffled, group_answers([answers[i] for i in shuffled]), strict=True))
    for i, j in itertools.combinations(range(len(answers)), 2):
        assert (groups[i] == groups[j]) is (again[i] == again[j]) is same_answer(answers[i], answers[j])


def _named_otherwise(a: str, b: str) -> bool:
    """ "x = 5" and "y = 5" are the same as "5", and so as each other; they are not right for each other."""
    return "=" in a and "=" in b


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_what_is_read_is_what_was_said(answer: str) -> None:
    """Taking an answer out of a sentence changes nothing of its value."""
    for text in (f"The answer is {answer}.", f"So $\\boxed{{{answer}}}$."):
        if answer.strip(" .") and "=" not in answer:
            assert same_answer(extract_answer(text), answer)


@pytest.mark.parametrize(
    ("words", "same"),
    [("km per hour", "kph"), (r"\mathrm{~km}/\mathrm{h}", "km/h"), ("square feet", "ft^2"), ("N m", "N*m"),
     ("meters squared", "m²"),
     ("cubic centimeters", "mL"), ("miles an hour", "mph"), ("kg m/s^2", "newtons"), ("light-years", "ly"),
     ("per cent", "%")],
)  # fmt: skip
def test_units_are_those_of_a_list(words: str, same: str) -> None:
    """However they are spelt."""
    mine, other = read_unit(words), read_unit(same)
    assert (mine is None) == (words == "per cent" and mine is None)
    assert mine == other


@pytest.mark.parametrize("text", ["apples", "n", "xy", "or more", "of x", "", "factorial", "m n", "hundred"])
def test_what_is_not_in_the_list_is_no_unit(text: str) -> None:
    """Above all no letter and no word that happens to end like one."""
    assert read_unit(text) is None


@pytest.mark.parametrize(
    "piece", ["1,", "^2 ", "1 ", r"\text{a}", "½", ".", "-", "\\,", "e1", "{", "(", "x_", r"\frac", "and ", "~*", "km/", "$"]
)
def test_hostile_answers_take_linear_time(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No regular expression runs away, whatever an answer repeats."""
    monkeypatch.setattr(mathematics._child, "ask", lambda latex, kind: None)
    start = time.perf_counter()
    for length in (60, 290, 1990, 20000):
        for end in ("", "x", "!", "}"):
            answer = (piece * length)[:length] + end
            right_answer(answer, "5 km")
            quantity(answer)
    assert time.perf_counter() - start < 3
