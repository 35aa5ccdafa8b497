"""What the report reads of a run folder: metrics.json, report_data.json, environment.json, recipe.yaml.

A report must come out of any run, also of one that stopped after round 0 or measured less: what is null, missing or not
a finite number is None here and a dash on the page. Only a metrics.json that is missing, damaged or of another schema
is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caspo.core.errors import DataError
from caspo.core.storage import read_json
from caspo.search import DEFAULT_METHOD, METHODS

__all__ = [
    "Interval", "Method", "Round", "Run", "difference_interval", "method_name", "number", "read_run", "records", "section",
]  # fmt: skip

Interval = tuple[float, float]
"""Low and high end of a 95% interval, in the unit of the figure."""

SCHEMA = 1

METHOD_NAMES = {name: METHODS[name].title for name in sorted(METHODS, key=lambda name: name != DEFAULT_METHOD)}
"""How people call the methods; ours first."""


def number(value: Any) -> float | None:
    """A finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object under ``key``, empty where there is none."""
    value = mapping.get(key)
    return value if isinstance(value, Mapping) else {}


def records(mapping: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """The JSON objects in the list under ``key``."""
    value = mapping.get(key)
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def method_name(key: str) -> str:
    """How people call a method."""
    return METHOD_NAMES.get(key, key.replace("_", " ").capitalize())


@dataclass(frozen=True)
class Method:
    """One inference method in one round; shares are in [0, 1], tokens and seconds per question."""

    key: str
    n: int | None
    accuracy: float | None
    low: float | None
    high: float | None
    tokens: float | None
    seconds: float | None
    abstained: float | None
    over_pruned: float | None
    answers: Mapping[str, float | None]
    """Figures of the confidence in the answers: n, ece, auroc, aurc, ...; empty in runs of older versions."""
    faithfulness: Mapping[str, float | None]
    """How many right answers there are, and how many of them by a wrong step: n, wrong_step, low, high."""

    @property
    def name(self) -> str:
        return method_name(self.key)

    @property
    def inline(self) -> str:
        """The name within a sentence."""
        return self.name[0].lower() + self.name[1:] if self.name[1:].islower() else self.name


@dataclass(frozen=True)
class Round:
    """The model after ``index`` rounds of training."""

    index: int
    methods: Mapping[str, Method]
    steps: Mapping[str, float | None]
    """The plain figures of ``steps``: n, accuracy, ece, brier, ..., entropy_right, entropy_wrong."""
    auroc: Mapping[str, float | None]
    auroc_siblings: Mapping[str, float | None]
    auroc_ci95: Mapping[str, Interval]
    """Only of the signals whose interval is known; runs of older versions recorded none."""
    auroc_siblings_ci95: Mapping[str, Interval]
    training: Mapping[str, Any]
    """Empty for a round without training."""
    drawn: Mapping[str, Any]
    """This round's part of report_data.json: reliability bins, entropies, budget curves."""

    @property
    def label(self) -> str:
        return "before training" if self.index == 0 else f"after round {self.index}"

    @property
    def entropy_gap(self) -> float | None:
        """Mean entropy of wrong minus right steps, nats."""
        wrong, right = self.steps.get("entropy_wrong"), self.steps.get("entropy_right")
        return None if wrong is None or right is None else wrong - right


@dataclass(frozen=True)
class Run:
    """Everything the page shows."""

    folder: Path
    metrics: Mapping[str, Any]
    rounds: tuple[Round, ...]
    trees: tuple[Mapping[str, Any], ...]
    paired: tuple[Mapping[str, Any], ...]
    """Optional paired comparisons of two rounds of a method, as `evaluate.estimates.paired_difference` gives them."""
    step_changes: tuple[Mapping[str, Any], ...]
    """How figures of the steps changed between two rounds, as `evaluate.step_figures.step_changes` gives them."""
    environment: Mapping[str, Any]
    recipe: str | None

    @property
    def first(self) -> Round:
        return self.rounds[0]

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @property
    def trained(self) -> bool:
        return len(self.rounds) > 1

    def method_keys(self) -> list[str]:
        """Every method of any round, as `METHOD_NAMES` orders them."""
        order = list(METHOD_NAMES)
        seen = dict.fromkeys(key for r in self.rounds for key in r.methods)
        return sorted(seen, key=lambda key: order.index(key) if key in order else len(order))

    def paired_difference(self, method: str) -> tuple[float, float, float] | None:
        """(difference, low, high) of last minus first round on the same questions, where the run recorded it."""
        return self._recorded(self.paired, "method", method)

    def step_change(self, figure: str) -> tuple[float, float, float] | None:
        """The same of a figure of the steps, in its unit."""
        return self._recorded(self.step_changes, "figure", figure)

    def _recorded(self, items: Sequence[Mapping[str, Any]], key: str, name: str) -> tuple[float, float, float] | None:
        wanted = (name, self.first.index, self.last.index)
        for item in items:
            if (item.get(key), item.get("before"), item.get("after")) == wanted:
                found = tuple(number(item.get(key)) for key in ("difference", "low", "high"))
                if None not in found:
                    difference, low, high = (value for value in found if value is not None)
                    return difference, low, high
        return None


