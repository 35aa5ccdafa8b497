"""The public benchmarks, one table: where their rows come from, what is asked, how an answer is graded.

A benchmark is read from a folder (``<name>.jsonl`` or ``<name>_<split>.jsonl``, also ``.jsonl.gz`` or ``.parquet``; schema
of `jsonl`) or from the hub (`hub`). Either way the text of a question holds all a model needs (options with letters, table,
code), and ``meta`` says what kind of answer is wanted: see `caspo.answers.stated_answer`.

What is not covered: prompts that promise a benchmark's published figures.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from caspo.core.errors import ConfigError, DataError
from caspo.core.rows import BadRows
from caspo.records import Question
from caspo.tasks import hub
from caspo.tasks.base import QuestionSet
from caspo.tasks.choices import LETTER, listed
from caspo.tasks.grading import GRADERS
from caspo.tasks.hub import Hub, hub_rows
from caspo.tasks.jsonl import question_of, read_questions
from caspo.tasks.programs import grade_code

__all__ = ["BENCHMARKS", "TABLE", "Benchmark", "benchmark_files", "open_benchmark"]


@dataclass(frozen=True)
class Benchmark:
    """One of the table."""

    description: str
    answer_type: str
    """`math`, `choice`, `literal`, `text` or `code`."""
    hub: Hub
    ask: str = ""
    """Stands after every question."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What every question has in its ``meta``: tolerance, aliases of options."""
    needs: Sequence[str] = ()
    """Keys of ``meta`` that a row must bring."""


