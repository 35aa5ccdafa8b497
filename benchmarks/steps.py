"""Where steps end: against people's marks, what it costs, and what it does to the confidence of steps.

`boundary_f1_real`: the rule `reasoning` on the solutions in tests/data/marked_steps.jsonl, whose steps were marked by hand
from the definition alone (`_held_out`: those that were marked after the changes that the others had led to). A boundary is
right if it is at the same character. `boundary_f1_processbench` needs ``--data FOLDER`` with ``processbench_steps.jsonl``:
steps that people labelled, joined by blank lines. `_line` are the same for the rule that a step is a line.

`segment_microseconds_per_token` is the time of `StepReader.take` for the tokens of the marked solutions, and
`segment_percent_of_decode` that over the time of a decoded token at 64 rows, in turns in one process.

`auroc_*_reasoning` and `auroc_*_line`: every signal of `caspo.confidence` on the steps of the same sampled solutions, cut by
either rule and judged by the same judge (up to the first wrong step; unknown ones are left out), and `auroc_change_*`, the
first minus the second. Of every solution the last step is left out: a wrong answer is mostly an earlier error that the judge
could not tell. `auroc_numbers_*` is the mean entropy of a step's tokens with a digit. Intervals: questions drawn again, for
both rules the same.
``--solutions FILE`` keeps the sampled solutions: what is there is not sampled again.

`auroc_people_*` are the same on solutions of others that people labelled (``--people N`` of ProcessBench's gsm8k part), read
by the model: a step is wrong if it begins in the first wrong step of the labels, and what follows that is left out.

Figures: `boundary_f1_real`, `boundary_f1_real_line`, `boundary_f1_real_held_out`, `empty_steps_fraction`,
`empty_steps_fraction_line`, `steps_per_solution`, `steps_per_solution_line`, `segment_microseconds_per_token`,
`segment_percent_of_decode`, `auroc_*_reasoning`, `auroc_*_line`, `auroc_change_*`
Figures with --data: `boundary_f1_processbench`, `boundary_f1_processbench_line`
Figures with --people: `auroc_people_*_reasoning`, `auroc_people_*_line`, `auroc_people_change_*`
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts.measure import Figure, difference, options, ratio, report, task_of

from caspo.confidence import SIGNALS
from caspo.engines.base import Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.evaluate.intervals import estimate_auroc
from caspo.evaluate.resampling import draw_questions, resampled_auroc
from caspo.formats.parquet import read_trees, write_trees
from caspo.judges.base import Chain
from caspo.judges.reference import ReferenceJudge
from caspo.records import Question, Step, TokenTrace, Tree
from caspo.steps import Reading, split_steps, split_tokens
from caspo.tasks.base import Task
from caspo.trees import TreeBuilder, seed_of

MARKED = Path(__file__).resolve().parents[1] / "tests" / "data" / "marked_steps.jsonl"
RULES = ("reasoning", "line")


def marked_ends(row: dict[str, Any]) -> set[int]:
    """Characters at which a step of a marked solution begins, but the first one's."""
    text, starts = row["text"], [0]
    for line in row["text"].split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    begins = set()
    for mark in row["lines"]:
        line, words = mark if isinstance(mark, list) else (mark, "")
        begins.add(text.index(words, starts[line - 1]))
    return begins - {min(begins)}


def ends_of(text: str, rule: str) -> set[int]:
    """The same by a rule."""
    lengths = [len(step) for step in split_steps(text, rule)]
    return set(np.cumsum(lengths)[:-1].tolist())


def f1(wanted: Sequence[set[int]], found: Sequence[set[int]], note: str) -> Figure:
    """F1 of all boundaries; the interval draws solutions again."""
    counts = np.array([(len(a & b), len(a), len(b)) for a, b in zip(wanted, found, strict=True)], dtype=float)
    rng = np.random.default_rng(0)
    drawn = counts[rng.integers(0, len(counts), (2000, len(counts)))].sum(1)
    values = 2 * drawn[:, 0] / np.maximum(1.0, drawn[:, 1] + drawn[:, 2])
    hits, a, b = counts.sum(0)
    low, high = np.quantile(values, [0.025, 0.975])
    return difference(2 * hits / (a + b), float(low), float(high), f"{note}, {int(a)} boundaries", "F1", len(counts))


