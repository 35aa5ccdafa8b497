"""Evaluation: figures of hand-made trees that can be counted by hand, and chunks that are never solved twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.confidence import SIGNALS
from caspo.core.errors import DataError
from caspo.core.storage import write_json
from caspo.data.annotate import judge_trees
from caspo.engines.base import Completion, Request
from caspo.evaluate import run
from caspo.evaluate.estimates import wilson
from caspo.evaluate.metrics import round_metrics
from caspo.evaluate.run import EvaluateSettings, Outcome, evaluate_methods, read_outcomes
from caspo.evaluate.step_figures import step_changes, step_rows
from caspo.formats.parquet import write_trees
from caspo.judges.base import StepJudge
from caspo.records import ROOT, Label, Measured, Node, Question, Step, TokenTrace, Tree, Verdict
from caspo.search import ConfidenceTree
from caspo.steps import text_of
from caspo.tasks.base import grade
from caspo.testing.scripted import EOS, Script, Scripted, ScriptedEngine
from tiny import same_tree, trace


class Told(StepJudge):
    """A judge that reads the verdict in the step itself."""

    name = "told"

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        label: Label = "right" if "good" in step else "wrong" if "bad" in step else "unknown"
        return Verdict(label, "", self.name)


def grown(name: str, *nodes: tuple[int, str, float, float, int, str], answer: str = "5") -> Tree:
    """A tree of (parent, text, entropy, logprob, count, decision)."""
    made: list[Node] = []
    for i, (parent, text, entropy, logprob, count, decision) in enumerate(nodes):
        depth = 1 if parent == ROOT else made[parent].depth + 1
        step = Step(text, (7, 8), trace(2, entropy, logprob))
        made.append(Node(i, parent, depth, step, count=count, decision=decision))
    return Tree(Question(f"Q {name}", answer, id=name), (1, 2, 3), tuple(made))


def outcome(name: str, *, correct: bool = True, tokens: int = 10, abstained: bool = False) -> Outcome:
    return Outcome(name, "5" if correct else "6", correct, 0.5, tokens, 0.25, abstained)


def store(folder: Path, method: str, trees: Sequence[Tree], outcomes: Sequence[Outcome], part: int = 0) -> None:
    write_trees(folder / method / f"part-{part:03d}.parquet", trees)
    write_json(folder / method / f"part-{part:03d}.json", [vars(o) for o in outcomes])


def only(*methods: str) -> EvaluateSettings:
    return EvaluateSettings.model_validate(
        {name: None for name in ("chain_of_thought", "self_consistency", "cat") if name not in methods}
    )


SAMPLED = [
    grown(
        "a",
        (ROOT, "good 1\n", 0.2, -0.1, 3, ""), (ROOT, "bad 1\n", 0.4, -0.9, 1, ""),
        (0, "good: The answer is 5.", 0.1, -0.2, 2, ""), (0, "hm: The answer is 6.", 0.1, -0.2, 1, ""),
        (1, "bad: The answer is 6.", 3.0, -3.0, 1, ""),
    ),
    grown(
        "b",
        (ROOT, "good 1\n", 0.6, -0.3, 2, ""), (ROOT, "bad 1\n", 0.5, -0.6, 2, ""),
        (0, "good: The answer is 5.", 0.0, 0.0, 2, ""), (1, "bad: The answer is 6.", 3.0, -3.0, 2, ""),
    ),
]  # fmt: skip
"""Judged: of a, steps 0, 1, 2 (3 is unknown, 4 follows a wrong step); of b, steps 0, 1, 2."""


def measured(folder: Path, trees: Sequence[Tree] = SAMPLED) -> tuple[Any, Any, Any]:
    outcomes = [outcome(t.question.id, correct=i == 0, tokens=40) for i, t in enumerate(trees)]
    store(folder, "self_consistency", trees, outcomes)
    return round_metrics(folder, Told(), only("self_consistency"))


def test_steps_are_weighted_by_how_often_they_were_sampled(tmp_path: Path) -> None:
    """Unknown steps and what follows a wrong one do not count; a step sampled three times counts three times."""
    entry, drawn, _ = measured(tmp_path)
    steps = entry["steps"]
    right, wrong = [(3, 0.2), (2, 0.1), (2, 0.6), (2, 0.0)], [(1, 0.4), (2, 0.5)]
    total = sum(n for n, _ in right + wrong)
    assert steps["n"] == total == 12
    assert steps["accuracy"] == pytest.approx(9 / 12)
    assert steps["entropy_right"] == pytest.approx(sum(n * h for n, h in right) / 9)
    assert steps["entropy_wrong"] == pytest.approx(sum(n * h for n, h in wrong) / 3)
    brier = sum(n * (1 - math.exp(-h)) ** 2 for n, h in right) + sum(n * math.exp(-h) ** 2 for n, h in wrong)
    assert steps["brier"] == pytest.approx(brier / 12)
    assert drawn["entropy"] == {"right": [0.2, 0.1, 0.6, 0.0], "wrong": [0.4, 0.5]}
    assert sum(b["n"] for b in drawn["reliability"]) == 12


def test_two_aurocs(tmp_path: Path) -> None:
    """Across all steps every (right, wrong) sample counts; among siblings only those of one parent."""
    steps = measured(tmp_path)[0]["steps"]
    # right 3 x 0.2, 2 x 0.1, 2 x 0.6, 2 x 0.0; wrong 1 x 0.4, 2 x 0.5: only the 0.6 loses
    assert steps["auroc"]["entropy"] == pytest.approx(7 / 9)
    assert steps["auroc"]["logprob_sum"] == 1
    # a: 0.2 before 0.4; b: 0.6 after 0.5
    assert steps["auroc_siblings"]["entropy"] == 0.5
    assert steps["auroc_siblings"]["logprob_sum"] == 1
    assert steps["sibling_groups"] == 2
    assert steps["auroc"].keys() == steps["auroc_siblings"].keys() == {*SIGNALS, "sibling_frequency"}


def test_sibling_frequency(tmp_path: Path) -> None:
    """The share of the samples at one prefix, those of unknown steps counted; each AUROC weighs as for other signals."""
    rows = step_rows(judge_trees(SAMPLED, Told()), ["a", "none", "b"])
    assert rows.signals["sibling_frequency"].tolist() == pytest.approx([3 / 4, 1 / 4, 2 / 3, 1 / 2, 1 / 2, 1])
    assert rows.question.tolist() == [0, 0, 0, 2, 2, 2]
    assert rows.questions == 3
    steps = measured(tmp_path)[0]["steps"]
    # right 3 x 3/4, 2 x 2/3, 2 x 1/2, 2 x 1; wrong 1 x 1/4, 2 x 1/2: the right 1/2 ties with the wrong 1/2
    assert steps["auroc"]["sibling_frequency"] == pytest.approx((9 * 3 - 2 * 2 / 2) / (9 * 3))
    # a: 3/4 before 1/4; b: a tie
    assert steps["auroc_siblings"]["sibling_frequency"] == 0.75


def many(name: str, questions: int, *, spread: float) -> list[Tree]:
    """Trees with a right and a wrong first step; the wrong one is the less sure by ``spread`` in two of three questions."""
    return [
        grown(
            f"{name}{i}",
            (ROOT, "good 1\n", 0.3 + 0.01 * (i % 7), -0.1, 1 + i % 3, ""),
            (ROOT, "bad 1\n", 0.3 + 0.01 * (i % 5) + (spread if i % 3 else -spread), -0.2, 3 - i % 3, ""),
        )
        for i in range(questions)
    ]


def test_aurocs_have_intervals(tmp_path: Path) -> None:
    """One for each signal and family, around the figure, narrower with more questions; that of a separating signal too is
    no certainty: Wilson's of as many questions as hold a right and a wrong step."""
    width = []
    for questions in (30, 300):
        steps = measured(tmp_path / str(questions), many("q", questions, spread=0.1))[0]["steps"]
        for family in ("auroc", "auroc_siblings"):
            assert steps[f"{family}_ci95"].keys() == steps[family].keys()
            for name, (low, high) in steps[f"{family}_ci95"].items():
                assert low <= steps[family][name] <= high
            assert steps[f"{family}_ci95"]["logprob_sum"][0] >= wilson(questions, questions).low - 0.03
            assert 1 > steps[f"{family}_ci95"]["logprob_sum"][0] > 0.8
            assert steps[f"{family}_ci95"]["logprob_sum"][1] == 1
        assert steps["auroc_siblings"]["entropy"] == pytest.approx(2 / 3)
        low, high = steps["auroc_siblings_ci95"]["entropy"]
        width.append(high - low)
    # of a share of n independent questions: 2 x 1.96 standard errors
    expected = [2 * 1.96 * math.sqrt(2 / 9 / questions) for questions in (30, 300)]
    assert width == pytest.approx(expected, rel=0.15)


