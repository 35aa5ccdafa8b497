"""Whether the confidence in an answer can be trusted: risk against coverage, one chart per round, and a table."""

from __future__ import annotations

from typing import Any

from caspo.report.markup import Child, Html, count, data, fixed, join, percent, table
from caspo.report.method_charts import colour_of
from caspo.report.plot import axis, figure, plain, round_chart
from caspo.report.run_data import Method, Round, Run, method_name, number, records, section

__all__ = ["answers_table", "risk_coverage_charts"]


def risk_coverage_charts(run: Run) -> list[Html]:
    """Share of wrong answers against the share of questions answered, the most confident ones first."""
    charts = []
    for r in run.rounds:
        curves = {key: _points(r, key) for key in run.method_keys()}
        # A method that is equally sure of everything has one point: there is nothing to choose.
        shown = {key: points for key, points in curves.items() if len(points) > 1}
        if not shown:
            continue
        traces = [_trace(key, points) for key, points in shown.items()]
        x = axis("share of questions answered", range=[0, 1.02], tickformat=".0%")
        y = axis("wrong answers among them", rangemode="tozero", tickformat=".0%")
        rows = [
            [f"{method_name(key)}, at least {threshold:.3f}", percent(coverage), percent(risk)]
            for key, points in shown.items()
            for threshold, coverage, risk in points
        ]
        figures = table(f"Risk and coverage, {r.label}", ["method and confidence", "answered", "wrong"], rows)
        charts.append(round_chart("risk", r, "Wrong answers against questions answered", figure(traces, x, y), figures))
    return charts


def answers_table(run: Run) -> Html | None:
    """Calibration, ranking and faithfulness of every method in every round."""
    rows = [
        _row(r, r.methods[key])
        for key in run.method_keys()
        for r in run.rounds
        if key in r.methods and r.methods[key].answers
    ]
    head = ["method", "round", "answered", "ECE", "AUROC", "area under risk and coverage", "right by a wrong step"]
    return table("Confidence in the answers", [*head, "of right answers judged"], rows) if rows else None


def _row(r: Round, m: Method) -> list[Child]:
    wrong = m.faithfulness
    share: list[Child] = [data(wrong.get("wrong_step"), percent(wrong.get("wrong_step")))]
    if wrong.get("low") is not None:
        share += [f" ({percent(wrong.get('low'))} to {percent(wrong.get('high'))})"]
    figures = [data(m.answers.get(key), fixed(m.answers.get(key))) for key in ("ece", "auroc", "aurc")]
    return [m.name, r.label, count(m.answers.get("n")), *figures, join(share), count(wrong.get("n"))]


def _points(r: Round, key: str) -> list[tuple[float, float, float]]:
    """(threshold, coverage, risk), from the most confident answers on."""
    found = []
    for point in records(section(r.drawn, "risk_coverage"), key):
        threshold, coverage, risk = (number(point.get(name)) for name in ("threshold", "coverage", "risk"))
        if threshold is not None and coverage is not None and risk is not None:
            found.append((threshold, coverage, risk))
    return found


def _trace(key: str, points: list[tuple[float, float, float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(method_name(key)),
        "x": [coverage for _, coverage, _ in points],
        "y": [risk for _, _, risk in points],
        "customdata": [threshold for threshold, _, _ in points],
        "line": {"color": colour_of(key), "width": 2.5},
        "hovertemplate": f"<b>{plain(method_name(key))}</b><br>confidence at least %{{customdata:.3f}}: %{{x:.0%}} "
        "answered, %{y:.1%} of them wrong<extra></extra>",
    }
