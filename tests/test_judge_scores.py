"""How good a judge is: figures by hand, ProcessBench's definitions, and how unknown enters each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import ResumeError
from caspo.core.folders import claimed
from caspo.core.storage import read_json, write_json
from caspo.evaluate.judge_run import JudgeRun, digest, judge_solutions, score_judge
from caspo.evaluate.judge_scores import FIGURES, Judged, judge_scores
from caspo.formats import LabelledSolution
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Chain
from caspo.records import Label, Question, Verdict


def solution(name: str, steps: int, first: int | None, subset: str = "all") -> LabelledSolution:
    labels: list[Label] = ["right"] * steps
    if first is not None:
        labels[first:] = ["wrong", *(["unknown"] * (steps - first - 1))]  # type: ignore[list-item]
    question = Question(f"Question {name}?", "5", id=name)
    return LabelledSolution(name, question, tuple(f"step {i}" for i in range(steps)), tuple(labels), subset)


def judged(name: str, steps: int, first: int | None, said: str, subset: str = "all") -> Judged:
    """``said``: a letter a step, right, wrong or unknown."""
    known: dict[str, Label] = {"r": "right", "w": "wrong", "u": "unknown"}
    return Judged(solution(name, steps, first, subset), tuple(known[letter] for letter in said))


def values(*rows: Judged) -> dict[str, float | None]:
    scores = judge_scores(rows)["all"]
    return {name: scores[name]["value"] for name in FIGURES}


def test_by_hand() -> None:
    """Two of three errors found, three of four right solutions left alone; every other figure counted on paper."""
    found = values(
        judged("a", 3, 1, "rw"),  # found
        judged("b", 3, 2, "urw"),  # found, one step unknown on the way
        judged("c", 2, 0, "rr"),  # missed
        judged("d", 2, None, "rr"),
        judged("e", 2, None, "uu"),  # calls nothing wrong
        judged("f", 3, None, "rrr"),
        judged("g", 3, None, "rw"),  # accuses a right step
    )
    assert found["accuracy_erroneous"] == pytest.approx(2 / 3)
    assert found["accuracy_correct"] == pytest.approx(3 / 4)
    assert found["f1_unknown_as_right"] == pytest.approx(2 * (2 / 3) * (3 / 4) / (2 / 3 + 3 / 4))
    assert found["first_error_accuracy"] == pytest.approx(5 / 7)
    assert found["decided"] == pytest.approx(5 / 7)
    assert found["accuracy_decided"] == pytest.approx(3 / 5)
    # labelled steps met: a 2, b 3, c 1 (its second is after the error), d 2, e 2, f 3, g 2
    assert found["coverage"] == pytest.approx(12 / 15)
    assert found["precision_wrong"] == pytest.approx(2 / 3)
    assert found["recall_wrong"] == pytest.approx(2 / 3)
    rr, rw, wr, ww = 8, 1, 1, 2
    agreed, chance = (rr + ww) / 12, ((wr + ww) * (rw + ww) + (rr + rw) * (rr + wr)) / 144
    assert found["kappa"] == pytest.approx((agreed - chance) / (1 - chance))


def test_unknown_is_never_an_accusation() -> None:
    """A judge that knows nothing leaves right solutions alone, finds no error, and has an F1 of 0."""
    found = values(judged("a", 2, 1, "uu"), judged("b", 2, None, "uu"))
    assert (found["accuracy_correct"], found["accuracy_erroneous"], found["f1_unknown_as_right"]) == (1, 0, 0)
    assert (found["processbench_correct"], found["processbench_f1"]) == (0, 0)
    assert (found["coverage"], found["decided"], found["recall_wrong"]) == (0, 0, 0)
    assert (found["precision_wrong"], found["kappa"], found["accuracy_decided"]) == (None, None, None)


def test_a_perfect_judge() -> None:
    """1 everywhere; Wilson's interval where no resample moves a share."""
    rows = [judged(str(i), 3, *((2, "rrw") if i % 2 else (None, "rrr"))) for i in range(20)]  # type: ignore[misc]
    scores = judge_scores(rows)["all"]
    assert {scores[name]["value"] for name in FIGURES} == {1.0}
    assert scores["accuracy_correct"]["low"] == pytest.approx(0.722, abs=1e-3)
    assert scores["processbench_f1"]["low"] == pytest.approx(0.722, abs=1e-3), (
        "no resample moves it, and still it is no certainty"
    )
    assert scores["kappa"]["low"] is None


def test_solutions_of_one_question_are_drawn_together() -> None:
    """Ten copies of each question are no more evidence than one."""
    once = [judged(f"q{i}", 2, 1, "rw" if i % 3 else "rr") for i in range(30)]
    copies = [row for row in once for _ in range(10)]
    a, b = (judge_scores(rows)["all"]["accuracy_erroneous"] for rows in (once, copies))
    assert (a["low"], a["high"]) == (b["low"], b["high"])


