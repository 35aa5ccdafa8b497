"""How often the intervals that the documents call 95% hold the truth, by simulation.

Samples of 50, 200 and more questions are drawn from populations whose figures are known (`benchmarks/parts/populations.py`):
accuracies of 2% to 98%, calibration errors of 0 to 0.2, one or several rows a question, and pairs of methods on the same
questions. Each sample gets the interval that an evaluation would print. The share of intervals that hold the truth should
be 95%; what the resolution of few questions cannot give should be more, not less.

Figures: `*_n50`, `*_n200`

Figures with --questions 1000: `*_n1000`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small arrays

from parts.measure import Figure, difference, options, report
from parts.populations import CASES, simulate

from caspo.evaluate.estimates import wilson

KINDS = {
    "accuracy_change": "accuracy, paired difference", "accuracy": "accuracy", "pass_at": "pass@k",
    "tokens_change": "tokens, paired difference", "ece_change": "debiased ECE, difference",
    "ece_steps": "debiased ECE of steps", "ece": "debiased ECE", "brier_change": "Brier, difference", "brier": "Brier",
    "auroc_change": "AUROC, difference", "auroc": "AUROC", "aurc_change": "AURC, difference", "aurc": "AURC",
    "steps_share_change": "right steps, difference", "steps_share": "right steps", "steps_brier": "Brier of steps",
    "steps_auroc_change": "AUROC of steps, difference", "steps_auroc": "AUROC of steps",
    "steps_siblings_change": "AUROC among siblings, difference", "steps_siblings": "AUROC among siblings",
    "judge_f1": "F1 of a judge",
}  # fmt: skip
"""What a case is of, by how its name begins; the first that fits."""


def table(figures: Mapping[str, Figure], questions: Sequence[int]) -> str:
    """For every kind of figure the lowest and the highest share over its populations, as Markdown."""
    kinds: dict[str, dict[int, list[float]]] = {}
    for name, figure in figures.items():
        case, _, n = name.rpartition("_n")
        kind = next(kind for begin, kind in KINDS.items() if case.startswith(begin))
        kinds.setdefault(kind, {}).setdefault(int(n), []).append(figure["value"])
    lines = [f"| | populations | {' | '.join(f'{n} questions' for n in questions)} |", "| --- " * (2 + len(questions)) + "|"]
    for kind, shares in kinds.items():
        cells = [f"{min(shares[n]):.1%} to {max(shares[n]):.1%}" for n in questions]
        lines.append(f"| {kind} | {len(shares[questions[0]])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print."""
    parser = options(__doc__, "few samples of each population")
    parser.add_argument("--questions", type=int, nargs="+", default=[50, 200], help="of a sample")
    parser.add_argument("--samples", type=int, default=500, help="of each population and number of questions")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    args = parser.parse_args()
    if args.quick:
        args.samples = 4
    figures: dict[str, Figure] = {}
    for name, case in CASES.items():
        for questions in args.questions if name.startswith(args.only) else ():
            samples = args.samples * (20 if case.cheap else 1)
            found = simulate(case, questions, samples)
            note = f"truth {found.truth:.3f}, mean width {found.width:.3f}"
            if found.intervals < samples:
                note += f", no interval {1 - found.intervals / samples:.0%}"
            if found.intervals:
                low, high = wilson(found.held, found.intervals)
                share = found.held / found.intervals
                figures[f"{name}_n{questions}"] = difference(share, low, high, note, "hold it", found.intervals)
    report(figures, args)
    print(table(figures, args.questions))


if __name__ == "__main__":
    main()
