"""The words and tables of the page: what came out, how sure that is, and how it was made.

A difference is called one only where its interval excludes zero; small samples are said to be small.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from caspo.core.config import flatten
from caspo.report.markup import MISSING, Child, Html, count, data, el, fixed, join, percent, points, table
from caspo.report.method_charts import colour_of
from caspo.report.run_data import Interval, Method, Round, Run, difference_interval, method_name, number, section

__all__ = ["changes_table", "headline", "methods_table", "provenance", "signals_table", "tiles", "training_table"]

SMALL = 200
"""Below this many questions the page warns: a 95% interval is then wider than +-7 points."""

PAIR_KINDS = {"confident_wrong": "confident but wrong", "uncertain_right": "right but unsure"}


def _verdict(low: float, high: float) -> str:
    return "inside the noise" if low <= 0.0 <= high else "outside the noise"


def _comparison(run: Run, key: str) -> tuple[float, float, float, str] | None:
    """(difference, low, high, how) of last minus first round of a method, paired where the run recorded it."""
    if (paired := run.paired_difference(key)) is not None:
        return *paired, "paired by question"
    first, last = run.first.methods.get(key), run.last.methods.get(key)
    if not run.trained or first is None or last is None:
        return None
    found = difference_interval(first, last)
    return None if found is None else (*found, "as if on different questions, so rather too wide")


def headline(run: Run) -> Html:
    """The result in sentences."""
    keys = [key for key in run.method_keys() if key in run.last.methods and run.last.methods[key].accuracy is not None]
    if not keys:
        return el("p", "No method was evaluated in the last round of this run.", class_="lede")
    key = keys[0]
    last, first = run.last.methods[key], run.first.methods.get(key)
    questions = f"{count(last.n)} test questions" if last.n else "the test questions"
    result: list[Child] = [f"{last.name} solves ", _share(last), f" of {questions} {run.last.label}"]
    found = _comparison(run, key)
    if found is None or first is None:
        certainty = f"The 95% interval is {percent(last.low)} to {percent(last.high)}."
        if not run.trained:
            certainty += " This run holds no trained round yet, so there is nothing to compare it with."
    else:
        difference, low, high, how = found
        result += [", against ", _share(first), f" {run.first.label}"]
        certainty = (
            f"95% intervals: {percent(last.low)} to {percent(last.high)} now, {percent(first.low)} to "
            f"{percent(first.high)} before. The difference is {points(difference)} points, with a 95% interval of "
            f"{points(low)} to {points(high)} ({how}): {_reading(difference, low, high)}"
        )
    return el(
        "div", el("p", *result, ".", class_="lede"), el("p", certainty, class_="certainty"), _small(run), *_against(run, key)
    )


def _share(m: Method) -> Html:
    return el("strong", data(m.accuracy, percent(m.accuracy)))


def _reading(difference: float, low: float, high: float) -> str:
    if low <= 0.0 <= high:
        return "it includes zero, so this is inside the noise and not a finding."
    return "it excludes zero. " + (
        "The gain is outside the noise of this test set." if difference > 0 else "The model got worse."
    )


def _small(run: Run) -> Html | None:
    sizes = [m.n for r in run.rounds for m in r.methods.values() if m.n]
    if not sizes or min(sizes) >= SMALL:
        return None
    widest = max((m for r in run.rounds for m in r.methods.values() if m.n), key=lambda m: (m.high or 0) - (m.low or 0))
    half = "" if widest.low is None or widest.high is None else f" (±{50 * (widest.high - widest.low):.0f} points at worst)"
    return el(
        "p",
        el("strong", "Small sample. "),
        f"Some figures rest on {min(sizes)} questions only{half}, and all of them on one seed: read them as a direction.",
        class_="note",
    )


def _against(run: Run, key: str) -> list[Html]:
    """The first method against every other one, in the last round: accuracy and tokens."""
    ours, lines = run.last.methods[key], []
    for other in run.method_keys():
        theirs = run.last.methods.get(other)
        if other == key or theirs is None or (found := difference_interval(theirs, ours)) is None:
            continue
        difference, low, high = found
        verdict = f"{points(difference)} points, {points(low)} to {points(high)}: {_verdict(low, high)}"
        cost: list[Child] = []
        if ours.tokens and theirs.tokens:
            ratio = f"{ours.tokens / theirs.tokens:.2f}"
            cost = [f", at {ratio} times its tokens ({count(ours.tokens)} against {count(theirs.tokens)})"]
        lines.append(
            el("li", f"{run.last.label.capitalize()}, {ours.inline} against {theirs.inline}: {verdict}", *cost, ".")
        )
    return [el("ul", *lines, class_="against")] if lines else []


def tiles(run: Run) -> Html:
    """Four figures before and after: accuracy, calibration, entropy gap, telling siblings apart."""
    a, b = run.first, run.last
    key = next((k for k in run.method_keys() if k in b.methods), None)
    accuracy = [(r.methods[key].accuracy if key is not None and key in r.methods else None) for r in (a, b)]
    found = _comparison(run, key) if key is not None else None
    note = "one round only" if found is None else f"{points(found[0])} points, {_verdict(found[1], found[2])}"
    single = "before training" if not run.trained else None
    siblings = [r.auroc_siblings.get("entropy") for r in (a, b)]
    shown: tuple[tuple[str, list[float | None], Callable[[float | None], str], str], ...] = (
        (f"Accuracy, {method_name(key) if key else 'no method'}", accuracy, percent, single or note),
        ("Calibration error of steps", [r.steps.get("ece") for r in (a, b)], fixed, "ECE, lower is better"),
        ("Entropy gap", [a.entropy_gap, b.entropy_gap], fixed, "wrong minus right steps, nats; higher is better"),
        ("Telling siblings apart", siblings, fixed, "AUROC of entropy among siblings; 0.5 is chance"),
    )
    return el("div", *(_tile(run.trained, *figure) for figure in shown), class_="tiles")


def _tile(trained: bool, name: str, figures: list[float | None], write: Callable[[float | None], str], note: str) -> Html:
    before, after = (el("span", data(value, write(value))) for value in figures)
    arrow = el("span", el("span", "to", class_="sr"), el("span", "→", aria_hidden="true"), class_="arrow")
    value = [before, arrow, el("strong", after)] if trained else [el("strong", after)]
    return el(
        "div", el("p", name, class_="tile-name"), el("p", *value, class_="tile-value"), el("p", note, class_="tile-note")
    )


def methods_table(run: Run) -> Html:
    """Every method in every round."""
    head = ["method", "round", "questions", "accuracy", "95% interval", "change", "tokens per question"]
    head += ["seconds per question", "abstained", "over-pruned"]
    rows = [_method_row(run, r, r.methods[key]) for key in run.method_keys() for r in run.rounds if key in r.methods]
    return table("Methods by round", head, rows, class_="methods")


def _method_row(run: Run, r: Round, m: Method) -> list[Child]:
    found = _comparison(run, m.key) if r is run.last and run.trained else None
    change: Child = MISSING if r is not run.first else ""
    if found is not None:
        difference, low, high, how = found
        change = el(
            "span",
            f"{points(difference)} ",
            el("small", _verdict(low, high)),
            title=f"{points(low)} to {points(high)}, {how}",
        )
    return [
        m.name,
        r.label,
        count(m.n),
        el("strong", data(m.accuracy, percent(m.accuracy))),
        join([data(m.low, percent(m.low)), " to ", data(m.high, percent(m.high)), _strip(m)]),
        change,
        data(m.tokens, count(m.tokens)),
        data(m.seconds, fixed(m.seconds, 2)),
        data(m.abstained, percent(m.abstained)),
        data(m.over_pruned, percent(m.over_pruned)),
    ]


def _strip(m: Method) -> Html | None:
    """The interval drawn on a line from 0 to 100%."""
    if m.accuracy is None or m.low is None or m.high is None:
        return None
    place = f"--low:{m.low:.4f};--high:{m.high:.4f};--at:{m.accuracy:.4f};--m:var(--{colour_of(m.key)[1:]})"
    return el("span", class_="strip", style=place, aria_hidden="true")


def changes_table(run: Run) -> Html | None:
    """Figures of the steps before and after training, with the interval of the change where the run recorded it."""
    a, b = run.first, run.last
    lines = (
        ("right steps, share", "accuracy", [r.steps.get("accuracy") for r in (a, b)]),
        ("ECE of the confidence, debiased", "ece_debiased", [r.steps.get("ece_debiased") for r in (a, b)]),
        ("Brier score of the confidence", "brier", [r.steps.get("brier") for r in (a, b)]),
        ("AUROC of entropy, all steps", "auroc_entropy", [r.auroc.get("entropy") for r in (a, b)]),
        ("AUROC of entropy, siblings", "auroc_siblings_entropy", [r.auroc_siblings.get("entropy") for r in (a, b)]),
    )
    rows: list[list[Child]] = []
    for name, figure, (before, after) in lines:
        if (found := run.step_change(figure)) is not None:
            change, low, high = found
            interval = join([data(low, fixed(low, sign=True)), " to ", data(high, fixed(high, sign=True))])
            cells = [data(before, fixed(before)), data(after, fixed(after)), data(change, fixed(change, sign=True))]
            rows.append([name, *cells, interval, _verdict(low, high)])
    head = ["steps", a.label, b.label, "change", "95% interval, paired by question", ""]
    return table("Change of the steps", head, rows) if rows else None


def signals_table(run: Run) -> Html | None:
    """AUROC of every signal with its interval, across all steps and among siblings, first and last round."""
    names = list(dict.fromkeys(name for r in (run.first, run.last) for name in (*r.auroc, *r.auroc_siblings)))
    if not names:
        return None
    rounds = [run.first, run.last] if run.trained else [run.last]
    columns = [(r.auroc, r.auroc_ci95) for r in rounds] + [(r.auroc_siblings, r.auroc_siblings_ci95) for r in rounds]
    best = [max((v for v in values.values() if v is not None), default=None) for values, _ in columns]
    head = ["signal"] + [f"{which}, {r.label}" for which in ("all steps", "siblings") for r in rounds]
    rows: list[list[Child]] = []
    for name in names:
        found = [(values.get(name), intervals.get(name)) for values, intervals in columns]
        rows.append(
            [name.replace("_", " "), *(_auroc(*cell, cell[0] == top) for cell, top in zip(found, best, strict=True))]
        )
    return table("AUROC of every signal", head, rows, class_="signals")


def _auroc(value: float | None, interval: Interval | None, best: bool) -> Child:
    """The figure, its interval, and both on a bar from 0.5 to 1."""
    if value is None:
        return MISSING

    def place(auroc: float) -> str:
        return f"{max(0.0, min(1.0, 2 * auroc - 1)):.3f}"

    text, style, ends = data(value, fixed(value)), f"--reach:{place(value)}", None
    if interval is not None:
        low, high = interval
        style += f";--low:{place(low)};--high:{place(high)}"
        ends = el("small", data(low, fixed(low)), " to ", data(high, fixed(high)))
    return el(
        "span",
        el("strong", text) if best else text,
        ends,
        el("span", class_="reach" if interval is None else "reach interval", style=style, aria_hidden="true"),
        class_="auroc",
    )


def training_table(run: Run) -> Html | None:
    """What each round of training was made of."""
    rounds = [r for r in run.rounds if r.training]
    if not rounds:
        return None
    kinds = list(dict.fromkeys([*PAIR_KINDS, *(str(kind) for r in rounds for kind in section(r.training, "pairs"))]))
    rows = [
        [f"pairs: {PAIR_KINDS.get(kind, kind)}", *(count(number(section(r.training, "pairs").get(kind))) for r in rounds)]
        for kind in kinds
    ]
    writers: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
        ("trees", "trees", count),
        ("loss, first", "loss_first", fixed),
        ("loss, last", "loss_last", fixed),
        ("pairs ordered rightly, last", "pair_accuracy_last", percent),
        ("unique tokens", "unique_tokens", count),
        ("tokens of the pairs", "pair_tokens", count),
        ("seconds", "seconds", count),
    )
    rows += [[name, *(write(number(r.training.get(key))) for r in rounds)] for name, key, write in writers]
    return table("Training", ["", *(f"round {r.index}" for r in rounds)], rows, class_="training")


def provenance(run: Run) -> Html:
    """Recipe, environment, seed and the command that makes this run again."""
    facts: list[tuple[str, Child]] = [
        ("recipe", str(run.metrics.get("recipe", MISSING))),
        ("model", str(run.metrics.get("model", MISSING))),
        ("seed", str(run.metrics.get("seed", MISSING))),
        ("time", _duration(number(run.metrics.get("seconds_total")))),
        ("run again", el("code", str(run.environment.get("command") or f"caspo run {run.folder.name}/recipe.yaml"))),
    ]
    shown = [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in flatten(run.environment).items()
        if name != "command"
    ]
    return el(
        "div",
        el("dl", *(part for name, value in facts for part in (el("dt", name), el("dd", value))), class_="facts"),
        el(
            "details",
            el("summary", "Environment"),
            table("Environment", ["what", "value"], shown)
            if shown
            else el("p", "environment.json is missing.", class_="note"),
        ),
        el(
            "details",
            el("summary", "Recipe, all defaults filled in"),
            el("p", "recipe.yaml is missing.", class_="note")
            if run.recipe is None
            else el("pre", el("code", run.recipe), tabindex="0"),
        ),
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
