"""The answer of a solution is found by the kind of its question: choices, literals, text, code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.answers import options, stated_answer
from caspo.records import Question

OPTIONS = ["a cat", "0.5", "$x = 3$ cm", "the A train", "a dog", "1", "2", "3", "4", "none of these", "Elm St. north"]


def ask(kind: str, answer: str = "B", **meta: Any) -> Question:
    """A question of a kind."""
    return Question("Which?", answer, id="q", meta={"answer_type": kind, **meta})


CHOSEN = {
    "So.\nThe answer is (B).": "B",
    "The answer is B.": "B",
    "The answer is b": "B",
    "The answer is: (B) 0.5": "B",
    "Answer: B. 0.5": "B",
    "The correct answer is B) 0.5": "B",
    r"Thus \boxed{B}.": "B",
    r"\boxed{\text{(B)}}": "B",
    r"\boxed{0.5}": "B",
    "The answer is 1/2.": "B",
    "#### B": "B",
    "Both fit, I think.\nB": "B",
    "Hm.\n(B).": "B",
    "**Answer:** option (B)": "B",
    "The answer is a dog.": "E",
    "The answer is A dog": "E",
    "The answer is A.": "A",
    "The answer is the A train": "D",
    "The answer is C. $x = 3$ cm": "C",
    "The answer is $x = 3$ cm.": "C",
    "The answer is J.": "J",
    "The answer is (K).": "K",
    "The answer is Elm St. north.": "K",
    "The answer is A. No, the answer is B.": "B",
    "The answer is 2": "G",
    "I think the correct option is B": "B",
    "Option B is correct.": "B",
    "Hence, (B) is the correct answer.": "B",
    "Therefore B is correct.": "B",
    "The answer is B because cats are small.": "B",
    "The answer is E - a dog": "E",
    "So\n(C) $x = 3$ cm": "C",
    "So\nE. a dog": "E",
    "The best option is E, as A is wrong.": "E",
    "Option A is incorrect. Option B is correct.": "B",
    "Option A is correct only if it rains. The answer is B.": "B",
    r"So \boxed{A}. No, wait. The answer is B.": "B",
    r"So \boxed{B}. I hope the answer is correct.": "B",
    "My choice: E": "E",
    "B is the answer.": "B",
    "The answer is B (0.5).": "B",
    "The answer is B and not C.": "B",
    "The answer is most likely B.": "B",
    r"\boxed{A}. Hmm, that is wrong. The correct option is B.": "B",
    "Option B is not correct.": None,
    "The answer is (Z).": None,
    "The answer is a horse.": None,
    "A cat would do": None,
    "": None,
}


@pytest.mark.parametrize("text", CHOSEN)
def test_a_choice_is_its_letter(text: str) -> None:
    """However it is named; of eleven options; a letter that is none is no answer, nor is an article."""
    assert stated_answer(ask("choice", choices=OPTIONS), text) == CHOSEN[text]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is yes.", "proved"), ("The answer is disproved.", "disproved"),
        ('so the answer is "no".', "disproved"),
        ("The answer is Unknown", "unknown"), ("The answer is no, because of Rule2.", "disproved"), ("proved", "proved"),
        ("The answer is that it is disproved.", "disproved"), ("The answer is that the statement is proved.", "proved"),
        ("The answer is that no one knows.", None), ("The answer is not proved.", None),
        (r"\boxed{\text{proved}}", "proved"), ("The answer is definitely yes.", "proved"),
        ("So.\nNo, it is not.", "disproved"),
        ("The answer is a resounding no.", "disproved"), ("The answer is no one.", None),
        ("The answer is maybe.", None), ("I know nothing", None),
    ],
)  # fmt: skip
def test_words_to_choose_from(text: str, found: str | None) -> None:
    """BoardgameQA: the words themselves, and yes and no for proved and disproved."""
    aliases = {"yes": "proved", "no": "disproved"}
    question = ask("choice", "unknown", choices=["proved", "disproved", "unknown"], aliases=aliases)
    assert stated_answer(question, text) == found


def test_options_are_lettered_where_the_answer_is_a_letter() -> None:
    """And stand for themselves where it is one of them, even if that is a single letter."""
    assert options(ask("choice", "B", choices=["x", "y"])) == {"A": "x", "B": "y"}
    assert options(ask("choice", "B", choices=["A", "B"])) == {"A": "A", "B": "B"}
    assert options(ask("choice", "Yes", choices=["Yes", "No"])) == {"Yes": "Yes", "No": "No"}
    assert options(ask("math")) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is [1, 2].", "[1, 2]"),
        ("The answer is 'a.b. c'.", "'a.b. c'"),
        ("The answer is 'x=1'.", "'x=1'"),
        ("The answer is {'answer': 'is 3'}.", "{'answer': 'is 3'}"),
        ("The answer is `True`.", "True"),
        ("[ANSWER]f([1]) == [2][/ANSWER]", "[2]"),
        ("[ANSWER]\n'b'\n[/ANSWER]", "'b'"),
        (r"\boxed{{'a': 1}}", "{'a': 1}"),
        (r"\boxed{'{'}", "'{'"),
        ("So:\n```python\n(1, 'x')\n```", "(1, 'x')"),
        ("**Final answer:** ''", "''"),
        ("The answer is abc.", "abc"),
        ("It returns a list", None),
    ],
)
def test_a_literal_is_kept_as_it_is_written(text: str, found: str | None) -> None:
    """Quotes, dots, braces and equals signs belong to it."""
    assert stated_answer(ask("literal"), text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is James A. Garfield High School.", "James A. Garfield High School"),
        ("The answer is zurich, st. gallen", "zurich, st. gallen"),
        ("The answer is Paris. I hope it helps.", "Paris"),
        ("The answer is St. Louis. I hope it helps.", "St. Louis"),
        ("The answer is the U.S. Open.", "the U.S. Open"),
        (r"So \boxed{Paris}. But no: the answer is Rome.", "Rome"),
        ("The answer is 800 m", "800 m"),
        ("The answer is -12.45%.", "-12.45%"),
        ("**Final Answer:** 41, 68.33%", "41, 68.33%"),
        ("nothing", None),
    ],
)
def test_text_keeps_its_words_and_units(text: str, found: str | None) -> None:
    """Initials and abbreviations end no sentence."""
    assert stated_answer(ask("text"), text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("First:\n```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```\n", "x = 2"),
        ("```\nimport os\n```", "import os"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),
        ("Sure.\ndef f():\n    return 1\n", "def f():\n    return 1"),
        ("    return 1", "    return 1"),
        ("```python\nx = 1```", "x = 1"),
        ("n = int(input())\nprint(n)", "n = int(input())\nprint(n)"),
        ("````markdown\n```python\nx = 1\n```\n````", "x = 1"),
        ('```python\ndef f():\n    """\n    ```\n    """\n```', 'def f():\n    """\n    ```\n    """'),
        ("I cannot.", None),
        ("```python\n\n```", None),
    ],
)
def test_code_is_the_last_block(text: str, found: str | None) -> None:
    """Or the function without a fence, or a body that continues the prompt."""
    assert stated_answer(ask("code"), text) == found


