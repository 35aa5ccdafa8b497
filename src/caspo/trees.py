"""Growing a `Tree`: nodes are added under a parent, and equal continuations of one prefix become one node."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from caspo.core.errors import ConfigError
from caspo.records import GIVEN, ROOT, Decision, Node, Question, Step, TokenTrace, Tree, Verdict
from caspo.steps import Reading, StepReader, step_key, text_of

__all__ = ["Reads", "TreeBuilder", "check_rules", "seed_of"]


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything printable: the same parts give the same seed, on every machine."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


_PROMPT_END = 16
"""Tokens of the prompt's end in which the mark that opens the model's thinking is looked for."""


def check_rules(trees: Iterable[Tree], what: str) -> None:
    """Refuse trees whose steps were cut by different rules: confidence and verdicts of their steps are not comparable.

    Raises:
        ConfigError: there are several rules.
    """
    rules = sorted({tree.steps for tree in trees})
    if len(rules) > 1:
        raise ConfigError(
            f"The trees for {what} were cut into steps by different rules ({', '.join(rules)}): what is a step in one is "
            "several in another, so confidence and verdicts cannot be compared. Give trees of one rule (model.steps)."
        )


class Reads(Protocol):
    """What a tree has to know of the model that writes it: every engine has it."""

    @property
    def reading(self) -> Reading:
        """How its text is read."""

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""


class TreeBuilder:
    """A tree while it grows.

    Args:
        question: what it is about.
        prompt_ids: tokens of the prompt.
        model: who writes it; None where the steps come cut from elsewhere.
    """

    def __init__(self, question: Question, prompt_ids: tuple[int, ...], model: Reads | None = None) -> None:
        self.question, self.prompt_ids, self._model = question, prompt_ids, model
        self.nodes: list[Node] = []
        self._readers: dict[int, StepReader] = {}
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

    def add_solution(self, token_ids: Sequence[int], trace: TokenTrace, *, final: bool) -> int:
        """Add a whole sampled solution, cut into its steps; the id of its last node (ROOT if it has no tokens)."""
        return [ROOT, *self.add_steps(ROOT, token_ids, trace, final=final)][-1]

    def add_steps(self, parent: int, token_ids: Sequence[int], trace: TokenTrace, *, final: bool) -> list[int]:
        """Add a path that goes on from ``parent``, cut into its steps; their node ids, old ones where steps are equal.

        Steps are cut as those of the whole solution. Where the path does not begin a new step, but goes on with the one that
        ``parent`` is, it becomes a sibling of ``parent``, which has that step's tokens too.
        """
        if not token_ids:
            return []
        if not self.follows(parent, token_ids):
            step = self.nodes[parent].step
            whole = TokenTrace.join([step.trace, trace])
            return self.add_steps(self.nodes[parent].parent, (*step.token_ids, *token_ids), whole, final=final)
        pieces = self._pieces(token_ids)
        reader = self.reader(parent)
        known = reader.tokens
        taken = [one for piece in pieces for one in reader.take(piece)] + reader.close()
        ends = [(end - known, thinking) for end, thinking in taken if end > known] or [(len(token_ids), reader.thinking)]
        nodes, start = list[int](), 0
        for end, thinking in ends:
            step = Step(text_of(pieces[start:end]), tuple(token_ids[start:end]), trace[start:end], thinking)
            parent = self.add(parent, step, final=final and end == len(token_ids))
            nodes.append(parent)
            start = end
        return nodes

    def add_step(self, parent: int, token_ids: Sequence[int], trace: TokenTrace, *, final: bool) -> int:
        """Add one step that was decoded as such; its node id, an old one if it is there already."""
        reader = self.reader(parent)
        pieces = self._pieces(token_ids)
        taken = [one for piece in pieces for one in reader.take(piece)] + reader.close()
        step = Step(text_of(pieces), tuple(token_ids), trace, any(one.thinking for one in taken[-1:]))
        return self.add(parent, step, final=final)

    def follows(self, parent: int, token_ids: Sequence[int]) -> bool:
        """Whether these tokens begin a step after ``parent``, and do not go on with it."""
        return self._first_step(parent, token_ids) > 0

    def step_size(self, parent: int, token_ids: Sequence[int], ahead: Sequence[int]) -> int:
        """How many of these tokens, which ``ahead`` follows, are the first step after ``parent``; 0: there are none, or they
        go on with ``parent``.

        What was decoded as one step holds the beginning of the next one too where only its end told that it is one.
        """
        return min(self._first_step(parent, (*token_ids, *ahead)), len(token_ids))

    def _first_step(self, parent: int, token_ids: Sequence[int]) -> int:
        reader = self.reader(parent)
        known, between = reader.tokens, reader.between
        taken = [one for piece in self._pieces(token_ids) for one in reader.take(piece)] + reader.close()
        if not between and all(one.end != known for one in taken):
            return 0
        return next((one.end - known for one in taken if one.end > known), len(token_ids))

    def reader(self, node: int) -> StepReader:
        """A reader that has taken in all steps up to and including ``node``."""
        model, known = self._written_by, self._readers
        if ROOT not in known:
            known[ROOT] = model.reading.reader(text_of(model.pieces(self.prompt_ids[-_PROMPT_END:])))
        for missing in self._missing(node, known):
            known[missing] = reader = known[self.nodes[missing].parent].copy()
            for piece in model.pieces(self.nodes[missing].step.token_ids):
                reader.take(piece)
        return known[node].copy()

    def answer_text(self, node: int) -> str:
        """What the path to ``node`` says after the model's thinking; nothing while that goes on."""
        return self.said("".join(self.texts(node)))

    def said(self, text: str) -> str:
        """What a whole solution says after the model's thinking."""
        return self._written_by.reading.answer_text(text, thinking=self.reader(ROOT).thinking)

    def _pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return self._written_by.pieces(token_ids)

    @property
    def _written_by(self) -> Reads:
        assert self._model is not None, "steps that come cut from elsewhere are not cut again"
        return self._model

    def prefix_ids(self, node: int) -> tuple[int, ...]:
        """Tokens of the prompt and of all steps up to and including ``node``."""
        known = self._prefixes
        for missing in self._missing(node, known):
            known[missing] = known[self.nodes[missing].parent] + self.nodes[missing].step.token_ids
        return known[node]

    def _missing(self, node: int, known: Container[int]) -> list[int]:
        """The nodes of the path to ``node`` that are not known yet, the first one first: a path may have thousands."""
        missing = []
        while node not in known:
            missing.append(node)
            node = self.nodes[node].parent
        return missing[::-1]

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
        """Note what a search did with a node; of ``ROOT``, where a path without tokens ends, there is nothing to note."""
        if node != ROOT:
            self.nodes[node] = replace(self.nodes[node], decision=decision)

    def build(self) -> Tree:
        """The tree as it stands."""
        steps = GIVEN if self._model is None else self._model.reading.steps
        return Tree(self.question, self.prompt_ids, tuple(self.nodes), steps)
