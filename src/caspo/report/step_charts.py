"""Charts of the judged steps: reliability diagrams, and the entropy of right and wrong steps; one chart per round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caspo.report.markup import Html, count, data, el, fixed, percent, table
from caspo.report.plot import axis, figure, round_chart
from caspo.report.run_data import Round, Run, number, records, section

__all__ = ["entropies", "reliability_diagrams"]

Floats64 = NDArray[np.float64]

ENTROPY_BINS = 24


def reliability_diagrams(run: Run) -> list[Html]:
    """Step confidence against the share of right steps, raw and calibrated, one chart per round."""
    charts = []
    for r in run.rounds:
        series = {name: _bins(r, key) for name, key in (("raw", "reliability"), ("calibrated", "reliability_calibrated"))}
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
        x = axis("confidence of the step", range=[-0.02, 1.04])
        y = axis("share of right steps", range=[-0.02, 1.04], tickformat=".0%")
        rows = [[f"{name}, {c:.3f}", percent(right), count(n)] for name, bins in series.items() for c, right, n in bins]
        figures = table(f"Reliability, {r.label}", ["confidence", "right", "steps"], rows)
        drawn = figure(traces, x, y)
        charts.append(round_chart("reliability", r, "Reliability diagram", drawn, figures, aside=_calibration_figures(r)))
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
        r.index: {label: _sample(section(r.drawn, "entropy"), label) for label in ("right", "wrong")} for r in run.rounds
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
    x = axis("mean token entropy of the step, nats", range=[0, top])
    y = axis("share of the steps", range=[0, highest * 1.08], tickformat=".0%")
    return [
        round_chart(
            "entropy",
            r,
            "Entropy of right and wrong steps",
            figure(_histogram(shares[r.index], edges), x, y, barmode="overlay", bargap=0, shapes=_means(r)),
            _entropy_table(r, shares[r.index], edges),
            aside=_gap_figures(r),
        )
        for r in run.rounds
        if shares[r.index]
    ]


def _sample(entropy: Mapping[str, Any], label: str) -> Floats64:
    raw = entropy.get(label)
    found = [number(value) for value in raw] if isinstance(raw, list) else []
    return np.array([value for value in found if value is not None and value >= 0.0], dtype=np.float64)


def _histogram(shares: Mapping[str, Floats64], edges: Floats64) -> list[dict[str, Any]]:
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


def _entropy_table(r: Round, shares: Mapping[str, Floats64], edges: Floats64) -> Html:
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
