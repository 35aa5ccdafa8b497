"""A made-up run folder for the tests of the report: plausible shapes, no claim behind any figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from caspo.confidence.calibration import fit, reliability
from caspo.evaluate.estimates import wilson

SIGNALS = (
    "entropy",
    "entropy_sum",
    "entropy_max",
    "entropy_tail",
    "perplexity",
    "logprob_sum",
    "max_probability",
    "margin",
    "sibling_frequency",
)


def method(right: int, n: int, tokens: float, seconds: float, over_pruned: float | None = None) -> dict[str, Any]:
    return {
        "n": n,
        "accuracy": right / n,
        "accuracy_ci95": list(wilson(right, n)),
        "generated_tokens_per_question": tokens,
        "seconds_per_question": seconds,
        "abstained": 0.015,
        "over_pruned": over_pruned,
        "answers": {"n": n, "ece": 0.143, "auroc": 0.777, "aurc": 0.211, "auroc_ci95": [0.7, 0.8]},
        "faithfulness": {"n": right, "whole": right, "wrong_step": 0.057, "wrong_step_ci95": [0.031, 0.099]},
        "settings": {"temperature": 0.8},
    }


def one_round(index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A round of metrics.json and of report_data.json."""
    rng = np.random.default_rng(index)
    right = rng.random(1500) < 0.68 + 0.06 * index
    entropy = np.where(right, rng.gamma(1.2, 0.06, 1500), rng.gamma(2.0, 0.09 + 0.05 * index, 1500))
    score = np.exp(-entropy)
    calibrated = fit(score[::2], right[::2]).predict(score)
    methods = {
        "chain_of_thought": method(78 + 22 * index, 200, 86.4, 0.31),
        "self_consistency": method(49 + 9 * index, 100, 861.2, 2.93),
        "cat": method(92 + 24 * index, 200, 342.7 - 30 * index, 1.27, over_pruned=0.081),
    }
    metrics = {
        "round": index,
        "methods": methods,
        "steps": {
            "n": 1500,
            "accuracy": float(right.mean()),
            "ece": 0.271 - 0.15 * index,
            "ece_debiased": 0.262 - 0.15 * index,
            "brier": 0.215 - 0.06 * index,
            "ece_calibrated": 0.031,
            "brier_calibrated": 0.122,
            "auroc": {name: 0.92 + 0.005 * i for i, name in enumerate(SIGNALS)},
            "auroc_ci95": {name: [0.905 + 0.005 * i, 0.931 + 0.005 * i] for i, name in enumerate(SIGNALS)},
            "auroc_siblings": {name: 0.55 + 0.03 * i + 0.04 * index for i, name in enumerate(SIGNALS)},
            "auroc_siblings_ci95": {
                name: [0.47 + 0.031 * i + 0.04 * index, 0.63 + 0.029 * i + 0.04 * index] for i, name in enumerate(SIGNALS)
            },
            "entropy_right": float(entropy[right].mean()),
            "entropy_wrong": float(entropy[~right].mean()),
        },
        "training": None
        if index == 0
        else {
            "pairs": {"confident_wrong": 412, "uncertain_right": 388},
            "trees": 160,
            "loss_first": 0.6931,
            "loss_last": 0.4127,
            "pair_accuracy_last": 0.81,
            "unique_tokens": 60123,
            "pair_tokens": 181456,
            "seconds": 312.5,
        },
    }
    budgets = (1, 2, 4, 10)
    drawn = {
        "round": index,
        "reliability": [b._asdict() for b in reliability(score, right)],
        "reliability_calibrated": [b._asdict() for b in reliability(calibrated, right)],
        "entropy": {"right": entropy[right][:400].tolist(), "wrong": entropy[~right][:400].tolist()},
        "risk_coverage": {
            "cat": [{"threshold": 1 - c, "coverage": c, "risk": 0.5 * c} for c in (0.25, 0.5, 1.0)],
            "chain_of_thought": [{"threshold": 1.0, "coverage": 1.0, "risk": 0.5}],
        },
        "budget_curve": {
            "self_consistency": [
                {
                    "tokens": 86.1 * k,
                    "accuracy": 0.36 + 0.09 * index + 0.04 * i,
                    "low": 0.27 + 0.09 * index + 0.04 * i,
                    "high": 0.46 + 0.09 * index + 0.04 * i,
                    "label": f"SC@{k}",
                }
                for i, k in enumerate(budgets)
            ]
        },
    }
    return metrics, drawn


QUESTION = (
    "Mia has 14 apples. Tom has twice as many apples as Mia. A basket costs 3 coins. Tom gives 5 apples to Ben. "
    "How many apples does Tom have left?"
)


def tree(index: int, question: str = QUESTION) -> dict[str, Any]:
    rows = [
        (-1, "Tom has 14 * 2 = 28 apples.", 0.93, "right", "expanded", 3),
        (-1, "Tom has 14 + 2 = 16 apples.", 0.41, "wrong", "pruned", 1),
        (0, "He gives 5 to Ben, so 28 - 5 = 23 apples are left.", 0.88, "right", "expanded", 2),
        (0, "He gives 5 to Ben, so 28 - 5 = 22 apples are left.", 0.61, "wrong", "dropped", 1),
        (0, "The basket costs 3 coins, so 28 - 3 = 25.", 0.12, "wrong", "pruned", 1),
        (2, "The answer is 23.", 0.99, "right", "finished", 2),
        (3, "The answer is 22.", 0.97, "unknown", "cut", 1),
    ]
    nodes = [
        {"id": i, "parent": p, "text": t + "\n", "confidence": c, "verdict": v, "decision": d, "count": n}
        for i, (p, t, c, v, d, n) in enumerate(rows)
    ]
    answer = "23" if index else "22"
    return {
        "round": index,
        "question": question,
        "gold": "23",
        "answer": answer,
        "correct": answer == "23",
        "tokens": 291,
        "nodes": nodes,
    }


def make_run(folder: Path, rounds: int = 2) -> Path:
    """Write a run folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [one_round(index) for index in range(rounds)]
    metrics = {
        "schema": 1,
        "recipe": "demo",
        "model": "smollm2-135m",
        "seed": 0,
        "seconds_total": 843.2,
        "rounds": [m for m, _ in made],
    }
    trees = [tree(i) for i in range(rounds)] + [tree(i, f"Question {k}: how many?") for k in (2, 3) for i in range(rounds)]
    changes = [
        ("accuracy", 0.061, 0.012, 0.108),
        ("ece_debiased", -0.15, -0.171, -0.124),
        ("brier", -0.06, -0.083, -0.036),
        ("auroc_entropy", 0.0, -0.012, 0.013),
        ("auroc_siblings_entropy", None, None, None),
    ]
    drawn = {
        "schema": 1,
        "rounds": [d for _, d in made],
        "trees": trees,
        "step_changes": [
            {"figure": name, "before": 0, "after": rounds - 1, "difference": change, "low": low, "high": high}
            for name, change, low, high in changes
            if rounds > 1
        ],
    }
    environment = {
        "versions": {"torch": "2.13.0", "python": "3.11.2"},
        "hardware": {"cpu": "2 cores"},
        "git": "abc1234",
        "command": "caspo run recipes/demo/recipe.yaml",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "report_data.json").write_text(json.dumps(drawn))
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "recipe.yaml").write_text("name: demo\nmodel: smollm2-135m\nseed: 0\n")
    return folder
