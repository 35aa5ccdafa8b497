"""Progress bars and tables of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from caspo.core.rows import BadRows
    from caspo.loop.task import TaskSettings

__all__ = [
    "Bars", "bars", "comparison_tables", "console", "judge_table", "metrics_table", "output", "signals_tables", "tell",
    "tell_left_out",
]  # fmt: skip

output = Console(highlight=False)
"""Results, to stdout."""
console = Console(stderr=True)
"""Progress, to stderr."""


def tell(bad: BadRows | None, empty: Sequence[str] = ()) -> None:
    """Say which rows of a file were left out, and how many had no steps, if any; to stderr, as they are no result."""
    if empty:
        console.print(
            f"{len(empty)} rows had no steps, the first: {empty[0]}", highlight=False, markup=False, soft_wrap=True
        )
    if bad is not None and bad.found:
        console.print(str(bad), highlight=False, markup=False, soft_wrap=True)


def tell_left_out(task: TaskSettings, splits: Sequence[Literal["train", "test"]]) -> None:
    """Say which rows of the files of a task are left out, where the recipe allows it."""
    from caspo.core.rows import BadRows
    from caspo.loop.task import open_task

    for split in splits if task.skip_bad else ():
        bad = BadRows()
        open_task(task, split, bad)
        tell(bad)


class Bars:
    """One bar per stage, with its rate and the time left; plain lines where there is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, int] = {}

    def stage(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of a stage are finished."""
        if not console.is_terminal:
            tenth = 10 * done // max(1, total)
            if self._said.get(name) != tenth:
                self._said[name] = tenth
                console.print(f"{name}: {done}/{total}", highlight=False)
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, speed="")
        task = self._progress.tasks[self._tasks[name]]
        speed = f"{task.speed:.1f}/s" if task.speed else ""
        self._progress.update(self._tasks[name], completed=done, total=total, speed=speed)


@contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars for the time of a ``with`` block."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield Bars(progress)


def _table(title: str, first: str, figures: Iterable[str], **more: Any) -> Table:
    """An empty table: a column of names, and columns of figures."""
    return Table(first, *(Column(name, justify="right") for name in figures), title=title, title_justify="left", **more)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """The before/after table of a run."""
    rounds = metrics["rounds"]
    names = ("before" if entry["round"] == 0 else f"round {entry['round']}" for entry in rounds)
    table = _table(f"{metrics['recipe']}: {metrics['model']}, seed {metrics['seed']}", "", names)
    for method in rounds[0]["methods"]:
        cells = [r["methods"][method] for r in rounds]
        table.add_row(
            f"{method}: accuracy (n = {cells[0]['n']})",
            *(f"{c['accuracy']:.1%}  [{c['accuracy_ci95'][0]:.1%}, {c['accuracy_ci95'][1]:.1%}]" for c in cells),
        )
        table.add_row("  generated tokens a question", *(f"{c['generated_tokens_per_question']:.0f}" for c in cells))
        table.add_row("  seconds a question", *(f"{c['seconds_per_question']:.2f}" for c in cells))
        for name, label in (("ece_debiased", "ECE, debiased,"), ("auroc", "AUROC")):
            figures = (_figure(c["answers"].get(name), c["answers"].get(f"{name}_ci95")) for c in cells)
            table.add_row(f"  {label} of the answer's confidence", *figures)
        paths = [c["faithfulness"] for c in cells]
        if any(path["n"] for path in paths):
            label = "  right answers with a wrong step"
            table.add_row(label, *(_figure(p["wrong_step"], p["wrong_step_ci95"], "{:.1%}") for p in paths))
    for key, label, form in (
        ("accuracy", "steps: right", "{:.1%}"),
        ("ece", "steps: ECE of the confidence", "{:.3f}"),
        ("ece_debiased", "steps: ECE, debiased", "{:.3f}"),
        ("brier", "steps: Brier score", "{:.3f}"),
        ("ece_calibrated", "steps: ECE, calibrated", "{:.3f}"),
        ("entropy_right", "steps: entropy of right ones, nats", "{:.3f}"),
        ("entropy_wrong", "steps: entropy of wrong ones, nats", "{:.3f}"),
    ):
        table.add_row(label, *(_figure(r["steps"].get(key), r["steps"].get(f"{key}_ci95"), form) for r in rounds))
    for family, label in (("auroc", "all steps"), ("auroc_siblings", "siblings")):
        for signal in ("entropy", "logprob_sum"):
            figures = (_figure(r["steps"].get(family, {}).get(signal), None) for r in rounds)
            table.add_row(f"AUROC of {signal}, {label}", *figures)
    return table


def judge_table(scores: Mapping[str, Any]) -> Table:
    """How good a judge is, a column for each subset; values with 95% intervals."""
    sets = scores["sets"]
    names = (f"{name}\nn = {found['solutions']}, {found['erroneous']} wrong" for name, found in sets.items())
    table = _table(f"Judge {scores['judge']} against {scores['against']}", "", names)
    for key, label in (
        ("processbench_f1", "F1 (ProcessBench)"),
        ("accuracy_erroneous", "first error found, wrong solutions"),
        ("processbench_correct", "said to be right, right solutions"),
        ("f1_unknown_as_right", "F1, unknown as right"),
        ("accuracy_correct", "no error found, right solutions"),
        ("first_error_accuracy", "both, all solutions"),
        ("decided", "decided: no unknown on the way"),
        ("accuracy_decided", "both, decided solutions"),
        ("coverage", "steps: not unknown"),
        ("precision_wrong", "steps called wrong: are wrong"),
        ("recall_wrong", "wrong steps met: called wrong"),
        ("kappa", "Cohen's kappa"),
    ):
        table.add_row(label, *(_figure(f[key]["value"], (f[key]["low"], f[key]["high"])) for f in sets.values()))
    return table


def signals_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """For every round with judged steps: the AUROCs of all signals with 95% intervals, best among siblings first."""
    return [_signals_table(entry) for entry in metrics["rounds"] if entry["steps"].get("auroc")]


def _signals_table(entry: Mapping[str, Any]) -> Table:
    when = "before training" if entry["round"] == 0 else f"round {entry['round']}"
    title = f"AUROC of the signals, {when} (95% intervals; 0.5 is guessing)"
    table = _table(title, "signal", ("all steps", "siblings"))
    families, steps = ("auroc", "auroc_siblings"), entry["steps"]
    siblings = steps["auroc_siblings"]
    for signal in sorted(siblings, key=lambda name: -1.0 if siblings[name] is None else siblings[name], reverse=True):
        table.add_row(signal, *(_figure(steps[f][signal], steps[f"{f}_ci95"][signal]) for f in families))
    return table


def _figure(value: float | None, interval: Sequence[float | None] | None, form: str = "{:.3f}") -> str:
    """A figure and its 95% interval, a dash where it is undefined."""
    if value is None:
        return "-"
    low, high = interval or (None, None)
    shown = form.format(value)
    return shown if low is None or high is None else f"{shown}  [{form.format(low)}, {form.format(high)}]"


_COMPARED = (
    ("accuracy", "accuracy", "{:.1%}", "{:+.1%}"),
    ("generated_tokens_per_question", "generated tokens a question", "{:.0f}", "{:+.1f}"),
    ("seconds_per_question", "seconds a question", "{:.2f}", ""),
    ("ece_debiased", "ECE, debiased, of the answer's confidence", "{:.3f}", "{:+.3f}"),
    ("brier", "Brier score of it", "{:.3f}", "{:+.3f}"),
    ("auroc", "AUROC of it", "{:.3f}", "{:+.3f}"),
    ("aurc", "area under risk and coverage", "{:.3f}", "{:+.3f}"),
)
"""Rows of a comparison: key, label, and how values and differences are written; no difference where none is measured."""

_FLIPPED = 5
"""Flipped questions that are named."""


def comparison_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """For every compared method both sides and how B differs from A."""
    return [_comparison_table(comparison, entry) for entry in comparison["comparisons"]]


def _comparison_table(comparison: Mapping[str, Any], entry: Mapping[str, Any]) -> Table:
    a, b = (f"{comparison[side]['run']}, round {comparison[side]['round']}" for side in "ab")
    title = f"A: {entry['method_a']}, {a}\nB: {entry['method_b']}, {b}\nn = {entry['n']} questions"
    columns = ("A", "B", "B - A, with 95% interval")
    table = _table(title, "", columns, caption=_flips(entry), caption_justify="left")
    for key, label, form, signed in _COMPARED:
        found = entry[key]
        values = ("-" if found[side] is None else form.format(found[side]) for side in "ab")
        change = _figure(found["difference"], (found["low"], found["high"]), signed) if signed else ""
        table.add_row(label, *values, change)
    return table


def _flips(entry: Mapping[str, Any]) -> str:
    accuracy = entry["accuracy"]
    answered = entry["answered"]
    both = f"ECE, Brier, AUROC and area on the {answered['both']} of both"
    lines = [f"McNemar: p = {accuracy['p_value']:.3g}", f"answered: {answered['a']} in A, {answered['b']} in B; {both}"]
    for side in "ab":
        flipped = entry["flipped"][f"only_{side}"]
        names = ", ".join(question["id"] for question in flipped[:_FLIPPED])
        more = ", ..." if len(flipped) > _FLIPPED else ""
        lines.append(f"right in {side.upper()} only: {len(flipped)}" + (f" ({names}{more})" if flipped else ""))
    return "\n".join(lines)
