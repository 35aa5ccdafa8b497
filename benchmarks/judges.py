"""Judges against people's labels, what the rollouts judge saves, and what annotation leaves of the decode speed.

`arithmetic_f1_processbench_gsm8k` needs ``--data FOLDER`` with ``processbench_steps.jsonl``.

`rollout_completions_saved`: against a judge that samples, at every prefix up to the first error, as many completions as tell
the two rates apart with the same chance of an error: what the sequential test and the binary search leave out together.

`annotate_throughput_fraction`: tokens a second of `annotate` over those of the engine alone, given the same requests in the
same order (what follows a completion is known beforehand, nothing is judged, no tree is built), in turns. On a CPU seconds
are the process's own, so that other work on the machine does not count. `_tiny` is the same on stories-tiny, a model so
small that everything beside it shows.

``--flips`` turns a known share of the verdicts round (`parts/judge_flips.py`).

Figures: `annotate_throughput_fraction`, `annotate_throughput_fraction_tiny`, `rollout_completions_saved`
Figures with --data: `arithmetic_f1_processbench_gsm8k`
Figures with --flips: `greedy_gain_at_*_flipped`
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from parts.judge_flips import flips
from parts.measure import Figure, difference, options, ratio, report

from caspo.data.annotate import AnnotateSettings, annotate
from caspo.engines.base import Completion, OnDone, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.evaluate.judge_scores import FIGURES, Judged, judge_scores
from caspo.formats import LabelledSolution, read_labelled, solutions_of
from caspo.formats.parquet import read_trees
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Chain, Judge
from caspo.judges.reference import ReferenceJudge
from caspo.judges.rollouts import RolloutJudge, fixed_sample
from caspo.records import Question, Tree
from caspo.tasks.stories import StoriesTask


def judged_by(judge: Judge, solutions: Sequence[LabelledSolution]) -> list[Judged]:
    """All solutions in one call."""
    verdicts = judge.judge([Chain(s.question, s.steps, s.ended) for s in solutions])
    return [Judged(s, tuple(v.label for v in found)) for s, found in zip(solutions, verdicts, strict=True)]


def shown(scores: dict[str, Any]) -> str:
    """Every figure of a judge in one line."""
    parts = []
    for name in FIGURES:
        value, low, high = (scores[name][key] for key in ("value", "low", "high"))
        if value is not None:
            parts.append(f"{name} {value:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]"))
    return ", ".join(parts)


def arithmetic(data: Path | None) -> dict[str, Figure]:
    """The arithmetic judge on ProcessBench's gsm8k part."""
    file = None if data is None else data / "processbench_steps.jsonl"
    if file is None or not file.exists():
        print("arithmetic_f1_processbench_gsm8k skipped: give --data FOLDER with processbench_steps.jsonl")
        return {}
    solutions = [s for s in read_labelled(file) if s.subset == "gsm8k"]
    scores = judge_scores(judged_by(ArithmeticJudge(), solutions))["all"]
    print("arithmetic:", shown(scores))
    f1 = scores["processbench_f1"]
    note = f"precision for wrong {scores['precision_wrong']['value']:.3f}"
    return {"arithmetic_f1_processbench_gsm8k": difference(f1["value"], f1["low"], f1["high"], note, "F1", len(solutions))}


def rollouts(engine: HFEngine, trees: Sequence[Tree]) -> dict[str, Figure]:
    """The rollouts judge on the paths of trees that the exact judge has judged."""
    judge = RolloutJudge(lambda: engine, model=engine.name)
    solutions = [s for tree in trees for s in solutions_of(tree)]
    start = time.perf_counter()
    scores = judge_scores(judged_by(judge, solutions))["all"]
    seconds = time.perf_counter() - start
    counts = judge.counts
    print(f"rollouts on {len(solutions)} paths, {len(trees)} questions, {seconds:.0f} s:", shown(scores))
    fixed = counts.scanned * fixed_sample(judge.settings)
    each = [spent / max(1, counts.verdicts) for spent in (counts.completions, fixed)]
    note = (
        f"{counts.completions} completions for {counts.verdicts} verdicts ({each[0]:.2f} each); "
        f"{fixed} ({each[1]:.2f}) with {fixed_sample(judge.settings)} at every prefix"
    )
    return {
        "rollout_completions_saved": difference(counts.saved(judge.settings), None, None, note, "share", counts.verdicts)
    }


