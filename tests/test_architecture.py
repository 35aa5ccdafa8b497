"""The shape of the package: which room may import which, what is public, how large a file may grow."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
PACKAGE = SOURCE / "caspo"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 500

EVERYWHERE = {"caspo", "core", "records"}
"""The records, what every room stands on, and the bare package (its version)."""

MAY_IMPORT: dict[str, set[str]] = {
    # The table of docs/architecture.md; a room may always import itself and EVERYWHERE.
    "confidence": set(),
    "steps": set(),
    "answers": set(),
    "tasks": {"answers"},
    "trees": {"steps"},
    "engines": {"confidence", "steps"},
    "train": {"confidence"},
    "render": set(),
    "report": {"confidence", "search", "render"},
    "formats": {"engines", "steps", "confidence", "answers", "trees"},
    "judges": {"engines", "formats", "steps", "answers", "trees"},
    "data": {"engines", "judges", "formats", "steps", "confidence", "trees"},
    "search": {"engines", "steps", "confidence", "answers", "trees"},
    "testing": {"engines", "steps", "tasks", "answers"},
    "evaluate": {"tasks", "engines", "judges", "search", "data", "formats", "confidence", "answers", "trees"},
    "serve": {"engines", "search", "steps", "confidence", "trees", "render"},
    "lm_eval": {"engines", "search", "steps", "trees"},
    "model": {"engines", "search", "confidence", "report"},
    "loop": {
        "data", "train", "evaluate", "engines", "tasks", "judges", "formats", "confidence", "answers", "search", "report",
        "trees",
    },
}  # fmt: skip
FOUNDATION: dict[str, set[str]] = {
    # What is imported everywhere imports next to nothing.
    "caspo": {"core", "records", "search", "model"},
    "core": set(),
    "records": set(),
}


ROOMS = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py") if "__all__" in file.read_text())
"""Packages that export names."""


def name_of(file: Path) -> str:
    """`caspo.engines.base` for src/caspo/engines/base.py, `caspo.engines` for its __init__.py."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The second part of a dotted name; `caspo` for the package itself."""
    return [*module.split("."), "caspo"][1]


def imported_modules(file: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of our own package, wherever in the file it stands."""
    module = name_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    modules = {name_of(other) for other in FILES}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            # `from caspo import engines` names a room, `from caspo import __version__` does not.
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == "caspo":
                yield node.lineno, target


def imported_rooms(file: Path, source: str) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of our own package."""
    return ((line, room_of(target)) for line, target in imported_modules(file, source))


def violations(file: Path, source: str) -> list[str]:
    room = room_of(name_of(file))
    if room == "cli":
        return []
    if room not in MAY_IMPORT and room not in FOUNDATION:
        return [f"{file}: {room!r} is not a room of docs/architecture.md; add it there and to the table in this test"]
    allowed = {room} | (FOUNDATION[room] if room in FOUNDATION else MAY_IMPORT[room] | EVERYWHERE)
    return [
        f"{file}:{line}: {room} may not import {target}"
        for line, target in imported_rooms(file, source)
        if target not in allowed
    ]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_table(file: Path) -> None:
    assert not violations(file, file.read_text(encoding="utf-8"))


def test_the_page_has_the_same_table() -> None:
    """docs/architecture.md: one line a room, what it may import in the last cell."""
    page = (SOURCE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", page, re.MULTILINE)
    assert {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in lines} == MAY_IMPORT


def test_no_files_import_each_other_in_a_circle() -> None:
    """Not even for types alone."""
    imports = {name_of(f): {m for _, m in imported_modules(f, f.read_text(encoding="utf-8"))} for f in FILES}
    while leaves := [name for name, targets in imports.items() if not targets & imports.keys()]:
        for name in leaves:
            del imports[name]
    assert not imports, "these are in a circle, or import what is"


@pytest.mark.parametrize(
    "statement",
    [
        "import caspo.search",
        "import caspo.search.vote as vote",
        "from caspo.search import vote",
        "from caspo import data",
        "from ..data import pairs",
        "from .. import data",
        "def f():\n    from caspo.data import pairs",
        "if TYPE_CHECKING:\n    from caspo.data import pairs",
    ],
)
def test_a_forbidden_import_is_seen(statement: str) -> None:
    assert violations(PACKAGE / "train" / "losses.py", statement)


@pytest.mark.parametrize(
    "statement", ["from . import loop", "from caspo.train.loop import x", "from caspo import __version__", "import torch"]
)
def test_an_allowed_import_is_left_alone(statement: str) -> None:
    assert not violations(PACKAGE / "train" / "losses.py", statement)


def test_the_front_door_is_for_users() -> None:
    """Our own rooms take only the version from it: what it offers else it takes from them."""
    taken = {
        alias.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "caspo"
        for alias in node.names
    }
    assert taken <= {"__version__"}


def test_an_unknown_room_is_refused() -> None:
    assert violations(PACKAGE / "utils.py", "")


LIGHT = ["caspo", "caspo.cli.main", "caspo.engines.models", "caspo.data.dataset", *(f"caspo.{room}" for room in ROOMS)]


@pytest.mark.parametrize("module", LIGHT)
def test_import_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; loaded = {{'torch', 'transformers'}} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def declared_all(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))  # type: ignore[union-attr]
    return None


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_all_names_what_exists(file: Path) -> None:
    """Each name in `__all__` exists, once."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    declared = declared_all(tree)
    if declared is None:
        return
    assert len(set(declared)) == len(declared), "a name stands twice in __all__"
    if file.parent.name == "vllm":
        pytest.importorskip("vllm", reason="it is part of vLLM's own venv")
    module = importlib.import_module(name_of(file))
    assert [name for name in declared if not hasattr(module, name)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_its_own(room: str) -> None:
    package = importlib.import_module(f"caspo.{room}")
    for name in package.__all__:
        home = getattr(getattr(package, name), "__module__", None)
        assert not str(home).startswith("caspo.") or room_of(str(home)) == room, f"{name} is of {home}"


@pytest.mark.parametrize("room", [room for room in ROOMS if hasattr(importlib.import_module(f"caspo.{room}"), "export")])
def test_a_lazy_name_is_no_modules(room: str) -> None:
    """Else the package would give the module or the name, by which was asked for first."""
    modules = {path.stem for path in (PACKAGE / room).iterdir()}
    assert not modules & set(importlib.import_module(f"caspo.{room}").__all__)


PAGES = [SOURCE.parent / "README.md", *sorted((SOURCE.parent / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_import_what_is_public(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "caspo":
                public = importlib.import_module(str(node.module)).__all__
                assert {alias.name for alias in node.names} <= set(public), node.module
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "caspo":
                assert node.attr in importlib.import_module("caspo").__all__


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_module_is_named_like_one_of_the_standard_library(file: Path) -> None:
    assert not {file.stem, file.parent.name} & sys.stdlib_module_names


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, "split it by concept"
