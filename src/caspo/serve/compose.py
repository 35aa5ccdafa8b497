"""From a search's events to what its choice says, whole or in chunks. Pure translation: no HTTP, nothing awaited.

A `Choice` reads the events of one search. Its content is the text of the answer's path, cut exactly before the first stop
string; a stream and a whole answer come from the same cut, so that the chunks joined are the content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from caspo.confidence import step_score
from caspo.engines.base import ServingEngine
from caspo.records import ROOT, Node, Tree
from caspo.serve.job import Done, Grown, Settled
from caspo.serve.plan import Plan
from caspo.serve.response_schema import CaspoOut, NodeOut, NodesCaspo, StepCaspo, StepOut, TreeOut, Usage

__all__ = ["Choice", "Chunk", "Outcome", "StopCut", "usage"]


class StopCut:
    """Cuts a text that arrives in pieces before the stop string that is complete first, of several the longest.

    >>> cut = StopCut(("END",))
    >>> cut.feed("one E"), cut.feed("N two EN"), cut.feed("D three"), cut.rest()
    ('one ', 'EN two ', '', '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        """The end of the text, as far as it may be the beginning of a stop string."""
        self.stopped = False

    def feed(self, text: str) -> str:
        """What may be shown now."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        start = max(0, len(text) - longest)
        while start < len(text) and not any(stop.startswith(text[start:]) for stop in self._stops):
            start += 1
        self._held = text[start:]
        return text[:start]

    def rest(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


class Outcome(NamedTuple):
    """What one search came to."""

    text: str
    finish: Literal["stop", "length"]
    refusal: str | None
    caspo: CaspoOut
    shown: int
    """Tokens of ``text``."""
    logprobs: list[tuple[bytes, float]] | None
    """Bytes and log-probability of each of these tokens."""


class Chunk(NamedTuple):
    """A piece of a choice, before it has OpenAI's form."""

    text: str | None
    caspo: StepCaspo | NodesCaspo | None = None


class Choice:
    """Reads the events of one search."""

    def __init__(self, plan: Plan, engine: ServingEngine) -> None:
        self._plan, self._engine = plan, engine
        self._cut = StopCut(plan.stop)
        self._steps = 0
        """Steps that were shown."""
        self._path_confidence = {ROOT: 1.0}
        """Cumulative confidence at the nodes that were told of."""

    def chunks(self, event: Settled | Grown | Done) -> Iterator[Chunk]:
        """What a stream shows of an event: of the last one the steps that were not shown yet.

        Of an answer that is withheld, none.
        """
        match event:
            case Grown(nodes):
                yield Chunk(None, {"nodes": [_node(node, self._path_confidence) for node in nodes]})
            case Settled(_, text, confidence):
                if not self._plan.withheld:
                    yield from self._step(text, round(confidence, 4))
            case Done(solution, path):
                if not solution.abstained:
                    for node in path[self._steps :]:
                        yield from self._step(node.step.text, _confidence(node))
                    if rest := self._cut.rest():
                        yield Chunk(rest)

    def _step(self, text: str, confidence: float) -> Iterator[Chunk]:
        index, self._steps = self._steps, self._steps + 1
        if not self._cut.stopped:
            yield Chunk(self._cut.feed(text), {"step": {"index": index, "confidence": confidence}})

    def outcome(self, done: Done) -> Outcome:
        """The whole answer. May ask the engine for the tokens' texts."""
        plan, solution, path = self._plan, done.solution, done.path
        text, stopped = _content(path, plan.stop)
        refusal = None
        if solution.abstained:
            text, path, stopped = "", (), False
            refusal = (
                f"Abstained: the confidence in the answer is {solution.confidence:.4g}, under the threshold "
                f"abstain_below of {plan.method.settings.abstain_below:.4g}."
            )
        caspo: CaspoOut = {
            "answer": solution.answer,
            "confidence": round(solution.confidence, 4),
            "abstained": solution.abstained,
            "method": plan.method.name,
            "generated_tokens": solution.generated_tokens,
            "steps": _steps(path, len(text)),
        }
        if plan.tree:
            caspo["tree"] = _tree(solution.tree)
        shown = _shown(path, self._engine, text) if stopped or plan.logprobs else None
        return Outcome(
            text,
            "stop" if stopped or _ended(path, plan.method.settings.max_tokens) else "length",
            refusal,
            caspo,
            _length(path) if shown is None else len(shown),
            shown if plan.logprobs else None,
        )


def usage(outcomes: Sequence[Outcome], prompt_tokens: int) -> Usage:
    """The tokens of a request."""
    generated = sum(outcome.caspo["generated_tokens"] for outcome in outcomes)
    shown = sum(outcome.shown for outcome in outcomes)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "completion_tokens_details": {"reasoning_tokens": max(0, generated - shown)},
    }


def _tree(tree: Tree) -> TreeOut:
    path_confidence = {ROOT: 1.0}
    return {"nodes": [_node(node, path_confidence) for node in tree.nodes], "prompt_tokens": len(tree.prompt_ids)}


def _node(node: Node, path_confidence: dict[int, float]) -> NodeOut:
    """A node whose parent's path confidence is known; its own is noted."""
    confidence = _confidence(node)
    path_confidence[node.id] = round(path_confidence[node.parent] * confidence, 4)
    return {
        "id": node.id,
        "parent": node.parent,
        "depth": node.depth,
        "text": node.step.text,
        "confidence": confidence,
        "path_confidence": path_confidence[node.id],
        "tokens": len(node.step.token_ids),
        "decision": node.decision,
        "final": node.final,
    }


def _confidence(node: Node) -> float:
    """The step's score, exp(-mean entropy), to four digits. A step without a token (an answer of nothing) is certain."""
    return round(step_score(node.step.trace), 4) if len(node.step.trace) else 1.0


def _content(path: Sequence[Node], stops: Sequence[str]) -> tuple[str, bool]:
    """The path's text before a stop string, and whether there was one."""
    cut = StopCut(stops)
    text = "".join(cut.feed(node.step.text) for node in path)
    return text + cut.rest(), cut.stopped


def _steps(path: Sequence[Node], length: int) -> list[StepOut]:
    """The steps whose texts make the first ``length`` characters."""
    steps: list[StepOut] = []
    for node in path:
        text = node.step.text[:length]
        length -= len(text)
        if text:
            steps.append({"text": text, "confidence": _confidence(node)})
    return steps


def _shown(path: Sequence[Node], engine: ServingEngine, text: str) -> list[tuple[bytes, float]]:
    """The tokens of a text that the path begins with, with their log probability."""
    left = len(text.encode())
    ids = [token for node in path for token in node.step.token_ids]
    logprobs = [float(value) for node in path for value in node.step.trace.logprob]
    shown: list[tuple[bytes, float]] = []
    for whole, logprob in zip(engine.pieces(ids), logprobs, strict=True):
        piece = whole[:left]
        left -= len(piece)
        if piece:  # a special token, such as the end's, has no text
            shown.append((piece, round(logprob, 5) if math.isfinite(logprob) else -9999.0))
    return shown


def _ended(path: Sequence[Node], most: int) -> bool:
    """Whether a path came to an end of its own, and not to a limit; nothing has no limit."""
    return not path or path[-1].final or (path[-1].decision == "finished" and _length(path) < most)


def _length(path: Sequence[Node]) -> int:
    """Its tokens."""
    return sum(len(node.step.token_ids) for node in path)