def test_too_few_questions_give_no_interval(tmp_path: Path) -> None:
    """One question, or one with a wrong step among many: the figure stands alone."""
    steps = measured(tmp_path / "one", SAMPLED[:1])[0]["steps"]
    assert steps["auroc_siblings"]["entropy"] == 1
    assert steps["auroc_ci95"]["entropy"] is None
    assert steps["auroc_siblings_ci95"]["entropy"] is None
    alike = [grown(f"q{i}", (ROOT, "good 1\n", 0.05 * i, -0.1, 4, "")) for i in range(20)]
    steps = measured(tmp_path / "many", [SAMPLED[0], *alike])[0]["steps"]
    assert 0 < steps["auroc"]["entropy"] < 1
    assert steps["auroc_ci95"]["entropy"] is None
    assert steps["auroc_siblings_ci95"]["entropy"] is None


def test_change_between_two_evaluations(tmp_path: Path) -> None:
    """The differences of the figures in `metrics.json`; both are resampled alike, so equal figures differ by nothing."""
    before, after = many("q", 90, spread=0.1), many("q", 90, spread=-0.1)
    first, second = (measured(tmp_path / n, t)[0]["steps"] for n, t in (("a", before), ("b", after)))
    settings = only("self_consistency")
    changes = {c.pop("figure"): c for c in step_changes(tmp_path / "a", tmp_path / "b", Told(), settings)}
    figures = {
        **{name: (first[name], second[name]) for name in ("accuracy", "ece_debiased", "brier")},
        "auroc_entropy": (first["auroc"]["entropy"], second["auroc"]["entropy"]),
        "auroc_siblings_entropy": (first["auroc_siblings"]["entropy"], second["auroc_siblings"]["entropy"]),
    }
    assert changes.keys() == figures.keys()
    for name, (old, new) in figures.items():
        assert changes[name]["difference"] == pytest.approx(new - old, abs=1e-12)
        if name != "accuracy":
            assert changes[name]["low"] <= changes[name]["difference"] <= changes[name]["high"]
    # the same verdicts in both, so nothing moves however the questions are drawn: that says nothing about other questions
    assert changes["accuracy"] == {"difference": 0, "low": None, "high": None}
    assert changes["auroc_siblings_entropy"]["difference"] == pytest.approx(-1 / 3)
    assert changes["auroc_siblings_entropy"]["high"] < 0
    assert changes["brier"]["low"] < changes["brier"]["high"]
    assert step_changes(tmp_path / "a", tmp_path / "a", Told(), settings)[2]["high"] is None
    back = {c.pop("figure"): c for c in step_changes(tmp_path / "b", tmp_path / "a", Told(), settings)}
    assert back["brier"]["low"] == pytest.approx(-changes["brier"]["high"])


