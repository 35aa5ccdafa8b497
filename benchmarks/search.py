"""CaT against self-consistency and every other method, on the same engine, model and questions.

`cat_*_vs_sc10`: CaT as it comes against self-consistency with 10 samples, per seed another set of test questions; accuracy
is compared question by question. Tokens are all that were decoded, those of pruned paths included. Time is that of whole
batches, the methods in turns.

`--curve` gives every method the budgets 1, 2, 4, ... 32 (samples, paths, or beams times children) and prints accuracy
against tokens. `--ablation` gives the earlier CaT (`cat_paper`) every signal for its votes. `--overpruned` chooses where to
prune on validation questions, as `caspo calibrate` does, and counts on test questions how often the last right path is lost.

Figures: `cat_token_ratio_vs_sc10`, `cat_time_ratio_vs_sc10`, `cat_accuracy_minus_sc10`, `cat_accuracy_minus_greedy`
Figures with --overpruned: `overpruned_at_alpha_*`
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from parts.measure import Figure, difference, options, ratio, report, task_of

from caspo.confidence import SIGNALS
from caspo.engines.local.engine import HFEngine
from caspo.engines.memo import MemoEngine
from caspo.engines.models import load
from caspo.engines.prompts import INSTRUCTION
from caspo.evaluate.estimates import bootstrap_ci, paired_difference, wilson
from caspo.loop.thresholds import PRUNE_GRID, right_path
from caspo.records import Question
from caspo.search import METHODS, Method
from caspo.search.threshold import choose_pruning
from caspo.tasks.base import Task
from caspo.tasks.stories import StoriesTask

BUDGETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Measured:
    """What a method made of some questions."""

    correct: np.ndarray[Any, Any]
    tokens: np.ndarray[Any, Any]
    seconds: float

    def line(self) -> str:
        """Accuracy with its interval, tokens and milliseconds a question."""
        n = len(self.correct)
        low, high = wilson(int(self.correct.sum()), n)
        return (
            f"{self.correct.mean():6.1%} [{low:.1%}, {high:.1%}]  {self.tokens.mean():7.1f} tokens"
            f"  {1000 * self.seconds / n:7.1f} ms"
        )


class Bench:
    """A model, a task and its questions."""

    def __init__(self, engine: HFEngine, task: Task, limits: dict[str, Any]) -> None:
        self.engine, self.task, self.limits = engine, task, limits

    def method(self, name: str, **settings: Any) -> Method[Any]:
        """A method with these settings and the common limit of a path."""
        made = METHODS[name]
        return made(made.settings_type(**{**self.limits, **settings}))

    def run(self, method: Method[Any], questions: Sequence[Question], seed: int) -> Measured:
        """Solve all questions in one batch that starts with nothing kept."""
        self.engine.forget()
        start = time.perf_counter()
        solutions = method.solve(questions, self.engine, seed)
        seconds = time.perf_counter() - start
        correct = [self.task.grade(q, s.answer) for q, s in zip(questions, solutions, strict=True)]
        return Measured(np.array(correct, float), np.array([s.generated_tokens for s in solutions]), seconds)


def headline(bench: Bench, sets: Sequence[Sequence[Question]]) -> dict[str, Figure]:
    """CaT against self-consistency with 10 samples, and greedy beside them."""
    found: dict[str, list[Measured]] = {"cat": [], "self_consistency": [], "chain_of_thought": []}
    settings: dict[str, dict[str, Any]] = {"self_consistency": {"samples": 10}}
    for seed, questions in enumerate(sets):
        for name in list(found) if seed % 2 else reversed(list(found)):
            found[name].append(bench.run(bench.method(name, **settings.get(name, {})), questions, seed))
            print(f"seed {seed} {name:<18} {found[name][-1].line()}", flush=True)
    cat, sc = found["cat"], found["self_consistency"]
    a, b = (np.concatenate([m.correct for m in side]) for side in (sc, cat))
    paired = paired_difference(a, b)
    spent = [np.concatenate([m.tokens for m in side]) for side in (cat, sc)]
    low, high = bootstrap_ci(np.stack(spent, axis=1), statistic=lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()))
    by_seed = ", ".join(f"{c.correct.mean() - s.correct.mean():+.3f}" for c, s in zip(cat, sc, strict=True))
    n, where = len(a), f"{len(sets)} sets of questions"
    return {
        "cat_token_ratio_vs_sc10": difference(
            float(spent[0].sum() / spent[1].sum()), low, high,
            f"{spent[0].mean():.1f} tokens a question against {spent[1].mean():.1f}; {where}", "x", n,
        ),
        "cat_time_ratio_vs_sc10": ratio([m.seconds for m in cat], [m.seconds for m in sc], f"whole batches; {where}"),
        "cat_accuracy_minus_sc10": difference(
            paired.difference, paired.low, paired.high,
            f"{b.mean():.3f} against {a.mean():.3f}, McNemar p = {paired.p_value:.3f}; by seed {by_seed}", "share", n,
        ),
        "cat_accuracy_minus_greedy": difference(
            *_difference(np.concatenate([m.correct for m in found["chain_of_thought"]]), b),
            f"greedy at {np.concatenate([m.tokens for m in found['chain_of_thought']]).mean():.1f} tokens", "share", n,
        ),
    }  # fmt: skip


def _difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    found = paired_difference(a, b)
    return found.difference, found.low, found.high


def curve(bench: Bench, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Every method at every budget: accuracy against tokens."""
    ways: dict[str, tuple[str, Any]] = {
        "self-consistency": ("self_consistency", lambda n: {"samples": n}),
        "best of n by log p a token": ("best_of_n", lambda n: {"samples": n}),
        "step beam": ("beam", lambda n: {"beam_width": max(1, n // 4), "children": min(n, 4)}),
        "DeepConf offline": ("deepconf_offline", lambda n: {"samples": n}),
        "DeepConf online": ("deepconf_online", lambda n: {"samples": n, "warm_up": min(4, n)}),
        "Adaptive-Consistency": ("adaptive_consistency", lambda n: {"samples": n}),
        "ESC": ("esc", lambda n: {"samples": n, "window": min(5, n)}),
        "Entropy-Tree": ("entropy_tree", lambda n: {"paths": n}),
        "CaT": ("cat", lambda n: {"paths": n}),
        "CaT (paper)": ("cat_paper", lambda n: {"paths": n}),
    }
    rows = []
    for label, (name, settings) in ways.items():
        for budget in BUDGETS:
            found = bench.run(bench.method(name, **settings(budget)), questions, 0)
            print(f"{label:<28} {budget:>3}  {found.line()}", flush=True)
            rows.append(
                {
                    "method": label,
                    "budget": budget,
                    "accuracy": float(found.correct.mean()),
                    "n": len(questions),
                    "tokens_per_question": float(found.tokens.mean()),
                    "seconds_per_question": found.seconds / len(questions),
                }
            )
    return rows


def ablation(bench: Bench, questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The earlier CaT as the paper has it, and with other signals for its votes."""
    default = METHODS["cat_paper"]().settings.rank_signal
    ways: dict[str, dict[str, Any]] = {f"answers by {default} (the paper)": {}}
    ways |= {f"answers by {s}": {"rank_signal": s} for s in SIGNALS if s != default}
    rows = []
    for label, settings in ways.items():
        found = bench.run(bench.method("cat_paper", **settings), questions, 0)
        print(f"{label:<40} {found.line()}", flush=True)
        rows.append({"variant": label, "accuracy": float(found.correct.mean()), "n": len(questions),
                     "tokens_per_question": float(found.tokens.mean())})  # fmt: skip
    return rows


def overpruned(bench: Bench, chosen_on: Sequence[Question], tested_on: Sequence[Question]) -> dict[str, Figure]:
    """How often a question loses its last right path to pruning at the thresholds that alpha gives on other questions."""
    memo = MemoEngine(bench.engine)

    def reached(questions: Sequence[Question]) -> np.ndarray[Any, Any]:
        """(n, K): whether a finished path was right at each threshold, of the questions with such a path at 0."""
        columns = []
        for threshold in PRUNE_GRID:
            method = bench.method("cat", prune_below=threshold)
            trees = [solution.tree for solution in method.solve(questions, memo)]
            columns.append([right_path(bench.task, q, tree) for q, tree in zip(questions, trees, strict=True)])
        found = np.array(columns, float).T
        return found[found[:, 0] == 1]

    held, fresh = reached(chosen_on), reached(tested_on)
    figures = {}
    for alpha in (0.02, 0.05, 0.1, 0.2):
        below, _ = choose_pruning(PRUNE_GRID, held, alpha)
        lost = int((fresh[:, PRUNE_GRID.index(below)] == 0).sum())
        figures[f"overpruned_at_alpha_{alpha:g}"] = difference(
            lost / len(fresh), *wilson(lost, len(fresh)),
            f"{lost} test questions with a right path lost it, pruned below {below:g}, chosen on {len(held)} others",
            "share", len(fresh),
        )  # fmt: skip
    return figures


def main() -> None:
    """Run what was asked for and print tables."""
    parser = options(__doc__, "24 questions, one seed")
    parser.add_argument("--model", default="stories-tiny", help="a name or folder of a model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--task", default="1,2,3", help="levels of stories, or a JSONL file of questions")
    parser.add_argument("--instruction", default=INSTRUCTION, help="system message of the prompt")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3, help="sets of questions")
    parser.add_argument("--max-tokens", type=int, default=160, help="of a path")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--overpruned", action="store_true", help="only how often the last right path is pruned")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.seeds = 24, 1
    model, tokenizer = load(args.model, device=args.device)
    engine = HFEngine(model, tokenizer, name=args.model, instruction=args.instruction)
    task = task_of(args.task)
    bench = Bench(engine, task, {"max_tokens": args.max_tokens})
    if args.overpruned:
        split = "validation" if isinstance(task, StoriesTask) else "test"
        held = task.questions(split, args.questions, args.seeds)
        report(overpruned(bench, held, task.questions("test", args.questions, 0)), args)
        return
    sets = [task.questions("test", args.questions, seed) for seed in range(args.seeds)]
    more: dict[str, Any] = {}
    figures = headline(bench, sets)
    if args.curve:
        more["curve"] = curve(bench, sets[0])
    if args.ablation:
        more["ablation"] = ablation(bench, sets[0])
    report(figures, args, **more)


if __name__ == "__main__":
    main()
