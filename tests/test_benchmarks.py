"""The table of benchmarks: rows of the hub and of files become questions that hold all a model needs."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError, DataError
from caspo.loop.task import TaskSettings, open_judge, open_task
from caspo.tasks import BENCHMARKS, open_benchmark
from caspo.tasks.base import Task
from caspo.tasks.benchmarks import TABLE
from caspo.tasks.jsonl import JsonlTask
from caspo.testing.graders import check_grader

TESTS = [{"input": "1 2", "output": "3", "testtype": "stdin"}]
PACKED = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(TESTS * 2)))).decode()

ROWS: dict[str, dict[str, Any]] = {
    "math500": {"problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "subject": "Algebra", "level": 1,
                "unique_id": "t/1"},
    "minerva_math": {"question": "How long?", "answer": "4.5e33"},
    "olympiadbench": {
        "id": 1606, "question": "Solve.", "solution": ["a", "b"], "final_answer": ["$1,3$", "$x=2$"], "context": None,
        "subfield": "Algebra", "is_multiple_answer": True, "unit": None, "error": None, "answer_type": "Numerical",
    },
    "amc23": {"id": 0, "question": "How far?", "answer": 27.0, "url": "u"},
    "aime24": {"id": 60, "problem": "Find m.", "solution": "s", "answer": "025", "url": "u", "year": "2024"},
    "aime25": {"id": "0", "problem": "Find n.", "answer": "70"},
    "gsm8k": {"question": "How many?", "answer": "3 * 6 = <<3*6=18>>18\n#### 1,018"},
    "bgqa": {
        "proof": "p", "example": "A game. Does the cat win?", "label": "disproved", "rules": "r",
        "preferences": "", "theory": "t", "goal": "g", "facts": "f", "config": "BoardgameQA-Main-depth2",
    },
    "cruxeval": {"id": "sample_0", "code": "def f(x):\n    return x", "input": "'a'", "output": "'a'"},
    "strategyqa": {"qid": "ab", "term": "T", "description": "d", "question": "Is it?", "answer": False, "facts": "F."},
    "tablebench": {
        "id": "x", "qtype": "FactChecking", "qsubtype": "MatchBased", "question": "Who?", "answer": "Ann",
        "table": {"columns": ["name"], "data": [["Ann"]]}, "chart_type": None,
    },
    "mmlu_pro_stem": {
        "question_id": 70, "question": "Which?", "options": [f"o{i}" for i in range(10)], "answer": "J", "answer_index": 9,
        "cot_content": "", "category": "physics", "src": "s",
    },
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": 'from math import *\ndef f(x):\n    """Root."""\n',
        "canonical_solution": "    return sqrt(x)\n", "test": "def check(f):\n    assert f(4) == 2\n", "entry_point": "f",
    },
    "livecodebench": {
        "question_title": "T", "question_content": "Add.", "platform": "atcoder", "question_id": "abc1", "contest_id": "c",
        "contest_date": "2024-01-01", "starter_code": "", "difficulty": "easy", "metadata": "{}",
        "public_test_cases": json.dumps(TESTS), "private_test_cases": PACKED,
    },
    "race": {
        "example_id": "high1.txt", "article": "Once upon a time.", "answer": "B", "question": "When was it ?",
        "options": ["today", "once", "never", "soon"],
    },
    "multiarith": {"question": " How many? ", "final_ans": "39"},
}  # fmt: skip
"""One row of each public schema, of our own making."""

Hub = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Puts rows behind `datasets.load_dataset` and gives the calls it then got."""

    def serve(*rows: dict[str, Any]) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def load(path: str, name: str | None = None, **options: Any) -> list[dict[str, Any]]:
            calls.append({"path": path, "name": name, **options})
            return list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return serve


def test_the_sixteen_benchmarks() -> None:
    """By name, each with a description."""
    names = "math500 minerva_math olympiadbench amc23 aime24 aime25 gsm8k bgqa cruxeval strategyqa tablebench mmlu_pro_stem"
    assert set(BENCHMARKS) == {*names.split(), "humaneval", "livecodebench", "race", "multiarith"} == set(ROWS)
    assert all(BENCHMARKS.values())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hub_becomes_a_question(name: str, hub: Hub) -> None:
    """From the public name at its pinned revision; the known answer grades as right, near misses as wrong."""
    calls = hub(ROWS[name])
    task = open_benchmark(name, run_code=True)
    assert isinstance(task, Task)
    (call,) = calls
    assert call["path"] == TABLE[name].hub.path
    assert call["revision"] == TABLE[name].hub.revision
    assert len(call["revision"] or "x" * 40) == 40
    (question,) = task.questions("test")
    assert question.meta["answer_type"] in ("math", "choice", "literal", "text", "code")
    assert question.text == question.text.strip()
    if name != "livecodebench":
        report = check_grader(task, [question])
        assert (report.refused, report.passed) == ([], [])


