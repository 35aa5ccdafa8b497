"""A run folder in, one self-contained HTML page out.

The page opens offline: styles, scripts, figures and the charting library (Plotly, once) are inside it, and its content
security policy forbids the browser any request at all. Without scripts the tables below the charts still hold every
figure, and steps are there as the model wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from plotly.offline import get_plotlyjs

from caspo.core.storage import write_text
from caspo.render import SCRIPTS, STYLE, asset, inlined
from caspo.report import answer_charts, method_charts, sections, step_charts
from caspo.report.markup import Child, Html, el
from caspo.report.run_data import Run, read_run
from caspo.report.trees import draw_trees, scale_legend

__all__ = ["render", "write_report"]

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)

METHODS = (
    "Accuracy is the share of test questions with the right final answer; the strip draws its 95% interval on a "
    "line from 0 to 100%. Tokens are all that were decoded for a question, pruned paths included. Over-pruned: how "
    "often the search pruned what was right, of the questions on which the judge could tell."
)
COST = "Up and to the left is better. Bars and bands are 95% intervals; a dotted line is a method at other budgets."
RELIABILITY = (
    "Of the steps with confidence c, a share c should be right: the dashed line. The area of a point follows its "
    "number of steps."
)
ANSWERS = (
    "If only the answers that the method is most confident of were given, how many would be wrong? The lower the line to "
    "the left, the better its confidence tells right from wrong; at the right end every answer is given. Figures are over "
    "what each method answered: one that withholds more looks better by them. Right by a wrong step: right answers whose "
    "path holds a step that the judge found wrong."
)
ENTROPY = "Mean token entropy of each step. The two should stand apart; vertical lines are the means over all steps."
SIGNALS = (
    "AUROC: the chance that a right step scores above a wrong one; 0.5 is guessing. All steps: is this step right? "
    "Siblings: which continuation of the same prefix is right? A tree search lives on the second. Bars run from 0.5 to 1, "
    "the line across is the 95% interval over the questions. The best of each column is bold: that alone does not mean "
    "that it is better than the next."
)
TREES = (
    "Every step with its confidence. Steps under each other follow each other; an indented list is a choice. Pruned: "
    "a step states a false equation, or confidence fell too low. Dropped: a sibling was better. Cut: the budget was used up."
)
FOOTER = "Made by caspo. The figures are those of metrics.json; intervals of differences are worked out from them."


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, atomically, and return its path.

    Reads metrics.json, and where they exist report_data.json, environment.json and recipe.yaml; nothing else.

    Raises:
        DataError: metrics.json is missing, damaged, of another schema or without rounds, or another file is damaged.
        StorageError: the page cannot be written.
    """
    path = run / "report.html"
    write_text(path, render(read_run(run)))
    return path


def render(run: Run) -> str:
    """The whole page as text."""
    recipe, model = str(run.metrics.get("recipe") or run.folder.name), str(run.metrics.get("model") or "unknown model")
    parts = [part for part in _parts(run) if part is not None]
    has_charts = any('class="plot"' in part for part in parts)
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"{recipe}: {model} with CASPO"),
        el("style", Html(_asset("page.css") + asset(STYLE))),
    )
    body = el(
        "body",
        el("a", "Skip to the results", href="#results", class_="skip"),
        el("header", el("p", f"CASPO run · {model}", class_="eyebrow"), el("h1", recipe), sections.headline(run)),
        el("main", sections.tiles(run), *parts, id="results"),
        el("footer", el("p", FOOTER)),
        *(_chart_scripts() if has_charts else ()),
        *(_text_scripts() if run.trees else ()),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _parts(run: Run) -> list[Html | None]:
    by_round = method_charts.accuracy_by_round(run)
    legend = method_charts.method_legend(run.method_keys())
    reliability = _grid(step_charts.reliability_diagrams(run))
    answers = _grid(answer_charts.risk_coverage_charts(run), legend)
    title = "Methods before and after" if run.trained else "Methods"
    return [
        _section(title, METHODS, [sections.methods_table(run)] if run.method_keys() else []),
        _section("What accuracy costs", COST, _grid(method_charts.accuracy_by_tokens(run), legend)),
        _section("Round by round", "Bars are 95% intervals.", [] if by_round is None else [legend, by_round]),
        _section("Does confidence mean anything?", RELIABILITY, [*reliability, sections.changes_table(run)]),
        _section("When it is sure, is it right?", ANSWERS, [*answers, answer_charts.answers_table(run)]),
        _section("Are wrong steps less sure?", ENTROPY, _grid(step_charts.entropies(run))),
        _section("Which signal tells right from wrong?", SIGNALS, [sections.signals_table(run)]),
        _section("Training", "", [sections.training_table(run)]),
        _section("Solved trees", TREES, [scale_legend(), draw_trees(run)] if run.trees else []),
        _section("How it was made", "", [sections.provenance(run)]),
    ]


def _section(title: str, text: str, children: Sequence[Html | None]) -> Html | None:
    """A part of the page; None where the run has nothing for it."""
    shown = [child for child in children if child is not None]
    if not shown:
        return None
    return el("section", el("h2", title), el("p", text, class_="about") if text else None, *shown)


def _grid(found: Sequence[Html], legend: Html | None = None) -> list[Html | None]:
    return [legend, el("div", *found, class_="grid")] if found else []


def _chart_scripts() -> list[Child]:
    return [
        el("script", Html(get_plotlyjs())),
        el("script", Html(_asset("charts.js"))),
        el("noscript", el("p", "The charts need JavaScript; the tables under them hold the same figures.", class_="note")),
    ]


def _text_scripts() -> list[Child]:
    return [el("script", Html(text)) for text in (*map(inlined, SCRIPTS), _asset("steps.js"))]


def _asset(name: str) -> str:
    return (resources.files("caspo.report") / name).read_text(encoding="utf-8")
