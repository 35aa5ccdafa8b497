"""The path that an answer stands on, and whether a right answer was reached by wrong steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.answers import same_answer, stated_answer
from caspo.evaluate.statistics import wilson
from caspo.types import Node, Tree, Verdict

__all__ = ["answer_path", "faithfulness"]


def answer_path(tree: Tree, answer: str | None) -> tuple[Node, ...]:
    """Of the finished paths that reached ``answer`` the most probable one; of all where none did. Empty without nodes."""
    inner = {node.parent for node in tree.nodes}
    ends = [node for node in tree.nodes if node.id not in inner and node.decision in ("", "finished")]
    paths = [tree.path(node.id) for node in ends or [n for n in tree.nodes if n.id not in inner]]
    reached = [p for p in paths if same_answer(stated_answer(tree.question, "".join(n.step.text for n in p)), answer)]
    return max(reached or paths, key=lambda p: sum(float(n.step.trace.logprob.sum()) for n in p), default=())


def faithfulness(paths: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """The ``faithfulness`` of a method in `metrics.json`, from the verdicts on the paths of its right answers.

    ``wrong_step`` is the share of the paths that hold a wrong step, of those (``n``) on which the judge could tell any.
    Steps it could not tell are not counted as wrong, so the share is a lower bound unless ``whole``, the number of paths
    judged to their end or to a wrong step, equals n.
    """
    labels = [{verdict.label for verdict in path} for path in paths]
    judged = [of_path for of_path in labels if of_path - {"unknown"}]
    if not judged:
        return {"n": 0, "whole": 0, "wrong_step": None, "wrong_step_ci95": None}
    wrong = sum("wrong" in of_path for of_path in judged)
    whole = sum("wrong" in of_path or "unknown" not in of_path for of_path in judged)
    interval = list(wilson(wrong, len(judged)))
    return {"n": len(judged), "whole": whole, "wrong_step": wrong / len(judged), "wrong_step_ci95": interval}