class Recorder:
    """An engine that notes what it was asked, and what was asked after each completion."""

    def __init__(self, engine: HFEngine) -> None:
        self.engine = engine
        self.first: list[Request] = []
        self.after: dict[int, list[Request]] = {}
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """As the engine."""
        self.first = list(requests)

        def noted(place: int, completion: Completion) -> Sequence[Request]:
            self.after[place] = list(on_done(place, completion)) if on_done else []
            return self.after[place]

        found = self.engine.generate(requests, noted)
        self.tokens = sum(len(completion.token_ids) for completion in found)
        return found


def throughput(engine: HFEngine, questions: Sequence[Question], turns: int) -> Figure:
    """Annotation against the engine alone."""
    settings, recorder = AnnotateSettings(samples=6, max_step_tokens=48), Recorder(engine)
    clock = time.process_time if engine.device.type == "cpu" else time.perf_counter
    engine.forget()
    annotate(questions, recorder, ReferenceJudge(), settings, 0)
    speeds: dict[str, list[float]] = {"annotate": [], "bare": []}
    for turn in range(turns):
        for side in ("annotate", "bare") if turn % 2 else ("bare", "annotate"):
            engine.forget()
            start = clock()
            if side == "annotate":
                annotate(questions, engine, ReferenceJudge(), settings, 0)
            else:
                engine.generate(recorder.first, lambda place, completion: recorder.after[place])
            speeds[side].append(recorder.tokens / (clock() - start))  # the same seeds: the same tokens every time
    middle = {side: sorted(values)[turns // 2] for side, values in speeds.items()}
    requests = len(recorder.first) + sum(map(len, recorder.after.values()))
    note = (
        f"{engine.name}, {len(questions)} questions, {requests} requests, {turns} turns: {middle['annotate']:.0f} against "
        f"{middle['bare']:.0f} tokens a second"
    )
    return ratio(speeds["annotate"], speeds["bare"], note, "share")


def opened(name: str) -> HFEngine:
    """The engine of a model."""
    model, tokenizer = load(name)
    return HFEngine(model, tokenizer, name=name)


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the smallest model, fewer questions and turns")
    parser.add_argument("--data", type=Path, help="folder with processbench_steps.jsonl")
    parser.add_argument("--model", default="smollm2-135m-stories", help="whose annotation is timed (not with --quick)")
    parser.add_argument("--questions", type=int, default=200, help="of rollouts and of the annotation's speed")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--flips", action="store_true", help="the study of wrong verdicts too; 20 minutes on one core")
    parser.add_argument("--flip-questions", type=int, default=1500, help="problems whose trees the pairs are made from")
    parser.add_argument("--trees", type=Path, help="trees of stories to flip verdicts of, instead of growing them")
    parser.add_argument("--validation", type=int, default=300, help="problems that the trained models solve")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.questions, args.turns, args.flip_questions, args.validation = 6, 2, 120, 60
    torch.set_num_threads(args.threads)
    engine = opened("stories-tiny")
    questions = StoriesTask((1, 2)).questions("train", args.questions, 5)
    settings = AnnotateSettings(samples=6, max_step_tokens=48)
    figures = arithmetic(args.data)
    tiny = throughput(engine, questions, args.turns)
    real = tiny if args.quick else throughput(opened(args.model), questions[:24], args.turns)
    figures |= {"annotate_throughput_fraction": real, "annotate_throughput_fraction_tiny": tiny}
    figures |= rollouts(engine, annotate(questions, engine, ReferenceJudge(), settings, 0))
    rows: list[dict[str, Any]] = []
    if args.flips:
        if args.trees:
            trees = read_trees(args.trees)[: args.flip_questions]
        else:
            problems = StoriesTask((1, 2)).questions("train", args.flip_questions, 6)
            trees = annotate(problems, engine, ReferenceJudge(), settings, 0)
        del engine
        with tempfile.TemporaryDirectory() as work:
            found, rows = flips(trees, "stories-tiny", args.validation, Path(work))
        figures |= found
    report(figures, args, flips=rows)


if __name__ == "__main__":
    main()