def against_people(data: Path | None) -> dict[str, Figure]:
    """Boundaries against the marks and against ProcessBench."""
    rows = [json.loads(line) for line in MARKED.read_text(encoding="utf-8").splitlines()]
    held_out = [row for row in rows if row["held_out"]]

    def figure(chosen: Sequence[dict[str, Any]], rule: str, note: str) -> Figure:
        return f1([marked_ends(row) for row in chosen], [ends_of(row["text"], rule) for row in chosen], note)

    found = {
        "boundary_f1_real": figure(rows, "reasoning", "marked by hand"),
        "boundary_f1_real_line": figure(rows, "line", "marked by hand"),
        "boundary_f1_real_held_out": figure(held_out, "reasoning", "marked later"),
    }
    for rule, name in zip(RULES, ("", "_line"), strict=True):
        steps = [split_steps(row["text"], rule) for row in rows]
        empty = [not any(map(str.isalnum, step)) for solution in steps for step in solution]
        found[f"empty_steps_fraction{name}"] = difference(statistics.fmean(empty), None, None, "", "share", len(empty))
        number = statistics.fmean(map(len, steps))
        found[f"steps_per_solution{name}"] = difference(number, None, None, "marked solutions", "steps", len(steps))
    file = None if data is None else data / "processbench_steps.jsonl"
    if file is None or not file.exists():
        print("boundary_f1_processbench skipped: give --data FOLDER with processbench_steps.jsonl")
        return found
    wanted, texts = [], []
    for line in file.read_text(encoding="utf-8").splitlines():
        steps = json.loads(line)["steps"]
        texts.append("\n\n".join(steps))
        places = np.cumsum([len(step) + 2 for step in steps])[:-1].tolist()
        # Where a step begins with a blank line of its own, the line belongs to the step before it.
        wanted.append({place + len(texts[-1][place:]) - len(texts[-1][place:].lstrip("\n")) for place in places})
    for rule, name in zip(RULES, ("", "_line"), strict=True):
        found[f"boundary_f1_processbench{name}"] = f1(wanted, [ends_of(text, rule) for text in texts], "people's labels")
    return found


def cost(engine: HFEngine, turns: int, rows: int = 64, tokens: int = 64) -> dict[str, Figure]:
    """Microseconds that a token costs, and over those of a decode step's token."""
    solutions = [json.loads(line)["text"] for line in MARKED.read_text(encoding="utf-8").splitlines()]
    pieces = [engine.pieces(engine.encode(text)) for text in solutions]
    requests = [Request(engine.prompt(f"What is {i} + 1?"), i, max_new_tokens=tokens, temperature=1.0) for i in range(rows)]
    reading, decoding = [], []
    for _ in range(turns):
        start = time.process_time()
        for solution in pieces:
            reader = Reading().reader()
            for piece in solution:
                reader.take(piece)
        reading.append((time.process_time() - start) / sum(map(len, pieces)))
        engine.forget()
        start = time.process_time()
        done = engine.generate(requests)
        decoding.append((time.process_time() - start) / sum(len(one.token_ids) for one in done))
    microseconds = [1e6 * seconds for seconds in reading]
    middle = statistics.median(microseconds)
    return {
        "segment_microseconds_per_token": difference(middle, min(microseconds), max(microseconds), "", "us", turns),
        "segment_percent_of_decode": ratio([100 * s for s in reading], decoding, f"{engine.name}, {rows} rows", "%"),
    }


