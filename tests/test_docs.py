"""The pages: what is made of the code is what the code says now, and no link leads nowhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")
    if name
)  # fmt: skip


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "made"), [("cli.md", "command_page"), ("recipes.md", "recipe_page")])
def test_pages_made_of_code_are_current(page: str, made: str) -> None:
    """Run `make docs` where this fails."""
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == getattr(generator(), made)()


def test_every_command_and_every_key_says_what_it_is() -> None:
    """No cell of a meaning is empty."""
    module = generator()
    rows = [line for line in (module.command_page() + module.recipe_page()).splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if row.endswith("|  |")] == []


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().replace(" ", "-").lower() for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Files, and headings in pages, that a page links to; pages that it names in backquotes or plainly, too."""
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, heading = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{link} leads nowhere"
        assert not heading or heading in anchors(file), f"{link}: there is no such heading"


TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def test_files_that_are_named_exist() -> None:
    """Pages, recipes, benchmarks, tests and sources, in code and in pages."""
    named = re.compile(r"(?<![\w/.*-])((?:docs|recipes|data|benchmarks|tests|src)/[\w/.-]+\.(?:md|py|yaml))")
    missing = [
        f"{file} names {name}"
        for file in TRACKED
        if file.endswith((".py", ".md", ".yaml", "Makefile"))
        for name in named.findall((ROOT / file).read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and not (ROOT / "src/caspo" / name).exists()
    ]
    assert not missing, "\n".join(missing)


def test_the_log_is_about_the_product() -> None:
    """Its headings are a date and a subject."""
    headings = re.findall(r"^## (.*)$", (ROOT / "LOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert [h for h in headings if not re.fullmatch(r"\d{4}-\d\d-\d\d(?: and \d\d)?: .+", h)] == []
