"""Figures of whole answers, against slow and obvious ways to compute them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.evaluate.answer_figures import answer_figures, risk_coverage
from caspo.evaluate.estimates import wilson
from caspo.evaluate.metrics import round_metrics
from caspo.evaluate.paths import faithfulness
from caspo.evaluate.resampling import draw_questions, resampled_aurc
from caspo.evaluate.run import EvaluateSettings, Outcome, Sample, evaluate_methods, read_outcomes
from caspo.evaluate.samples import pass_at_k, sample_figures
from caspo.judges.base import Chain
from caspo.records import ROOT, Label, Node, Question, Step, Tree, Verdict
from caspo.search import answer_path
from caspo.testing.scripted import Scripted, ScriptedEngine
from tiny import trace

CONFIDENT = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=7)


def answered(rows: Sequence[tuple[float, bool]]) -> list[Outcome]:
    return [Outcome(f"q{i}", "5", right, c, 10, 0.1, False) for i, (c, right) in enumerate(rows)]


def slow_aurc(rows: Sequence[tuple[float, bool]]) -> float:
    """The mean, over all orders of equal confidences, of the mean share of wrong answers among the first i."""
    areas = []
    for order in itertools.permutations(rows):
        if all(x[0] >= y[0] for x, y in itertools.pairwise(order)):
            wrong = list(itertools.accumulate(not right for _, right in order))
            areas.append(np.mean([w / (i + 1) for i, w in enumerate(wrong)]))
    return float(np.mean(areas))


@given(CONFIDENT)
def test_area_under_risk_and_coverage(rows: list[tuple[float, bool]]) -> None:
    """As the mean over all orders in which equal confidences may stand."""
    assert answer_figures(answered(rows))["aurc"] == pytest.approx(slow_aurc(rows))


@given(CONFIDENT, st.integers(0, 3))
def test_area_of_a_resample_is_that_of_its_rows(rows: list[tuple[float, bool]], seed: int) -> None:
    """A question drawn twice counts as two; without a single answer in a resample there is no area."""
    draws = draw_questions(len(rows), seed, 5)
    confidence, right = (np.array(column) for column in zip(*rows, strict=True))
    found = resampled_aurc(confidence.astype(float), right.astype(bool), np.arange(len(rows)), draws)
    drawn = [[row for row, times in zip(rows, draw, strict=True) for _ in range(times)] for draw in draws]
    assert found == pytest.approx([slow_aurc(resample) for resample in drawn])
    none = resampled_aurc(confidence[:0].astype(float), right[:0].astype(bool), np.arange(0), draws)
    assert np.isnan(none).all()


@given(CONFIDENT)
def test_risk_and_coverage(rows: list[tuple[float, bool]]) -> None:
    """Each point is what a threshold would do; the last is the method itself."""
    curve = risk_coverage(answered(rows))
    assert [point["threshold"] for point in curve] == sorted({c for c, _ in rows}, reverse=True)
    for point in curve:
        kept = [right for c, right in rows if c >= point["threshold"]]
        assert point["coverage"] == pytest.approx(len(kept) / len(rows))
        assert point["risk"] == pytest.approx(1 - sum(kept) / len(kept))


def test_a_long_curve_is_thinned() -> None:
    """To a hundred points, both ends among them."""
    curve = risk_coverage(answered([(i / 1000, i % 3 > 0) for i in range(1000)]))
    assert len(curve) == 100
    assert curve[0]["threshold"] == 0.999
    assert curve[-1]["coverage"] == 1
    assert curve[-1]["risk"] == pytest.approx(0.334)


def test_confidence_of_what_was_answered() -> None:
    """A withheld answer, and none at all, have no row, but lower the coverage; without any answer every figure is None."""
    none = Outcome("a", None, False, 0.0, 10, 0.1, False)
    withheld = Outcome("b", None, False, 0.4, 10, 0.1, True)
    figures = answer_figures([none, withheld, *answered([(1.0, True), (0.25, False)])])
    assert (figures["n"], figures["ece"], figures["brier"], figures["auroc"]) == (2, 0.125, 0.03125, 1)
    assert figures["ece_mass"] == 0.125
    assert risk_coverage([none, withheld, *answered([(1.0, True)])])[-1]["coverage"] == pytest.approx(1 / 3)
    empty = answer_figures([none, withheld])
    assert empty.pop("n") == 0
    assert set(empty.values()) == {None}
    assert risk_coverage([none]) == []


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_unbiased(samples: int, data: st.DataObject) -> None:
    """The share of all subsets of k that hold a right sample."""
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    marks = [i < right for i in range(samples)]
    subsets = list(itertools.combinations(marks, k)) if math.comb(samples, k) < 1000 else None
    if subsets:
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def sampled(*answers: str, correct: bool = False) -> Outcome:
    return Outcome(
        "q", answers[0], correct, 1.0, 10, 0.1, False, samples=tuple(Sample(a, a in ("5", "yes")) for a in answers)
    )


def test_pass_and_majority_of_samples() -> None:
    """For k of 1, 2, 4, ... and all; the last majority is what the method came to, if that is how it chooses."""
    outcomes = [sampled("5", "5", "6", correct=True), sampled("6", "6", "6"), sampled("yes", "no", "no")]
    figures = sample_figures(outcomes, majority=True)
    assert list(figures["pass_at_k"]) == list(figures["maj_at_k"]) == ["1", "2", "3"]
    assert figures["pass_at_k"]["1"]["value"] == pytest.approx((2 / 3 + 0 + 1 / 3) / 3)
    assert figures["pass_at_k"]["3"] == {"value": pytest.approx(2 / 3), "ci95": list(wilson(2, 3))}
    assert figures["maj_at_k"]["1"]["value"] == pytest.approx(1 / 3, abs=0.1)
    low, high = figures["maj_at_k"]["1"]["ci95"]
    assert 0 <= low < figures["maj_at_k"]["1"]["value"] < high <= 1
    assert figures["maj_at_k"]["3"] == {"value": pytest.approx(1 / 3), "ci95": list(wilson(1, 3))}
    assert sample_figures(outcomes, majority=False)["maj_at_k"]["3"]["value"] == pytest.approx(1 / 3)
    alone = sample_figures(outcomes[:1], majority=True)["pass_at_k"]["1"]
    assert alone == {"value": pytest.approx(2 / 3), "ci95": None}, "one question says nothing about how questions differ"
    assert sample_figures(answered([(1.0, True)]), majority=True) == {"pass_at_k": None, "maj_at_k": None}


def told(*labels: Label) -> list[Verdict]:
    return [Verdict(label) for label in labels]


def test_right_answers_by_wrong_steps() -> None:
    """Of the paths on which the judge could tell a step; unknown ones are neither right nor wrong."""
    paths = [
        told("right", "right"), told("right", "wrong"), told("unknown", "right"), told("unknown", "wrong"),
        told("unknown", "unknown"), [],
    ]  # fmt: skip
    found = faithfulness(paths)
    assert found == {"n": 4, "whole": 3, "wrong_step": 0.5, "wrong_step_ci95": list(wilson(2, 4))}
    assert faithfulness(paths[4:]) == {"n": 0, "whole": 0, "wrong_step": None, "wrong_step_ci95": None}


def tree(*nodes: tuple[int, str, float, str]) -> Tree:
    """A tree of (parent, text, log p, decision)."""
    made: list[Node] = []
    for i, (parent, text, logprob, decision) in enumerate(nodes):
        depth = 1 if parent == ROOT else made[parent].depth + 1
        made.append(Node(i, parent, depth, Step(text, (7,), trace(1, 0.5, logprob)), decision=decision))
    return Tree(Question("Q", "5", id="q"), (1,), tuple(made))


def test_path_of_an_answer() -> None:
    """The most probable finished path that states it; of all of them where none does; pruned ones only where all are."""
    grown = tree(
        (ROOT, "a\n", -0.1, "expanded"), (0, "The answer is 5.", -2.0, "finished"),
        (0, "The answer is 5.0.", -1.0, "finished"), (0, "The answer is 6.", -0.1, "finished"),
        (ROOT, "The answer is 5.", 0.0, "pruned"),
    )  # fmt: skip
    assert [n.id for n in answer_path(grown, "5")] == [0, 2]
    assert [n.id for n in answer_path(grown, "6")] == [0, 3]
    assert [n.id for n in answer_path(grown, None)] == [0, 3]
    assert [n.id for n in answer_path(tree((ROOT, "a", -1.0, "pruned"), (ROOT, "b", -0.5, "cut")), None)] == [1]
    assert answer_path(tree(), "5") == ()


class Choices:
    """A task whose answers are words, graded in its own way."""

    name = "choices"
    graded = 0

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        return [Question(f"Q{i}", "no", id=f"q{i}") for i in range(n)]

    def grade(self, question: Question, answer: str | None) -> bool:
        self.graded += 1
        return answer is not None and answer.casefold() in ("no", "nope")


class Clueless:
    """A judge that can tell nothing."""

    name = "clueless"
    instant = True

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        return [told(*["unknown"] * len(chain.steps)) for chain in chains]  # type: ignore[list-item]


def test_a_task_without_step_judge_and_with_its_own_grader(tmp_path: Path) -> None:
    """Every method is evaluated; figures of steps are null, samples are graded by the task, each answer once."""
    every = {"samples": 4}
    settings = EvaluateSettings.model_validate(
        {"questions": 4, "best_of_n": every, "beam": {}, "deepconf_offline": every, "deepconf_online": every, "dipt": {},
         "self_consistency": every, "adaptive_consistency": every, "esc": every | {"window": 2}, "reasc": every,
         "entropy_tree": {"paths": 4}}
    )  # fmt: skip
    answers = [Scripted(f"Hm.\nThe answer is {a}.", p, eos=True) for a, p in (("NOPE", 0.5), ("no", 0.3), ("yes", 0.2))]

    def script(text: str) -> list[Scripted]:
        told = text.rpartition("\n")[0].count("Hm.")
        return [Scripted(a.text.partition("\n")[2], a.probability, eos=True) for a in answers] if told else answers

    task = Choices()
    evaluate_methods(task, lambda: ScriptedEngine(script), settings, 0, tmp_path)
    entry, drawn, calibrator = round_metrics(tmp_path, Clueless(), settings)
    assert entry["steps"] == {"n": 0}
    assert calibrator is None
    assert set(entry["methods"]) == {method.name for method in settings.methods()}
    for name, found in entry["methods"].items():
        assert found["accuracy"] is not None
        assert found["faithfulness"] == {"n": 0, "whole": 0, "wrong_step": None, "wrong_step_ci95": None}
        assert found["answers"]["n"] == 4
        assert drawn["risk_coverage"][name]
        with_samples = name in ("self_consistency", "best_of_n", "deepconf_offline")
        assert (found["pass_at_k"] is not None) == (found["maj_at_k"] is not None) == with_samples
    outcomes, _ = read_outcomes(tmp_path, "self_consistency")
    assert all(len(o.samples) == 4 for o in outcomes)
    assert {s.answer for o in outcomes for s in o.samples if s.correct} == {"NOPE", "no"}
    passed = entry["methods"]["self_consistency"]["pass_at_k"]
    assert passed["1"]["value"] == np.mean([s.correct for o in outcomes for s in o.samples])
    assert task.graded <= 4 * 3 * len(entry["methods"]), "an answer that came up before is not graded again"