def difference_interval(a: Method, b: Method) -> tuple[float, float, float] | None:
    """``b - a`` in accuracy with a 95% interval from the two intervals (Newcombe 1998, method 10), as if independent.

    None where a figure is missing. On the same questions the truth is usually tighter: a paired interval is better.
    """
    figures = (a.accuracy, a.low, a.high, b.accuracy, b.low, b.high)
    if any(value is None for value in figures):
        return None
    p_a, low_a, high_a, p_b, low_b, high_b = (value for value in figures if value is not None)
    down, up = math.hypot(p_b - low_b, high_a - p_a), math.hypot(high_b - p_b, p_a - low_a)
    return p_b - p_a, p_b - p_a - down, p_b - p_a + up


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        DataError: metrics.json is missing, truncated, of another schema or without rounds; or another file is damaged.
    """
    path = folder / "metrics.json"
    if not path.exists():
        raise DataError(
            f"{folder} holds no metrics.json, so there is nothing to report. Either it is not a run folder, or its "
            "evaluation has not finished: run the command that made it again."
        )
    metrics = read_json(path)
    if not isinstance(metrics, Mapping) or metrics.get("schema") != SCHEMA:
        found = metrics.get("schema") if isinstance(metrics, Mapping) else type(metrics).__name__
        raise DataError(
            f"{path} is of schema {found!r}, this caspo reads {SCHEMA}. Evaluate the run again with this version."
        )
    measured = [r for r in records(metrics, "rounds") if isinstance(r.get("round"), int)]
    if not measured:
        raise DataError(f"{path} holds no rounds: the evaluation was interrupted. Run the command that made it again.")
    extra = _optional(folder / "report_data.json")
    drawn = {r.get("round"): r for r in records(extra, "rounds")}
    recipe = folder / "recipe.yaml"
    return Run(
        folder=folder,
        metrics=metrics,
        rounds=tuple(_round(r, drawn.get(r["round"], {})) for r in sorted(measured, key=lambda r: int(r["round"]))),
        trees=tuple(records(extra, "trees")),
        paired=tuple(records(extra, "paired")),
        step_changes=tuple(records(extra, "step_changes")),
        environment=_optional(folder / "environment.json"),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else None,
    )


def _optional(path: Path) -> Mapping[str, Any]:
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, Mapping):
        raise DataError(
            f"{path} must hold a JSON object, found a {type(found).__name__}. Delete it and run the command again."
        )
    return found


def _round(raw: Mapping[str, Any], drawn: Mapping[str, Any]) -> Round:
    steps = section(raw, "steps")
    methods = section(raw, "methods")
    return Round(
        index=int(raw["round"]),
        methods={str(key): _method(str(key), section(methods, key)) for key in methods if section(methods, key)},
        steps={str(key): number(value) for key, value in steps.items()},
        auroc={str(key): number(value) for key, value in section(steps, "auroc").items()},
        auroc_siblings={str(key): number(value) for key, value in section(steps, "auroc_siblings").items()},
        auroc_ci95=_intervals(section(steps, "auroc_ci95")),
        auroc_siblings_ci95=_intervals(section(steps, "auroc_siblings_ci95")),
        training=section(raw, "training"),
        drawn=drawn,
    )


def _intervals(raw: Mapping[str, Any]) -> dict[str, Interval]:
    """The intervals that are whole."""
    ends = {str(name): _ends(value) for name, value in raw.items()}
    return {name: (low, high) for name, (low, high) in ends.items() if low is not None and high is not None}


def _ends(interval: Any) -> tuple[float | None, float | None]:
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else (None, None)
    return number(low), number(high)


def _method(key: str, raw: Mapping[str, Any]) -> Method:
    low, high = _ends(raw.get("accuracy_ci95"))
    n = number(raw.get("n"))
    return Method(
        key=key,
        n=None if n is None else int(n),
        accuracy=number(raw.get("accuracy")),
        low=low,
        high=high,
        tokens=number(raw.get("generated_tokens_per_question")),
        seconds=number(raw.get("seconds_per_question")),
        abstained=number(raw.get("abstained")),
        over_pruned=number(raw.get("over_pruned")),
        answers={str(name): number(value) for name, value in section(raw, "answers").items()},
        faithfulness=_faithfulness(section(raw, "faithfulness")),
    )


def _faithfulness(raw: Mapping[str, Any]) -> dict[str, float | None]:
    low, high = _ends(raw.get("wrong_step_ci95"))
    return {"n": number(raw.get("n")), "wrong_step": number(raw.get("wrong_step")), "low": low, "high": high}