def sampled(engine: HFEngine, questions: Sequence[Question], samples: int, most: int, file: Path | None) -> list[Tree]:
    """One tree a question with whole solutions, uncut; those in the file are taken from there."""
    known = {tree.question.id: tree for tree in read_trees(file)} if file is not None and file.exists() else {}
    missing = [question for question in questions if question.id not in known]
    for start in range(0, len(missing), 16):
        part = missing[start : start + 16]
        asked = [(question, number) for question in part for number in range(samples)]
        done = engine.generate([
            Request(engine.prompt(q.text), seed_of("steps", q.id, number), max_new_tokens=most, temperature=0.7)
            for q, number in asked
        ])  # fmt: skip
        builders = {q.id: TreeBuilder(q, engine.prompt(q.text), _Uncut(engine)) for q in part}
        for (q, _), one in zip(asked, done, strict=True):
            builders[q.id].add_solution(one.token_ids, one.trace, final=one.finish == "eos")
        known |= {name: builder.build() for name, builder in builders.items()}
        if file is not None:
            write_trees(file, list(known.values()))
        print(f"sampled {start + len(part)} of {len(missing)} questions", flush=True)
    return [known[question.id] for question in questions]


class _Uncut:
    """A model whose solutions are one step each: cut later, by either rule."""

    reading = Reading("delimiter:\x00")

    def __init__(self, engine: HFEngine) -> None:
        self.pieces = engine.pieces


Labelled = tuple[list[Step], Any, Any]
"""Steps, whether each is right, and the number of the question that it is of."""


def confidence(steps: Mapping[str, Labelled], questions: int, engine: HFEngine, prefix: str = "") -> dict[str, Figure]:
    """AUROC of every signal by either rule."""
    draws, found = draw_questions(questions), {}
    for name in (*SIGNALS, "numbers"):
        values = {}
        for rule, (cut, right, question) in steps.items():
            scores, ones = np.array([score(name, step, engine) for step in cut]), np.ones(len(cut))
            estimate = estimate_auroc(scores, right, ones, question, draws)
            values[rule] = estimate.value, resampled_auroc(scores, right, ones, question, draws)
            note = f"{int((~right).sum())} of {len(right)} steps wrong, {questions} questions"
            low, high = estimate.interval or (None, None)
            found[f"auroc_{prefix}{name}_{rule}"] = difference(
                float(estimate.value or 0), low, high, note, "AUROC", len(right)
            )
        change = values["reasoning"][1] - values["line"][1]
        low, high = np.nanquantile(change, [0.025, 0.975])
        value = float(values["reasoning"][0] or 0) - float(values["line"][0] or 0)
        found[f"auroc_{prefix}change_{name}"] = difference(value, float(low), float(high), "", "AUROC", questions)
    return found


def score(name: str, step: Step, engine: HFEngine) -> float:
    """A signal of a step, higher where the model is surer."""
    if name != "numbers":
        return float(SIGNALS[name](step.trace))
    digits = [any(48 <= byte < 58 for byte in piece) for piece in engine.pieces(step.token_ids)]
    return -float(step.trace.entropy[digits].mean()) if any(digits) else 0.0


