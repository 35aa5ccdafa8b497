"""The benchmarks as they lie on the Hugging Face hub: where, which revision, and how a row of theirs becomes one of ours.

Each function takes a row of the public schema and gives ``{id?, question, answer, solution?, choices?, meta?}``, or None
for a row that is no part of the benchmark. Revisions are pinned where we know one, and a row that lacks a field is an error
that names it. What is not covered: fields that keep their name and change their meaning.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from caspo.core.errors import DataError

__all__ = ["Hub", "TaskRow", "hub_rows"]

TaskRow = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """A data set on the hub."""

    path: str
    row: Callable[[Mapping[str, Any]], TaskRow | None]
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: {"test": "test"})
    """Our split -> theirs."""
    revision: str | None = None
    """Commit; None where we know none, and the newest is taken."""
    files: tuple[str, ...] = ()
    """Files of the repository, for those that `datasets` would not load as they are."""


def hub_rows(hub: Hub, split: str) -> Iterator[TaskRow]:
    """The rows of a split in our schema.

    Raises:
        DataError: the hub cannot be reached, or a row has another schema.
    """
    from datasets import load_dataset

    named = f"{hub.path} on the hub"
    options: dict[str, Any] = {"split": hub.splits[split], "revision": hub.revision}
    if hub.files:
        options["data_files"] = {hub.splits[split]: list(hub.files)}
    try:
        found = load_dataset(hub.path, hub.config, **options)
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow, ...
        raise DataError(
            f"{named} cannot be loaded: {type(error).__name__}: {str(error)[:300]}. Check the connection, or give a folder "
            "that holds the benchmark as JSONL (--data)."
        ) from error
    for number, row in enumerate(found, start=1):
        try:
            ours = hub.row(row)
        except (KeyError, TypeError, ValueError, IndexError, zlib.error, pickle.UnpicklingError) as error:
            raise DataError(
                f"{named}, row {number}: unknown schema ({type(error).__name__}: {error}); it has "
                f"{', '.join(map(repr, row))}. Give a folder of JSONL (--data), or update caspo."
            ) from error
        if ours is not None:
            yield ours


def problem(row: Mapping[str, Any]) -> TaskRow:
    """MATH-500, AIME: problem, answer, perhaps solution, subject, level, url."""
    meta = {key: row[key] for key in ("subject", "level", "url", "year") if key in row}
    identity = row.get("unique_id", row.get("id"))
    return {
        "id": identity, "question": row["problem"], "answer": str(row["answer"]),
        "solution": row.get("solution"), "meta": meta,
    }  # fmt: skip


def question(row: Mapping[str, Any]) -> TaskRow:
    """GSM8K, Minerva, AMC: question, answer."""
    answer = row["answer"]
    whole = isinstance(answer, float) and answer.is_integer()
    return {"id": row.get("id"), "question": row["question"], "answer": str(int(answer) if whole else answer)}


def multiarith(row: Mapping[str, Any]) -> TaskRow:
    """MultiArith: question, final_ans."""
    return {"question": row["question"].strip(), "answer": str(row["final_ans"])}


def olympiadbench(row: Mapping[str, Any]) -> TaskRow:
    """OlympiadBench: final_answer and solution are lists; formulas stand in dollars."""
    meta = {key: row[key] for key in ("subfield", "is_multiple_answer", "unit", "error")}
    answer = ", ".join(part.replace("$", "").strip() for part in row["final_answer"])
    solution = "\n\n".join(row["solution"]) or None
    return {
        "id": f"olympiadbench-{row['id']}", "question": row["question"], "answer": answer, "solution": solution, "meta": meta
    }  # fmt: skip


def boardgame(row: Mapping[str, Any]) -> TaskRow | None:
    """BoardgameQA: the Main variant of all depths; the hub's set holds others too."""
    if "main" not in row["config"].casefold():
        return None
    return {
        "question": row["example"], "answer": row["label"], "solution": row["proof"],
        "choices": ["proved", "disproved", "unknown"], "meta": {"config": row["config"]},
    }  # fmt: skip


