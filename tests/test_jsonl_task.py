"""Any JSONL of questions and answers loads, or the error says where it fails, why, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caspo.answers import stated_answer
from caspo.core.errors import ConfigError, DataError
from caspo.records import Question
from caspo.tasks.base import Task, grade
from caspo.tasks.jsonl import JsonlTask

DATA = Path(__file__).parents[2] / "shared" / "data"


def _file(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_question(tmp_path: Path) -> None:
    """Ids default to the line, numbers become text, and whatever else a row holds is kept."""
    path = _file(
        tmp_path,
        {"question": "1 + 1?", "answer": 2, "hint": ["1", "2"], "meta": {"level": 1}},
        {"id": 7, "question": "a?", "answer": "b", "solution": "It is b.", "source": "me"},
    )
    assert JsonlTask(path).questions("test") == [
        Question("1 + 1?", "2", id="rows-1", meta={"level": 1, "hint": ["1", "2"]}),
        Question("a?", "b", id="7", solution="It is b.", meta={"source": "me"}),
    ]


def test_the_original_gsm8k_format_is_understood(tmp_path: Path) -> None:
    """There "answer" is the whole solution; grading against it would fail every question."""
    path = _file(tmp_path, {"question": "q", "answer": "3 * 6 = <<3*6=18>>18\n#### 1,018"})
    (question,) = JsonlTask(path).questions("test")
    assert question.answer == "1,018"
    assert question.solution == "3 * 6 = <<3*6=18>>18\n#### 1,018"


def test_a_draw_is_fixed_by_its_seed_and_grows_at_its_end(tmp_path: Path) -> None:
    """--limit 20 asks the first 20 of those that --limit 40 asks, on every machine; all rows keep the file's order."""
    task = JsonlTask(_file(tmp_path, *({"question": f"q{i}", "answer": i} for i in range(50))))
    assert task.questions("test", 20, 1) == task.questions("test", 40, 1)[:20]
    assert task.questions("test", 20, 1) != task.questions("test", 20, 2)
    assert [q.answer for q in task.questions("test", 50, 1)] == [str(i) for i in range(50)]
    assert task.questions("test") == task.questions("test", 1000, 3)
    assert task.questions("test", 0, 1) == []


def test_a_file_is_one_split(tmp_path: Path) -> None:
    """Asking a test file for training questions is an error, not the test questions."""
    task = JsonlTask(_file(tmp_path, {"question": "q", "answer": "a"}))
    with pytest.raises(ConfigError, match=r"no split 'train'.*given as 'test'"):
        task.questions("train")
    with pytest.raises(ConfigError, match="cannot give -1"):
        task.questions("test", -1)


def test_it_is_a_task_and_grades_by_value(tmp_path: Path) -> None:
    """The interface that evaluation uses."""
    task: Task = JsonlTask(_file(tmp_path, {"question": "q", "answer": 18}))
    assert isinstance(task, Task)
    (question,) = task.questions("test", 1, 0)
    assert task.grade(question, "$18.00")
    assert not task.grade(question, None)
    assert grade(question, "18")


