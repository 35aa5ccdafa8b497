"""From the files of an evaluation to the figures of one round in `metrics.json`, and what the report draws besides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from caspo.answers import extract_answer, same_answer
from caspo.confidence import DEFAULT_SIGNAL, step_score
from caspo.data.annotate import judge_trees
from caspo.evaluate.calibration import Calibrator, fit, reliability
from caspo.evaluate.run import EvaluateSettings, Outcome, read_outcomes
from caspo.evaluate.statistics import wilson
from caspo.evaluate.step_figures import StepRows, sampled_method, step_figures, step_rows
from caspo.judges.base import Judge
from caspo.search.vote import vote
from caspo.trees import seed_of
from caspo.types import Tree

__all__ = ["round_metrics"]

_SHOWN_TREES = 8
_DRAWS = 40
"""Random subsets for a point of the budget curve."""


def round_metrics(
    folder: Path, judge: Judge, settings: EvaluateSettings
) -> tuple[dict[str, Any], dict[str, Any], Calibrator | None]:
    """The round's entry of `metrics.json` (without ``round`` and ``training``), what the report draws besides, and the
    calibrator of the step confidence.

    Calibrated figures are cross-fitted: the steps of one half of the questions are calibrated by a map fitted on the
    other half. The calibrator that is returned is fitted on all of them.
    """
    methods: dict[str, Any] = {}
    drawn: dict[str, Any] = {"budget_curve": {}, "trees": []}
    rows = step_rows([], [])
    for method in settings.methods():
        outcomes, trees = read_outcomes(folder, method.name)
        methods[method.name] = _method_entry(outcomes) | {"settings": method.settings.model_dump(mode="json")}
        if method.name == "cat":
            trees = judge_trees(trees, judge)
            methods[method.name]["over_pruned"] = sum(map(_over_pruned, trees)) / len(trees)
            drawn["trees"] = _shown(outcomes, trees)
        if method.name == sampled_method(settings):
            rows = step_rows(judge_trees(trees, judge), [o.question_id for o in outcomes])
        if method.name == "self_consistency":
            drawn["budget_curve"][method.name] = _budget_curve(outcomes, trees)
    bins = reliability(rows.confidence, rows.right, weights=rows.weights) if len(rows.right) else []
    drawn["reliability"] = [b._asdict() for b in bins]
    drawn["entropy"] = {
        name: rows.entropy[rows.right == value][:1000].round(4).tolist()
        for name, value in (("right", True), ("wrong", False))
    }
    probability = _cross_fitted(rows)
    if probability is not None:
        drawn["reliability_calibrated"] = [
            b._asdict() for b in reliability(probability, rows.right, weights=rows.weights)
        ]
    entry = {"methods": methods, "steps": step_figures(rows, probability)}
    return entry, drawn, _fit(rows, np.ones(len(rows.right), dtype=np.bool_))


def _fit(rows: StepRows, which: np.ndarray[Any, np.dtype[np.bool_]]) -> Calibrator | None:
    """The map from step confidence to the probability of being right; None where all steps are alike."""
    right = rows.right[which]
    if len(right) == 0 or right.all() or not right.any():
        return None
    return fit(rows.confidence[which], right, "isotonic", rows.weights[which], DEFAULT_SIGNAL)


def _cross_fitted(rows: StepRows) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Probabilities of being right, every step's from the half of the questions that it is not in."""
    probability = np.zeros(len(rows.right))
    for half in (0, 1):
        inside = rows.question % 2 == half
        calibrator = _fit(rows, ~inside)
        if calibrator is None or not inside.any():
            return None
        probability[inside] = calibrator.predict(rows.confidence[inside])
    return probability


def _method_entry(outcomes: Sequence[Outcome]) -> dict[str, Any]:
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
    }


def _over_pruned(tree: Tree) -> bool:
    """Whether the search gave up a right step at some depth and had no other right path left, live or finished."""
    right = [n for n in tree.nodes if n.right]

    def left_at(depth: int) -> bool:
        return any(
            (n.decision == "expanded" and n.depth == depth) or (n.decision == "finished" and n.depth <= depth)
            for n in right
        )

    return any(n.decision in ("pruned", "dropped", "cut") and not left_at(n.depth) for n in right)


def _budget_curve(outcomes: Sequence[Outcome], trees: Sequence[Tree]) -> list[dict[str, Any]]:
    """Accuracy of the majority of k samples: of all, what the method came to; of fewer, from random subsets."""
    bags = [_answers(tree) for tree in trees]
    samples = max(len(bag) for bag in bags)
    tokens = sum(o.tokens for o in outcomes) / len(outcomes) / samples
    curve = []
    for k in [k for k in (1, 2, 4, 8, 16, 32) if k < samples] + [samples]:
        if k == samples:  # not voted again: the tree has lost the order that decides a tie
            shares = [float(o.correct) for o in outcomes]
        else:
            shares = [_share_right(tree, bag, k) for tree, bag in zip(trees, bags, strict=True)]
        accuracy = float(np.mean(shares))
        low, high = wilson(round(accuracy * len(shares)), len(shares))
        curve.append({"tokens": k * tokens, "accuracy": accuracy, "low": low, "high": high, "label": f"SC@{k}"})
    return curve


def _share_right(tree: Tree, answers: Sequence[str | None], k: int) -> float:
    """How often the majority of ``k`` of the answers is right, in random draws."""
    rng = random.Random(seed_of("budget", tree.question.id, k))
    majorities = (vote(rng.sample(answers, k), [1.0] * k)[0] for _ in range(_DRAWS))
    return sum(same_answer(answer, tree.question.answer) for answer in majorities) / _DRAWS


def _answers(tree: Tree) -> list[str | None]:
    """The answers of the samples that were merged into a tree: a sample ended where a node was met more often than
    its children."""
    answers: list[str | None] = []
    for node in tree.nodes:
        ended = node.count - sum(child.count for child in tree.children(node.id))
        text = "".join(n.step.text for n in tree.path(node.id))
        answers += [extract_answer(text)] * ended
    return answers


def _shown(outcomes: Sequence[Outcome], trees: Sequence[Tree]) -> list[dict[str, Any]]:
    """Some solved trees for the report: those in which the search had something to decide, wrong ones among them."""
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