def _asked(name: str, hub: Hub) -> tuple[str, str, dict[str, Any]]:
    hub(ROWS[name])
    (question,) = open_benchmark(name, run_code=True).questions("test")
    return question.text, question.answer, dict(question.meta)


def test_the_text_holds_what_a_model_needs(hub: Hub) -> None:
    """Options with letters up to J, the article, the table, the code to complete, how to answer."""
    text, answer, _ = _asked("mmlu_pro_stem", hub)
    assert "(A) o0\n(B) o1\n" in text
    assert "(J) o9\n\nAnswer with the letter" in text
    assert answer == "J"
    assert _asked("race", hub)[0].startswith("Once upon a time.\n\nQuestion: When was it ?\n\n(A) today\n(B) once")
    assert '{"columns": ["name"], "data": [["Ann"]]}\n\nQuestion: Who?' in _asked("tablebench", hub)[0]
    assert "What does f('a') return?" in _asked("cruxeval", hub)[0]
    text, answer, _ = _asked("bgqa", hub)
    assert text.endswith("proved, disproved or unknown? Answer with one of these words.")
    assert "(A)" not in text
    assert _asked("strategyqa", hub)[:2] == ("Is it?\n\nAnswer yes or no.", "No")
    text, answer, _ = _asked("humaneval", hub)
    assert text.startswith('```python\nfrom math import *\ndef f(x):\n    """Root."""\n```\n\nComplete')
    assert answer == "    return sqrt(x)\n", "with its indentation"
    assert _asked("gsm8k", hub)[1] == "1,018"
    assert _asked("amc23", hub)[1] == "27"
    _, answer, meta = _asked("olympiadbench", hub)
    assert answer == "1,3, x=2"
    assert meta["answer_type"] == "math", "ours, not the data set's own field of that name"


def test_contest_problems(hub: Hub) -> None:
    """Public and private tests are unpacked and graded; a problem with a method says which."""
    hub(ROWS["livecodebench"])
    task = open_benchmark("livecodebench", run_code=True)
    (question,) = task.questions("test")
    assert len(question.meta["tests"]) == 3
    assert "reads from standard input" in question.text
    assert task.grade(question, "print(sum(map(int, input().split())))")
    assert not task.grade(question, "print(3 if input() == '1 2 ' else 4)")
    hub({**ROWS["livecodebench"], "starter_code": "class Solution:", "metadata": '{"func_name": "add"}'})
    (question,) = open_benchmark("livecodebench").questions("test")
    assert question.meta["func_name"] == "add"
    assert "```python\nclass Solution:\n```" in question.text


def test_private_tests_that_would_run_something_are_refused(hub: Hub) -> None:
    """A pickle may import and call anything; these may hold text only."""
    evil = base64.b64encode(zlib.compress(pickle.dumps(print))).decode()
    hub({**ROWS["livecodebench"], "private_test_cases": evil})
    with pytest.raises(DataError, match=r"row 1: unknown schema \(UnpicklingError.*builtins\.print"):
        open_benchmark("livecodebench")


def test_rows_of_other_parts_are_left_out(hub: Hub) -> None:
    """Other categories, variants and kinds of question; if nothing is left, that is said."""
    hub(ROWS["mmlu_pro_stem"], {**ROWS["mmlu_pro_stem"], "category": "law"})
    assert len(open_benchmark("mmlu_pro_stem")) == 1
    kinds = [
        ("DataAnalysis", "StatisticalAnalysis"),
        ("DataAnalysis", "DescriptiveAnalysis"),
        ("Visualization", "ChartGeneration"),
    ]
    hub(*({**ROWS["tablebench"], "qtype": kind, "qsubtype": part} for kind, part in kinds))
    assert len(open_benchmark("tablebench")) == 1
    hub({**ROWS["bgqa"], "config": "BoardgameQA-ZeroConflict-depth2"})
    with pytest.raises(DataError, match="no rows of bgqa"):
        open_benchmark("bgqa")


def test_splits(hub: Hub) -> None:
    """Test sets give no training questions; the hub's own names of splits are used."""
    with pytest.raises(ConfigError, match="math500 is a test set: it has no split 'train', only 'test'"):
        open_benchmark("math500", split="train")
    calls = hub(ROWS["gsm8k"])
    task = open_benchmark("gsm8k", split="train")
    assert calls[0]["split"] == "train"
    with pytest.raises(ConfigError, match="no split 'test'"):
        task.questions("test")
    calls = hub(ROWS["aime24"])
    open_benchmark("aime24")
    assert (calls[0]["split"], calls[0]["name"]) == ("train", None)
    calls = hub(ROWS["tablebench"])
    open_benchmark("tablebench")
    assert calls[0]["data_files"] == {"test": ["TableBench.jsonl"]}


