"""The tables that a run ends with."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from caspo.cli.show import signals_tables

STEPS: dict[str, Any] = {
    "auroc": {"a": 0.9, "b": 0.7, "c": 0.8},
    "auroc_ci95": {"a": [0.85, 0.95], "b": None, "c": [0.7, 0.9]},
    "auroc_siblings": {"a": 0.55, "b": 0.75, "c": None},
    "auroc_siblings_ci95": {"a": [0.5, 0.6], "b": [0.7, 0.8], "c": None},
}


def test_signals_tables() -> None:
    """One for each round with steps, best among siblings first, intervals where there are any; 80 columns are enough."""
    metrics = {"rounds": [{"round": 0, "steps": STEPS}, {"round": 1, "steps": {"n": 0}}, {"round": 2, "steps": STEPS}]}
    tables = signals_tables(metrics)
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(*tables, sep="\n")
    lines = captured.get().splitlines()
    assert [line.split("signals, ")[1].split(" (")[0] for line in lines if "AUROC" in line] == ["before training", "round 2"]
    rows = [line.replace("│", " ").split() for line in lines if line.strip(" │")[:2] in ("a ", "b ", "c ")]
    assert rows[:3] == [
        ["b", "0.700", "0.750", "[0.700,", "0.800]"],
        ["a", "0.900", "[0.850,", "0.950]", "0.550", "[0.500,", "0.600]"],
        ["c", "0.800", "[0.700,", "0.900]", "-"],
    ]
    assert len(rows) == 6