def test_change_that_is_undefined(tmp_path: Path) -> None:
    """No wrong step after training: the AUROC has no change. No judged step at all, no method: nothing is compared."""
    trees = many("q", 20, spread=0.1)
    store(tmp_path / "a", "cat", trees, [outcome(t.question.id) for t in trees])
    store(tmp_path / "b", "cat", [replace(t, nodes=t.nodes[:1]) for t in trees], [outcome(t.question.id) for t in trees])
    store(tmp_path / "c", "cat", [replace(t, nodes=()) for t in trees], [outcome(t.question.id) for t in trees])
    changes = {c.pop("figure"): c for c in step_changes(tmp_path / "a", tmp_path / "b", Told(), only("cat"))}
    assert changes["accuracy"]["difference"] > 0
    assert changes["auroc_entropy"] == {"difference": None, "low": None, "high": None}
    assert step_changes(tmp_path / "a", tmp_path / "c", Told(), only("cat")) == []
    assert step_changes(tmp_path / "a", tmp_path / "b", Told(), only()) == []


def test_calibration_is_cross_fitted(tmp_path: Path) -> None:
    """Each half of the questions is calibrated by the other; a half without right or without wrong steps gives none."""
    entry, drawn, calibrator = measured(tmp_path / "both")
    # fitted on b: 0.0 is right, 0.5 and 0.6 pool to one half (2 right, 2 wrong); a's confidences lie between or above
    assert 0 <= entry["steps"]["brier_calibrated"] <= 1
    assert 0 <= entry["steps"]["ece_calibrated"] <= 1
    assert drawn["reliability_calibrated"]
    assert calibrator is not None
    alone = grown("c", (ROOT, "good 1\n", 0.6, -0.3, 4, ""), (0, "good: The answer is 5.", 0.0, 0.0, 4, ""))
    entry, drawn, calibrator = measured(tmp_path / "one", [SAMPLED[0], alone])
    assert entry["steps"]["ece_calibrated"] is None
    assert entry["steps"]["brier_calibrated"] is None
    assert "reliability_calibrated" not in drawn
    assert calibrator is not None, "on all steps there is something to fit"
    entry, _, calibrator = measured(tmp_path / "none", [alone, replace(alone, question=Question("Q d", "5", id="d"))])
    assert calibrator is None
    assert entry["steps"]["auroc"]["entropy"] is None
    assert entry["steps"]["auroc_siblings"]["entropy"] is None
    assert entry["steps"]["entropy_wrong"] is None


