"""Every known answer of a benchmark grades as right, however it is spelt; near misses grade as wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caspo.answers import several, stated_answer
from caspo.records import Question
from caspo.tasks import open_benchmark
from caspo.tasks.grading import GRADERS, grade_maths, grade_text, in_order
from caspo.tasks.programs import grade_code
from caspo.testing.graders import check_grader, near_misses, respellings

DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = ("math500", "minerva_math", "olympiadbench", "amc23", "aime24", "aime25", "gsm8k", "bgqa", "cruxeval", "strategyqa",
        "tablebench", "mmlu_pro_stem", "multiarith")  # fmt: skip


def _benchmark(name: str, split: str = "test") -> Any:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    return open_benchmark(name, data=DATA, split=split, run_code=True)


@pytest.mark.parametrize("name", SETS)
def test_known_answers_are_right_and_near_misses_wrong(name: str) -> None:
    """A sample of each file; all rows are graded by the slow test and by benchmarks/evaluate.py."""
    task = _benchmark(name)
    rows = task.questions("test", 20, 0)
    report = check_grader(task, rows)
    assert (report.refused, report.passed) == ([], [])
    assert report.right >= 3 * len(rows)
    assert report.wrong >= len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split"), [*((name, "test") for name in (*SETS, "humaneval")), ("gsm8k", "train")])
def test_all_known_answers_are_right_and_near_misses_wrong(name: str, split: str) -> None:
    """Every row of every file."""
    task = _benchmark(name, split)
    report = check_grader(task, task.questions(split))
    assert (report.refused, report.passed) == ([], [])


def test_reference_solutions_state_the_known_answer() -> None:
    r"""In their own words: ``\boxed`` in MATH-500 and Minerva, ``####`` in GSM8K, "the answer is" in BoardgameQA."""
    for name in ("math500", "minerva_math", "gsm8k", "bgqa"):
        task = _benchmark(name)
        rows = [q for q in task.questions("test") if q.solution and (name != "bgqa" or q.answer != "unknown")]
        assert rows
        wrong = [q.id for q in rows if not task.grade(q, stated_answer(q, q.solution))]
        assert wrong == []


def test_some_canonical_programs_pass_and_broken_ones_do_not() -> None:
    """HumanEval in the sandbox; a program that leaves before the tests has not passed them."""
    task = _benchmark("humaneval")
    report = check_grader(task, task.questions("test", 8, 0))
    assert (report.refused, report.passed) == ([], [])
    assert report.wrong >= 24


def question(answer: str, **meta: Any) -> Question:
    """With this known answer."""
    return Question("?", answer, id="q", meta=meta)


@pytest.mark.parametrize(
    ("gold", "answer", "meta", "right"),
    [
        ("4.5e33", r"4.52 \times 10^{33}", {"tolerance": 0.01}, True),
        ("4.5e33", r"4.6 \times 10^{33}", {"tolerance": 0.01}, False),
        ("1.6", "1.61 cm", {"tolerance": 0.01}, True),
        ("1.6", "1.61", {}, False),
        ("-10", "-10.1", {"tolerance": 0.01}, True),
        ("-10", "10", {"tolerance": 0.01}, False),
        ("0", "0.001", {"tolerance": 0.01}, False),
        ("4.2", "4.28", {"error": "1e-1"}, True),
        ("4.2", "4.31", {"error": "1e-1"}, False),
        ("x^2", "1.01 x^2", {"tolerance": 0.01}, False),
        ("5", None, {"tolerance": 0.01}, False),
        ("5", "", {"tolerance": 0.01}, False),
    ],
)
def test_tolerance_is_only_where_the_field_has_it(gold: str, answer: str | None, meta: dict[str, Any], right: bool) -> None:
    """Relative for Minerva, absolute for the row of OlympiadBench that names an error."""
    assert grade_maths(question(gold, **meta), answer) is right


