"""CaT against greedy decoding, self-consistency and its published rivals, at equal tokens.

All methods see the same questions, prompts, engine and, where they sample whole solutions, the same samples. Each is run at
several settings of its dial, which makes a curve of accuracy against tokens; a point between two settings is what choosing
one of them at random for each question would give. Tokens are all that were decoded, those of pruned paths included.

`cat_tokens_at_sc10_accuracy` is the least that CaT needs for the accuracy of ten samples, over what these take (a curve that
never gets there counts with its last point, and the note says so); `cat_minus_sc_equal_tokens_N` is in points, at the tokens
of N samples; `cat_minus_rival_*` the same against whichever rival, greedy decoding among them, is best there.
`answer_auroc` and `answer_ece` are of the confidence at the default settings, the second (debiased) after a calibration that
is fitted on one half of the questions and measured on the other, both ways. Intervals are by bootstrap over questions, all
methods resampled together.

`--completions` keeps what is decoded, `--results` what came of it: with both complete no model is run. `--questions 0:300`
takes these of the file; the default is all. `--orders N` has everything N times, with the samples in other orders, and takes
the mean of each question; AUROC, calibration and risks are of the first order.

With `--fitted` the figures of CaT are of another curve, with `evidence` from the other half of the questions, both ways, as
`caspo calibrate` would fit it: the numbers that it comes with were fitted to questions of the committed pool.

ReASC has to be calibrated: on the questions of `--held-out FILE.jsonl` of which `--completions` has the first sample.
Without these it is left out.

Two methods are there to say what does what: "checked majority" is a plain vote of the paths in which no false equation was
found, "CaT, unchecked" looks for none.

Figures: `cat_tokens_at_sc10_accuracy`, `rival_tokens_at_sc10_accuracy`, `cat_minus_sc_equal_tokens_4`,
`cat_minus_sc_equal_tokens_8`, `cat_minus_rival_equal_tokens_4`, `cat_minus_rival_equal_tokens_8`, `cat_minus_greedy`,
`answer_auroc`, `answer_ece`, `risk_at_half_coverage`, `sc_risk_at_half_coverage`
Figures with --time: `cat_token_ratio_vs_sc10`, `cat_time_ratio_vs_sc10`
Figures with --overpruned: `right_path_lost_at_alpha_*`
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from parts.measure import Figure, difference, options, ratio, report, task_of
from parts.orders import Reordered
from parts.outcomes import Outcomes, Ran
from pool import TEMPERATURE, plan, whole

from caspo.confidence.calibration import fit
from caspo.engines.base import Engine
from caspo.engines.kept import CompletionFile
from caspo.engines.memo import MemoEngine
from caspo.engines.opening import ModelSettings, identity_of, open_engine, placed
from caspo.evaluate.estimates import auroc, bootstrap_ci, paired_difference, wilson
from caspo.evaluate.intervals import estimate_ece
from caspo.evaluate.resampling import draw_questions
from caspo.loop.thresholds import PRUNE_GRID, right_path
from caspo.records import Question
from caspo.search import METHODS, ConfidenceTree, ConfidenceTreeSettings, Method, ReASC, ReASCSettings, method_of
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import fit_evidence
from caspo.search.threshold import choose_pruning
from caspo.tasks.base import Task

SAMPLES = (1, 2, 3, 4, 6, 8, 10, 16, 32)
LEVELS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
UNCHECKED = {"prune_false": False, "evidence": EvidenceModel(falsehood=0.0)}
FITTED = "CaT, fitted"
MAJORITY = EvidenceModel(bias=0.0, slopes={}, common={}, spread=0.0, scatter=1e6, falsehood=30.0)
"""Paths count alike, whatever else they are, and wrong ones agree by chance only."""


def curves(most: int) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Every method at every setting of its dial, with ``most`` samples at most."""
    counts = [n for n in SAMPLES if n <= most]
    steps = (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    return {
        "self-consistency": [("self_consistency", {"samples": n}) for n in counts],
        "CaT": [("cat", {"level": level, "paths": most + 1}) for level in LEVELS],
        "CaT, unchecked": [("cat", {"level": level, "paths": most + 1, **UNCHECKED}) for level in LEVELS],
        "checked majority": [("cat", {"level": 1.0, "paths": n, "evidence": MAJORITY}) for n in counts],
        "Adaptive-Consistency": [("adaptive_consistency", {"samples": most, "level": level}) for level in steps],
        "ESC": [("esc", {"samples": most, "window": n}) for n in (2, 3, 4, 5) if n <= most],
        "best of n": [("best_of_n", {"samples": n}) for n in counts],
        "DeepConf offline": [("deepconf_offline", {"samples": n}) for n in counts if n > 1],
    }


def reasc(
    most: int, limits: dict[str, Any], task: Task, questions: Sequence[Question], engine: Engine
) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """ReASC at the settings of its dial, with what the first samples of these questions say of confidence."""
    known = ReASC(ReASCSettings(**limits)).calibrated(questions, engine, task.grade).settings
    learnt = {"mean": known.mean, "spread": known.spread, "sure_above": known.sure_above}
    print(f"ReASC, of {len(questions)} questions: {learnt}", flush=True)
    return {"ReASC": [("reasc", {"samples": most, "level": level, **learnt}) for level in (0.6, 0.7, 0.8, 0.9, 0.95, 0.99)]}


def decoding(most: int) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Rivals whose tokens are not those of self-consistency, so that they have to be decoded for them."""
    counts = [n for n in SAMPLES if 1 < n <= most]
    return {
        "CaT (paper)": [("cat_paper", {"paths": n}) for n in counts if n <= 10],
        "Entropy-Tree": [("entropy_tree", {"paths": n}) for n in counts],
        "step beam": [("beam", {"beam_width": max(1, n // 4), "children": min(n, 4)}) for n in counts if n in (2, 4, 8)],
    }


class Bench:
    """Questions, and what is known of them; an engine for each order of the samples; ``most`` samples of each."""

    def __init__(
        self,
        task: Task,
        questions: Sequence[Question],
        engines: Sequence[Callable[[], Engine]],
        outcomes: Outcomes,
        most: int,
        limits: dict[str, Any],
    ) -> None:
        self.task, self.questions, self.engines, self.outcomes = task, questions, engines, outcomes
        self.most, self.limits = most, limits

    @property
    def engine(self) -> Callable[[], Engine]:
        """The one with the samples as they were drawn."""
        return self.engines[0]

    def method(self, name: str, **settings: Any) -> Method[Any]:
        """A method with these settings and the common limits."""
        limits = self.limits if METHODS[name].draws() else {k: v for k, v in self.limits.items() if k != "temperature"}
        return method_of(name, {**limits, **settings})

    def run(self, name: str, **settings: Any) -> Ran:
        """What it makes of the questions, on average over the orders; the confidence is of the first."""
        method = self.method(name, **settings)
        every = [
            self.outcomes.of(method, self.task, self.questions, engine, order) for order, engine in enumerate(self.engines)
        ]
        return Ran(np.mean([one.right for one in every], 0), np.mean([one.tokens for one in every], 0), every[0].confidence)

    def once(self, name: str, **settings: Any) -> Ran:
        """What it makes of them in the first order."""
        return self.outcomes.of(self.method(name, **settings), self.task, self.questions, self.engine)

    @cached_property
    def evidence(self) -> list[EvidenceModel]:
        """For the first, third, ... question and for the others: fitted on those that it is not for."""
        cat = ConfidenceTree(ConfidenceTreeSettings(paths=self.most + 1, **self.limits))
        return [fit_evidence(cat.told(self.questions[half::2], self.engine(), self.task.grade)) for half in (1, 0)]

    def fitted(self, level: float, paths: int) -> Ran:
        """CaT with evidence that was fitted on other questions of the same kind."""
        whole = Ran(*(np.empty(len(self.questions)) for _ in Ran._fields))
        for half, evidence in enumerate(self.evidence):
            method = self.method("cat", level=level, paths=paths, evidence=evidence)
            ran = self.outcomes.of(method, self.task, self.questions[half::2], self.engine)
            for target, values in zip(whole, ran, strict=True):
                target[half::2] = values
        return whole

    def curve(self, points: Sequence[tuple[str, dict[str, Any]]], label: str) -> list[Ran]:
        """A method at all settings of its dial, printed."""
        found = []
        for name, settings in points:
            ran = self.run(name, **settings)
            found.append(ran)
            dial = ", ".join(f"{key} {value}" for key, value in settings.items() if isinstance(value, float | int))
            show(label, dial, ran, self.once(name, **settings).right)
        return found


def show(label: str, dial: str, ran: Ran, right: np.ndarray[Any, Any]) -> None:
    """Print a line of the table; ``right`` (n,) is what the confidence is about."""
    low, high = wilson(round(float(ran.right.sum())), len(ran.right))
    scored = auroc(ran.confidence, right)
    print(
        f"{label:<22} {dial:<28} {ran.right.mean():6.1%} [{low:.1%}, {high:.1%}] {ran.tokens.mean():8.1f} tokens  "
        f"auroc {'-' if scored is None else format(scored, '.3f')}",
        flush=True,
    )


def at(curve: Sequence[Ran], tokens: float, rows: np.ndarray[Any, Any]) -> float:
    """Accuracy of a curve at a mean number of tokens, over some rows (n,) of questions; beyond its ends, of these."""
    return float(np.interp(tokens, *zip(*points_of(curve, rows), strict=True)))


def points_of(curve: Sequence[Ran], rows: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """The mean tokens and the accuracy of each setting, in order of the tokens."""
    return sorted((float(ran.tokens[rows].mean()), float(ran.right[rows].mean())) for ran in curve)


def needed(curve: Sequence[Ran], accuracy: float, rows: np.ndarray[Any, Any]) -> tuple[float, bool]:
    """The least tokens with which a curve has an accuracy, and whether it has it anywhere."""
    points = points_of(curve, rows)
    before = points[0]
    for point in points:
        if point[1] >= accuracy:
            if point[1] == before[1] or before[1] >= accuracy:
                return point[0], True
            share = (accuracy - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0]), True
        before = point if point[1] >= before[1] else before
    return points[-1][0], False


def interval(n: int, statistic: Callable[[np.ndarray[Any, Any]], float]) -> tuple[float, float, float]:
    """A figure with its 95% interval over questions."""
    return statistic(np.arange(n)), *bootstrap_ci(np.arange(n), statistic=lambda rows: statistic(rows.astype(np.intp)))


def figures(found: dict[str, list[Ran]], default: Ran, samples: int) -> dict[str, Figure]:
    """All figures of the curves and of CaT's default settings, but for those of its confidence."""
    sc, cat = found["self-consistency"], found.get(FITTED, found["CaT"])
    counts = [n for n in SAMPLES if n <= samples]
    # No method can do with less than one solution: what stands below its cheapest setting is a mixture with a single sample.
    rivals = {name: [sc[0], *curve] for name, curve in found.items() if not name.startswith("CaT")} | {"greedy": [cat[0]]}
    n = len(default.right)
    made: dict[str, Figure] = {}
    ten = sc[counts.index(10)] if 10 in counts else sc[-1]

    def ratio_of(curve: Sequence[Ran]) -> Callable[[np.ndarray[Any, Any]], float]:
        return lambda rows: needed(curve, float(ten.right[rows].mean()), rows)[0] / float(ten.tokens[rows].mean())

    everything = np.arange(n)

    def reaches(curve: Sequence[Ran]) -> str:
        return "" if needed(curve, float(ten.right.mean()), everything)[1] else ", which it does not reach"

    note = f"for {ten.right.mean():.1%} at {ten.tokens.mean():.0f} tokens"
    made["cat_tokens_at_sc10_accuracy"] = difference(*interval(n, ratio_of(cat)), note + reaches(cat), "x", n)
    others = {name: curve for name, curve in rivals.items() if needed(curve, float(ten.right.mean()), everything)[1]}
    best = min(others, key=lambda name: ratio_of(others[name])(everything))
    made["rival_tokens_at_sc10_accuracy"] = difference(*interval(n, ratio_of(others[best])), best, "x", n)
    for count in (4, 8):
        if count not in counts:
            continue
        reference = sc[counts.index(count)]

        def above(other: Sequence[Ran], reference: Ran = reference) -> Callable[[np.ndarray[Any, Any]], float]:
            def points(rows: np.ndarray[Any, Any]) -> float:
                tokens = float(reference.tokens[rows].mean())
                return 100 * (at(cat, tokens, rows) - at(other, tokens, rows))

            return points

        tokens = float(reference.tokens.mean())
        made[f"cat_minus_sc_equal_tokens_{count}"] = difference(
            *interval(n, above(sc)), f"CaT {at(cat, tokens, everything):.1%} at {tokens:.0f} tokens", "points", n
        )
        rival = max(rivals, key=lambda name: at(rivals[name], tokens, everything))
        made[f"cat_minus_rival_equal_tokens_{count}"] = difference(*interval(n, above(rivals[rival])), rival, "points", n)
    greedy = cat[0]
    paired = paired_difference(greedy.right, default.right)
    made["cat_minus_greedy"] = difference(
        100 * paired.difference, 100 * paired.low, 100 * paired.high,
        f"{default.right.mean():.1%} at {default.tokens.mean():.0f} tokens, greedy {greedy.right.mean():.1%} at "
        f"{greedy.tokens.mean():.0f}", "points", n,
    )  # fmt: skip
    return made


def reliability(default: Ran, voted: Ran) -> dict[str, Figure]:
    """What the confidence of CaT is worth, and that of ten samples' vote."""
    n = len(default.right)

    def ranked(rows: np.ndarray[Any, Any]) -> float:
        found = auroc(default.confidence[rows], default.right[rows])
        return 0.5 if found is None else found

    made = {"answer_auroc": difference(*interval(n, ranked), "of CaT's confidence", "", n)}
    odd = np.arange(n) % 2 == 1
    told = np.empty(n)
    for half in (odd, ~odd):
        if 0 < default.right[~half].sum() < (~half).sum():
            told[half] = fit(default.confidence[~half], default.right[~half], "platt").predict(default.confidence[half])
        else:
            told[half] = default.right[~half].mean()
    ece = estimate_ece(told, default.right > 0, np.ones(n), np.arange(n), draw_questions(n))
    made["answer_ece"] = difference(
        ece.value, *(ece.interval or (None, None)), "calibrated on the other half, debiased", "", n
    )
    for name, ran in (("risk_at_half_coverage", default), ("sc_risk_at_half_coverage", voted)):

        def risk(rows: np.ndarray[Any, Any], ran: Ran = ran) -> float:
            sure = np.argsort(-ran.confidence[rows], kind="stable")[: len(rows) // 2]
            return float(1 - ran.right[rows][sure].mean())

        made[name] = difference(*interval(n, risk), "wrong among the surer half", "share", n)
    return made


def timed(bench: Bench, turns: int) -> dict[str, Figure]:
    """CaT as it comes and ten samples, decoded anew, in turns."""
    spent: dict[str, list[float]] = {"cat": [], "self_consistency": []}
    tokens = dict.fromkeys(spent, 0)
    for turn in range(turns):
        for name in list(spent) if turn % 2 else reversed(list(spent)):
            engine = bench.engine()
            engine.forget()
            start = time.perf_counter()
            solutions = bench.method(name).solve(bench.questions, engine, turn)
            spent[name].append(time.perf_counter() - start)
            tokens[name] += sum(solution.generated_tokens for solution in solutions)
    return {
        "cat_token_ratio_vs_sc10": difference(tokens["cat"] / tokens["self_consistency"], None, None, "", "x", turns),
        "cat_time_ratio_vs_sc10": ratio(spent["cat"], spent["self_consistency"], "whole batches"),
    }


def overpruned(bench: Bench, paths: int) -> dict[str, Figure]:
    """How often a question loses its last right path at the thresholds that alpha gives on the other half of them."""
    memo = MemoEngine(bench.engine())
    columns = []
    for threshold in PRUNE_GRID:
        solutions = bench.method("cat", prune_below=threshold, level=1.0, paths=paths).solve(bench.questions, memo)
        columns.append([right_path(bench.task, q, s.tree) for q, s in zip(bench.questions, solutions, strict=True)])
    found = np.array(columns, float).T
    found = found[found[:, 0] == 1]
    made = {}
    for alpha in (0.05, 0.1, 0.2):
        lost = total = 0
        for half in (0, 1):
            held, fresh = found[half::2], found[1 - half :: 2]
            below, _ = choose_pruning(PRUNE_GRID, held, alpha)
            lost += int((fresh[:, PRUNE_GRID.index(below)] == 0).sum())
            total += len(fresh)
        made[f"right_path_lost_at_alpha_{alpha:g}"] = difference(
            lost / total, *wilson(lost, total), f"{lost} questions with a right path lost it", "share", total
        )
    return made


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = options(__doc__, "12 questions of stories, 4 samples, stories-tiny")
    parser.add_argument("--model", default="stories-tiny", help="a name or folder of a model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--task", default="1,2,3", help="levels of stories, or a JSONL file of questions")
    parser.add_argument("--questions", default="0:300", help="which of the file, or of a draw of stories")
    parser.add_argument("--samples", type=int, default=32, help="of a question, at most")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="of everything that is drawn")
    parser.add_argument("--max-tokens", type=int, default=512, help="of a path")
    parser.add_argument("--completions", type=Path, help="file that keeps what is decoded")
    parser.add_argument("--results", type=Path, help="file that keeps what came of it")
    parser.add_argument("--pooled", action="store_true", help="only questions of which --completions has all samples")
    parser.add_argument("--orders", type=int, default=1, help="of the samples, each as good a draw; needs --pooled")
    parser.add_argument(
        "--fitted", action="store_true", help="figures of CaT with evidence of the other half of the questions"
    )
    parser.add_argument("--held-out", help="JSONL file of questions that ReASC is calibrated on; needs --pooled")
    parser.add_argument("--all", action="store_true", help="rivals that need decoding of their own, too")
    parser.add_argument("--time", action="store_true", help="only time, in two turns, without --completions")
    parser.add_argument("--overpruned", action="store_true", help="only how often the last right path is pruned")
    args = parser.parse_args()
    if args.quick:
        args.questions, args.samples, args.max_tokens = "0:12", 4, 96
    if args.pooled and args.completions is None:
        parser.error("--pooled looks at what --completions holds: give both")
    if (args.orders > 1 or args.held_out) and not args.pooled:
        parser.error("--orders and --held-out need samples that are all there: give --pooled")
    if args.fitted and args.orders > 1:
        parser.error("--fitted is of the first order, and cannot be compared with means over --orders")
    return args


def main() -> None:
    """Run what was asked for and print tables."""
    args = arguments()
    task = task_of(args.task)
    first, _, last = args.questions.partition(":")
    questions = task.questions("test", int(last) if args.task[0].isdigit() else None, 0)[int(first) : int(last)]
    told = {"device": args.device, "dtype": args.dtype, "threads": args.threads, "completions": args.completions}
    settings = ModelSettings.model_validate({"name": args.model, **({**told, "completions": None} if args.time else told)})
    engine = cache(lambda: open_engine(settings))

    def pooled(questions: Sequence[Question], samples: int) -> list[Question]:
        return whole(kept, plan(engine(), args.model, questions, samples, args.temperature), questions)

    if args.pooled:
        kept = CompletionFile(args.completions, identity_of(placed(settings), engine()))
        questions = pooled(questions, args.samples)
        print(f"{len(questions)} questions have {args.samples} samples", flush=True)
    engines: list[Callable[[], Engine]] = [engine]
    for order in range(1, args.orders):
        engines.append(cache(lambda order=order: MemoEngine(engine(), Reordered(kept, questions, args.samples, order))))
    limits = {"max_tokens": args.max_tokens, "temperature": args.temperature}
    bench = Bench(task, questions, engines, Outcomes(args.results), args.samples, limits)
    paths = min(ConfidenceTreeSettings().paths, args.samples + 1)  # the greedy one is none of the samples
    if args.time:
        report(timed(bench, 2), args)
        return
    if args.overpruned:
        report(overpruned(bench, paths), args)
        return
    rivals = decoding(args.samples) if args.all else {}
    if args.held_out:
        other = task_of(args.held_out)
        rivals |= reasc(args.samples, bench.limits, other, pooled(other.questions("test"), 1), engine())
    found = {label: bench.curve(points, label) for label, points in {**curves(args.samples), **rivals}.items()}
    if args.fitted:
        found[FITTED] = [bench.fitted(level, args.samples + 1) for level in LEVELS]
        for level, ran in zip(LEVELS, found[FITTED], strict=True):
            show(FITTED, f"level {level}", ran, ran.right)
        default = sure = bench.fitted(ConfidenceTreeSettings().level, paths)
    else:
        default, sure = bench.run("cat", paths=paths), bench.once("cat", paths=paths)
    table = [
        {"method": label, "accuracy": float(ran.right.mean()), "tokens": float(ran.tokens.mean()), "n": len(ran.right)}
        for label, curve in found.items()
        for ran in curve
    ]
    voted = bench.once("self_consistency", samples=max(n for n in SAMPLES if n <= min(10, args.samples)))
    report(figures(found, default, args.samples) | reliability(sure, voted), args, curve=table)


if __name__ == "__main__":
    main()
