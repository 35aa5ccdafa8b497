"""How a text of a model is shown in a browser: Markdown and LaTeX by one script, for the served page and for the report.

``assets/render.js`` is ours. It stands on markdown-it and temml, two minified files as their projects publish them: their
versions and hashes are in ``assets/vendored.json``, their licences beside them. The browser renders because the page shows
steps while they stream; the report holds the same script, so that a step looks the same in both.
"""

import re
from importlib import resources

__all__ = ["SCRIPTS", "STYLE", "asset", "inlined"]

SCRIPTS = ("markdown-it.min.js", "temml.min.js", "render.js")
"""In the order in which a page needs them; classic scripts."""

STYLE = "render.css"


def asset(name: str) -> str:
    """The text of one of these files."""
    return (resources.files("caspo.render") / "assets" / name).read_text(encoding="utf-8")


def inlined(name: str) -> str:
    """A script as it may stand between tags: in its strings and patterns, no ``<`` ends it or begins a comment."""
    return re.sub(r"<(?=/script|script|!--)", r"\\x3c", asset(name), flags=re.IGNORECASE)