@pytest.mark.parametrize(
    ("text", "gold", "wanted"),
    [
        ("Determine the values of $T(10), T(11)$ and $T(12)$.", "2,4,3", True),
        ("What are the values of $a, h$ and $k$ ?", "2,-1,-18", True),
        ("Using the table, determine both $a$ and $b$.", "1.68,0.45", True),
        ("Find the mean and the mode, respectively.", "2, 3", True),
        ("Find all values of $x$ and $y$ so that it holds.", "3,1,2", False),
        ("Find all roots of $x^2 = 1$.", "1,-1", False),
        (
            "Determine all pairs. Give $a, b$ and $c$ as coordinates: what are $a, b$ and $c$?",
            "(1,2,3), (3,2,1), (2,1,3)",
            False,
        ),
        ("What are $a$ and $b$?", "7", False),
    ],
)
def test_the_order_counts_where_the_question_names_what_it_wants(text: str, gold: str, wanted: bool) -> None:
    """One by one, as many as the known answer has."""
    asked = Question(text, gold, id="q")
    assert in_order(asked) is wanted
    parts = several(gold)
    assert grade_maths(asked, gold)
    if len(parts) > 1:
        assert grade_maths(asked, ", ".join(reversed(parts))) is not wanted
    assert in_order(replace(asked, meta={"ordered": not wanted})) is not wanted


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("37.64%", "37.64", True),
        ("37.64%", "37.65%", False),
        ("3.76", "376", False),
        ("2880210, tony stewart", "2,880,210, Tony Stewart", True),
        ("2880210, tony stewart", "tony stewart, 2880210", False),
        ("the united states", "United States.", True),
        ("zurich, basel - stadt, st gallen", "Zurich, Basel-Stadt, St. Gallen", True),
        ("800 m", "800", True),
        ("-12.45%.", "-12.45%", True),
        ("-12.45", "12.45", False),
        ("great britain", "britain", False),
        ("1:45.61", "145.61", False),
        ("23rd", "23rd", True),
        ("23rd", "23", False),
        ("8F, 8B", "8F", False),
        ("three", None, False),
        ("three", " ", False),
    ],
)
def test_table_answers(gold: str, answer: str | None, right: bool) -> None:
    """Exact parts in order, numbers as numbers."""
    assert grade_text(question(gold), answer) is right


def test_tables_have_a_tolerance_in_three_kinds_of_analysis() -> None:
    """10%, as the benchmark's EM_with_error_10."""
    assert grade_text(question("0.5", qsubtype="CorrelationAnalysis"), "0.54")
    assert not grade_text(question("0.5", qsubtype="CorrelationAnalysis"), "0.56")
    assert not grade_text(question("0.5", qsubtype="ImpactAnalysis"), "0.54")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("[1, 2]", "[1,2]", True), ("'a'", '"a"', True), ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}", True),
        ("(1,)", "(1)", False), ("'1'", "1", False), ("[1, 2]", "(1, 2)", False), ("True", "1", True),
        ("'a b'", "'ab'", False), ("[]", "", False),
        ("'x'", None, False), ("[1]", "[" * 5000, False), ("[1]", "__import__('os').abort()", False), ("x", "x ", True),
    ],
)  # fmt: skip
def test_literals_are_equal_as_python_has_it(gold: str, answer: str | None, right: bool) -> None:
    """Nothing is executed to find out."""
    assert GRADERS["literal"](question(gold), answer) is right


def test_an_option_that_reads_the_same_is_the_same() -> None:
    """Data sets repeat options."""
    choice = question("A", choices=["1", "1", "2"])
    assert [GRADERS["choice"](choice, x) for x in ("A", "b", "C", "D", None, "")] == [True, True, False, False, False, False]


CONTEST = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}, {"input": "0 0", "output": "0", "testtype": "stdin"}]
METHOD = [{"input": "[1, 2]\n3", "output": "[1,2,3]", "testtype": "functional"}]
GOOD = "a, b = map(int, input().split())\nprint(a + b)\n"
SOLUTION = """
class Solution:
    def put(self, xs: List[int], x: int) -> List[int]:
        print('debug')
        return xs + [x]
"""


@pytest.mark.parametrize(
    ("tests", "name", "code", "right"),
    [
        (CONTEST, None, GOOD, True),
        (CONTEST, None, f"{GOOD}sys.exit()", True),
        (CONTEST, None, f"{GOOD}exit(1)", False),
        (CONTEST, None, GOOD.replace("a + b", "float(a + b)"), True),
        (CONTEST, None, GOOD.replace("+", "-"), False),
        (CONTEST, None, f"{GOOD}print()\nprint('more')", False),
        (CONTEST, None, "print(5)", False),
        (CONTEST, None, f"{GOOD}1/0", False),
        (METHOD, "put", SOLUTION, True),
        (METHOD, "put", "def put(xs, x): return [*xs, x]", True),
        (METHOD, "put", SOLUTION.replace("[x]", "[x + 1]"), False),
        (METHOD, "put", SOLUTION.replace("put", "take"), False),
        (METHOD, "put", SOLUTION.replace("return", "import os; os._exit(0)"), False),
        (METHOD, "put", "", False),
    ],
)
def test_contest_programs(tests: list[dict[str, str]], name: str | None, code: str, right: bool) -> None:
    """LiveCodeBench's two kinds of tests: what a program prints, and what a method returns."""
    assert grade_code(question("(its tests)", tests=tests, func_name=name), code) is right


def test_misses_are_misses_and_spellings_are_spellings() -> None:
    """What the check itself makes of an answer."""
    other = question("7")
    assert respellings(question(r"\frac{1}{2}", answer_type="math"))[-2:] == ["1/2", r"\frac{2}{4}"]
    assert "2, 1" in respellings(question("1, 2"))
    assert "(1,2)" in near_misses(question("(1,2]"), other)
    assert near_misses(question("B", answer_type="choice", choices=["x", "y", "y"]), other) == ["A"]
    assert "7" not in near_misses(question("7"), other)
