"""What all charts share: axes, theme, and the frame a chart stands in. Figures are Plotly's, in plain JSON.

A colour written ``@name`` is the CSS variable ``--name`` of the page, filled in by charts.js: so one figure serves the
light and the dark theme. Every chart has its figures as a table beside it, which is also what a screen reader and a
browser without scripts get.
"""

from __future__ import annotations

import html
from typing import Any

from caspo.report.markup import Html, el, json_script
from caspo.report.run_data import Round

__all__ = ["Figure", "axis", "chart", "figure", "plain", "round_chart"]

Figure = dict[str, Any]


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis in the style of the page; ``more`` are further Plotly attributes."""
    shared = {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "gridcolor": "@grid",
        "linecolor": "@line",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "@line",
        "fixedrange": True,
        "automargin": True,
    }
    return shared | more


def figure(traces: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Figure:
    """Traces and axes as a figure in the style of the page; ``layout`` are further Plotly attributes."""
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


def chart(identifier: str, title: str, label: str, drawn: Figure, figures: Html, *, aside: Html | None = None) -> Html:
    """One small chart: heading, plot, and its figures in a table to unfold."""
    return el(
        "figure",
        el("figcaption", el("h3", title), aside),
        el("div", class_="plot", id=identifier, role="img", aria_label=label),
        json_script(f"{identifier}-figure", drawn),
        el("details", el("summary", "The figures of this chart"), figures, class_="figures"),
        class_="chart",
    )


def round_chart(name: str, r: Round, what: str, drawn: Figure, figures: Html, *, aside: Html | None = None) -> Html:
    """The chart of one round, of several that stand beside each other."""
    label = f"{what}, {r.label}; the figures are in the table below."
    return chart(f"{name}-{r.index}", r.label.capitalize(), label, drawn, figures, aside=aside)


def plain(value: Any) -> str:
    """Text for Plotly, which reads a little HTML in labels."""
    return html.escape(str(value))
