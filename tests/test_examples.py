"""Few-shot examples: which questions they are, how their solutions are written, and who is shown them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from caspo.core.errors import ConfigError, DataError
from caspo.engines.opening import ModelSettings
from caspo.formats.parquet import read_trees
from caspo.loop.recipe import recipe_inputs
from caspo.loop.task import TaskSettings, open_examples
from caspo.loop.thresholds import asked_as
from caspo.model import load
from caspo.records import Question
from caspo.search.threshold import Thresholds
from caspo.tasks.examples import fingerprint, worked

Command = Callable[..., tuple[int, str, str]]

TRAIN = [
    {"question": "1 + 1?", "answer": "2"},
    {"question": " 2 + 2? ", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    {"question": "3 + 3?", "answer": "6", "solution": "3 + 3 = 6\nThe answer is 6."},
    {"question": "2 + 2?", "answer": "4", "solution": "Again."},
    {"question": "4 + 4?", "answer": "8", "solution": "It is eight."},
]


def rows(path: Path, found: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("solution", "text"),
    [
        ("He has 48/2 = <<48/2=24>>24.\n#### 24", "He has 48/2 = 24.\nThe answer is 24."),
        ("24 it is.\nThe answer is 24.", "24 it is.\nThe answer is 24."), ("So \\boxed{24}.", "So \\boxed{24}."),
        ("It is 24, for 3 < 4 << 5.", "It is 24, for 3 < 4 << 5.\nThe answer is 24."),
        ("The answer is 23? No.\nIt is one more.", "The answer is 23? No.\nIt is one more.\nThe answer is 24."),
    ],
)  # fmt: skip
def test_a_solution_ends_in_its_answer(solution: str, text: str) -> None:
    assert worked(Question("How many?", "24", solution=solution)) == text


def test_the_first_with_a_solution_and_one_to_spare(tmp_path: Path) -> None:
    """In the order of the file; a question that stands twice is one."""
    settings = TaskSettings(name="jsonl", train=rows(tmp_path / "a.jsonl", TRAIN), examples=2)
    assert open_examples(settings) == (
        ("2 + 2?", "2 + 2 = 4\nThe answer is 4."), ("3 + 3?", "3 + 3 = 6\nThe answer is 6."),
        ("4 + 4?", "It is eight.\nThe answer is 8."),
    )  # fmt: skip
    assert open_examples(settings.model_copy(update={"examples": 0})) == ()
    found = open_examples(TaskSettings(examples=3))
    assert len(found) == 4
    assert all(text.splitlines()[-1].startswith("The answer is") for _, text in found)


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    train = rows(tmp_path / "a.jsonl", TRAIN)
    with pytest.raises(DataError, match="has 3 questions with a solution; 4 are needed"):
        open_examples(TaskSettings(name="jsonl", train=train, examples=3))
    with pytest.raises(ConfigError, match=r"of the training split, which jsonl lacks. Set task.train"):
        open_examples(TaskSettings(name="jsonl", test=train, examples=1))
    with pytest.raises(ConfigError, match=r"of the training split, which aime24 lacks. Set task.train"):
        open_examples(TaskSettings(name="aime24", examples=1))


def recipe(tmp_path: Path, examples: int) -> Path:
    file = tmp_path / f"recipe-{examples}.yaml"
    train = rows(tmp_path / "train.jsonl", TRAIN)
    test = rows(tmp_path / "test.jsonl", [{"question": "2 + 2?", "answer": "4"}, {"question": "9 + 9?", "answer": "18"}])
    found = {
        "model": {"name": "stories-tiny", "instruction": ""},
        "task": {"name": "jsonl", "train": str(train), "test": str(test), "examples": examples},
        "annotate": {"questions": 5, "samples": 2, "max_depth": 1, "max_step_tokens": 4},
        "evaluate": {"questions": 2, "chain_of_thought": {"max_tokens": 4}, "cat": None, "self_consistency": None},
        "rounds": 0,
    }
    file.write_text(yaml.safe_dump(found), encoding="utf-8")
    return file


def test_annotate_and_evaluate_show_them(tmp_path: Path, caspo: Command) -> None:
    """Every prompt holds as many, none its own question; another number is another run, and so is another training file."""
    file = recipe(tmp_path, 2)
    tokenizer = load("stories-tiny").engine.tokenizer  # type: ignore[attr-defined]
    code, _, err = caspo("annotate", file, "--out", tmp_path / "a")
    assert code == 0, err
    code, _, err = caspo("evaluate", file, "--out", tmp_path / "e")
    assert code == 0, err
    trees = [*read_trees(tmp_path / "a" / "tree"), *read_trees(tmp_path / "e" / "round-0" / "evaluate" / "chain_of_thought")]
    assert len(trees) >= 6
    for tree in trees:
        shown = tokenizer.decode(tree.prompt_ids).split("Question: ")[1:]
        asked = tree.question.text.strip()
        assert len(shown) == 3
        assert shown[-1] == f"{asked}\nAnswer:\n"
        assert not any(block.startswith(asked) for block in shown[:-1])
        assert all("The answer is" in block for block in shown[:-1])
    code, _, err = caspo("annotate", recipe(tmp_path, 1), "--out", tmp_path / "a")
    assert code != 0
    assert "task.examples: 2 there, 1 now" in err
    rows(tmp_path / "train.jsonl", TRAIN[::-1])
    code, _, err = caspo("evaluate", file, "--out", tmp_path / "e")
    assert code != 0
    assert "task.train" in err


def test_the_training_file_is_an_input_of_an_evaluation(tmp_path: Path) -> None:
    from caspo.core.config import load_recipe
    from caspo.loop.recipe import CaspoRecipe

    for examples, named in ((0, False), (1, True)):
        loaded = load_recipe(CaspoRecipe, recipe(tmp_path, examples), [])
        assert ("task.train" in recipe_inputs(loaded, ["test"])) == named


def test_solve_shows_them(tmp_path: Path, caspo: Command) -> None:
    """And thresholds that were calibrated with others hold for others."""
    shown = ("--model", "stories-tiny", "--examples", 2)
    code, _, err = caspo("solve", "stories", *shown, "--limit", 1, "--method", "chain_of_thought")
    assert code == 0, err
    code, _, err = caspo("solve", "How many?", *shown)
    assert code != 0
    assert "is no task" in err
    found = open_examples(TaskSettings(examples=2))
    file = tmp_path / "thresholds.json"
    for examples, asked in ((found[1:], shown), (found, shown[:2])):
        thresholds(examples).save(file)
        code, _, err = caspo("solve", "stories", *asked, "--thresholds", file)
        assert code != 0
        assert "examples" in err
    thresholds(found).save(file)
    code, _, err = caspo("solve", "stories", *shown, "--limit", 1, "--thresholds", file)
    assert code == 0, err


def thresholds(examples: tuple[tuple[str, str], ...]) -> Thresholds:
    return Thresholds(
        model=asked_as(ModelSettings(name="stories-tiny"), examples), settings={"max_tokens": 64}, prune_below=0.0,
        abstain_below=0.0, alpha=0.1, delta=0.1, n_evidence=0, n_pruning=100, n_abstention=100, lost=0.0, kept=1.0,
        wrong=0.0, date="2026-01-01",
    )  # fmt: skip


def test_examples_have_a_fingerprint() -> None:
    one = (("a", "b"), ("c", "d"))
    assert fingerprint(one) == fingerprint(list(one))
    assert fingerprint(one) != fingerprint(one[::-1])


@pytest.mark.parametrize("example", ["ab", ("1 + 1?",), ("1 + 1?", 2), ("1 + 1?", "2", "3"), None])
def test_examples_that_are_no_pairs(example: Any) -> None:
    with pytest.raises(ConfigError, match="is no example"):
        load("stories-tiny", examples=[example, ("1 + 2?", "The answer is 3.")])