GOOD = b'{"question": "q", "answer": "a"}\n'
BAD = {
    "missing answer": (GOOD + b'{"question": "q", "result": 1}\n', "line 2: no 'answer'; it has 'question', 'result'"),
    "missing question": (b'{"answer": 1}\n', "line 1: no 'question'"),
    "empty question": (b'{"question": " ", "answer": 1}\n', "line 1: the question is empty"),
    "question no text": (b'{"question": 5, "answer": 1}\n', "line 1: the question is of type int"),
    "answer null": (b'{"question": "q", "answer": null}\n', "line 1: the answer is null, neither text nor a number"),
    "answer a list": (b'{"question": "q", "answer": [1]}\n', r"the answer is \[1\]"),
    "answer true": (b'{"question": "q", "answer": true}\n', "the answer is true"),
    "answer nan": (b'{"question": "q", "answer": NaN}\n', "the answer is NaN"),
    "answer empty": (b'{"question": "q", "answer": ""}\n', "the answer is empty"),
    "mark without answer": (b'{"question": "q", "answer": "text ####"}\n', "the answer is empty"),
    "solution no text": (b'{"question": "q", "answer": 1, "solution": 5}\n', "the solution is of type int"),
    "meta no object": (b'{"question": "q", "answer": 1, "meta": "m"}\n', "'meta' is of type str"),
    "not JSON": (GOOD + b"question: q\n" + GOOD, "line 2: not JSON"),
    "not an object": (b"[1, 2]\n", "line 1: a value of type list where an object"),
    "deep nesting": (b"[" * 100000 + b"\n", "line 1: not JSON"),
    "cut off": (GOOD + b'{"question": "q", "ans', "line 2: the last line is cut off"),
    "not UTF-8": (GOOD + b'{"question": "caf\xe9", "answer": 1}\n', "line 2: byte 18 of the line is not UTF-8"),
    "empty": (b"", "the file is empty"),
    "blank": (b"\n \n", "the file is empty"),
    "same id": (b'{"id": 1, "question": "q", "answer": 1}\n' * 2, "line 2: the id '1' is that of line 1 too"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_error_says_where_why_and_what_to_do(case: str, tmp_path: Path) -> None:
    """File, line, what is wrong, and a sentence of advice; never a traceback from json."""
    data, message = BAD[case]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        JsonlTask(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith(".")


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    """The path is in the message, with what should be there."""
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        JsonlTask(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        JsonlTask(tmp_path)


def test_windows_files_load(tmp_path: Path) -> None:
    """A byte order mark, carriage returns, blank lines and a missing last line break are no errors."""
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n" + GOOD.strip())
    assert [q.id for q in JsonlTask(path).questions("test")] == ["w-1", "w-3"]


@pytest.mark.parametrize(("name", "rows"), [("gsm8k_test", 1319), ("multiarith", 600), ("math500", 500), ("cruxeval", 800)])
def test_shared_benchmarks_load_and_grade_their_own_answers(name: str, rows: int) -> None:
    """Every reference answer equals itself, and GSM8K's test file loads whole."""
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    task = JsonlTask(path)
    questions = task.questions("test")
    assert len(questions) == rows
    assert all(task.grade(question, question.answer) for question in questions)


def _choice(tmp_path: Path, choices: object, answer: object, text: str = "Which?") -> Question:
    task = JsonlTask(_file(tmp_path, {"question": text, "answer": answer, "choices": choices}))
    (question,) = task.questions("test")
    return question


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["a cat", "a dog"], "B", "B"), (["a cat", "a dog"], "b", "B"), (["a cat", "a dog"], "(B)", "B"),
        (["a cat", "a dog"], "a dog", "B"), ([3, 5, 4], 5, "B"), (["3", "5", "5"], "5", "B"), (["yes", "no"], "no", "B"),
        ([f"{i}!" for i in range(26)], "25!", "Z"),
    ],
)  # fmt: skip
def test_choices_are_shown_and_graded_by_letter(tmp_path: Path, choices: list[object], answer: object, letter: str) -> None:
    """Whether the row names the right one by its letter or by its text."""
    question = _choice(tmp_path, choices, answer)
    assert question.answer == letter
    assert question.text.startswith(f"Which?\n\n(A) {choices[0]}\n(B) {choices[1]}")
    assert question.text.endswith("\n\nAnswer with the letter of the right option.")
    task = JsonlTask(tmp_path / "rows.jsonl")
    right = str(choices["ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter)])
    for said in (f"The answer is ({letter}).", f"The answer is {right}."):
        assert task.grade(question, stated_answer(question, said))
    assert not task.grade(question, stated_answer(question, "The answer is (A)."))
    assert not task.grade(question, None)


@pytest.mark.parametrize("named", ["({}) {}", "{}) {}", "{}. {}", "{}: {}", "{}){}"])
@pytest.mark.parametrize("answer", ["B", "13 m", "named"])
def test_letters_that_choices_have_already_are_not_shown_twice(tmp_path: Path, named: str, answer: str) -> None:
    choices = [named.format(letter, text) for letter, text in (("A", "12 m"), ("B", "13 m"))]
    question = _choice(tmp_path, choices, choices[1] if answer == "named" else answer)
    assert question.text.startswith("Which?\n\n(A) 12 m\n(B) 13 m\n\n")
    assert question.answer == "B"
    assert stated_answer(question, "It is 13 m.\nThe answer is 13 m.") == "B"


def test_letters_of_another_order_are_a_part_of_the_choices(tmp_path: Path) -> None:
    assert "(A) B. Franklin\n(B) A. Lincoln" in _choice(tmp_path, ["B. Franklin", "A. Lincoln"], "B. Franklin").text


def test_choices_that_read_the_same_are_the_same(tmp_path: Path) -> None:
    question = _choice(tmp_path, ["3", "5", "5"], "C")
    task = JsonlTask(tmp_path / "rows.jsonl")
    assert [task.grade(question, letter) for letter in "ABC"] == [False, True, True]


@pytest.mark.parametrize("text", ["Which?\nA. a cat\nB. a dog", "Which? (A) a cat (B) a  dog", "Which?\nA) a cat\nB) a dog"])
def test_choices_that_the_question_lists_are_not_shown_twice(tmp_path: Path, text: str) -> None:
    assert _choice(tmp_path, ["a cat", "a dog"], "A", text).text == f"{text}\n\nAnswer with the letter of the right option."


@pytest.mark.parametrize("text", ["Which has A. a cat?", "Which?\nA. a category\nB. a dog", "Is it a cat or a dog?"])
def test_choices_that_are_only_named_are_shown(tmp_path: Path, text: str) -> None:
    assert "\n\n(A) a cat\n(B) a dog\n\n" in _choice(tmp_path, ["a cat", "a dog"], "A", text).text


def test_letters_as_choices_are_no_names_of_others(tmp_path: Path) -> None:
    question = _choice(tmp_path, ["C", "A", "D"], "A", "Which vitamin?")
    assert question.text == "Which vitamin?\n\nOptions: C, A, D"
    task = JsonlTask(tmp_path / "rows.jsonl")
    assert [task.grade(question, stated_answer(question, f"The answer is {said}.")) for said in "CAD"] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["a", "b"], "c", "neither one of the choices .* nor the letter of one .A to B."),
        (["x y"], "x y", "two options or more"),
        (["x", ""], "x", "two options or more"), ("x y", "x", "of type str, not a list"), ({"A": "x"}, "A", "of type dict"),
        ([f"{i}!" for i in range(27)], "3!", "27 choices are more than there are letters"),
        (["A", "B"], "C", "is none of the choices A, B"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_asked(tmp_path: Path, choices: object, answer: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _choice(tmp_path, choices, answer)


def test_a_row_that_names_its_kind_of_answer_is_asked_as_it_stands(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "5", "choices": ["4", "5"], "meta": {"answer_type": "math"}}
    (question,) = JsonlTask(_file(tmp_path, row)).questions("test")
    assert (question.text, question.answer) == ("?", "5")