def test_the_hub_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the library raises becomes one message that says what else to do."""

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"openai/gsm8k on the hub cannot be loaded: ConnectionError.*--data"):
        open_benchmark("gsm8k")


@pytest.mark.parametrize("name", ROWS)
def test_a_changed_schema_is_named(name: str, hub: Hub) -> None:
    """With the row's keys; never a KeyError."""
    hub({"prompt": "?", "gold": 1})
    with pytest.raises(DataError, match=r"row 1: unknown schema \(KeyError: .*\); it has 'prompt', 'gold'"):
        open_benchmark(name)


def _folder(tmp_path: Path, name: str, *rows: dict[str, Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_folder_of_files(tmp_path: Path) -> None:
    """`<name>.jsonl` is the test split, `<name>_<split>.jsonl` any; draws are those of other files."""
    rows = [{"id": str(i), "question": f"q{i}?", "answer": i} for i in range(9)]
    data = _folder(tmp_path, "gsm8k_train", *rows)
    _folder(tmp_path, "math500", *rows)
    task = open_benchmark("gsm8k", data=data, split="train")
    plain = JsonlTask(data / "gsm8k_train.jsonl", split="train")
    assert [q.id for q in task.questions("train", 4, 3)] == [q.id for q in plain.questions("train", 4, 3)]
    assert len(open_benchmark("math500", data=data)) == 9
    with pytest.raises(DataError, match=r"does not hold gsm8k_test\.jsonl or gsm8k\.jsonl\."):
        open_benchmark("gsm8k", data=data)
    with pytest.raises(ConfigError, match=r"no benchmark 'math50'\. Did you mean 'math500'"):
        open_benchmark("math50", data=data)


BAD = {
    "math500": ({"problem": "?", "answer": "1"}, "no 'question'; it has 'problem', 'answer'"),
    "amc23": ({"question": "?", "answer": None}, "the answer is null"),
    "mmlu_pro_stem": ({"question": "?", "answer": "A"}, "has no choices"),
    "race": ({"question": "?", "answer": "C", "choices": ["x", "y"]}, "the answer 'C' is none of 'A', 'B'"),
    "strategyqa": ({"question": "?", "answer": "maybe", "choices": ["Yes", "No"]}, "'maybe' is none of 'Yes', 'No'"),
    "humaneval": ({"question": "?", "answer": "x", "meta": {"prompt": "p"}}, r"lacks meta\.test, meta\.entry_point"),
    "livecodebench": ({"question": "?", "answer": "x"}, r"lacks meta\.tests"),
    "tablebench": ({"question": "?", "answer": "x"}, r"lacks meta\.qtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_with_another_schema_is_refused(name: str, tmp_path: Path) -> None:
    """When it is opened: where, what, and what to do."""
    row, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        open_benchmark(name, data=_folder(tmp_path, name, row))
    assert str(tmp_path) in str(caught.value)


def test_code_is_off_unless_asked_for(hub: Hub) -> None:
    """The questions can be read; grading says how to allow it."""
    hub(ROWS["humaneval"])
    task = open_benchmark("humaneval")
    (question,) = task.questions("test")
    with pytest.raises(ConfigError, match=r"runs the code that a model wrote, which is off.*--run-code"):
        task.grade(question, question.answer)


def test_a_recipe_may_name_a_benchmark(tmp_path: Path) -> None:
    """Test questions from it, training questions from its training split or from a file of one's own."""
    data = _folder(tmp_path, "math500", {"question": "1+1?", "answer": "2"})
    settings = TaskSettings(name="math500", data=data)
    task = open_task(settings, "test")
    assert [q.text for q in task.questions("test", 5, 0)] == ["1+1?"]
    with pytest.raises(ConfigError, match="no split 'train'"):
        open_task(settings, "train")
    own = settings.model_copy(update={"train": data / "math500.jsonl"})
    assert len(open_task(own, "train").questions("train", 5, 0)) == 1
    assert type(open_judge(settings)).__name__ == "ArithmeticJudge"
    with pytest.raises(ConfigError, match="there is no task 'mat500'; choose one of stories, jsonl, math500"):
        settings_from(TaskSettings, ["name=mat500"])
    with pytest.raises(ConfigError, match="allow it by run_code: true"):
        settings_from(TaskSettings, ["name=humaneval"])
    assert settings_from(TaskSettings, ["name=humaneval", "run_code=true"]).run_code
