"""Every benchmark runs roughly on the smallest model, and its file of figures holds what its docstring names."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
"""What `make bench` runs, too."""


def named(script: Path) -> tuple[list[str], list[str]]:
    """Names of figures in the docstring, some with ``*``: those that are always there, and those that need something."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    always, sometimes = [], []
    for condition, names in re.findall(r"^Figures(.*?):(.*?)(?=\n\n|\nFigures|\Z)", text, re.MULTILINE | re.DOTALL):
        (sometimes if condition else always).extend(re.findall(r"`([\w*]+)`", names))
    return always, sometimes


def run(script: Path, *options: str) -> str:
    """What it prints; it runs from the root of the repository, as `make bench` does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(script), *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_names_its_figures(script: Path) -> None:
    """In its docstring, as benchmarks/parts/measure.py says."""
    always, sometimes = named(script)
    assert always
    assert len({*always, *sometimes}) == len(always) + len(sometimes)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs_quickly_and_writes_its_figures(script: Path, tmp_path: Path) -> None:
    """All that its docstring promises and nothing else; all finite; with where, when and how it was run."""
    assert {"--quick", "--json"} <= set(run(script, "--help").replace("[", " ").replace("]", " ").split())
    file = tmp_path / "made" / f"{script.stem}.json"
    shown = run(script, "--quick", "--json", str(file))
    found = json.loads(file.read_text(encoding="utf-8"))
    figures: dict[str, Any] = found["figures"]
    always, sometimes = named(script)
    assert [name for name in always if not any(fnmatchcase(key, name) for key in figures)] == []
    assert [key for key in figures if not any(fnmatchcase(key, name) for name in (*always, *sometimes))] == []
    for key, figure in figures.items():
        assert key in shown
        numbers = [figure["value"], *(figure[bound] for bound in ("low", "high") if figure[bound] is not None)]
        assert all(math.isfinite(number) for number in numbers), key
        assert figure["n"] is None or figure["n"] > 0
    environment = found["environment"]
    assert str(script) in environment["command"]
    assert all(environment[key] for key in ("platform", "processor", "cpus", "date", "versions"))
