"""Labelled solutions as the field publishes them: each format is read as it means it, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caspo.core.errors import DataError
from caspo.formats import read_labelled
from caspo.judges.base import Chain, Judge
from caspo.judges.labels import LabelsJudge
from caspo.records import Question

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

PROCESS_BENCH = {
    "id": "gsm8k-7", "generator": "G-7B", "problem": "Two and three?", "steps": ["2 + 3 = 6", "So 6.", "The answer is 6."],
    "final_answer_correct": False, "label": 0,
}  # fmt: skip
PRM800K: dict[str, Any] = {
    "labeler": "x", "generation": None,
    "question": {"problem": "Two and three?", "ground_truth_answer": "5", "ground_truth_solution": "2 + 3 = 5"},
    "label": {
        "steps": [
            {
                "completions": [
                    {"text": "Add.", "rating": 0, "flagged": None},
                    {"text": "Multiply.", "rating": -1, "flagged": None},
                ],
                "human_completion": None, "chosen_completion": 0,
            },
            {
                "completions": [{"text": "2 + 3 = 6", "rating": -1, "flagged": None}],
                "human_completion": {"text": "2 + 3 = 5", "rating": None, "source": "human"}, "chosen_completion": None,
            },
            {
                "completions": [{"text": "Answer: 5", "rating": 1, "flagged": None}],
                "human_completion": None, "chosen_completion": 0,
            },
        ],
        "finish_reason": "solution",
    },
}  # fmt: skip
SHEPHERD = {
    "input": "Two and three? Step 1: 2 + 3 = 6 ки\nStep 2: Щенки: 6. ки\nStep 3: The answer is: 6 ки",
    "label": "Two and three? Step 1: 2 + 3 = 6 +\nStep 2: Щенки: 6. -\nStep 3: The answer is: 6 -",
    "task": "GSM8K",
}
MR_GSM8K = {
    "uuid": "u1", "question": "Two and three?", "ground_truth_answer": "5", "model_output_steps": ["a", "b = 1"],
    "model_output_solution_correctness": "wrong", "model_output_solution_first_error_step": 2, "question_type": "POT",
}  # fmt: skip
STEPS = {"id": "s", "question": "Two and three?", "steps": ["a", "b", "c"], "first_error": 1, "answer": "5", "source": "X"}


def written(path: Path, *rows: object, array: bool = False) -> Path:
    text = json.dumps(rows) if array else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("array", [False, True])
def test_process_bench(tmp_path: Path, array: bool) -> None:
    """Steps before the first error are right, those after it unlabelled; JSON and JSONL are the same."""
    right = {**PROCESS_BENCH, "id": "math-1", "label": -1}
    first, second = read_labelled(written(tmp_path / "x.json", PROCESS_BENCH, right, array=array))
    assert (first.id, first.subset, first.first_error, first.ended) == ("gsm8k-7", "gsm8k", 0, True)
    assert first.labels == ("wrong", "unknown", "unknown")
    assert (first.question.text, first.question.answer) == ("Two and three?", "")
    assert first.meta == {"generator": "G-7B", "final_answer_correct": False}
    assert (second.subset, second.first_error, second.labels) == ("math", None, ("right",) * 3)


def test_prm800k(tmp_path: Path) -> None:
    """The chosen steps are one solution, the labeller's own is right, a 0 unknown; every other completion is one more."""
    main, *others = read_labelled(written(tmp_path / "x.jsonl", PRM800K))
    assert main.steps == ("Add.\n", "2 + 3 = 5\n", "Answer: 5")
    assert (main.labels, main.first_error, main.ended) == (("unknown", "right", "right"), None, True)
    assert (main.question.answer, main.subset) == ("5", "phase 1")
    assert [(o.steps, o.labels, o.first_error, o.ended) for o in others] == [
        (("Multiply.",), ("wrong",), 0, False),
        (("Add.\n", "2 + 3 = 6"), ("unknown", "wrong"), 1, False),
    ]
    assert {o.subset for o in others} == {"phase 1/alternatives"}