def test_halves_do_not_go_by_the_order_of_the_questions(tmp_path: Path) -> None:
    """Levels that take turns must not each be a half: hard ones calibrated on easy ones were off by what divides them."""
    rng = np.random.default_rng(0)
    trees = []
    for i in range(400):
        right = rng.random() < (0.9 if i % 2 else 0.5)
        trees.append(grown(f"q{i}", (ROOT, "good 1\n" if right else "bad 1\n", rng.uniform(0.2, 0.4), -0.1, 1, "")))
    rows = step_rows(judge_trees(trees, Told()), [tree.question.id for tree in trees])
    second = rows.second_half
    assert second.sum() == 200
    assert 70 < (second & (rows.question % 2 == 0)).sum() < 130
    back = step_rows(judge_trees(trees[::-1], Told()), [tree.question.id for tree in trees[::-1]])
    assert np.array_equal(second, back.second_half[::-1])
    entry = measured(tmp_path, trees)[0]["steps"]
    assert entry["ece_calibrated"] < 0.1, "by parity it is 0.4"


def test_no_judged_step(tmp_path: Path) -> None:
    """A judge that can tell nothing, or no method at all: no figures, but no failure either."""
    entry, drawn, calibrator = measured(tmp_path, [grown("a", (ROOT, "hm: The answer is 5.", 0.1, -0.1, 2, ""))])
    assert entry["steps"] == {"n": 0}
    assert entry["methods"]["self_consistency"]["n"] == 1
    assert drawn["reliability"] == []
    assert calibrator is None
    assert round_metrics(tmp_path, Told(), only())[0] == {"methods": {}, "steps": {"n": 0}}


