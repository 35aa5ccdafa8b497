"""The charts of the page, as Plotly figures in plain JSON.

A colour written ``@name`` is the CSS variable ``--name`` of the page, filled in by charts.js: so one figure serves the
light and the dark theme. One small chart per round with shared axes instead of one crowded chart; every chart has its
figures as a table beside it, which is also what a screen reader and a browser without scripts get.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from caspo.report.markup import Html, count, data, el, fixed, json_script, percent, table
from caspo.report.run_data import Method, Round, Run, method_name, number, records, section

__all__ = [
    "METHOD_SYMBOLS",
    "accuracy_by_round",
    "accuracy_by_tokens",
    "entropies",
    "method_legend",
    "reliability_diagrams",
]

Figure = dict[str, Any]

METHOD_SYMBOLS = {"cat": "circle", "self_consistency": "square", "chain_of_thought": "diamond"}
"""Plotly marker per method, so that a method is not told by its colour alone; others are triangles."""

SHAPES = {
    "circle": '<circle cx="7" cy="7" r="5"/>',
    "square": '<rect x="2.5" y="2.5" width="9" height="9"/>',
    "diamond": '<path d="M7 1 13 7 7 13 1 7Z"/>',
    "triangle-up": '<path d="M7 1.5 13 12H1Z"/>',
}

ENTROPY_BINS = 24


def method_colour(key: str) -> str:
    """The theme colour of a method."""
    return f"@m-{key}" if key in METHOD_SYMBOLS else "@m-other"


def _symbol(key: str) -> str:
    return METHOD_SYMBOLS.get(key, "triangle-up")


def method_legend(keys: Sequence[str]) -> Html:
    """One legend for all charts of methods: marker and name."""
    items = [
        el(
            "li",
            Html(
                f'<svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true" fill="var(--{method_colour(key)[1:]})">'
                f"{SHAPES[_symbol(key)]}</svg>"
            ),
            method_name(key),
        )
        for key in keys
    ]
    return el("ul", *items, class_="legend")


def _axis(title: str, **more: Any) -> dict[str, Any]:
    axis = {
        "title": {"text": title, "standoff": 8},
        "gridcolor": "@grid",
        "linecolor": "@line",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "@line",
        "fixedrange": True,
        "automargin": True,
    }
    return axis | more


def _figure(traces: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Figure:
    shared = {
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,
        "margin": {"l": 56, "r": 14, "t": 12, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@muted"},
        "hoverlabel": {"bgcolor": "@card", "bordercolor": "@line", "font": {"color": "@ink"}},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": shared | layout}


def _chart(identifier: str, title: str, label: str, figure: Figure, figures: Html, aside: Html | None = None) -> Html:
    """One small chart: heading, plot, and its figures in a table to unfold."""
    return el(
        "figure",
        el("figcaption", el("h3", title), aside),
        el("div", class_="plot", id=identifier, role="img", aria_label=label),
        json_script(f"{identifier}-figure", figure),
        el("details", el("summary", "The figures of this chart"), figures, class_="figures"),
        class_="chart",
    )


def _text(value: Any) -> str:
    """Text for Plotly, which reads a little HTML in labels."""
    return html.escape(str(value))


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


def _curve(drawn: Round, key: str) -> list[tuple[float, float, float | None, float | None, str]]:
    """The usable points of a budget curve, by tokens: (tokens, accuracy, low, high, label)."""
    found = []
    for point in records(section(drawn.drawn, "budget_curve"), key):
        tokens, accuracy = number(point.get("tokens")), number(point.get("accuracy"))
        if tokens is not None and tokens > 0 and accuracy is not None:
            label = str(point.get("label") or method_name(key))
            found.append((tokens, accuracy, number(point.get("low")), number(point.get("high")), label))
    return sorted(found, key=lambda point: point[0])


def accuracy_by_tokens(run: Run) -> list[Html]:
    """Accuracy against generated tokens per question, one chart per round on the same axes."""
    keys = run.method_keys()
    spots = [m for r in run.rounds for m in r.methods.values() if m.tokens and m.accuracy is not None]
    curves = [point for r in run.rounds for key in section(r.drawn, "budget_curve") for point in _curve(r, key)]
    tokens = [m.tokens for m in spots if m.tokens] + [point[0] for point in curves]
    if not tokens:
        return []
    tops = [m.high or m.accuracy or 0.0 for m in spots] + [point[3] or point[1] for point in curves]
    x = _axis(
        "generated tokens per question (log scale)",
        type="log",
        range=[math.log10(min(tokens) / 1.35), math.log10(max(tokens) * 1.35)],
        tickvals=[m * 10**e for e in range(7) for m in (1, 2, 5)],
        tickformat="~s",
    )
    y = _axis("accuracy", range=[0, min(1.02, max(tops) * 1.08 + 0.02)], tickformat=".0%")
    charts = []
    for r in run.rounds:
        traces = [trace for key in section(r.drawn, "budget_curve") for trace in _curve_traces(r, str(key))]
        traces += [_spot(r.methods[key]) for key in keys if key in r.methods and r.methods[key] in spots]
        charts.append(
            _chart(
                f"tokens-{r.index}",
                r.label.capitalize(),
                f"Accuracy against generated tokens per question, {r.label}; the figures are in the table below.",
                _figure(traces, x, y),
                _token_table(r),
            )
        )
    return charts


def _spot(m: Method) -> dict[str, Any]:
    colour = method_colour(m.key)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _text(m.name),
        "x": [m.tokens],
        "y": [m.accuracy],
        "error_y": _interval_bars([m], colour),
        "marker": {"size": 14, "symbol": _symbol(m.key), "color": colour, "line": {"width": 2, "color": "@card"}},
        "hovertemplate": f"<b>{_text(m.name)}</b><br>%{{y:.1%}} (95% {percent(m.low)} to {percent(m.high)})"
        "<br>%{x:,.0f} tokens per question<extra></extra>",
    }


def _curve_traces(r: Round, key: str) -> list[dict[str, Any]]:
    points = _curve(r, key)
    if not points:
        return []
    colour = method_colour(key)
    band = [point for point in points if point[2] is not None and point[3] is not None]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point[0] for point in points],
        "y": [point[1] for point in points],
        "customdata": [_text(point[4]) for point in points],
        "line": {"color": colour, "width": 1.5, "dash": "dot"},
        "marker": {"size": 6, "symbol": _symbol(key), "color": colour},
        "hovertemplate": "<b>%{customdata}</b><br>%{y:.1%}<br>%{x:,.0f} tokens per question<extra></extra>",
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


def _token_table(r: Round) -> Html:
    rows: list[list[str]] = [
        [m.name, count(m.tokens), percent(m.accuracy), f"{percent(m.low)} to {percent(m.high)}"]
        for m in r.methods.values()
    ]
    for key in section(r.drawn, "budget_curve"):
        rows += [
            [label, count(tokens), percent(accuracy), f"{percent(low)} to {percent(high)}"]
            for tokens, accuracy, low, high, label in _curve(r, str(key))
        ]
    return table(f"Accuracy by tokens, {r.label}", ["method", "tokens per question", "accuracy", "95% interval"], rows)


def accuracy_by_round(run: Run) -> Html | None:
    """Accuracy of every method over the rounds, with intervals."""
    traces, rows = [], []
    keys = run.method_keys()
    for position, key in enumerate(keys):
        seen = [
            (i, r.methods[key])
            for i, r in enumerate(run.rounds)
            if key in r.methods and r.methods[key].accuracy is not None
        ]
        if not seen:
            continue
        aside = 0.06 * (position - (len(keys) - 1) / 2)  # side by side, so that the intervals do not cover each other
        methods, colour = [m for _, m in seen], method_colour(key)
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
                "hovertemplate": f"<b>{_text(method_name(key))}</b><br>%{{y:.1%}} (95% %{{customdata[0]}} to "
                "%{customdata[1]})<br>%{customdata[2]} questions<extra></extra>",
            }
        )
        rows += [
            [
                f"{m.name}, {run.rounds[i].label}",
                count(m.n),
                percent(m.accuracy),
                f"{percent(m.low)} to {percent(m.high)}",
            ]
            for i, m in seen
        ]
    if not traces:
        return None
    ticks = list(range(len(run.rounds)))
    x = _axis(
        "", tickvals=ticks, ticktext=[r.label for r in run.rounds], range=[-0.4, len(ticks) - 0.6], showgrid=False
    )
    y = _axis("accuracy", rangemode="tozero", tickformat=".0%")
    figures = table("Accuracy by round", ["method and round", "n", "accuracy", "95% interval"], rows)
    label = "Accuracy of every method by round, with 95% intervals; the figures are in the table below."
    return _chart("by-round", "Accuracy by round", label, _figure(traces, x, y), figures)


def reliability_diagrams(run: Run) -> list[Html]:
    """Step confidence against the share of right steps, raw and calibrated, one chart per round."""
    charts = []
    for r in run.rounds:
        series = {
            name: _bins(r, key) for name, key in (("raw", "reliability"), ("calibrated", "reliability_calibrated"))
        }
        if not any(series.values()):
            continue
        largest = max(n for bins in series.values() for _, _, n in bins)
        diagonal = {
            "type": "scatter",
            "mode": "lines",
            "x": [0, 1],
            "y": [0, 1],
            "line": {"color": "@muted", "width": 1, "dash": "dash"},
            "hoverinfo": "skip",
        }
        traces = [diagonal] + [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [x for x, _, _ in bins],
                "y": [y for _, y, _ in bins],
                "customdata": [n for _, _, n in bins],
                "line": {"color": f"@{name}", "width": 2},
                "marker": {
                    "color": f"@{name}",
                    "symbol": "circle" if name == "raw" else "square",
                    "opacity": 1,
                    # The area follows the number of steps: a lone point far off the diagonal must look like one.
                    "size": [6 + 16 * math.sqrt(n / largest) for _, _, n in bins],
                    "line": {"width": 1.5, "color": "@card"},
                },
                "hovertemplate": f"<b>{name}</b><br>confidence %{{x:.2f}}, right %{{y:.1%}}<br>%{{customdata:,}} steps"
                "<extra></extra>",
            }
            for name, bins in series.items()
            if bins
        ]
        x, y = (
            _axis("confidence of the step", range=[-0.02, 1.04]),
            _axis("share of right steps", range=[-0.02, 1.04], tickformat=".0%"),
        )
        rows = [[f"{name}, {x:.3f}", percent(y), count(n)] for name, bins in series.items() for x, y, n in bins]
        charts.append(
            _chart(
                f"reliability-{r.index}",
                r.label.capitalize(),
                f"Reliability diagram, {r.label}; the figures are in the table below.",
                _figure(traces, x, y),
                table(f"Reliability, {r.label}", ["confidence", "right", "steps"], rows),
                _calibration_figures(r),
            )
        )
    return charts


def _bins(r: Round, key: str) -> list[tuple[float, float, float]]:
    """(confidence, accuracy, n) of the bins that hold steps."""
    found = []
    for item in records(r.drawn, key):
        x, y, n = (number(item.get(name)) for name in ("confidence", "accuracy", "n"))
        if x is not None and y is not None and n:
            found.append((x, y, n))
    return sorted(found)


def _calibration_figures(r: Round) -> Html:
    def line(name: str, suffix: str) -> Html:
        error, brier = r.steps.get(f"ece{suffix}"), r.steps.get(f"brier{suffix}")
        return el(
            "p",
            el("span", class_=f"dot {name}", aria_hidden="true"),
            f"{name}: ECE ",
            data(error, fixed(error)),
            ", Brier ",
            data(brier, fixed(brier)),
        )

    return el("div", line("raw", ""), line("calibrated", "_calibrated"), class_="aside")


def entropies(run: Run) -> list[Html]:
    """Histograms of the mean token entropy of right and wrong steps, one chart per round on the same axes."""
    samples = {
        r.index: {label: _sample(section(r.drawn, "entropy"), label) for label in ("right", "wrong")}
        for r in run.rounds
    }
    values = np.concatenate([sample for by_label in samples.values() for sample in by_label.values()] or [np.zeros(0)])
    if values.size == 0:
        return []
    top = max(float(np.quantile(values, 0.99)), 1e-3)
    edges = np.linspace(0.0, top, ENTROPY_BINS + 1)
    shares = {
        index: {
            label: np.histogram(np.minimum(sample, top), edges)[0] / sample.size
            for label, sample in by_label.items()
            if sample.size
        }
        for index, by_label in samples.items()
    }
    highest = max(float(share.max()) for by_label in shares.values() for share in by_label.values())
    x = _axis("mean token entropy of the step, nats", range=[0, top])
    y = _axis("share of the steps", range=[0, highest * 1.08], tickformat=".0%")
    return [
        _chart(
            f"entropy-{r.index}",
            r.label.capitalize(),
            f"Entropy of right and wrong steps, {r.label}; the figures are in the table below.",
            _figure(_histogram(r, shares[r.index], edges), x, y, barmode="overlay", bargap=0, shapes=_means(r)),
            _entropy_table(r, shares[r.index], edges),
            _gap_figures(r),
        )
        for r in run.rounds
        if shares[r.index]
    ]


def _sample(entropy: Mapping[str, Any], label: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    raw = entropy.get(label)
    found = [number(value) for value in raw] if isinstance(raw, list) else []
    return np.array([value for value in found if value is not None and value >= 0.0], dtype=np.float64)


def _histogram(r: Round, shares: Mapping[str, Any], edges: Any) -> list[dict[str, Any]]:
    width = float(edges[1] - edges[0])
    return [
        {
            "type": "bar",
            "x": [float(edge) + width / 2 for edge in edges[:-1]],
            "y": [float(share) for share in shares[label]],
            "width": width,
            "marker": {"color": f"@{label}", "opacity": 0.55, "line": {"color": f"@{label}", "width": 1}},
            "hovertemplate": f"<b>{label} steps</b><br>%{{x:.2f}} nats: %{{y:.1%}}<extra></extra>",
        }
        for label in ("right", "wrong")
        if label in shares
    ]


def _means(r: Round) -> list[dict[str, Any]]:
    return [
        {
            "type": "line",
            "x0": mean,
            "x1": mean,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": f"@{label}", "width": 2, "dash": "solid" if label == "right" else "dash"},
        }
        for label in ("right", "wrong")
        if (mean := r.steps.get(f"entropy_{label}")) is not None
    ]


def _entropy_table(r: Round, shares: Mapping[str, Any], edges: Any) -> Html:
    rows = [
        [f"{edges[i]:.3f} to {edges[i + 1]:.3f}"]
        + [percent(float(shares[label][i])) if label in shares else percent(None) for label in ("right", "wrong")]
        for i in range(len(edges) - 1)
    ]
    return table(f"Entropy of steps, {r.label}; the last row holds everything above", ["nats", "right", "wrong"], rows)


def _gap_figures(r: Round) -> Html:
    right, wrong, gap = r.steps.get("entropy_right"), r.steps.get("entropy_wrong"), r.entropy_gap
    return el(
        "div",
        el("p", el("span", class_="dot right", aria_hidden="true"), "right: mean ", data(right, fixed(right)), " nats"),
        el("p", el("span", class_="dot wrong", aria_hidden="true"), "wrong: mean ", data(wrong, fixed(wrong)), " nats"),
        el("p", "gap ", el("strong", data(gap, fixed(gap, sign=True))), " nats"),
        class_="aside",
    )
