"""Solved trees as nested lists: every step with its confidence (colour and number), its verdict and what became of it.

Chains stay on one level, only a parting of ways indents, so that a deep tree still fits a phone. At a parting the short
branches (pruned, dropped) come first: a reader sees the alternatives beside each other before the path goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caspo.report.markup import Html, count, data, el, fixed
from caspo.report.run_data import Run, number, records

__all__ = ["confidence_colour", "draw_trees", "notebook_tree", "scale_legend"]

CIVIDIS = ("#00204d", "#00336f", "#39486b", "#575c6d", "#707173", "#8a8779", "#a69d75", "#c4b56c", "#e4cf5b", "#ffea46")
"""Cividis (Nunez, Anderton and Renslow 2018): even steps of lightness, the same to colour-blind readers."""

VERDICTS = {"right": ("✓", "right"), "wrong": ("✗", "wrong")}
DECISIONS = ("pruned", "dropped", "cut", "finished")
"""What is worth a label; `expanded` is what a step that others follow shows by itself."""

OPEN_AT_FIRST = 2

NOTEBOOK_STYLE = """
.caspo ul { list-style: none; margin: 0; padding: 0; }
.caspo ul.branches > li { margin: 4px 0 0 6px; padding-left: 12px; border-left: 2px solid rgba(128, 128, 128, .5); }
.caspo .step { display: flex; gap: 8px; align-items: baseline; padding: 2px 0; }
.caspo .confidence { padding: 0 6px; border-radius: 5px; font-variant-numeric: tabular-nums; }
.caspo .badge { opacity: .7; border: 1px solid currentColor; border-radius: 99px; padding: 0 8px; font-size: .8em; }
.caspo .pruned .text { text-decoration: line-through; }
.caspo .pruned .text, .caspo .dropped .text, .caspo .cut .text { opacity: .7; }
"""
"""Without colours but those of confidences: text and lines take those of the notebook, be it light or dark."""


@dataclass
class Branch:
    """A step and what follows it."""

    node: Mapping[str, Any]
    children: list[Branch] = field(default_factory=list)

    @property
    def size(self) -> int:
        return 1 + sum(child.size for child in self.children)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def confidence_colour(confidence: float) -> tuple[str, str]:
    """(background, text) for a confidence in [0, 1]; the text is black or white, whichever contrasts more."""
    place = min(1.0, max(0.0, confidence)) * (len(CIVIDIS) - 1)
    below = min(int(place), len(CIVIDIS) - 2)
    low, high = _rgb(CIVIDIS[below]), _rgb(CIVIDIS[below + 1])
    mixed = tuple(round(a + (place - below) * (b - a)) for a, b in zip(low, high, strict=True))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in mixed)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#{:02x}{:02x}{:02x}".format(*mixed), "#000000" if luminance > 0.179 else "#ffffff"


def scale_legend() -> Html:
    """What the colours and marks mean."""
    gradient = ", ".join(CIVIDIS)
    return el(
        "div",
        el("span", "confidence 0"),
        el("span", class_="scale", style=f"background: linear-gradient(90deg, {gradient})", aria_hidden="true"),
        el("span", "1"),
        *(_verdict(label) for label in ("right", "wrong", "unknown")),
        class_="key",
    )


def draw_trees(run: Run) -> Html:
    """All trees of the run, the rounds of one question together."""
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for tree in run.trees:
        by_question.setdefault(str(tree.get("question")), []).append(tree)
    cards: list[Html] = []
    for question, group in by_question.items():
        trees = sorted(group, key=lambda tree: number(tree.get("round")) or 0.0)
        cards.append(
            el(
                "details",
                el("summary", el("span", question, class_="question"), *(_outcome(tree) for tree in trees)),
                el("p", "Gold answer: ", el("strong", str(trees[0].get("gold", "–")), class_="answer")),
                el("div", *(_tree(tree) for tree in trees), class_="trees"),
                class_="card tree-card",
                open=len(cards) < OPEN_AT_FIRST,
            )
        )
    return el("div", *cards)


def notebook_tree(question: str, nodes: Sequence[Mapping[str, Any]], outcome: str) -> Html:
    """One solved question for a notebook. A node has id, parent, text, confidence, decision and count."""
    return el(
        "div",
        el("style", Html(NOTEBOOK_STYLE)),
        el("p", el("strong", question)),
        _level(_branches(nodes)),
        el("p", outcome),
        class_="caspo",
    )


def _round_label(tree: Mapping[str, Any]) -> str:
    index = number(tree.get("round"))
    return "solved" if index is None else "before training" if index == 0 else f"after round {index:.0f}"


def _outcome(tree: Mapping[str, Any]) -> Html:
    correct = tree.get("correct") is True
    mark, word = VERDICTS["right" if correct else "wrong"]
    return el(
        "span",
        el("span", mark, aria_hidden="true"),
        f" {_round_label(tree)}: ",
        "no answer" if tree.get("answer") is None else el("span", str(tree["answer"]), class_="answer"),
        el("span", f" ({word})", class_="sr"),
        class_=f"outcome {'right' if correct else 'wrong'}",
    )


def _tree(tree: Mapping[str, Any]) -> Html:
    nodes = records(tree, "nodes")
    pruned = sum(node.get("decision") == "pruned" for node in nodes)
    facts = f"{len(nodes)} steps, {pruned} pruned, {count(number(tree.get('tokens')))} tokens"
    return el(
        "section",
        el("h3", _round_label(tree).capitalize(), el("small", f" {facts}")),
        _level(_branches(nodes)) if nodes else el("p", "No steps were kept of this tree.", class_="note"),
        class_="tree",
    )


def _branches(nodes: Sequence[Mapping[str, Any]]) -> list[Branch]:
    """The nodes as a forest; one whose parent is not before it becomes a root, so nothing is lost or circular."""
    roots: list[Branch] = []
    seen: dict[float | None, Branch] = {}
    for node in nodes:
        branch = Branch(node)
        parent = seen.get(number(node.get("parent")))
        (roots if parent is None else parent.children).append(branch)
        seen[number(node.get("id"))] = branch
    for alternatives in (roots, *(branch.children for branch in seen.values())):
        alternatives.sort(key=lambda branch: (branch.size, number(branch.node.get("confidence")) or 0.0))
    return roots


def _level(branches: Sequence[Branch]) -> Html:
    """A list of alternatives; each is followed by its chain of only children on the same level."""
    items = []
    for branch in branches:
        chain = [branch]
        while len(chain[-1].children) == 1:
            chain.append(chain[-1].children[0])
        steps = [_step(link.node) for link in chain]
        rest = chain[-1].children
        items.append(el("li", *steps, _level(rest) if rest else None))
    return el("ul", *items, class_="branches" if len(branches) > 1 else "chain")


def _step(node: Mapping[str, Any]) -> Html:
    confidence = number(node.get("confidence"))
    background, ink = ("transparent", "inherit") if confidence is None else confidence_colour(confidence)
    decision = str(node.get("decision") or "")
    times = number(node.get("count")) or 1
    # Its indentation stays: steps.js reads a list by it.
    text = str(node.get("text") or "").rstrip()
    return el(
        "div",
        el(
            "span",
            data(confidence, fixed(confidence, 2)),
            class_="confidence",
            style=f"background:{background};color:{ink}",
            title="confidence of the step",
        ),
        _verdict(str(node["verdict"])) if "verdict" in node else None,
        el("div", text if text.strip() else "(empty step)", class_="text"),
        el("span", f"×{times:.0f}", class_="badge", title=f"{times:.0f} equal samples") if times > 1 else None,
        el("span", decision, class_="badge") if decision in DECISIONS else None,
        class_=f"step {decision if decision in DECISIONS else 'expanded'}",
        style=None if confidence is None else f"--c:{background}",
    )


def _verdict(label: str) -> Html:
    mark, word = VERDICTS.get(label, ("?", "unknown"))
    return el("span", el("span", mark, aria_hidden="true"), el("span", word, class_="word"), class_=f"verdict {word}")
