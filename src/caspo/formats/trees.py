"""Annotated trees and pairs in the formats of the field, and labelled solutions as trees.

Out: ProcessBench, PRM800K, Math-Shepherd, ``steps`` and Step-DPO, all read back by `caspo.judges.labels`. TRL's preference
format is that of the pairs themselves (`pairs.parquet`). In: whatever `read_labelled` reads becomes trees without
confidence (trace kind ``none``), to be scored by `caspo annotate --rescore` and made into pairs like any others.

What gets lost on every way out: token ids, traces, counts. A path is left out, and counted, where a format cannot say what
is known of it: one with an unknown step before its end or first error, and in ProcessBench and Math-Shepherd, which hold
whole solutions, one that is right so far but did not end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from caspo.answers import extract_answer, same_answer
from caspo.engines.prompts import INSTRUCTION, prompt_ids
from caspo.errors import DataError
from caspo.formats.labelled import LabelledSolution, read_labelled
from caspo.formats.parquet import read_trees
from caspo.steps import step_key
from caspo.storage import write_text
from caspo.trees import TreeBuilder
from caspo.types import ROOT, Label, Node, Question, Step, StepPair, TokenTrace, Tree, Verdict

__all__ = [
    "FORMATS", "Exported", "pairs_as_step_dpo", "read_solutions", "solutions_of", "trees_as", "trees_of", "write_rows",
]  # fmt: skip

Row = dict[str, Any]
Encode = Callable[[str, bool], tuple[int, ...]]

_TAG = "ки"
_RATING = {"right": 1, "wrong": -1}


@dataclass(frozen=True)
class Exported:
    """Records of a format, and how many paths it could not hold, by reason."""

    rows: list[Row]
    dropped: dict[str, int]


def read_solutions(path: Path) -> list[LabelledSolution]:
    """The paths of annotated trees (a folder or ``*.parquet``), or the solutions of a labelled file."""
    if path.is_dir() or path.suffix == ".parquet":
        return [solution for tree in read_trees(path) for solution in solutions_of(tree)]
    return read_labelled(path)


def solutions_of(tree: Tree) -> list[LabelledSolution]:
    """Every path of a tree to a node that nothing follows, with the verdicts on its steps; those not judged are unknown."""
    found = []
    for leaf in tree.nodes:
        if tree.children(leaf.id):
            continue
        path = tree.path(leaf.id)
        labels: list[Label] = [node.verdict.label if node.verdict else "unknown" for node in path]
        first = labels.index("wrong") if "wrong" in labels else None
        found.append(
            LabelledSolution(
                f"{tree.question.id}/{leaf.id}", tree.question, tuple(node.step.text for node in path), first,
                tuple(labels), _subset(tree.question), leaf.final,
            )
        )  # fmt: skip
    return found


def trees_of(
    solutions: Sequence[LabelledSolution], tokenizer: Any = None, instruction: str = INSTRUCTION
) -> list[Tree]:
    """One tree for each question, its solutions merged where they begin alike; labels become verdicts of judge ``labels``.

    Without a tokenizer the steps have no tokens. Steps that are labelled differently are unknown; what
    follows a wrong one is not judged. Every step ends with a line break, the last of a solution that ended with EOS.
    """
    builders: dict[str, TreeBuilder] = {}
    for solution in solutions:
        key = step_key(solution.question.text)
        if key not in builders:
            prompt = () if tokenizer is None else prompt_ids(tokenizer, solution.question.text, instruction)
            builders[key] = TreeBuilder(solution.question, prompt)
        builder = builders[key]
        parent = ROOT
        for place, (text, label) in enumerate(zip(solution.steps, solution.labels, strict=True)):
            final = solution.ended and place == len(solution.steps) - 1
            parent = builder.add(parent, _step(text, tokenizer, final=final), final=final)
            if solution.first_error is not None and place > solution.first_error:
                continue
            before = builder.nodes[parent].verdict
            known = {label, before.label if before else label} - {"unknown"}
            builder.judge(parent, Verdict(known.pop() if len(known) == 1 else "unknown", "", "labels"))
    return [builder.build() for builder in builders.values()]


def trees_as(name: str, trees: Sequence[Tree], generator: str = "caspo") -> Exported:
    """Trees as records of a format in `FORMATS`; ``generator`` is the model that wrote the steps."""
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    for tree in trees:
        if name == "prm800k":
            rows += _prm800k(tree)
            continue
        for solution in solutions_of(tree):
            reason = _unfit(solution, partial=name == "steps")
            if reason:
                dropped[reason] += 1
            else:
                rows.append(_WRITERS[name](solution, generator))
    return Exported(rows, dict(dropped))


def pairs_as_step_dpo(pairs: Sequence[StepPair], trees: Sequence[Tree], dataset: str = "caspo") -> list[Row]:
    """Pairs as Step-DPO's records, but for ``full_chosen`` and ``full_rejected``, which its training does not read."""
    by_id = {tree.question.id: tree for tree in trees}
    rows = []
    for pair in pairs:
        tree = by_id[pair.question_id]
        rows.append(
            {
                "dataset": dataset,
                "prompt": tree.question.text,
                "initial_reason_steps": "".join(f"{_line(node.step.text)}\n" for node in tree.path(pair.parent)),
                "chosen": _line(tree.nodes[pair.chosen].step.text),
                "rejected": _line(tree.nodes[pair.rejected].step.text),
                "answer": tree.question.answer,
            }
        )
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write records as JSONL, atomically."""
    # Line separators other than \n would cut a line for readers that use splitlines().
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    escaped = (
        line.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085") for line in lines
    )
    write_text(path, "".join(f"{line}\n" for line in escaped))


def _unfit(solution: LabelledSolution, *, partial: bool) -> str | None:
    """Why a format that knows a first error and nothing else cannot hold a solution."""
    end = len(solution.steps) if solution.first_error is None else solution.first_error
    if "unknown" in solution.labels[:end]:
        return "a step is unknown"
    if solution.first_error is None and not solution.ended and not partial:
        return "right so far, but not at its end"
    return None


def _process_bench(solution: LabelledSolution, generator: str) -> Row:
    answer = extract_answer(solution.steps[-1]) if solution.ended else None
    return {
        "id": solution.id,
        "subset": solution.subset,
        "generator": solution.meta.get("generator", generator),
        "problem": solution.question.text,
        "steps": [_line(text) for text in solution.steps],
        "final_answer_correct": solution.meta.get(
            "final_answer_correct", answer is not None and same_answer(answer, solution.question.answer)
        ),
        "label": -1 if solution.first_error is None else solution.first_error,
    }


def _math_shepherd(solution: LabelledSolution, generator: str) -> Row:
    """Labels after the first error are -, as they are in Math-Shepherd: nothing reaches the answer from there."""
    texts = [_line(text) for text in solution.steps]
    unsafe = next((text for text in texts if _TAG in text.split() or "Step 1:" in text), None)
    if unsafe is not None:
        raise DataError(
            f"The step {unsafe!r:.80} holds a mark of Math-Shepherd's format, so it cannot be written in it."
        )
    end = len(texts) if solution.first_error is None else solution.first_error
    signs = ["+" if place < end else "-" for place in range(len(texts))]
    body = [f"Step {number}: {text}" for number, text in enumerate(texts, start=1)]
    return {
        "input": f"{solution.question.text} " + "\n".join(f"{text} {_TAG}" for text in body),
        "label": f"{solution.question.text} " + "\n".join(f"{t} {s}" for t, s in zip(body, signs, strict=True)),
        "task": solution.subset,
    }


def _steps(solution: LabelledSolution, generator: str) -> Row:
    meta = {"subset": solution.subset, "generator": generator, **solution.meta}
    return {
        "id": solution.id,
        "question": solution.question.text,
        "steps": [_line(text) for text in solution.steps],
        "first_error": -1 if solution.first_error is None else solution.first_error,
        "answer": solution.question.answer or None,
        "source": generator,
        "meta": meta if solution.ended else meta | {"ended": False},
    }


_WRITERS: Mapping[str, Callable[[LabelledSolution, str], Row]] = {
    "processbench": _process_bench,
    "math_shepherd": _math_shepherd,
    "steps": _steps,
}

FORMATS = (*_WRITERS, "prm800k")
"""What trees can be written as."""


def _prm800k(tree: Tree) -> Iterator[Row]:
    """One record for every way through the tree to a prefix none of whose continuations was continued."""
    for parent, children in tree.groups():
        if any(tree.children(child.id) for child in children):
            continue
        path = tree.path(parent)
        steps = [_choice(tree.children(node.parent), node) for node in path]
        best = next((c for c in children if c.right and c.final), None)
        steps.append(_choice(children, best))
        judged = [c.verdict.label if c.verdict else "unknown" for c in children]
        reason = "solution" if best else "found_error" if set(judged) == {"wrong"} else "give_up"
        question = tree.question
        yield {
            "id": f"{question.id}/{parent}",
            "generation": None,
            "question": {
                "problem": question.text,
                "ground_truth_solution": question.solution,
                "ground_truth_answer": question.answer,
            },
            "label": {"steps": steps, "finish_reason": reason},
        }


def _choice(children: Sequence[Node], chosen: Node | None) -> Row:
    completions = [
        {"text": _line(c.step.text), "rating": _RATING.get(c.verdict.label if c.verdict else ""), "flagged": None}
        for c in children
    ]
    place = None if chosen is None else [c.id for c in children].index(chosen.id)
    return {"completions": completions, "human_completion": None, "chosen_completion": place}


def _step(text: str, tokenizer: Any, *, final: bool) -> Step:
    whole = _line(text) if final else f"{_line(text)}\n"
    ids: tuple[int, ...] = ()
    if tokenizer is not None:
        ids = tuple(tokenizer(whole, add_special_tokens=False)["input_ids"])
        ids += (tokenizer.eos_token_id,) if final else ()
    nothing = np.full(len(ids), np.nan, dtype=np.float32)
    return Step(whole, ids, TokenTrace(nothing, nothing, nothing, nothing, nothing, kind="none"))


def _line(text: str) -> str:
    return text.strip()


def _subset(question: Question) -> str:
    level = question.meta.get("level")
    return "all" if level is None else f"level {level}"
