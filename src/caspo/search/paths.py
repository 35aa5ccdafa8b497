"""The path that an answer stands on."""

from __future__ import annotations

from caspo.answers import same_answer, stated_answer
from caspo.records import Node, Tree

__all__ = ["answer_path"]


def answer_path(tree: Tree, answer: str | None) -> tuple[Node, ...]:
    """The most probable of the finished paths that reached ``answer``; of all where none did. Empty without nodes."""
    inner = {node.parent for node in tree.nodes}
    ends = [node for node in tree.nodes if node.id not in inner and node.decision in ("", "finished")]
    paths = [tree.path(node.id) for node in ends or [n for n in tree.nodes if n.id not in inner]]
    reached = [p for p in paths if same_answer(_stated(tree, p), answer)]
    return max(reached or paths, key=lambda p: sum(float(n.step.trace.logprob.sum()) for n in p), default=())


def _stated(tree: Tree, path: tuple[Node, ...]) -> str | None:
    ended = path[-1].final or path[-1].decision == "finished"
    return stated_answer(tree.question, tree.answer_text(path[-1].id), ended=ended)