def test_subsets() -> None:
    """Each by itself, and all; one alone is all there is."""
    rows = [judged("a", 2, 1, "rw", "x"), judged("b", 2, 1, "rr", "y")]
    scores = judge_scores(rows)
    assert list(scores) == ["all", "x", "y"]
    assert [scores[name]["accuracy_erroneous"]["value"] for name in scores] == [0.5, 1, 0]
    assert list(judge_scores(rows[:1])) == ["all"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_figures_stay_in_their_range(data: st.DataObject) -> None:
    """Shares lie in [0, 1], F1 between its two accuracies, kappa below 1, intervals around nothing impossible."""
    rows = []
    for number in range(data.draw(st.integers(1, 8))):
        steps = data.draw(st.integers(1, 4))
        first = data.draw(st.none() | st.integers(0, steps - 1))
        said = data.draw(st.text("ru", min_size=steps, max_size=steps))
        stop = data.draw(st.integers(0, steps))
        rows.append(judged(f"q{number % 3}", steps, first, said if stop == steps else said[:stop] + "w"))
    scores = judge_scores(rows)["all"]
    for name in FIGURES:
        value, low, high = (scores[name][part] for part in ("value", "low", "high"))
        if value is not None:
            assert (-1 if name == "kappa" else 0) <= value <= 1 + 1e-12
        if low is not None:
            assert low <= high
    for f1, correct in (("processbench_f1", "processbench_correct"), ("f1_unknown_as_right", "accuracy_correct")):
        both = [scores[name]["value"] for name in ("accuracy_erroneous", correct)]
        if None not in both:
            assert min(both) - 1e-12 <= scores[f1]["value"] <= max(both) + 1e-12
            assert scores["processbench_f1"]["value"] <= scores["f1_unknown_as_right"]["value"] + 1e-12


def test_a_missing_answer_is_a_miss_of_processbenchs_f1() -> None:
    """Their program counts an answer that it cannot read as wrong. Here that is: no step called wrong, and not all of them
    told. Whoever names a step has answered, whatever came before it."""
    rows = [
        judged("a", 3, 2, "rrw"), judged("b", 3, 2, "uuw"), judged("c", 3, 2, "rrr"), judged("d", 3, 2, "ruu"),
        judged("e", 3, None, "rrr"), judged("f", 3, None, "rru"), judged("g", 3, None, "uuu"), judged("h", 3, None, "rw"),
        judged("i", 3, None, "rr"),
    ]  # fmt: skip
    found = values(*rows)
    assert found["accuracy_erroneous"] == 2 / 4
    assert found["processbench_correct"] == 1 / 5
    assert found["processbench_f1"] == pytest.approx(2 * 0.5 * 0.2 / 0.7)
    assert found["accuracy_correct"] == 4 / 5
    assert found["f1_unknown_as_right"] == pytest.approx(2 * 0.5 * 0.8 / 1.3)


class Failing:
    """Fails on its first call."""

    name = "failing"
    instant = False
    calls = 0

    def judge(self, chains: list[Chain]) -> list[list[Verdict]]:
        self.calls += 1
        failed = self.calls == 1
        label: Label = "unknown" if failed else "right"
        return [[Verdict(label, "no route" if failed else "", self.name, failed)] * len(chain.steps) for chain in chains]


def test_runs_go_on_and_ask_again_where_the_judge_failed(tmp_path: Path) -> None:
    """Whole chunks are read, failed ones judged again; another judge or other solutions are refused."""
    solutions = [solution(str(i), 2, None) for i in range(3)]
    judge = Failing()
    run = JudgeRun(judge={"name": "failing"}, solutions=digest(solutions))
    for calls, share in ((1, 0.0), (2, 1.0), (2, 1.0)):
        with claimed(tmp_path, run, "judge", ["part-*.json"], {}):
            found = judge_solutions(solutions, judge, tmp_path)
        assert judge.calls == calls
        assert score_judge("failing", found, tmp_path)["sets"]["all"]["coverage"]["value"] == share
    assert read_json(tmp_path / "scores.json")["judge"] == "failing"
    other = JudgeRun(judge={"name": "failing"}, solutions=digest(solutions[1:]))
    with pytest.raises(ResumeError, match="solutions"), claimed(tmp_path, other, "judge", ["part-*.json"], {}):
        pass


def test_failures_in_files_of_earlier_versions_are_asked_about_again(tmp_path: Path) -> None:
    """There the reason alone says so; a verdict on the step is kept."""
    solutions = [solution("0", 1, None)]
    for reason, calls in (("failed: no route to host", 1), ("no label", 0)):
        judge = Failing()
        write_json(tmp_path / "part-0000.json", [{"id": "0", "verdicts": [{"label": "unknown", "reason": reason}]}])
        judge_solutions(solutions, judge, tmp_path)
        assert judge.calls == calls


def test_arithmetic_end_to_end(tmp_path: Path) -> None:
    """A false sum is found where it stands; nothing is said of what has no sum."""
    question = Question("Tom has 2 apples and 3 pears. How many fruits?", "5", id="q")
    steps = ("Let me see.", "2 + 3 = 6", "The answer is 6.")
    one = LabelledSolution("s", question, steps, ("right", "wrong", "unknown"), "all")
    (found,) = judge_solutions([one], ArithmeticJudge(), tmp_path)
    assert found.verdicts == ("unknown", "wrong")
    assert np.isclose(judge_scores([found])["all"]["first_error_accuracy"]["value"], 1)
