"""Trees as JSON, for answers and for streams: a flat list of nodes, parents before children.

node  {"id", "parent" (-1: the prompt), "depth", "text", "confidence", "path_confidence", "tokens", "decision", "final"}
tree  {"nodes": [node, ...], "prompt_tokens"}
"""

from __future__ import annotations

from typing import Any

from caspo.confidence import step_score
from caspo.types import ROOT, Node, Tree

__all__ = ["confidence_of", "node_json", "tree_json"]


def confidence_of(node: Node) -> float:
    """The step's score, exp(-mean entropy), to four digits. A step without a token (an answer of nothing) is certain."""
    return round(step_score(node.step.trace), 4) if len(node.step.trace) else 1.0


def node_json(node: Node, before: float = 1.0) -> dict[str, Any]:
    """One node. ``before``: the path confidence of its parent."""
    confidence = confidence_of(node)
    return {
        "id": node.id,
        "parent": node.parent,
        "depth": node.depth,
        "text": node.step.text,
        "confidence": confidence,
        "path_confidence": round(before * confidence, 4),
        "tokens": len(node.step.token_ids),
        "decision": node.decision,
        "final": node.final,
    }


def tree_json(tree: Tree) -> dict[str, Any]:
    """A whole tree."""
    nodes: list[dict[str, Any]] = []
    for node in tree.nodes:
        nodes.append(node_json(node, 1.0 if node.parent == ROOT else nodes[node.parent]["path_confidence"]))
    return {"nodes": nodes, "prompt_tokens": len(tree.prompt_ids)}