def test_no_question_is_no_rate(tmp_path: Path) -> None:
    """A share of nothing is said to be none, instead of a division by zero."""
    with pytest.raises(DataError, match="no question was asked"):
        round_metrics(tmp_path, Told(), only("cat"))


def test_method_figures(tmp_path: Path) -> None:
    """Means over the questions, the interval around the accuracy, the settings; over both chunks."""
    outcomes = [outcome("a", tokens=10), outcome("b", correct=False, tokens=30, abstained=True)]
    for part in (0, 1):
        store(tmp_path, "chain_of_thought", SAMPLED, outcomes, part)
    (method,) = round_metrics(tmp_path, Told(), only("chain_of_thought"))[0]["methods"].values()
    settings = method.pop("settings")
    assert settings == {"max_tokens": 512, "max_thinking_tokens": None, "top_p": 1.0, "temperature": 0.0}
    answers = method.pop("answers")
    assert {key: answers[key] for key in ("n", "ece", "ece_mass", "brier", "auroc", "aurc")} == {
        "n": 4, "ece": 0.0, "ece_mass": 0.0, "brier": 0.25, "auroc": 0.5, "aurc": 0.5,
    }  # fmt: skip
    assert answers["auroc_ci95"] is None, "in one of eight resamples all are right, or all wrong"
    for name in ("ece_debiased", "brier", "aurc"):
        low, high = answers[f"{name}_ci95"]
        assert low <= answers[name] <= high
    assert method == {
        "n": 4, "accuracy": 0.5, "accuracy_ci95": list(wilson(2, 4)), "generated_tokens_per_question": 20.0,
        "seconds_per_question": 0.25, "abstained": 0.5, "over_pruned": None, "over_pruned_n": 0,
        "pass_at_k": None, "maj_at_k": None,
        "faithfulness": {"n": 2, "whole": 2, "wrong_step": 0.0, "wrong_step_ci95": list(wilson(0, 2))},
    }  # fmt: skip


GOOD = (ROOT, "good 1\n", 0.1, -0.1, 1)


@pytest.mark.parametrize(
    ("nodes", "over"),
    [
        ([(*GOOD, "expanded"), (ROOT, "bad 1\n", 0.1, -0.1, 1, "pruned")], False),
        ([(*GOOD, "pruned"), (ROOT, "bad 1\n", 0.1, -0.1, 1, "expanded")], True),
        ([(*GOOD, "dropped"), (ROOT, "bad 1\n", 0.1, -0.1, 1, "expanded")], True),
        ([(*GOOD, "cut")], True),
        ([(*GOOD, "pruned"), (*GOOD, "expanded")], False),
        # lost at the second step
        ([(*GOOD, "expanded"), (0, "good 2\n", 0.1, -0.1, 1, "dropped"), (0, "bad 2\n", 0, 0, 1, "expanded")], True),
        # what follows a wrong step is not judged, so it cannot be over-pruned
        ([(ROOT, "bad 1\n", 0.1, -0.1, 1, "expanded"), (0, "good 2\n", 0.1, -0.1, 1, "pruned")], False),
        # another right path had finished one step earlier
        ([(*GOOD, "expanded"), (*GOOD, "finished"), (0, "good 2\n", 0.1, -0.1, 1, "pruned")], False),
        ([(ROOT, "bad 1\n", 0, 0, 1, "finished"), (*GOOD, "expanded"), (1, "good 2\n", 0, 0, 1, "pruned")], True),
    ],
)
def test_over_pruned(tmp_path: Path, nodes: list[tuple[int, str, float, float, int, str]], over: bool) -> None:
    """The share of trees in which a right step was given up while no right path was left."""
    trees = [grown("a", *nodes), grown("b", (*GOOD, "finished"))]
    store(tmp_path, "cat", trees, [outcome("a"), outcome("b")])
    entry, drawn, _ = round_metrics(tmp_path, Told(), only("cat"))
    assert entry["methods"]["cat"]["over_pruned"] == (0.5 if over else 0)
    assert entry["methods"]["cat"]["over_pruned_n"] == 2
    assert {tree["question"] for tree in drawn["trees"]} == {"Q a", "Q b"}


