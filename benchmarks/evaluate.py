"""The grading of benchmarks: does every grader agree with the known answers, and how fast is it?

`grading_disagreement_with_gold` counts the known answers, over all rows and spellings, that were graded as wrong, and
`near_misses_passed` the wrong ones graded as right (see `caspo.testing.graders`). `graded_rows_per_second` is
that of a set's known answers as they are stated; `checked_answers_per_second` includes spellings and near misses, most of
which need the comparison of formulas. HumanEval runs every program in the sandbox.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from measure import Figure, difference, report

from caspo.answers import stated_answer
from caspo.evaluate.estimates import wilson
from caspo.tasks.benchmarks import TABLE, BenchmarkTask, open_benchmark
from caspo.testing.graders import GraderReport, check_grader, renderings
from caspo.types import Question


def opened(data: Path) -> list[BenchmarkTask]:
    """Every benchmark and split that the folder holds."""
    found = []
    for name, benchmark in TABLE.items():
        for split in benchmark.hub.splits:
            if (data / f"{name}_{split}.jsonl").exists() or (split == "test" and (data / f"{name}.jsonl").exists()):
                found.append(open_benchmark(name, data=data, split=split, run_code=True))
    return found


def grading(tasks: Sequence[BenchmarkTask], quick: bool) -> dict[str, Figure]:
    """Agreement and speed, by set and in all."""
    figures: dict[str, Figure] = {}
    total = GraderReport()
    for task in tasks:
        rows = task.questions(task.split, 40 if quick else None, 0)
        name = task.name if task.split == "test" else f"{task.name}_{task.split}"
        speed = _speed(task, rows)
        start = time.perf_counter()
        found = check_grader(task, rows)
        seconds = time.perf_counter() - start
        note = f"{found.right} right answers of {len(rows)} rows, {found.wrong} near misses, {seconds:.1f} s"
        figures[f"disagreement_{name}"] = difference(
            len(found.refused) + len(found.passed), None, None, note, "answers"
        )
        figures[f"graded_rows_per_second_{name}"] = difference(speed, None, None, f"n = {len(rows)}", "1/s")
        figures[f"checked_answers_per_second_{name}"] = difference(
            (found.right + found.wrong) / seconds, None, None, note, "1/s"
        )
        print(f"{name:<16} {note}; refused {found.refused[:5]}, passed {found.passed[:5]}", flush=True)
        total.questions += found.questions
        total.right += found.right
        total.wrong += found.wrong
        total.refused += found.refused
        total.passed += found.passed
    figures["grading_disagreement_with_gold"] = _count(len(total.refused), total.right, f"of {total.questions} rows")
    figures["near_misses_passed"] = _count(len(total.passed), total.wrong, "near misses")
    return figures


def _count(found: int, n: int, what: str) -> Figure:
    low, high = wilson(found, n)
    return difference(found, low * n, high * n, f"of {n} graded, {what}", "answers")


def _speed(task: BenchmarkTask, rows: Sequence[Question]) -> float:
    """Known answers found in solutions and graded, a second."""
    texts = [renderings(question)[0] for question in rows]
    start = time.perf_counter()
    for question, text in zip(rows, texts, strict=True):
        task.grade(question, stated_answer(question, text))
    return len(rows) / (time.perf_counter() - start)


def main() -> None:
    """Grade and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--quick", action="store_true", help="40 rows of each set instead of all")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    tasks = opened(arguments.data)
    if not tasks:
        print(f"{arguments.data} holds no benchmarks; nothing to grade. Give their folder by --data.")
        return
    report(grading(tasks, arguments.quick), arguments.json, arguments)


if __name__ == "__main__":
    main()
