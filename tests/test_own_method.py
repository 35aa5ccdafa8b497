"""What docs/architecture.md says of a new method is all there is to do: its own code, through all that takes methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from caspo.search import METHODS
from caspo.search.base import Method, numbers
from caspo.testing.scripted import Scripted, ScriptedEngine
from recording import Q, plain, solve, wild

PAGE = Path(__file__).resolve().parent.parent / "docs" / "architecture.md"

IMPORTS = """
from pydantic import Field
from caspo.answers import same_answer
from caspo.engines.base import Engine
from caspo.search.base import Method, PathSettings, Search
from caspo.search.sampled import answers_of, grow, sample, solution
from caspo.trees import TreeBuilder
"""


@pytest.fixture(scope="module")
def twice() -> type[Method[Any]]:
    (code,) = re.findall(r"```python\n(class .*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    space: dict[str, Any] = {"__name__": "twice"}
    exec(IMPORTS + code, space)
    kind: type[Method[Any]] = space["Twice"]
    return kind


def test_the_pages_method_solves(twice: type[Method[Any]]) -> None:
    agreeing = {"Q\n": [Scripted("2 + 3 = 5\nThe answer is 5.", eos=True)]}
    torn = {"Q\n": [Scripted("The answer is 5.", 0.6, eos=True), Scripted("The answer is 6.", 0.4, eos=True)]}
    assert (solve(twice(), agreeing).answer, solve(twice(), agreeing).confidence) == ("5", 1.0)
    assert {solve(twice(), torn, seed).confidence for seed in range(20)} == {0.5, 1.0}
    assert plain(solve(twice(), wild(1), 4)) == plain(solve(twice(), wild(1), 4))


def test_it_describes_itself_to_all_who_ask(twice: type[Method[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The front door, the server's limits and the report take it once it stands in `METHODS`."""
    from caspo.model import Model
    from caspo.report.run_data import method_name

    monkeypatch.setitem(METHODS, twice.name, twice)
    solution = Model(ScriptedEngine(wild(2))).solve(Q, method="twice", temperature=0.9)
    assert plain(solution) == plain(solve(twice(twice.settings_type(temperature=0.9)), wild(2)))
    assert twice.draws()
    assert numbers(twice.settings_type(), "tokens") == {"max_tokens": 512}
    assert method_name("twice") == "Twice", "a report of a run made elsewhere still names it"