def test_over_pruned_is_null_where_the_judge_can_tell_nothing(tmp_path: Path) -> None:
    """And a share of the trees of which it can tell something."""
    untold = [grown(name, (ROOT, "hm\n", 0.1, -0.1, 1, "pruned")) for name in "ab"]
    lost = grown("c", (ROOT, "good 1\n", 0.1, -0.1, 1, "pruned"), (ROOT, "bad 1\n", 0.1, -0.1, 1, "expanded"))
    for trees, share, n in ((untold, None, 0), ([*untold, lost], 1.0, 1)):
        store(tmp_path / str(n), "cat", trees, [outcome(tree.question.id) for tree in trees])
        entry = round_metrics(tmp_path / str(n), Told(), only("cat"))[0]["methods"]["cat"]
        assert (entry["over_pruned"], entry["over_pruned_n"]) == (share, n)


class StoryTask:
    """Four questions whose number is their answer."""

    name = "told"

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        return [Question(f"Q{i}", str(i), id=f"q{i}") for i in range(4)][:n]

    def grade(self, question: Question, answer: str | None) -> bool:
        return grade(question, answer)


def script(text: str) -> list[Scripted]:
    asked, _, told = text.partition("\n")
    if not told:
        return [Scripted("good step\n", 0.6), Scripted("bad step\n", 0.4)]
    right = int(asked[1:])
    return [Scripted(f"The answer is {right + ('bad' in told)}.", eos=True)]


class Counting(ScriptedEngine):
    """Counts the questions that it is asked."""

    def __init__(self, script: Script, fail_after: int = 10**9) -> None:
        super().__init__(script)
        self.asked: list[str] = []
        self.fail_after = fail_after
        self.forgotten = 0

    def prompt(self, question: str) -> tuple[int, ...]:
        if len(self.asked) >= self.fail_after:
            raise KeyboardInterrupt
        self.asked.append(question)
        return super().prompt(question)

    def forget(self) -> None:
        self.forgotten += 1


SETTINGS = EvaluateSettings.model_validate(
    {"questions": 4, "self_consistency_questions": 3, "self_consistency": {"samples": 5}}
)


def test_majority_of_all_samples_is_what_the_method_found(tmp_path: Path) -> None:
    """The last point of the budget curve is self-consistency's own accuracy and price, at ties too."""
    for seed in range(6):
        folder = tmp_path / str(seed)
        settings = SETTINGS.model_copy(
            update={"self_consistency": SETTINGS.self_consistency.model_copy(update={"samples": 4})}  # type: ignore[union-attr]
        )
        evaluate_methods(StoryTask(), lambda: ScriptedEngine(script), settings, seed, folder)
        entry, drawn, _ = round_metrics(folder, Told(), settings)
        found, curve = entry["methods"]["self_consistency"], drawn["budget_curve"]["self_consistency"]
        assert [point["label"] for point in curve] == ["SC@1", "SC@2", "SC@4"]
        assert curve[-1]["accuracy"] == found["accuracy"]
        assert curve[-1]["tokens"] == pytest.approx(found["generated_tokens_per_question"])
        assert [curve[-1]["low"], curve[-1]["high"]] == found["accuracy_ci95"]


_ROOT = EOS + 1


