"""What a judge's errors do: a known share of verdicts turned round, and what becomes of the pairs and of the trained model.

The trees are grown by the exact judge of `stories`; then each right or wrong verdict is flipped with a given chance (those
flipped at 5% are among those flipped at 10%). So the tree's shape knows nothing of the errors: a judge that errs while the
tree grows would also go on from wrong steps. No model is trained on more pairs than the exact verdicts give; where there
are more, some are drawn at random. What differs is what the pairs say.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from caspo.data.annotate import judge_trees
from caspo.data.pairs import PairSettings, build_pairs
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.evaluate.estimates import paired_difference, wilson
from caspo.evaluate.step_figures import step_figures, step_rows
from caspo.judges.reference import ReferenceJudge
from caspo.records import Question, StepPair, Tree, Verdict
from caspo.search import METHODS, ChainOfThoughtSettings, SelfConsistencySettings
from caspo.tasks.stories import StoriesTask
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from parts.measure import Figure, difference

__all__ = ["SHARES", "flip", "flips", "truly_right"]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)


def flip(trees: Sequence[Tree], share: float, seed: int = 0) -> list[Tree]:
    """The trees with each right or wrong verdict turned round with chance ``share``."""
    other = {"right": "wrong", "wrong": "right"}
    flipped = []
    for tree in trees:
        nodes = []
        for node in tree.nodes:
            verdict = node.verdict
            drawn = random.Random(f"{seed} {tree.question.id} {node.id}").random()
            if verdict is not None and verdict.label in other and drawn < share:
                verdict = Verdict(other[verdict.label], "flipped", verdict.judge)  # type: ignore[arg-type]
            nodes.append(replace(node, verdict=verdict))
        flipped.append(Tree(tree.question, tree.prompt_ids, tuple(nodes)))
    return flipped


def truly_right(pairs: Sequence[StepPair], trees: Sequence[Tree]) -> dict[str, tuple[int, int]]:
    """By kind: how many pairs choose a right step over a wrong one by the verdicts of these trees, of how many."""
    by_id = {tree.question.id: tree for tree in trees}
    right: Counter[str] = Counter()
    for pair in pairs:
        nodes = by_id[pair.question_id].nodes
        rejected = nodes[pair.rejected].verdict
        right[pair.kind] += nodes[pair.chosen].right and rejected is not None and rejected.label == "wrong"
    total = Counter(pair.kind for pair in pairs)
    return {kind: (right[kind], total[kind]) for kind in ("confident_wrong", "uncertain_right")}


class Measure:
    """Greedy answers and sampled steps of a model on one set of questions."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = questions

    def of(self, model: Any, tokenizer: Any, name: str) -> tuple[list[bool], dict[str, Any]]:
        """Whether each greedy answer is right, and the figures of the sampled steps."""
        engine = HFEngine(model.eval(), tokenizer, name=name)
        task = StoriesTask()
        method = METHODS["chain_of_thought"](ChainOfThoughtSettings(max_tokens=96))
        greedy = method.solve(self.questions, engine, 0)
        right = [task.grade(q, s.answer) for q, s in zip(self.questions, greedy, strict=True)]
        method = METHODS["self_consistency"](SelfConsistencySettings(samples=4, max_tokens=96))
        sampled = method.solve(self.questions, engine, 0)
        judged = judge_trees([s.tree for s in sampled], ReferenceJudge())
        return right, step_figures(step_rows(judged, [q.id for q in self.questions]), None)


def flips(trees: Sequence[Tree], name: str, questions: int, work: Path) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
    """Figures of the largest and the smallest share of errors, and a row for every share."""
    measure = Measure(StoriesTask((1, 2)).questions("train", questions, 777))
    settings = StepDPOSettings(learning_rate=3e-5, beta=2.0, anchor=5.0, batch_pairs=16, epochs=1)
    model, tokenizer = load(name)
    before, steps = measure.of(model, tokenizer, name)
    rows = [_row("before training", before, before, steps)]
    print(_line(rows[-1]), flush=True)
    allowed = None
    answers: dict[float, list[bool]] = {}
    for share in SHARES:
        wrong_trees = flip(trees, share)
        pairs, _ = build_pairs(wrong_trees, PairSettings())
        allowed = allowed or len(pairs)
        kinds = truly_right(pairs, trees)
        trained_on = random.Random(0).sample(pairs, min(allowed, len(pairs)))
        model, tokenizer = load(name)
        trained, _ = train_step_dpo(model, wrong_trees, trained_on, settings, 0, work / f"flip-{share}", tokenizer=tokenizer)
        answers[share], steps = measure.of(trained, tokenizer, name)
        rows.append(_row(f"{share:.0%} flipped", before, answers[share], steps))
        rows[-1] |= {"pairs": len(pairs), "trained_on": len(trained_on)}
        rows[-1] |= {f"truly_right_{kind}": right / n for kind, (right, n) in kinds.items() if n}
        print(_line(rows[-1]), flush=True)
    figures = {}
    for share in (0.0, SHARES[-1]):
        found = paired_difference(before, answers[share])
        figures[f"greedy_gain_at_{share:.0%}_flipped".replace("%", "pc")] = difference(
            found.difference, found.low, found.high, "questions, one seed", "share", len(before)
        )
    return figures, rows


def _row(what: str, before: Sequence[bool], after: Sequence[bool], steps: dict[str, Any]) -> dict[str, Any]:
    low, high = wilson(sum(after), len(after))
    found = paired_difference(before, after)
    return {
        "what": what, "n": len(after), "greedy": sum(after) / len(after), "greedy_ci95": [low, high],
        "gain": found.difference, "gain_ci95": [found.low, found.high], "steps": steps["n"],
        "steps_right": steps["accuracy"], "ece": steps["ece"], "brier": steps["brier"],
        "entropy_right": steps["entropy_right"], "entropy_wrong": steps["entropy_wrong"],
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    pairs = ""
    if "pairs" in row:
        kinds = [f"{row.get(f'truly_right_{kind}', float('nan')):.3f}" for kind in ("confident_wrong", "uncertain_right")]
        pairs = f"; {row['pairs']} pairs, {row['trained_on']} trained on, truly right: {' and '.join(kinds)} by kind"
    return (
        f"{row['what']:<16} greedy {row['greedy']:.3f} ({row['gain']:+.3f} [{row['gain_ci95'][0]:+.3f}, "
        f"{row['gain_ci95'][1]:+.3f}]), steps right {row['steps_right']:.3f}, ECE {row['ece']:.3f}, "
        f"Brier {row['brier']:.3f}{pairs}"
    )