_CODE = "Give the whole program in one fenced Python block."
_LCB_FILES = ("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7)))

TABLE: dict[str, Benchmark] = {
    "math500": Benchmark(
        "MATH-500: 500 competition problems",
        "math",
        Hub("HuggingFaceH4/MATH-500", hub.problem, revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    ),
    "minerva_math": Benchmark(
        "Minerva-Math: 272 university problems (OCWCourses)",
        "math",
        Hub("math-ai/minervamath", hub.question, revision="ee46ddc498933b1977577953250ca5c66be64f96"),
        meta={"tolerance": 0.01},
    ),
    "olympiadbench": Benchmark(
        "OlympiadBench: open-ended maths in English, text only",
        "math",
        Hub(
            "Hothan/OlympiadBench",
            hub.olympiadbench,
            "OE_TO_maths_en_COMP",
            {"test": "train"},
            "91184b52131e7fc9455fef848035173aea8cc01a",
        ),
        ask="If there are several answers, separate them by commas.",
    ),
    "amc23": Benchmark(
        "AMC 2023: 40 problems",
        "math",
        Hub("math-ai/amc23", hub.question, revision="80815d37005feb82cd7f8fbc6901d5d3eff43057"),
    ),
    "aime24": Benchmark(
        "AIME 2024: 30 problems",
        "math",
        Hub(
            "HuggingFaceH4/aime_2024",
            hub.problem,
            splits={"test": "train"},
            revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        ),
    ),
    "aime25": Benchmark(
        "AIME 2025: 30 problems",
        "math",
        Hub("math-ai/aime25", hub.problem, revision="563bb8404243c5f09de6ec262f2db674fe5bce9b"),
    ),
    "gsm8k": Benchmark(
        "GSM8K: grade-school word problems",
        "math",
        Hub(
            "openai/gsm8k",
            hub.question,
            "main",
            {"test": "test", "train": "train"},
            "740312add88f781978c0658806c59bc2815b9866",
        ),
    ),
    "bgqa": Benchmark(
        "BoardgameQA, Main: rules that contradict each other",
        "choice",
        Hub("tasksource/Boardgame-QA", hub.boardgame, revision="78e38c3c8df3b4f6de7ae8bd1fc6a8bd1f31be56"),
        ask="Is what the question asks proved, disproved or unknown? Answer with one of these words.",
        meta={"aliases": {"yes": "proved", "no": "disproved"}},
    ),
    "cruxeval": Benchmark(
        "CRUXEval-O: what a Python function returns",
        "literal",
        Hub("cruxeval-org/cruxeval", hub.cruxeval, revision="b96af0450242eb4da433032b90998f25588a5d0f"),
    ),
    "strategyqa": Benchmark(
        "StrategyQA: yes or no by implicit reasoning",
        "choice",
        Hub("ChilleD/StrategyQA", hub.strategyqa, splits={"test": "train+test"}),
        ask="Answer yes or no.",
    ),
    "tablebench": Benchmark(
        "TableBench: questions on a table that have one right answer",
        "text",
        Hub(
            "Multilingual-Multimodal-NLP/TableBench",
            hub.tablebench,
            revision="a23c244f9ccae1ea238d614fe7620984707e411a",
            files=("TableBench.jsonl",),
        ),
        ask="Give the bare value or name; separate several by commas.",
        needs=("qtype", "qsubtype"),
    ),
    "mmlu_pro_stem": Benchmark(
        "MMLU-Pro: science, engineering, maths, economics; up to ten options",
        "choice",
        Hub("TIGER-Lab/MMLU-Pro", hub.mmlu_pro, revision="b189ec765aa7ed75c8acfea42df31fdae71f97be"),
        ask=LETTER,
    ),
    "humaneval": Benchmark(
        "HumanEval: 164 Python functions to complete; needs run_code",
        "code",
        Hub("openai/openai_humaneval", hub.humaneval, revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),
        ask="Complete the function. Give the whole function in one fenced Python block.",
        needs=("prompt", "test", "entry_point"),
    ),
    "livecodebench": Benchmark(
        "LiveCodeBench: contest problems, releases 1 to 6 (4.5 GB); needs run_code",
        "code",
        Hub(
            "livecodebench/code_generation_lite",
            hub.livecodebench,
            revision="0fe84c3912ea0c4d4a78037083943e8f0c4dd505",
            files=_LCB_FILES,
        ),
        ask=_CODE,
        needs=("tests",),
    ),
    "race": Benchmark(
        "RACE: reading comprehension of English exams",
        "choice",
        Hub("ehovy/race", hub.race, "all", {"test": "test", "train": "train"}, "2fec9fd81f1dc971569a9b729c43f2f0e6436637"),
        ask=LETTER,
    ),
    "multiarith": Benchmark(
        "MultiArith: 600 two-step word problems",
        "math",
        Hub("ChilleD/MultiArith", hub.multiarith, splits={"test": "train+test"}),
    ),
}

BENCHMARKS: dict[str, str] = {name: benchmark.description for name, benchmark in TABLE.items()}
"""Names and what they are."""


def open_benchmark(
    name: str, *, data: Path | None = None, split: str = "test", run_code: bool = False, bad: BadRows | None = None
) -> QuestionSet:
    """A benchmark by its name, from the folder ``data`` or, without one, from the hub.

    ``bad`` takes the rows of its file that cannot be used; without it the first one is an error. ``run_code`` allows to
    run what models write, in the sandbox; without it, benchmarks of code can be read and not graded.

    Raises:
        ConfigError: no such benchmark, or it has no such split.
        DataError: its file is missing or has another schema; the hub cannot be reached.
    """
    if name not in TABLE:
        near = difflib.get_close_matches(name, TABLE, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(TABLE)}."
        raise ConfigError(f"There is no benchmark {name!r}. {hint}")
    benchmark = TABLE[name]
    if split not in benchmark.hub.splits:
        raise ConfigError(
            f"{name} is a test set: it has no split {split!r}, only {', '.join(map(repr, benchmark.hub.splits))}. Train on "
            "something else, for example gsm8k or a JSONL file of your own."
        )
    if data is not None:
        file = _file(data, name, split)
        raw, source = read_questions(file, bad), str(file)
    else:
        source = f"{benchmark.hub.path} on the hub"
        raw = [
            question_of(row, f"{source}, row {i}", f"{name}-{i}")
            for i, row in enumerate(hub_rows(benchmark.hub, split), start=1)
        ]
        if not raw:
            raise DataError(f"{source} has no rows of {name}: its schema has changed. Give a folder of JSONL (--data).")
    rows = []
    for question in raw:
        try:
            rows.append(_prepared(benchmark, question, source))
        except DataError as error:
            if bad is None:
                raise
            bad.found.append((f"{source}, question {question.id!r}", str(error)))
    if not rows:
        raise DataError(f"None of the {len(raw)} rows of {source} can be used. The last: {bad.found[-1][1] if bad else ''}")
    grader = GRADERS.get(benchmark.answer_type) or (grade_code if run_code else _refuse(name))
    return QuestionSet(name, split, rows, source, grader)


def benchmark_files(name: str, folder: Path, split: str) -> list[Path]:
    """The file in a folder that a split of a benchmark is read from; none where there is none."""
    return [folder / file for file in _names(name, split) if (folder / file).exists()][:1]


def _names(name: str, split: str) -> list[str]:
    """What the file of a split may be called, the first choice first."""
    stems = [f"{name}_{split}", *([name] if split == "test" else [])]
    return [stem + ending for stem in stems for ending in (".jsonl", ".jsonl.gz", ".parquet")]


def _file(folder: Path, name: str, split: str) -> Path:
    if found := benchmark_files(name, folder, split):
        return found[0]
    wanted = [file for file in _names(name, split) if file.endswith(".jsonl")]
    raise DataError(
        f"{folder} does not hold {' or '.join(wanted)}. It may be packed (.jsonl.gz) or Parquet. Give the folder that holds "
        "it, or leave out the folder to take the benchmark from the hub."
    )


def _prepared(benchmark: Benchmark, question: Question, source: str) -> Question:
    """The question as it is asked, with what the grader needs."""
    where = f"{source}: question {question.id!r}"
    meta = {**question.meta, **benchmark.meta, "answer_type": benchmark.answer_type}
    lacking = [key for key in benchmark.needs if key not in meta]
    if lacking:
        raise DataError(
            f"{where} lacks {', '.join(f'meta.{key}' for key in lacking)}. Is this the file of another benchmark?"
        )
    text, answer = question.text.rstrip(), question.answer
    if benchmark.answer_type == "choice":
        text += listed(replace(question, meta=meta), where)
    if benchmark.answer_type == "code":
        answer = question.solution or answer  # the indentation of a body matters
        if "prompt" in meta:
            text = f"```python\n{text}\n```"
    return replace(question, text=f"{text}\n\n{benchmark.ask}".rstrip(), answer=answer, meta=meta)


def _refuse(name: str) -> Callable[[Question, str | None], bool]:
    def refuse(question: Question, answer: str | None) -> bool:
        raise ConfigError(
            f"Grading {name} runs the code that a model wrote, which is off. Read what the sandbox covers "
            "(docs/benchmarks.md), then allow it: run_code=True, --run-code or task.run_code=true."
        )

    return refuse