class Roots(ScriptedEngine):
    """Its root sign is made of several tokens: one by one they are no character."""

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        root = "√".encode()
        return [root[t - _ROOT :][:1] if t >= _ROOT else super(Roots, self).pieces([t])[0] for t in token_ids]

    def play(self, request: Request) -> Completion:
        text = "So it is.\nThe answer is √2." if request.seed % 2 else "The answer is 1."
        ids = [part for c in text for part in ((_ROOT, _ROOT + 1, _ROOT + 2) if c == "√" else (ord(c),))]
        trace = TokenTrace.of([Measured(0.1, -0.1, -0.1, 0.5, 0.1)] * len(ids))
        return Completion(tuple(ids), text_of(self.pieces(ids)), trace, "eos")


def test_characters_of_several_tokens_are_answers(tmp_path: Path) -> None:
    """A text is made of all its bytes, in samples and in trees: pass@1 is the mean of what each sample came to."""

    class RootTask(StoryTask):
        def grade(self, question: Question, answer: str | None) -> bool:
            return answer == "√2"

    evaluate_methods(RootTask(), lambda: Roots({}), SETTINGS.model_copy(update={"cat": None}), 3, tmp_path)
    outcomes, _ = read_outcomes(tmp_path, "self_consistency")
    right = [sum(sample.correct for sample in outcome.samples) for outcome in outcomes]
    assert {sample.answer for outcome in outcomes for sample in outcome.samples} == {"√2", "1"}
    assert all(len(outcome.samples) == 5 for outcome in outcomes)
    assert any(right)
    for outcome, count in zip(outcomes, right, strict=True):
        assert outcome.correct == (count > 2)


def test_finished_chunks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped within a chunk and run again: only what was not finished is solved, and the outcomes are the same."""
    monkeypatch.setattr(run, "_CHUNK_ROWS", 5)  # two questions a chunk, one of self-consistency, of CaT what its rows leave
    whole, stopped, rest, idle = (Counting(script, n) for n in (10**9, 6, 10**9, 10**9))
    seen: list[tuple[str, int, int]] = []
    evaluate_methods(StoryTask(), lambda: whole, SETTINGS, 0, tmp_path / "a", lambda *at: seen.append(at))
    assert whole.asked == ["Q0", "Q1", "Q2", "Q3", "Q0", "Q1", "Q2", "Q0", "Q1", "Q2", "Q3"]
    of_cat = max(1, 5 // ConfidenceTree().settings.rows)
    assert whole.forgotten == 2 + 3 + math.ceil(4 / of_cat), "every chunk pays for its own prompts"
    assert seen[-1] == ("cat", 4, 4)
    assert ("self_consistency", 3, 3) in seen
    with pytest.raises(KeyboardInterrupt):
        evaluate_methods(StoryTask(), lambda: stopped, SETTINGS, 0, tmp_path / "b")
    again: list[tuple[str, int, int]] = []
    evaluate_methods(StoryTask(), lambda: rest, SETTINGS, 0, tmp_path / "b", lambda *at: again.append(at))
    assert again == seen, "the bars start where they were"
    assert stopped.asked + rest.asked == whole.asked
    for method in ("chain_of_thought", "self_consistency", "cat"):
        (first, trees), (second, same) = (read_outcomes(tmp_path / name, method) for name in "ab")
        assert [replace(o, seconds=0) for o in first] == [replace(o, seconds=0) for o in second]
        assert all(same_tree(a, b) for a, b in zip(trees, same, strict=True))

    def never() -> ScriptedEngine:
        raise AssertionError("a finished evaluation loads no model")

    evaluate_methods(StoryTask(), never, SETTINGS, 0, tmp_path / "b")
    # a damaged file is deleted, as the message about it says: that chunk alone is made again
    (tmp_path / "b" / "chain_of_thought" / "part-001.parquet").unlink()
    evaluate_methods(StoryTask(), lambda: idle, SETTINGS, 0, tmp_path / "b")
    assert idle.asked == ["Q2", "Q3"]