def test_prm800k_found_error(tmp_path: Path) -> None:
    """Phase 2 stops at the first error: nothing is chosen there, and the model's own step, the first, was wrong."""
    steps = [
        {"completions": [{"text": "a", "rating": 1}], "human_completion": None, "chosen_completion": 0},
        {"completions": [{"text": "b", "rating": -1}, {"text": "c", "rating": 1}], "chosen_completion": None},
    ]
    row = {**PRM800K, "generation": 9, "label": {"steps": steps, "finish_reason": "found_error"}}
    main, other = read_labelled(written(tmp_path / "x.jsonl", row))
    assert (main.steps, main.first_error, main.ended, main.subset) == (("a\n", "b"), 1, False, "phase 2")
    assert (other.steps, other.labels) == (("a\n", "c"), ("right", "right"))


def test_math_shepherd(tmp_path: Path) -> None:
    """The tag is a word of its own: one that ends in the same letters is not cut; both published variants are read."""
    variant = {
        "input": SHEPHERD["input"].replace(" ки", " ки ? "),
        "label": SHEPHERD["label"].replace(" +\n", " ки +\n").replace(" -\n", " ки -\n"),
        "task": "MATH",
    }
    for solution in read_labelled(written(tmp_path / "x.jsonl", SHEPHERD, variant)):
        assert solution.question.text == "Two and three?"
        assert solution.steps == ("Step 1: 2 + 3 = 6\n", "Step 2: Щенки: 6.\n", "Step 3: The answer is: 6")
        assert (solution.labels, solution.first_error) == (("right", "wrong", "wrong"), 1)


def test_mr_gsm8k_and_step_dpo(tmp_path: Path) -> None:
    """The first error is counted from 1; a pair is two beginnings that part in the last step."""
    right = {**MR_GSM8K, "uuid": "u2", "model_output_solution_first_error_step": "N/A"}
    right["model_output_solution_correctness"] = "correct"
    first, second = read_labelled(written(tmp_path / "x.json", MR_GSM8K, right, array=True))
    assert (first.first_error, first.labels, first.subset, first.question.answer) == (1, ("right", "wrong"), "POT", "5")
    assert second.first_error is None
    pair = {"prompt": "Q?", "initial_reason_steps": "a\nb\n", "chosen": "c", "rejected": "d", "answer": "5"}
    chosen, rejected = read_labelled(written(tmp_path / "y.jsonl", pair))
    assert (chosen.steps, chosen.labels, chosen.ended) == (("a\n", "b\n", "c"), ("right",) * 3, False)
    assert (rejected.steps, rejected.first_error) == (("a\n", "b\n", "d"), 2)


def test_steps_with_labels(tmp_path: Path) -> None:
    """A label for every step is kept beyond the first error."""
    plain, full = read_labelled(
        written(tmp_path / "x.jsonl", STEPS, {**STEPS, "id": "t", "labels": [1, -1, 1], "meta": {"subset": "B"}})
    )
    assert (plain.labels, plain.subset) == (("right", "wrong", "unknown"), "X")
    assert (full.labels, full.subset) == (("right", "wrong", "right"), "B")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1}, "line 2: no 'steps', which the records before it have"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "label": 3}, "line 2: 'label' is 3, but there are 3 steps"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "label": -2}, "'label' is -2"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "label": True}, "'label' is True"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "steps": ["a", " ", "c"]}, "step 2 of 'steps' is empty"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "steps": ["a", 7]}, "step 2 of 'steps' is of type int"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "steps": []}, "must be a list with at least one step"),
        ({**PROCESS_BENCH, "id": "gsm8k-8", "problem": ""}, "'problem' is empty"),
        (PROCESS_BENCH, "line 2: the id 'gsm8k-7' is that of .*line 1 too"),
        ([1], "line 2: a value of type list"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, row: object, message: str) -> None:
    """With their line."""
    with pytest.raises(DataError, match=message):
        read_labelled(written(tmp_path / "x.jsonl", PROCESS_BENCH, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**STEPS, "labels": [1, -1]}, "1 or -1 for each of the 3 steps"),
        ({**STEPS, "labels": [1, 1, -1]}, "'first_error' is 1, which 'labels' do not say"),
        ({**SHEPHERD, "label": "Two and three? Step 1: 2 + 3 = 6 +"}, "does not end step 2"),
        ({**SHEPHERD, "label": SHEPHERD["label"] + "\nStep 4: more +"}, "goes on after the 3 steps"),
        ({**SHEPHERD, "input": "Add two and three. 5 ки", "label": "Add two and three. 5 +"}, "neither 'Step 1:' nor"),
        ({**SHEPHERD, "input": "Two? Step 1: 5 ки\nки", "label": "Two? Step 1: 5 +\n+"}, "step 2 of 'input' is empty"),
        ({**SHEPHERD, "input": "Two and three?"}, "must end each of its steps with ки"),
        ({**MR_GSM8K, "model_output_solution_first_error_step": 3}, "is 2, but there are 2 steps"),
        ({**MR_GSM8K, "model_output_solution_first_error_step": "N/A"}, "the solution is 'wrong', but"),
        ({**PRM800K, "label": {}}, "line 1, label: no 'steps'"),
        ({**PRM800K, "label": {"steps": [None]}}, "a list of 'steps', each an object"),
        ({**PRM800K, "label": None}, "a list of 'steps', each an object"),
        ({"question": "q", "answer": "5"}, "no known format .* has the keys 'question', 'answer'. Known formats"),
    ],
)
def test_broken_formats_are_named(tmp_path: Path, row: object, message: str) -> None:
    """What contradicts itself, goes beyond its steps, or is of no known format."""
    with pytest.raises(DataError, match=message):
        read_labelled(written(tmp_path / "x.jsonl", row))


