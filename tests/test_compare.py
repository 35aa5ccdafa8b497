"""Comparing two run folders: paired by question, and only where they were measured alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from caspo.cli.show import comparison_tables
from caspo.core.errors import ConfigError, DataError
from caspo.core.storage import write_json
from caspo.evaluate.compare import compare
from caspo.evaluate.run import Outcome
from caspo.formats.parquet import write_trees
from caspo.records import ROOT, Node, Question, Step, Tree
from tiny import trace


def evaluation(
    run: Path,
    right: dict[str, str],
    *,
    index: int = 0,
    tokens: int = 10,
    max_tokens: int = 64,
    names: Sequence[str] | None = None,
    text: str = "Q {}",
    confidence: float = 0.5,
    **recipe: Any,
) -> Path:
    """A finished run: per method a string of 1 (right), 0 (wrong) and - (no answer), one for each question."""
    methods = {name: {"settings": {"max_tokens": max_tokens}} for name in right}
    rounds = [{"round": k, "methods": methods} for k in range(index + 1)]
    write_json(run / "metrics.json", {"schema": 1, "model": "m", "seed": 0, "rounds": rounds})
    settings = {"seed": 0, "task": {"name": "stories", "judge": None}, "evaluate": {"split": "test", "questions": 4}}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**settings, **recipe}))
    for name, marks in right.items():
        ids = list(names or [f"q{i}" for i in range(len(marks))])
        folder = run / f"round-{index}" / "evaluate" / name
        outcomes = [
            Outcome(i, None if mark == "-" else mark, mark == "1", confidence if mark == "1" else 0.25, tokens, 1.0, False)
            for i, mark in zip(ids, marks, strict=True)
        ]
        step = Step("The answer is 1.", (7,), trace(1))
        trees = [Tree(Question(text.format(i), "1", id=i), (1,), (Node(0, ROOT, 1, step),)) for i in ids]
        write_trees(folder / "part-000.parquet", trees)
        write_json(folder / "part-000.json", [vars(o) for o in outcomes])
    return run


def test_differences_are_paired_by_question(tmp_path: Path) -> None:
    """b minus a, with intervals, an exact test, and the questions that flipped."""
    a = evaluation(tmp_path / "a", {"cat": "1100110011", "chain_of_thought": "1111111111"})
    b = evaluation(tmp_path / "b", {"cat": "0110111111", "beam": "1111111111"}, tokens=15, confidence=1.0)
    found = compare(str(a), str(b))
    assert found["a"] == {"run": str(a), "round": 0, "model": "m"}
    (entry,) = found["comparisons"]
    assert (entry["method_a"], entry["method_b"], entry["n"]) == ("cat", "cat", 10)
    accuracy = entry["accuracy"]
    assert (accuracy["a"], accuracy["b"]) == (0.6, 0.8)
    assert accuracy["difference"] == pytest.approx(0.2)
    assert accuracy["low"] < 0.2 < accuracy["high"]
    assert (accuracy["only_a"], accuracy["only_b"]) == (1, 3)
    assert accuracy["p_value"] == pytest.approx(2 * (1 + 4) / 2**4)
    assert entry["generated_tokens_per_question"] == {"a": 10, "b": 15, "difference": 5, "low": 5, "high": 5}
    assert entry["seconds_per_question"] == {"a": 1, "b": 1}
    assert [q["id"] for q in entry["flipped"]["only_b"]] == ["q2", "q6", "q7"]
    assert entry["flipped"]["only_a"] == [{"id": "q0", "question": "Q q0", "gold": "1", "a": "1", "b": "0"}]
    assert entry["brier"]["a"] == pytest.approx((6 * 0.5**2 + 4 * 0.25**2) / 10)
    assert entry["brier"]["b"] == pytest.approx(2 * 0.25**2 / 10)
    assert entry["brier"]["low"] <= entry["brier"]["difference"] <= entry["brier"]["high"]
    assert entry["answered"] == {"a": 10, "b": 10, "both": 10}
    assert entry["auroc"]["a"] == entry["auroc"]["b"] == 1
    back = compare(str(b), str(a))["comparisons"][0]
    assert back["accuracy"]["difference"] == pytest.approx(-0.2)


def test_confidence_is_compared_on_what_both_answered(tmp_path: Path) -> None:
    """A side that answers only what it is sure of looks better on its own questions, and not on those of both."""
    a = evaluation(tmp_path / "a", {"cat": "1111000011110000"}, confidence=1.0)
    b = evaluation(tmp_path / "b", {"cat": "1111----1111----"}, confidence=1.0)
    (entry,) = compare(str(a), str(b))["comparisons"]
    assert entry["answered"] == {"a": 16, "b": 8, "both": 8}
    for name in ("brier", "aurc", "ece", "ece_debiased"):
        assert entry[name]["a"] == entry[name]["b"] == entry[name]["difference"] == 0
    assert entry["auroc"]["a"] is None, "where both answer, both are right"
    console = Console(width=120)
    with console.capture() as captured:
        console.print(*comparison_tables(compare(str(a), str(b))))
    assert "answered: 16 in A, 8 in B; ECE, Brier, AUROC and area on the 8 of both" in " ".join(captured.get().split())


def test_order_and_place_of_the_questions_do_not_matter(tmp_path: Path) -> None:
    """They are matched by id."""
    a = evaluation(tmp_path / "a", {"cat": "1100"})
    b = evaluation(tmp_path / "b", {"cat": "0011"}, names=["q3", "q2", "q1", "q0"])
    accuracy = compare(str(a), str(b))["comparisons"][0]["accuracy"]
    assert (accuracy["difference"], accuracy["only_a"], accuracy["only_b"]) == (0, 0, 0)


def test_two_methods_of_one_run(tmp_path: Path) -> None:
    """On the questions of the one that was given fewer of them; a method named once is meant on both sides."""
    a = evaluation(tmp_path / "a", {"cat": "1100110011", "self_consistency": "0011"})
    (entry,) = compare(f"{a}:cat", f"{a}:self_consistency")["comparisons"]
    assert (entry["method_a"], entry["method_b"], entry["n"]) == ("cat", "self_consistency", 4)
    assert (entry["accuracy"]["only_a"], entry["accuracy"]["only_b"]) == (2, 2)
    b = evaluation(tmp_path / "b", {"cat": "1100110011", "beam": "1"})
    for sides in ((f"{a}:cat", str(b)), (str(a), f"{b}:cat")):
        assert [(e["method_a"], e["method_b"]) for e in compare(*sides)["comparisons"]] == [("cat", "cat")]


def test_rounds_of_one_run(tmp_path: Path) -> None:
    """By their folders; a run is its last round."""
    run = evaluation(tmp_path / "a", {"cat": "1100"})
    evaluation(tmp_path / "a", {"cat": "1110"}, index=1)
    found = compare(str(run / "round-0"), str(run / "round-1"))
    assert (found["a"]["round"], found["b"]["round"]) == (0, 1)
    assert found["comparisons"][0]["accuracy"]["difference"] == 0.25
    assert compare(f"{run / 'round-0'}:cat", str(run))["b"]["round"] == 1


def test_undefined_figures_are_null(tmp_path: Path) -> None:
    """Nothing answered, one question: no figure of confidence, no interval, and no failure; the table shows dashes."""
    a, b = evaluation(tmp_path / "a", {"cat": "-"}), evaluation(tmp_path / "b", {"cat": "1"})
    found = compare(str(a), str(b))
    (entry,) = found["comparisons"]
    assert entry["answered"] == {"a": 0, "b": 1, "both": 0}
    for name in ("ece", "ece_debiased", "brier", "auroc", "aurc"):
        assert entry[name] == {"a": None, "b": None, "difference": None, "low": None, "high": None}
    assert entry["generated_tokens_per_question"]["low"] is None
    assert entry["flipped"]["only_b"][0]["a"] is None
    console = Console(width=100)
    with console.capture() as captured:
        console.print(*comparison_tables(found))
    assert "right in B only: 1 (q0)" in captured.get()
    assert "nan" not in captured.get()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_tokens": 32}, "max_tokens: 64 in a, 32 in b"),
        ({"evaluate": {"split": "train", "questions": 4}}, "evaluate.split: test in a, train in b"),
        ({"names": ["q0", "q1", "q2", "x"]}, "4 in a, 4 in b, of these 3 are in both"),
        ({"names": ["x0", "x1", "x2", "x3"], "seed": 7}, "seed: 0 in a, 7 in b"),
        ({"text": "Another {}", "task": {"name": "jsonl"}}, "task.name: stories in a, jsonl in b"),
        ({"text": "Another {}"}, "4 of equal id differ in text or answer, the first is q0"),
    ],
)
def test_what_was_measured_otherwise_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    """What differs is named."""
    a, b = evaluation(tmp_path / "a", {"cat": "1100"}), evaluation(tmp_path / "b", {"cat": "1100"}, **changed)
    with pytest.raises(ConfigError, match="not measured alike") as refused:
        compare(str(a), str(b))
    assert message in str(refused.value)


def test_fewer_questions_of_one_method_are_refused(tmp_path: Path) -> None:
    """Between two runs the sets must be equal."""
    a, b = evaluation(tmp_path / "a", {"cat": "1100"}), evaluation(tmp_path / "b", {"cat": "110"})
    with pytest.raises(ConfigError, match="4 in a, 3 in b, of these 3 are in both"):
        compare(str(a), str(b))


def test_wrong_sides(tmp_path: Path) -> None:
    """No run, an unfinished one, a method nobody has, the same twice: said, with what to do."""
    a = evaluation(tmp_path / "a", {"cat": "1100", "beam": "1100"})
    other = evaluation(tmp_path / "b", {"chain_of_thought": "1100"})
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "old").mkdir()
    write_json(tmp_path / "old" / "metrics.json", {"schema": 0})
    for sides, kind, message in (
        ((tmp_path / "none", a), DataError, "neither a finished run"),
        ((tmp_path / "unfinished", a), DataError, "metrics.json"),
        ((tmp_path / "old", a), DataError, "schema 1"),
        ((a / "round-3", a), DataError, "no round 3, only 0"),
        ((f"{a}:magic", a), ConfigError, "no method 'magic'. Choose one of chain_of_thought"),
        ((f"{a}:dipt", a), ConfigError, "only with cat, beam"),
        ((f"{a}:cat", other), ConfigError, "only with chain_of_thought"),
        ((a, other), ConfigError, "no method in common"),
        ((a, a), ConfigError, "the same evaluation"),
        ((f"{a}:cat", a / "round-0"), ConfigError, "the same evaluation"),
    ):
        with pytest.raises(kind, match=message):
            compare(*map(str, sides))