def by_people(engine: HFEngine, data: Path, number: int) -> dict[str, Labelled]:
    """Steps of ProcessBench's solutions by either rule, as the model reads them."""
    rows = [json.loads(line) for line in (data / "processbench_steps.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "gsm8k" in row["id"]]
    np.random.default_rng(0).shuffle(rows)
    kept: dict[str, list[tuple[Step, bool, int]]] = {rule: [] for rule in RULES}
    for place, row in enumerate(rows[:number]):
        ids = engine.encode("\n\n".join(row["steps"]))
        trace, pieces = read(engine, engine.prompt(row["question"]), ids), engine.pieces(ids)
        starts = np.cumsum([0, *map(len, pieces)])
        steps_end = np.cumsum([len(step.encode()) + 2 for step in row["steps"]])
        for rule in RULES:
            for start, end in split_tokens(pieces, rule):
                of = int(np.searchsorted(steps_end, starts[start], side="right"))
                if row["first_error"] < 0 or of <= row["first_error"]:
                    step = Step("", tuple(ids[start:end]), trace[start:end])
                    kept[rule].append((step, of != row["first_error"], place))
    return {rule: labelled(found) for rule, found in kept.items()}


@torch.inference_mode()
def read(engine: HFEngine, prompt: tuple[int, ...], ids: tuple[int, ...]) -> TokenTrace:
    """What the model's distributions say of a text that it is given."""
    logits_TV = engine.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    probs_TV = logs_TV.exp()
    entropy_T = -(probs_TV * logs_TV).sum(-1)
    best_T2 = logs_TV.topk(2, dim=-1).values
    taken_T = logs_TV[torch.arange(len(ids)), torch.tensor(ids)]
    margin_T = best_T2[:, 0].exp() - best_T2[:, 1].exp()
    spread_T = (probs_TV * logs_TV**2).sum(-1) - entropy_T**2
    return TokenTrace(*(column.numpy() for column in (entropy_T, taken_T, best_T2[:, 0], margin_T, spread_T)))


def labelled(kept: Sequence[tuple[Step, bool, int]]) -> Labelled:
    """In columns."""
    return [s for s, _, _ in kept], np.array([r for _, r, _ in kept]), np.array([p for _, _, p in kept], dtype=np.intp)


def judged(trees: Sequence[Tree], engine: HFEngine, rule: str) -> Labelled:
    """The judged steps. Last steps are left out: a wrong answer there is mostly an earlier error that the judge could not
    tell."""
    chains, cut, places = [], [], []
    cutting = replace(engine.reading, steps=rule)

    class Cutting:
        reading = cutting
        pieces = staticmethod(engine.pieces)

    for place, tree in enumerate(trees):
        for leaf in tree.nodes:
            builder = TreeBuilder(tree.question, tree.prompt_ids, Cutting())
            end = builder.add_solution(leaf.step.token_ids, leaf.step.trace, final=leaf.final)
            path = builder.build().path(end)
            chains.append(Chain(tree.question, tuple(node.step.text for node in path), leaf.final))
            cut.append([node.step for node in path])
            places.append(place)
    kept: list[tuple[Step, bool, int]] = []
    for found, path_steps, place in zip(ReferenceJudge().judge(chains), cut, places, strict=True):
        for verdict, step in zip(found, path_steps[:-1], strict=False):
            if verdict.label == "unknown":
                continue
            kept.append((step, verdict.label == "right", place))
            if verdict.label == "wrong":
                break
    return labelled(kept)


def main() -> None:
    """Print the figures."""
    parser = options(__doc__, "few questions, one turn")
    parser.add_argument("--model", default="smollm2-135m-stories", help="whose solutions, and whose decode step")
    parser.add_argument("--task", default="1,2", help="levels of stories, or a JSONL file of questions with solutions")
    parser.add_argument("--instruction", default=None, help="what its prompt asks for")
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--solutions", type=Path, metavar="FILE", help="keeps the sampled solutions (Parquet)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="public step data: processbench_steps.jsonl")
    parser.add_argument(
        "--people", type=int, default=0, metavar="N", help="labelled solutions of --data that the model reads"
    )
    arguments = parser.parse_args()
    if arguments.people and arguments.data is None:
        parser.error("--people needs --data FOLDER")
    quick = arguments.quick
    model, tokenizer = load("stories-tiny" if quick else arguments.model)
    prompt = {} if arguments.instruction is None else {"instruction": arguments.instruction}
    engine = HFEngine(model, tokenizer, name="stories-tiny" if quick else arguments.model, **prompt)
    task: Task = task_of(arguments.task)
    questions = task.questions("test", 12 if quick else arguments.questions, 0)
    found = against_people(arguments.data) | cost(engine, 1 if quick else 5)
    trees = sampled(engine, questions, arguments.samples, 64 if quick else arguments.max_tokens, arguments.solutions)
    found |= confidence({rule: judged(trees, engine, rule) for rule in RULES}, len(trees), engine)
    if arguments.people:
        found |= confidence(by_people(engine, arguments.data, arguments.people), arguments.people, engine, "people_")
    report(found, arguments)


if __name__ == "__main__":
    main()
