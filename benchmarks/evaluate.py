"""The grading of benchmarks: does every grader agree with the known answers, and how fast is it?

`grading_disagreement_with_gold` counts the known answers, over all rows and spellings, that were graded as wrong, and
`near_misses_passed` the wrong ones graded as right (see `caspo.testing.graders`). `graded_rows_per_second` is
that of a set's known answers as they are stated; `checked_answers_per_second` includes spellings and near misses, most of
which need the comparison of formulas. HumanEval runs every program in the sandbox. Rows come from the folder of ``--data``;
without it, problems of `stories` stand in for them.

Figures: `grading_disagreement_with_gold`, `near_misses_passed`, `disagreement_*`, `graded_rows_per_second_*`,
`checked_answers_per_second_*`
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from parts.measure import Figure, difference, options, report

from caspo.answers import stated_answer
from caspo.evaluate.estimates import wilson
from caspo.records import Question
from caspo.tasks.base import Task
from caspo.tasks.benchmarks import TABLE, open_benchmark
from caspo.tasks.stories import StoriesTask
from caspo.testing.graders import GraderReport, check_grader, renderings

Rows = tuple[str, Task, Sequence[Question]]


def opened(data: Path, limit: int | None) -> Iterator[Rows]:
    """Name, task and rows, at most ``limit``, of every benchmark and split that the folder holds."""
    for name, benchmark in TABLE.items():
        for split in benchmark.hub.splits:
            if (data / f"{name}_{split}.jsonl").exists() or (split == "test" and (data / f"{name}.jsonl").exists()):
                task = open_benchmark(name, data=data, split=split, run_code=True)
                yield name if split == "test" else f"{name}_{split}", task, task.questions(split, limit, 0)


def stories(limit: int) -> Iterator[Rows]:
    """Problems that need no file."""
    task = StoriesTask((1, 2, 3))
    yield "stories", task, task.questions("test", limit, 0)


def grading(sets: Iterable[Rows]) -> dict[str, Figure]:
    """Agreement and speed, by set and in all."""
    figures: dict[str, Figure] = {}
    total = GraderReport()
    for name, task, rows in sets:
        speed = _speed(task, rows)
        start = time.perf_counter()
        found = check_grader(task, rows)
        seconds = time.perf_counter() - start
        note = f"{found.right} right answers of {len(rows)} rows, {found.wrong} near misses, {seconds:.1f} s"
        figures[f"disagreement_{name}"] = difference(
            len(found.refused) + len(found.passed), None, None, note, "answers", found.right + found.wrong
        )
        figures[f"graded_rows_per_second_{name}"] = difference(speed, None, None, "", "1/s", len(rows))
        figures[f"checked_answers_per_second_{name}"] = difference(
            (found.right + found.wrong) / seconds, None, None, note, "1/s", found.right + found.wrong
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
    return difference(found, low * n, high * n, what, "answers", n)


def _speed(task: Task, rows: Sequence[Question]) -> float:
    """Known answers found in solutions and graded, a second."""
    texts = [renderings(question)[0] for question in rows]
    start = time.perf_counter()
    for question, text in zip(rows, texts, strict=True):
        task.grade(question, stated_answer(question, text))
    return len(rows) / (time.perf_counter() - start)


def main() -> None:
    """Grade and report."""
    parser = options(__doc__, "40 rows of each set instead of all")
    parser.add_argument("--data", type=Path, help="folder with <benchmark>.jsonl files")
    args = parser.parse_args()
    limit = 40 if args.quick else None
    sets = list(stories(limit or 1000) if args.data is None else opened(args.data, limit))
    if not sets:
        parser.error(f"{args.data} holds no file of a benchmark. Name the folder of <benchmark>.jsonl files.")
    report(grading(sets), args)


if __name__ == "__main__":
    main()
