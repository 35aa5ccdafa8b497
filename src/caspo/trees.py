"""Growing a `Tree`: nodes are added under a parent, and equal continuations of one prefix become one node."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from caspo.records import ROOT, Decision, Node, Question, Step, TokenTrace, Tree, Verdict
from caspo.steps import split_tokens, step_key

__all__ = ["TreeBuilder", "seed_of"]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same seed, on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class TreeBuilder:
    """A tree while it grows."""

    def __init__(self, question: Question, prompt_ids: tuple[int, ...]) -> None:
        self.question, self.prompt_ids = question, prompt_ids
        self.nodes: list[Node] = []
        self._known: dict[tuple[int, str, bool], int] = {}
        self._prefixes: dict[int, tuple[int, ...]] = {ROOT: prompt_ids}

    def add(self, parent: int, step: Step, *, final: bool) -> int:
        """Add a continuation of ``parent``; its node id, an old one if an equal continuation is there already.

        Equal: the same text up to white space, and both or neither end the solution. The first sample's tokens and
        trace are kept.
        """
        key = (parent, step_key(step.text), final)
        if key in self._known:
            same = self._known[key]
            self.nodes[same] = replace(self.nodes[same], count=self.nodes[same].count + 1)
            return same
        node = len(self.nodes)
        depth = 1 if parent == ROOT else self.nodes[parent].depth + 1
        self.nodes.append(Node(node, parent, depth, step, final=final))
        self._known[key] = node
        return node

    def add_solution(self, token_ids: Sequence[int], pieces: Sequence[str], trace: TokenTrace, *, final: bool) -> int:
        """Add a whole sampled solution, cut into its steps; the id of its last node (ROOT if it is blank)."""
        return [ROOT, *self.add_steps(ROOT, token_ids, pieces, trace, final=final)][-1]

    def add_steps(
        self, parent: int, token_ids: Sequence[int], pieces: Sequence[str], trace: TokenTrace, *, final: bool
    ) -> list[int]:
        """Add a path that goes on from ``parent``, cut into its steps; their node ids, old ones where steps are equal."""
        nodes = []
        spans = split_tokens(token_ids, pieces) or ([(0, len(token_ids))] if token_ids else [])
        for start, end in spans:
            step = Step("".join(pieces[start:end]), tuple(token_ids[start:end]), trace[start:end])
            parent = self.add(parent, step, final=final and end == len(token_ids))
            nodes.append(parent)
        return nodes

    def prefix_ids(self, node: int) -> tuple[int, ...]:
        """Tokens of the prompt and of all steps up to and including ``node``."""
        if node not in self._prefixes:
            self._prefixes[node] = self.prefix_ids(self.nodes[node].parent) + self.nodes[node].step.token_ids
        return self._prefixes[node]

    def path(self, node: int) -> list[int]:
        """The ids of the nodes from the first step to ``node``, both included; none for ``ROOT``."""
        path: list[int] = []
        while node != ROOT:
            path.append(node)
            node = self.nodes[node].parent
        return path[::-1]

    def texts(self, node: int) -> list[str]:
        """The steps up to and including ``node``."""
        return [self.nodes[n].step.text for n in self.path(node)]

    def judge(self, node: int, verdict: Verdict) -> None:
        """Note a verdict."""
        self.nodes[node] = replace(self.nodes[node], verdict=verdict)

    def decide(self, node: int, decision: Decision) -> None:
        """Note what a search did with a node."""
        self.nodes[node] = replace(self.nodes[node], decision=decision)

    def build(self) -> Tree:
        """The tree as it stands."""
        return Tree(self.question, self.prompt_ids, tuple(self.nodes))
