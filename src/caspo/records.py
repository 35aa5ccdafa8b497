"""The records that every room passes around. Frozen, numpy only, no behaviour beyond looking things up.

A reasoning tree is the only currency: sampling grows it, judges and confidence annotate it, a pair is two children of
one of its nodes, training packs it, CaT grows and prunes it, the report draws it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FIRST_PIECE",
    "GIVEN",
    "ROOT",
    "TRACE_COLUMNS",
    "Decision",
    "Label",
    "Measured",
    "Node",
    "Question",
    "Solution",
    "Step",
    "StepPair",
    "TokenTrace",
    "Tree",
    "Verdict",
    "after_thinking",
]

Floats = NDArray[np.float32]
Label = Literal["right", "wrong", "unknown"]

ROOT = -1
"""The parent id of a first step: the prompt itself."""

GIVEN = "given"
"""What stands for the rule where steps came cut from elsewhere."""

FIRST_PIECE = 1 << 30
"""Token ids from here on are no model's: numbers for pieces of text, of an engine whose server gives no ids."""


@dataclass(frozen=True)
class Question:
    """One problem.

    ``meta`` is what the task knows beyond that; `stories` keeps the quantities of the problem there, from which the
    `reference` judge decides every step exactly.
    """

    text: str
    answer: str = ""
    """The known final answer; empty where it is not known."""
    _: KW_ONLY
    id: str = ""
    """Among the questions of one run only this one's. Draws depend on it; without one it is made of the text."""
    solution: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            digest = hashlib.sha256(self.text.encode(errors="surrogatepass")).hexdigest()
            object.__setattr__(self, "id", digest[:16])


class Measured(NamedTuple):
    """What one forward pass said about one token: a row of `TokenTrace`, whose units are these."""

    entropy: float
    logprob: float
    max_logprob: float
    margin: float
    varentropy: float
    top_k_logprob: float | None = None
    """Mean log p of the request's ``top_k`` most probable tokens, nats; only if it asked for it. No part of a trace."""
    entropy_upper: float | None = None
    """Only of an engine that knows bounds of the entropy; ``entropy`` is the lower one then."""


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """What one forward pass said about each of T generated tokens. All arrays are float32 of shape (T,).

    Everything is of the model's raw distribution: before temperature, top-k and top-p.
    """

    entropy: Floats
    """Shannon entropy of the next-token distribution, nats."""
    logprob: Floats
    """log p of the token that was taken, nats."""
    max_logprob: Floats
    """log p of the most probable token, nats."""
    margin: Floats
    """p of the most probable token minus p of the second, in [0, 1]."""
    varentropy: Floats
    """Variance of -ln p under p, nats squared."""
    kind: Literal["full", "top_k", "none"] = "full"
    """`full`: from the whole vocabulary. `top_k`: `entropy` is the lower bound from the k best (`entropy_bounds`).
    `none`: the engine told nothing, and every array is NaN until the tree is scored (`caspo annotate --rescore`)."""
    k: int | None = None
    entropy_upper: Floats | None = None
    """Upper bound of the entropy; only with `top_k`."""

    @classmethod
    def of(cls, measured: Sequence[Measured], kind: Literal["full", "top_k"] = "full", k: int | None = None) -> TokenTrace:
        """The trace of tokens that were measured one by one; with `top_k` each has its ``entropy_upper``."""
        table = np.array([row[: len(TRACE_COLUMNS)] for row in measured], dtype=np.float32)
        entropy, logprob, max_logprob, margin, varentropy = table.reshape(-1, len(TRACE_COLUMNS)).T.copy()
        upper = np.array([row.entropy_upper for row in measured], dtype=np.float32) if kind == "top_k" else None
        return cls(entropy, logprob, max_logprob, margin, varentropy, kind, k, upper)

    def measured(self) -> list[Measured]:
        """Token by token; `of` makes the same trace of them."""
        columns = [getattr(self, name).tolist() for name in TRACE_COLUMNS]
        upper = [None] * len(self) if self.entropy_upper is None else self.entropy_upper.tolist()
        return [Measured._make((*row, None, high)) for *row, high in zip(*columns, upper, strict=True)]

    @staticmethod
    def join(traces: Sequence[TokenTrace]) -> TokenTrace:
        """One trace of what stands in several of one kind, one after the other."""
        return _each(np.concatenate, traces)

    def __getitem__(self, span: slice | NDArray[np.bool_]) -> TokenTrace:
        """The trace of some of the tokens: a span of them, or those of a (T,) mask."""
        return _each(lambda values: values[0][span], [self])

    def __len__(self) -> int:
        return len(self.entropy)


TRACE_COLUMNS = ("entropy", "logprob", "max_logprob", "margin", "varentropy")
"""What every token of a trace has, in the order of the fields of `Measured` and `TokenTrace`."""


