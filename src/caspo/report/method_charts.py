"""Charts of the inference methods: accuracy against tokens, and over the rounds.

One small chart per round with shared axes instead of one crowded chart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from caspo.report.markup import Html, count, el, percent, table
from caspo.report.plot import axis, chart, figure, plain, round_chart
from caspo.report.run_data import METHOD_NAMES, Method, Round, Run, method_name, number, records, section

__all__ = ["accuracy_by_round", "accuracy_by_tokens", "colour_of", "method_legend"]

SYMBOLS = (
    "circle", "diamond", "square", "triangle-down", "pentagon", "cross", "x", "star", "hexagon", "hourglass",
    "triangle-left", "triangle-right", "bowtie",
)  # fmt: skip
"""Plotly's markers of the methods in the order of `METHOD_NAMES`, so that none is told by its colour alone; further ones are
triangles."""

_OWN_COLOURS = 3
"""The first methods have a colour each (`--m-1` and so on in the theme); the others share one."""

SHAPES = {
    "circle": '<circle cx="7" cy="7" r="5"/>',
    "square": '<rect x="2.5" y="2.5" width="9" height="9"/>',
    "diamond": '<path d="M7 1 13 7 7 13 1 7Z"/>',
    "triangle-up": '<path d="M7 1.5 13 12H1Z"/>',
    "triangle-down": '<path d="M7 12.5 1 2H13Z"/>',
    "pentagon": '<path d="M7 1 13 5.4 10.7 12.5H3.3L1 5.4Z"/>',
    "cross": '<path d="M5 1H9V5H13V9H9V13H5V9H1V5H5Z"/>',
    "x": '<path d="M4 1 7 4 10 1 13 4 10 7 13 10 10 13 7 10 4 13 1 10 4 7 1 4Z"/>',
    "hexagon": '<path d="M7 1 12.2 4V10L7 13 1.8 10V4Z"/>',
    "hourglass": '<path d="M2 1.5H12L8 7 12 12.5H2L6 7Z"/>',
    "bowtie": '<path d="M1.5 2 7 7 12.5 2V12L7 7 1.5 12Z"/>',
    "triangle-left": '<path d="M1.5 7 12 1V13Z"/>',
    "triangle-right": '<path d="M12.5 7 2 1V13Z"/>',
    "star": '<path d="M7 .8 8.7 5H13.2L9.6 7.8 10.9 12.2 7 9.6 3.1 12.2 4.4 7.8.8 5H5.3Z"/>',
}


def method_legend(keys: Sequence[str]) -> Html:
    """One legend for all charts of methods: marker and name."""
    items = [
        el(
            "li",
            Html(
                '<svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true" '
                f'fill="var(--{colour_of(key)[1:]})">'
                f"{SHAPES[_symbol(key)]}</svg>"
            ),
            method_name(key),
        )
        for key in keys
    ]
    return el("ul", *items, class_="legend")


def accuracy_by_tokens(run: Run) -> list[Html]:
    """Accuracy against generated tokens per question, one chart per round on the same axes."""
    keys = run.method_keys()
    spots = [m for r in run.rounds for m in r.methods.values() if m.tokens and m.accuracy is not None]
    curves = [point for r in run.rounds for key in section(r.drawn, "budget_curve") for point in _curve(r, key)]
    tokens = [m.tokens for m in spots if m.tokens] + [point[0] for point in curves]
    if not tokens:
        return []
    tops = [m.high or m.accuracy or 0.0 for m in spots] + [point[3] or point[1] for point in curves]
    x = axis(
        "generated tokens per question (log scale)",
        type="log",
        range=[math.log10(min(tokens) / 1.35), math.log10(max(tokens) * 1.6)],
        tickvals=[m * 10**e for e in range(7) for m in (1, 2, 5)],
        tickformat="~s",
    )
    y = axis("accuracy", range=[0, min(1.02, max(tops) * 1.08 + 0.02)], tickformat=".0%")
    charts = []
    for r in run.rounds:
        traces = [trace for key in section(r.drawn, "budget_curve") for trace in _curve_traces(r, str(key))]
        traces += [_spot(r.methods[key]) for key in keys if key in r.methods and r.methods[key] in spots]
        what = "Accuracy against generated tokens per question"
        charts.append(round_chart("tokens", r, what, figure(traces, x, y), _token_table(r)))
    return charts


def accuracy_by_round(run: Run) -> Html | None:
    """Accuracy of every method over the rounds, with intervals."""
    traces, rows = [], []
    keys = run.method_keys()
    for position, key in enumerate(keys):
        seen = [
            (i, r.methods[key]) for i, r in enumerate(run.rounds) if key in r.methods and r.methods[key].accuracy is not None
        ]
        if not seen:
            continue
        aside = 0.06 * (position - (len(keys) - 1) / 2)  # side by side, so that the intervals do not cover each other
        methods, colour = [m for _, m in seen], colour_of(key)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": method_name(key),
                "x": [i + aside for i, _ in seen],
                "y": [m.accuracy for m in methods],
                "customdata": [[percent(m.low), percent(m.high), m.n] for m in methods],
                "error_y": _interval_bars(methods, colour),
                "line": {"color": colour, "width": 2.5},
                "marker": {"size": 12, "symbol": _symbol(key), "color": colour, "line": {"width": 2, "color": "@card"}},
                "hovertemplate": f"<b>{plain(method_name(key))}</b><br>%{{y:.1%}} (95% %{{customdata[0]}} to "
                "%{customdata[1]})<br>%{customdata[2]} questions<extra></extra>",
            }
        )
        rows += [
            [f"{m.name}, {run.rounds[i].label}", count(m.n), percent(m.accuracy), f"{percent(m.low)} to {percent(m.high)}"]
            for i, m in seen
        ]
    if not traces:
        return None
    ticks = list(range(len(run.rounds)))
    x = axis("", tickvals=ticks, ticktext=[r.label for r in run.rounds], range=[-0.4, len(ticks) - 0.6], showgrid=False)
    y = axis("accuracy", rangemode="tozero", tickformat=".0%")
    figures = table("Accuracy by round", ["method and round", "n", "accuracy", "95% interval"], rows)
    label = "Accuracy of every method by round, with 95% intervals; the figures are in the table below."
    return chart("by-round", "Accuracy by round", label, figure(traces, x, y), figures)


def _spot(m: Method) -> dict[str, Any]:
    colour = colour_of(m.key)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(m.name),
        "x": [m.tokens],
        "y": [m.accuracy],
        "error_y": _interval_bars([m], colour),
        "marker": {"size": 14, "symbol": _symbol(m.key), "color": colour, "line": {"width": 2, "color": "@card"}},
        "hovertemplate": f"<b>{plain(m.name)}</b><br>%{{y:.1%}} (95% {percent(m.low)} to {percent(m.high)})"
        "<br>%{x:,.0f} tokens per question<extra></extra>",
    }


def _curve_traces(r: Round, key: str) -> list[dict[str, Any]]:
    points = _curve(r, key)
    if not points:
        return []
    colour = colour_of(key)
    band = [point for point in points if point[2] is not None and point[3] is not None]
    line = {
        "type": "scatter",
        "mode": "lines+markers+text",
        "x": [point[0] for point in points],
        "y": [point[1] for point in points],
        "text": [plain(point[4]) for point in points],
        "textposition": "bottom right",
        "cliponaxis": False,
        "textfont": {"size": 11, "color": "@muted"},
        "line": {"color": colour, "width": 1.5, "dash": "dot"},
        "marker": {"size": 6, "symbol": _symbol(key), "color": colour},
        "hovertemplate": "<b>%{text}</b><br>%{y:.1%}<br>%{x:,.0f} tokens per question<extra></extra>",
    }
    if len(band) < 2:
        return [line]
    shade = {
        "type": "scatter",
        "mode": "lines",
        "x": [point[0] for point in band] + [point[0] for point in reversed(band)],
        "y": [point[2] for point in band] + [point[3] for point in reversed(band)],
        "fill": "toself",
        "fillcolor": colour,
        "line": {"width": 0},
        "opacity": 0.13,
        "hoverinfo": "skip",
    }
    return [shade, line]


def _curve(drawn: Round, key: str) -> list[tuple[float, float, float | None, float | None, str]]:
    """The usable points of a budget curve, by tokens: (tokens, accuracy, low, high, label)."""
    found = []
    for point in records(section(drawn.drawn, "budget_curve"), key):
        tokens, accuracy = number(point.get("tokens")), number(point.get("accuracy"))
        if tokens is not None and tokens > 0 and accuracy is not None:
            label = str(point.get("label") or method_name(key))
            found.append((tokens, accuracy, number(point.get("low")), number(point.get("high")), label))
    return sorted(found, key=lambda point: point[0])


def _interval_bars(methods: Sequence[Method], colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [(m.high or 0.0) - (m.accuracy or 0.0) if m.high is not None else 0.0 for m in methods],
        "arrayminus": [(m.accuracy or 0.0) - m.low if m.low is not None else 0.0 for m in methods],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _token_table(r: Round) -> Html:
    rows: list[list[str]] = [
        [m.name, count(m.tokens), percent(m.accuracy), f"{percent(m.low)} to {percent(m.high)}"] for m in r.methods.values()
    ]
    for key in section(r.drawn, "budget_curve"):
        rows += [
            [label, count(tokens), percent(accuracy), f"{percent(low)} to {percent(high)}"]
            for tokens, accuracy, low, high, label in _curve(r, str(key))
        ]
    return table(f"Accuracy by tokens, {r.label}", ["method", "tokens per question", "accuracy", "95% interval"], rows)


def colour_of(key: str) -> str:
    """The theme colour of a method."""
    place = _place(key)
    return f"@m-{place + 1}" if place < _OWN_COLOURS else "@m-other"


def _symbol(key: str) -> str:
    place = _place(key)
    return SYMBOLS[place] if place < len(SYMBOLS) else "triangle-up"


def _place(key: str) -> int:
    names = list(METHOD_NAMES)
    return names.index(key) if key in names else len(SYMBOLS)