def cruxeval(row: Mapping[str, Any]) -> TaskRow:
    """CRUXEval, output prediction."""
    code, given = row["code"], row["input"]
    text = f"```python\n{code}\n```\nWhat does f({given}) return? Give the value as a Python literal."
    meta = {"code": code, "input": given, "output": row["output"]}
    return {"id": f"cruxeval-{row['id']}", "question": text, "answer": row["output"], "meta": meta}


def strategyqa(row: Mapping[str, Any]) -> TaskRow:
    """StrategyQA: a yes or no as a Boolean."""
    meta = {key: row[key] for key in ("term",) if key in row}
    return {
        "id": f"strategyqa-{row['qid']}", "question": row["question"], "answer": "Yes" if row["answer"] else "No",
        "solution": row.get("facts"), "choices": ["Yes", "No"], "meta": meta,
    }  # fmt: skip


_TABLE_KINDS = ("CorrelationAnalysis", "TrendForecasting", "StatisticalAnalysis", "ImpactAnalysis")


def tablebench(row: Mapping[str, Any]) -> TaskRow | None:
    """TableBench without what its authors grade by overlap of words (ROUGE-L) or by running plots."""
    if row["qtype"] not in ("FactChecking", "NumericalReasoning") and row["qsubtype"] not in _TABLE_KINDS:
        return None
    table = row["table"] if isinstance(row["table"], str) else json.dumps(row["table"], ensure_ascii=False)
    return {
        "id": f"tablebench-{row['id']}", "question": f"Table (JSON):\n{table}\n\nQuestion: {row['question']}",
        "answer": str(row["answer"]), "meta": {"qtype": row["qtype"], "qsubtype": row["qsubtype"]},
    }  # fmt: skip


_STEM = ("math", "physics", "chemistry", "engineering", "economics", "biology", "computer science")


def mmlu_pro(row: Mapping[str, Any]) -> TaskRow | None:
    """MMLU-Pro: the categories of science, technology, engineering and maths, with economics as the paper counts them."""
    if row["category"] not in _STEM:
        return None
    return {
        "id": f"mmlupro-{row['question_id']}", "question": row["question"], "answer": row["answer"],
        "choices": list(row["options"]), "meta": {"category": row["category"]},
    }  # fmt: skip


def humaneval(row: Mapping[str, Any]) -> TaskRow:
    """HumanEval: the answer is the canonical solution, a body."""
    return {
        "id": row["task_id"], "question": row["prompt"], "answer": row["canonical_solution"],
        "solution": row["canonical_solution"], "meta": {key: row[key] for key in ("prompt", "test", "entry_point")},
    }  # fmt: skip


def race(row: Mapping[str, Any]) -> TaskRow:
    """RACE: an article with questions."""
    return {
        "question": f"{row['article'].strip()}\n\nQuestion: {row['question'].strip()}", "answer": row["answer"],
        "choices": list(row["options"]), "meta": {"example_id": row["example_id"]},
    }  # fmt: skip


def livecodebench(row: Mapping[str, Any]) -> TaskRow:
    """LiveCodeBench: there are tests and no reference solution, which the answer says."""
    tests = json.loads(row["public_test_cases"]) + _private_tests(row["private_test_cases"])
    name = json.loads(row["metadata"] or "{}").get("func_name")
    text = row["question_content"]
    if row["starter_code"].strip():
        text += f"\n\nComplete this Python code:\n\n```python\n{row['starter_code']}\n```"
    else:
        text += "\n\nWrite a Python program that reads from standard input and prints the answer."
    meta = {"tests": tests, "func_name": name, "difficulty": row["difficulty"], "contest_date": str(row["contest_date"])}
    return {"id": row["question_id"], "question": text, "answer": "(its tests)", "meta": meta}


def _private_tests(packed: str) -> list[TaskRow]:
    """JSON, or JSON in a pickle in zlib in base64, as their authors keep test cases from being read by accident."""
    try:
        found = json.loads(packed)
    except ValueError:
        found = json.loads(_Texts(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load())
    return list(found)


class _Texts(pickle.Unpickler):
    """Reads plain values only: a pickle could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"test cases that want to import {module}.{name}")