def _each(made: Callable[[list[Floats]], Floats], traces: Sequence[TokenTrace]) -> TokenTrace:
    first = traces[0]
    assert all((t.kind, t.k) == (first.kind, first.k) for t in traces), "traces of different kinds are never mixed"
    upper = [t.entropy_upper for t in traces if t.entropy_upper is not None]
    columns: dict[str, Any] = {name: made([getattr(t, name) for t in traces]) for name in TRACE_COLUMNS}
    return replace(first, **columns, entropy_upper=made(upper) if upper else None)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a solution: its text as generated (line break included) and its tokens."""

    text: str
    token_ids: tuple[int, ...]
    trace: TokenTrace
    thinking: bool = False
    """Whether it stands in the model's thinking, before its answer."""


def after_thinking(path: Sequence[Step]) -> str:
    """What the steps of a path say after the model's thinking; nothing while that goes on."""
    thought = max((at for at, step in enumerate(path) if step.thinking), default=-1)
    return "".join(step.text for step in path[thought + 1 :])


@dataclass(frozen=True)
class Verdict:
    """Whether a step is right, given that everything before it is. `unknown` is never counted as wrong."""

    label: Label
    reason: str = ""
    judge: str = ""
    failed: bool = False
    """`unknown` because the judge failed (an endpoint that was down), not because of the step: such a verdict is not kept
    for another run, which asks again. Trees in files do not tell it from other unknown ones."""


Decision = Literal["", "expanded", "finished", "pruned", "dropped", "cut"]
"""What a search did with a step: nothing yet, gone on, an answer, too little confidence, a better sibling, out of budget."""


@dataclass(frozen=True, eq=False)
class Node:
    """A step in a tree. ``id`` is its index in `Tree.nodes`; a parent's id is smaller than its children's."""

    id: int
    parent: int
    depth: int
    """1 for a first step."""
    step: Step
    count: int = 1
    """How many equal samples were merged into this node."""
    final: bool = False
    """The solution ended with this step (the model's EOS)."""
    verdict: Verdict | None = None
    decision: Decision = ""

    @property
    def right(self) -> bool:
        """Whether it was judged right; "unknown" and not judged are False too."""
        return self.verdict is not None and self.verdict.label == "right"


@dataclass(frozen=True, eq=False)
class Tree:
    """A question, its prompt, and the steps that were sampled, parents before children."""

    question: Question
    prompt_ids: tuple[int, ...]
    nodes: tuple[Node, ...]
    steps: str = GIVEN
    """The rule that cut them (`caspo.steps`)."""

    @property
    def token_source(self) -> Literal["model", "pieces"]:
        """Where its token ids come from: `model`, or `pieces`, numbers for text that mean nothing to a model
        (`FIRST_PIECE`)."""
        return "pieces" if any(token >= FIRST_PIECE for token in self.prompt_ids) else "model"

    @cached_property
    def _children(self) -> dict[int, tuple[Node, ...]]:
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(node.parent, []).append(node)
        return {parent: tuple(nodes) for parent, nodes in found.items()}

    def children(self, node_id: int) -> tuple[Node, ...]:
        """The sampled continuations of a node (of the prompt for ``ROOT``)."""
        return self._children.get(node_id, ())

    def path(self, node_id: int) -> tuple[Node, ...]:
        """The nodes from the first step to ``node_id``, both included; empty for ``ROOT``."""
        path: list[Node] = []
        while node_id != ROOT:
            node = self.nodes[node_id]
            path.append(node)
            node_id = node.parent
        return tuple(reversed(path))

    def answer_text(self, node_id: int) -> str:
        """What the path to a node says after the model's thinking; nothing while that goes on."""
        return after_thinking([node.step for node in self.path(node_id)])

    def prefix_ids(self, node_id: int) -> tuple[int, ...]:
        """Tokens of the prompt and of all steps up to and including ``node_id``."""
        return self.prompt_ids + tuple(t for node in self.path(node_id) for t in node.step.token_ids)

    def prefix_right(self, node_id: int) -> bool:
        """Whether every step before ``node_id`` was judged right: only then does its own verdict mean anything."""
        return all(node.right for node in self.path(node_id)[:-1])

    def groups(self) -> Iterator[tuple[int, tuple[Node, ...]]]:
        """Every parent that has children, with them: the sibling groups."""
        yield from self._children.items()


@dataclass(frozen=True)
class StepPair:
    """Two continuations of one prefix of one tree: ``chosen`` is right, ``rejected`` is wrong."""

    question_id: str
    parent: int
    chosen: int
    rejected: int
    kind: Literal["confident_wrong", "uncertain_right"]
    chosen_confidence: float
    rejected_confidence: float
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Solution:
    """What a search method returns for one question."""

    question_id: str
    answer: str | None
    """None where no path reached an answer, or where the method abstained."""
    confidence: float
    """In [0, 1], by the method's own measure: for votes the share that the answer won."""
    tree: Tree
    generated_tokens: int
    """All tokens the engine decoded for this question, those of pruned paths included."""
    abstained: bool = False
    answers: tuple[str | None, ...] = ()
    """What each sampled solution states, in the order of their numbers: of methods that sample whole solutions. The tree
    merges equal ones and holds their texts step by step; these are of their whole texts."""
