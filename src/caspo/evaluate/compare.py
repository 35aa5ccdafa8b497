"""Two evaluations on the same questions: what differs between them, and by how much, paired by question.

A side is ``RUN`` (its last round) or ``RUN/round-K``, with ``:METHOD`` behind it for one method only. Without a method every
method that both sides have is compared with itself; two named ones may differ, and may be of one run. Every difference is
``b - a``; intervals are 95%, over the questions, both sides on the same draws (`intervals`).

Figures on different questions, of another split or under another limit say nothing about the sides: refused, and what
differs is named. A method that was measured on a part of the other's questions is compared on that part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from caspo.core.config import flatten
from caspo.core.errors import ConfigError, DataError
from caspo.core.storage import read_json
from caspo.evaluate.answer_figures import ESTIMATES, answer_rows
from caspo.evaluate.estimates import mean_interval, paired_difference
from caspo.evaluate.intervals import change
from caspo.evaluate.resampling import draw_questions, ends
from caspo.evaluate.run import Outcome, read_outcomes
from caspo.search import METHODS

__all__ = ["compare"]

SCHEMA = 1


@dataclass(frozen=True)
class _Side:
    """What stands on one side of a comparison."""

    named: str
    folder: Path
    """The round's folder."""
    round: int
    method: str | None
    methods: Mapping[str, Any]
    """Those that were measured, with their entries in `metrics.json`."""
    model: str
    recipe: Mapping[str, Any]
    """All keys, flat."""


@dataclass(frozen=True)
class _MeasuredMethod:
    """One method of a side."""

    name: str
    max_tokens: int
    outcomes: Mapping[str, Outcome]
    """By question."""
    questions: Mapping[str, tuple[str, str]]
    """Text and reference answer of each question that left a tree."""


def compare(a: str, b: str) -> dict[str, Any]:
    """The content of ``comparison.json``: ``b`` against ``a``.

    Raises:
        ConfigError: a side that names no method of its run, nothing to compare, or sides that cannot be compared.
        DataError: no finished run in a folder, or damaged files.
    """
    first, second = _side(a), _side(b)
    compared = [_compared(first, second, *pair) for pair in _pairs(first, second)]
    sides = {
        key: {"run": str(side.folder.parent), "round": side.round, "model": side.model}
        for key, side in (("a", first), ("b", second))
    }
    return {"schema": SCHEMA, **sides, "comparisons": compared}


def _side(named: str) -> _Side:
    path, colon, method = named.rpartition(":")
    if not colon or Path(named).exists():  # a folder's name may hold a colon
        path, method = named, ""
    if method and method not in METHODS:
        raise ConfigError(f"{named}: there is no method {method!r}. Choose one of {', '.join(METHODS)}.")
    folder = Path(path)
    of_round = folder.name.removeprefix("round-") if folder.name.startswith("round-") else None
    run = folder.parent if of_round is not None and not (folder / "metrics.json").exists() else folder
    if not (run / "metrics.json").exists():
        raise DataError(
            f"{folder} is neither a finished run nor a round of one: there is no {run / 'metrics.json'}. Check the path, or "
            "run the command that made it again until it is done."
        )
    metrics = read_json(run / "metrics.json")
    if not isinstance(metrics, Mapping) or metrics.get("schema") != SCHEMA or not metrics.get("rounds"):
        raise DataError(f"{run / 'metrics.json'} holds no rounds of schema {SCHEMA}. Evaluate the run again.")
    rounds = {str(entry["round"]): entry for entry in metrics["rounds"]}
    number = of_round if run != folder and of_round is not None else list(rounds)[-1]
    if number not in rounds:
        raise DataError(f"{run} has no round {number}, only {', '.join(rounds)}.")
    methods = rounds[number]["methods"]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return _Side(
        named, run / f"round-{number}", int(number), method or None, methods, str(metrics["model"]), flatten(recipe)
    )


def _pairs(a: _Side, b: _Side) -> list[tuple[str, str]]:
    """The methods to compare; a method named on one side only is meant on both."""
    if a.method or b.method:
        pairs = [(a.method or b.method or "", b.method or a.method or "")]
    else:
        pairs = [(name, name) for name in a.methods if name in b.methods]
    for side, method in ((side, method) for pair in pairs for side, method in zip((a, b), pair, strict=True)):
        if method not in side.methods:
            raise ConfigError(
                f"{side.named} was not evaluated with {method!r}, only with {', '.join(side.methods) or 'no method'}."
            )
    if a.folder.resolve() == b.folder.resolve() and all(x == y for x, y in pairs):
        raise ConfigError(
            f"{a.named} and {b.named} are the same evaluation. Name two of its methods ({', '.join(a.methods)}), as in "
            f"{a.folder.parent}:cat {a.folder.parent}:chain_of_thought, or another run."
        )
    if not pairs:
        raise ConfigError(
            f"{a.named} ({', '.join(a.methods)}) and {b.named} ({', '.join(b.methods)}) have no method in common. Name one "
            "on each side: RUN:METHOD."
        )
    return pairs


