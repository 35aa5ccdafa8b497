"""HTML that escapes by default, and the one place where figures become text.

A plain ``str`` is text and is escaped wherever it goes; only what `el` made (`Html`) is inserted as it is. So a
question with ``<script>`` in it stays a question.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["MISSING", "Html", "count", "data", "el", "fixed", "join", "json_script", "percent", "points", "table"]

VOID = frozenset({"br", "col", "hr", "img", "meta", "wbr"})
MISSING = "–"
"""What stands where nothing was measured."""


class Html(str):
    """Markup that is safe to insert as it is."""

    __slots__ = ()


Child = str | None
"""Text (escaped), `Html` (kept) or nothing."""


def join(children: Iterable[Child]) -> Html:
    """Concatenate, escaping what is not `Html`."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children if c is not None))


def el(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Html:
    """An element. ``class_`` is class, ``aria_label`` aria-label; None and False leave one out, True sets it."""
    written = [name]
    for keyword, value in attributes.items():
        key = keyword.rstrip("_").replace("_", "-")
        if value is True:
            written.append(key)
        elif value is not None and value is not False:
            written.append(f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(written)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def json_script(identifier: str, value: Any) -> Html:
    """A JSON block for the page's script to read; ``<`` is written as an escape, so nothing in it can end the block."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{html.escape(identifier)}">{text}</script>')


def table(caption: str, head: Sequence[Child], rows: Sequence[Sequence[Child]], class_: str = "") -> Html:
    """A table whose first column is row headers, in a box that scrolls sideways and can be focused by keyboard."""
    assert all(len(row) == len(head) for row in rows), f"ragged rows in the table {caption!r}"
    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="sr"),
            el("thead", el("tr", *(el("th", cell, scope="col") for cell in head))),
            el("tbody", *(el("tr", *_cells(row)) for row in rows)),
        ),
        class_=f"scroll {class_}".strip(),
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def _cells(row: Sequence[Child]) -> list[Html]:
    return [el("th", cell, scope="row") if i == 0 else el("td", cell) for i, cell in enumerate(row)]


def data(value: float | None, text: str) -> Html:
    """A figure as people read it, with the exact value of metrics.json beside it for programs."""
    return Html(html.escape(text)) if value is None else el("data", text, value=repr(value))


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return MISSING if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", "−")


def fixed(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """A figure with a fixed number of digits."""
    return MISSING if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return MISSING if value is None else f"{value:,.0f}"