def test_maths_is_the_default() -> None:
    """Also for kinds that other data sets name in their own ``answer_type``."""
    assert stated_answer(Question("?", "5", id="q"), r"\boxed{5}") == "5"
    assert stated_answer(ask("Numerical", "5"), "The answer is 5 cats.") == "5"


@pytest.mark.parametrize(
    ("kind", "text", "stated"),
    [
        ("math", "The answer is 12", None),
        ("math", "The answer is 12.", None),  # 12.5
        ("math", "The answer is 12.\n", "12"),
        ("math", "The answer is 12. Let us", "12"),
        ("math", "The answer is $x = 3$", None),  # or x = 5
        ("math", r"So \boxed{12} dollars", "12"),
        ("math", r"So \boxed{12", None),
        ("math", "#### 12", None),
        ("math", "#### 12\n\nQuestion: How", "12"),
        ("choice", "The answer is (B)", "B"),
        ("choice", "The answer is a d", None),
        ("text", "The answer is James A", None),
        ("literal", "[ANSWER]12[/ANSWER]", "12"),
        ("literal", "The answer is 12", None),
        ("code", "```python\nx = 1\n```\n", "x = 1"),
        ("code", "```python\nx = 1\n", None),
        ("code", "def f():\n    return 1", None),
    ],
)
def test_a_text_that_was_cut_states_what_more_of_it_could_not_change(kind: str, text: str, stated: str | None) -> None:
    """A limit that falls into an answer makes another answer of it: better none."""
    assert stated_answer(ask(kind, choices=OPTIONS), text, ended=False) == stated


@pytest.mark.parametrize("kind", ["choice", "text", "literal", "code", "math"])
@pytest.mark.parametrize("piece", [r"\boxed{", "answer is ", "```\n", "[ANSWER]", "(A) ", "=", " ", "A. "])
def test_hostile_text_ends(kind: str, piece: str) -> None:
    """Whatever a model repeats is read in the time of a test that no one notices."""
    stated_answer(ask(kind, choices=OPTIONS), piece * 5000)


@given(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=12, unique=True), st.data())
def test_any_options_any_letter(choices: list[str], data: st.DataObject) -> None:
    """Whatever the options hold (letters, brackets, line breaks), a letter that is named is the letter found."""
    letter = "ABCDEFGHIJKL"[data.draw(st.integers(0, len(choices) - 1))]
    question = ask("choice", letter, choices=[f"{choice} " for choice in choices])
    for text in (f"The answer is ({letter}).", f"Well.\nAnswer: {letter}", f"\\boxed{{{letter}}}"):
        assert stated_answer(question, text) == letter