def _compared(a: _Side, b: _Side, name_a: str, name_b: str) -> dict[str, Any]:
    first, second = _read(a, name_a), _read(b, name_b)
    ids = _common(a, b, first, second)
    one, two = ([side.outcomes[i] for i in ids] for side in (first, second))
    tokens = [float(y.tokens - x.tokens) for x, y in zip(one, two, strict=True)]
    found = asdict(paired_difference([o.correct for o in one], [o.correct for o in two]))
    return {
        "method_a": name_a,
        "method_b": name_b,
        "n": len(ids),
        "accuracy": {
            "a": _mean([o.correct for o in one]),
            "b": _mean([o.correct for o in two]),
            **{key: found[key] for key in ("difference", "low", "high", "p_value", "only_a", "only_b")},
        },
        "generated_tokens_per_question": {
            "a": _mean([o.tokens for o in one]),
            "b": _mean([o.tokens for o in two]),
            "difference": _mean(tokens),
            **ends(mean_interval(tokens)),
        },
        "seconds_per_question": {"a": _mean([o.seconds for o in one]), "b": _mean([o.seconds for o in two])},
        **_confidence(one, two),
        "flipped": {"only_a": _flipped(one, two, first, lost=True), "only_b": _flipped(one, two, first, lost=False)},
    }


def _confidence(one: Sequence[Outcome], two: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of the confidence in the answers, of the questions that both sides answered: a side that withholds the
    hard ones must not look better for it than one that answers all."""
    both = [(x, y) for x, y in zip(one, two, strict=True) if x.answer is not None and y.answer is not None]
    first, second = (answer_rows(side) for side in (zip(*both, strict=True) if both else ([], [])))
    draws = draw_questions(len(both))
    figures: dict[str, Any] = {"answered": {"a": _answered(one), "b": _answered(two), "both": len(both)}}
    for name, estimate in ESTIMATES.items():
        a, b = estimate(first, draws), estimate(second, draws)
        difference, interval = change(a, b)
        figures[name] = {"a": a.value, "b": b.value, "difference": difference, **ends(interval)}
    return figures


def _answered(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.answer is not None for outcome in outcomes)


def _flipped(one: Sequence[Outcome], two: Sequence[Outcome], asked: _MeasuredMethod, *, lost: bool) -> list[dict[str, Any]]:
    """The questions that only ``a`` got right (``lost``), or only ``b``."""
    flipped = []
    for x, y in zip(one, two, strict=True):
        if x.correct != y.correct and x.correct == lost:
            text, gold = asked.questions.get(x.question_id, (None, None))
            flipped.append({"id": x.question_id, "question": text, "gold": gold, "a": x.answer, "b": y.answer})
    return flipped


def _read(side: _Side, method: str) -> _MeasuredMethod:
    outcomes, trees = read_outcomes(side.folder / "evaluate", method)
    if not outcomes:
        raise DataError(f"{side.folder / 'evaluate' / method} holds no outcomes. Evaluate {side.named} again.")
    return _MeasuredMethod(
        method,
        int(side.methods[method]["settings"]["max_tokens"]),
        {outcome.question_id: outcome for outcome in outcomes},
        {tree.question.id: (tree.question.text, tree.question.answer) for tree in trees},
    )


def _common(a: _Side, b: _Side, first: _MeasuredMethod, second: _MeasuredMethod) -> list[str]:
    """The questions to compare on, in the order of ``a``.

    Raises:
        ConfigError: the sides were not measured on the same questions, split and limits.
    """
    problems = []
    if a.recipe.get("evaluate.split") != b.recipe.get("evaluate.split"):
        problems.append(_named("evaluate.split", a.recipe.get("evaluate.split"), b.recipe.get("evaluate.split")))
    if first.max_tokens != second.max_tokens:
        problems.append(_named("max_tokens", first.max_tokens, second.max_tokens))
    ids = [i for i in first.outcomes if i in second.outcomes]
    # Of one method the sets must be equal; another may have been given only the first of the questions.
    smaller = min(len(first.outcomes), len(second.outcomes))
    if len(ids) < smaller or (first.name == second.name and len(first.outcomes) != len(second.outcomes)):
        problems.append(
            f"questions: {len(first.outcomes)} in a, {len(second.outcomes)} in b, of these {len(ids)} are in both"
        )
    other = [i for i in ids if first.questions.get(i) and second.questions.get(i) not in (None, first.questions[i])]
    if other:
        problems.append(f"questions: {len(other)} of equal id differ in text or answer, the first is {other[0]}")
    if not problems:
        return ids
    if any(problem.startswith("questions") for problem in problems):
        keys = sorted(k for k in a.recipe.keys() | b.recipe.keys() if k.startswith(_CHOOSE) and "judge" not in k)
        problems += [_named(k, a.recipe.get(k), b.recipe.get(k)) for k in keys if a.recipe.get(k) != b.recipe.get(k)]
    listed = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(
        f"{a.named} ({first.name}) and {b.named} ({second.name}) cannot be compared, they were not measured alike:\n{listed}"
        "\nEvaluate one of them again with what the other has."
    )


_CHOOSE = ("seed", "task.", "evaluate.questions", "evaluate.self_consistency_questions")
"""The keys of a recipe that choose the questions; the judge, a part of the task, does not."""


def _named(key: str, a: Any, b: Any) -> str:
    return f"{key}: {a} in a, {b} in b"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