def test_broken_files_are_named(tmp_path: Path) -> None:
    """Missing, empty, cut in the last line or within an array, not UTF-8."""
    file = tmp_path / "x.jsonl"
    with pytest.raises(DataError, match="no such file"):
        read_labelled(file)
    for data, message in (
        (b"", "holds no labelled solution"),
        (json.dumps(PROCESS_BENCH).encode() + b'\n{"id": "gs', "line 2: the last line is cut off"),
        (b'{"id": \n' + json.dumps(PROCESS_BENCH).encode() + b"\n", "line 1: not JSON"),
        (json.dumps([PROCESS_BENCH]).encode()[:-9], "the JSON array is cut off"),
        (b'{"id": "\xff"}\n', "line 1: byte 9 of the line is not UTF-8"),
    ):
        file.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_labelled(file)


def test_judge_labels(tmp_path: Path) -> None:
    """It answers what is labelled, up to white space, stops at the first wrong step, and does not guess."""
    judge = LabelsJudge(read_labelled(written(tmp_path / "x.jsonl", PRM800K)))
    assert isinstance(judge, Judge)
    assert judge.instant
    question = Question("Two  and three? ", "5", id="other id")

    def labels(*steps: str, given: int = 0) -> list[str]:
        (found,) = judge.judge([Chain(question, steps, False, given)])
        return [verdict.label for verdict in found]

    assert labels("Add.\n", "2 + 3 = 5\n", "Answer: 5") == ["unknown", "right", "right"]
    assert labels("Add.", "2 + 3 = 6", "Answer: 5") == ["unknown", "wrong"]
    assert labels("Add.", "2 + 3 = 5", "Answer: 6", given=1) == ["right", "unknown"]
    assert labels("Multiply.") == ["wrong"]
    (found,) = judge.judge([Chain(Question("Another?", "5", id="q"), ("Multiply.",), False)])
    assert [v.label for v in found] == ["unknown"]


def test_labels_that_disagree_are_unknown(tmp_path: Path) -> None:
    """Two people who say different things have not said anything, in whatever order, and however many join in."""
    rows = [{**PROCESS_BENCH, "id": f"p-{i}", "label": label} for i, label in enumerate([0, -1, 0])]
    judge = LabelsJudge(read_labelled(written(tmp_path / "x.jsonl", *rows)))
    (found,) = judge.judge([Chain(Question("Two and three?", "5", id="q"), ("2 + 3 = 6",), False)])
    assert (found[0].label, found[0].reason) == ("unknown", "labels disagree")


@pytest.mark.parametrize("file", sorted(SHARED.glob("*_steps.jsonl")), ids=lambda file: file.stem)
def test_real_files(file: Path) -> None:
    """Every row is read; labels agree with the first error."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found = read_labelled(file)
    assert len(found) == len(rows)
    for row, solution in zip(rows, found, strict=True):
        assert [step.strip() for step in solution.steps] == [step.strip() for step in row["steps"]]
        assert (-1 if solution.first_error is None else solution.first_error) == row["first_error"]
        if solution.first_error is not None:
            assert solution.labels.index("wrong") == solution.first_error
