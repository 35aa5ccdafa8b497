"""From the files of an evaluation to the figures of one round in `metrics.json`, and what the report draws besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo.confidence import step_score
from caspo.confidence.calibration import Calibrator, reliability
from caspo.core.errors import DataError
from caspo.data.annotate import judge_trees
from caspo.evaluate.answer_figures import answer_figures, risk_coverage
from caspo.evaluate.estimates import wilson
from caspo.evaluate.paths import faithfulness
from caspo.evaluate.run import EvaluateSettings, Outcome, read_outcomes
from caspo.evaluate.samples import sample_figures
from caspo.evaluate.step_figures import StepRows, sampled_method, step_calibrator, step_figures, step_rows
from caspo.judges.base import Chain, Judge
from caspo.records import Tree
from caspo.search import Method, answer_path

__all__ = ["judge_round", "round_metrics"]

_SHOWN_TREES = 8


def round_metrics(
    folder: Path, judge: Judge, settings: EvaluateSettings
) -> tuple[dict[str, Any], dict[str, Any], Calibrator | None]:
    """The round's entry of `metrics.json` (without ``round`` and ``training``), what the report draws besides, and the
    calibrator of the step confidence.

    Calibrated figures are cross-fitted: the steps of one half of the questions are calibrated by a map fitted on the
    other half. The calibrator that is returned is fitted on all of them.
    """
    methods: dict[str, Any] = {}
    drawn: dict[str, Any] = {"budget_curve": {}, "risk_coverage": {}, "trees": []}
    rows = step_rows([], [])
    for method in settings.methods():
        outcomes, trees = read_outcomes(folder, method.name)
        if not outcomes:
            raise DataError(f"{folder / method.name} holds no outcomes: no question was asked. Evaluate some, then measure.")
        entry = _method_entry(method, outcomes) | {"faithfulness": faithfulness(judge.judge(_right_paths(outcomes, trees)))}
        if method.name == "cat":
            trees = judge_trees(trees, judge)
            entry |= _over_pruning(trees)
            drawn["trees"] = _shown(outcomes, trees)
        if method.name == sampled_method(settings):
            rows = step_rows(judge_trees(trees, judge), [o.question_id for o in outcomes])
        if method.name == "self_consistency":
            drawn["budget_curve"][method.name] = _budget_curve(entry)
        drawn["risk_coverage"][method.name] = risk_coverage(outcomes)
        methods[method.name] = entry | {"settings": method.settings.model_dump(mode="json")}
    bins = reliability(rows.confidence, rows.right, weights=rows.weights) if len(rows.right) else []
    drawn["reliability"] = [b._asdict() for b in bins]
    drawn["entropy"] = {
        name: rows.entropy[rows.right == value][:1000].round(4).tolist()
        for name, value in (("right", True), ("wrong", False))
    }
    probability = _cross_fitted(rows)
    if probability is not None:
        drawn["reliability_calibrated"] = [b._asdict() for b in reliability(probability, rows.right, weights=rows.weights)]
    measured = {"methods": methods, "steps": step_figures(rows, probability)}
    return measured, drawn, step_calibrator(rows)


def judge_round(folder: Path, judge: Judge, settings: EvaluateSettings) -> None:
    """Ask the judge all that `round_metrics` asks it about this folder: for the verdicts that it keeps."""
    for method in settings.methods():
        outcomes, trees = read_outcomes(folder, method.name)
        judge.judge(_right_paths(outcomes, trees))
        if method.name in ("cat", sampled_method(settings)):
            judge_trees(trees, judge)


def _cross_fitted(rows: StepRows) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Probabilities of being right, every step's from the half of the questions that it is not in."""
    probability = np.zeros(len(rows.right))
    for inside in (rows.second_half, ~rows.second_half):
        calibrator = step_calibrator(rows, ~inside)
        if calibrator is None or not inside.any():
            return None
        probability[inside] = calibrator.predict(rows.confidence[inside])
    return probability


def _method_entry(method: Method[Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    n = len(outcomes)
    correct = sum(o.correct for o in outcomes)
    return {
        "n": n,
        "accuracy": correct / n,
        "accuracy_ci95": list(wilson(correct, n)),
        "generated_tokens_per_question": sum(o.tokens for o in outcomes) / n,
        "seconds_per_question": sum(o.seconds for o in outcomes) / n,
        "abstained": sum(o.abstained for o in outcomes) / n,
        "over_pruned": None,
        "over_pruned_n": 0,
        **sample_figures(outcomes, majority=method.name == "self_consistency"),
        "answers": answer_figures(outcomes),
    }


def _right_paths(outcomes: Sequence[Outcome], trees: Sequence[Tree]) -> list[Chain]:
    """The paths of the right answers, for a judge."""
    answers = {o.question_id: o.answer for o in outcomes if o.correct}
    paths = [(t.question, answer_path(t, answers[t.question.id])) for t in trees if t.question.id in answers]
    return [Chain(question, tuple(node.step.text for node in path), path[-1].final) for question, path in paths]


def _over_pruning(trees: Sequence[Tree]) -> dict[str, Any]:
    """``over_pruned``: the share of trees on which it happened, of those (``over_pruned_n``) on which the judge could tell a
    step; None where it could tell nothing at all."""
    told = [tree for tree in trees if any(n.verdict is not None and n.verdict.label != "unknown" for n in tree.nodes)]
    return {"over_pruned": sum(map(_over_pruned, told)) / len(told) if told else None, "over_pruned_n": len(told)}


def _over_pruned(tree: Tree) -> bool:
    """Whether the search gave up a right step at some depth and had no other right path left, live or finished."""
    right = [n for n in tree.nodes if n.right]

    def left_at(depth: int) -> bool:
        return any(
            (n.decision == "expanded" and n.depth == depth) or (n.decision == "finished" and n.depth <= depth) for n in right
        )

    return any(n.decision in ("pruned", "dropped", "cut") and not left_at(n.depth) for n in right)


def _budget_curve(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of the majority of k samples against their tokens."""
    voted: Mapping[str, Any] = entry["maj_at_k"] or {}
    samples = max(map(int, voted), default=1)
    tokens = entry["generated_tokens_per_question"] / samples
    return [
        {"tokens": int(k) * tokens, "accuracy": share["value"], "low": low, "high": high, "label": f"SC@{k}"}
        for k, share in voted.items()
        for low, high in [share["ci95"] or (None, None)]
    ]


def _shown(outcomes: Sequence[Outcome], trees: Sequence[Tree]) -> list[dict[str, Any]]:
    """Some solved trees for the report: those in which the search had something to decide, wrong ones among them."""
    found = {outcome.question_id: outcome for outcome in outcomes}
    outcomes = [found[tree.question.id] for tree in trees]
    order = sorted(range(len(trees)), key=lambda i: (-min(12, len(trees[i].nodes)), i))
    wrong = [i for i in order if not outcomes[i].correct][: _SHOWN_TREES // 2 - 1]
    right = [i for i in order if outcomes[i].correct][: _SHOWN_TREES - len(wrong)]
    return [
        {
            "question": trees[i].question.text,
            "gold": trees[i].question.answer,
            "answer": outcomes[i].answer,
            "correct": outcomes[i].correct,
            "tokens": outcomes[i].tokens,
            "nodes": [
                {
                    "id": n.id,
                    "parent": n.parent,
                    "text": n.step.text.strip(),
                    "confidence": step_score(n.step.trace),
                    "verdict": n.verdict.label if n.verdict else "unknown",
                    "decision": n.decision,
                    "count": n.count,
                }
                for n in trees[i].nodes
            ],
        }
        for i in sorted(right + wrong)
    ]
