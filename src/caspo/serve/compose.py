"""From a search's events to what its choice says, whole or in chunks. Pure translation: no HTTP, nothing awaited.

A `Choice` reads the events of one search. Its content is what the model says on the answer's path, cut exactly before the
first stop string; what it thinks there is told apart from it. A stream and a whole answer come from the same cut, so that
the chunks joined are the content.
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
from caspo.steps import Characters, Part, Parting

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


class _Cut:
    """Tells apart what is said and what is thought in a text that arrives in pieces, and cuts it at a stop string in the
    former."""

    def __init__(self, stops: Sequence[str], parting: Parting | None) -> None:
        self._stop, self._parting = StopCut(stops), None if parting is None else parting.copy()
        self.length = 0
        """Characters taken in."""
        self._parts: list[Part] = []
        """What may be shown so far."""
        self._waiting: list[Part] = []
        """What is said, and held back."""

    @property
    def stopped(self) -> bool:
        """Whether there was a stop string: nothing after it is shown."""
        return self._stop.stopped

    @property
    def says(self) -> bool:
        """Whether what comes next would be shown, and not as thinking."""
        return not self.stopped and (self._parting is None or not self._parting.thinking)

    @property
    def parts(self) -> list[Part]:
        """All that may be shown so far, in the order of the text."""
        joined: list[Part] = []
        for part in sorted(self._parts):
            last = joined[-1] if joined else None
            if last and last.thinking == part.thinking and last.start + len(last.text) == part.start:
                joined[-1] = last._replace(text=last.text + part.text)
            else:
                joined.append(part)
        return joined

    def feed(self, text: str) -> tuple[str, str]:
        """What of it is (said, thought), as far as it may be shown now."""
        part = Part(self.length, text, False)
        self.length += len(text)
        return self._take([part] if self._parting is None else self._parting.feed(text))

    def rest(self) -> tuple[str, str]:
        """What was held back, once no more text comes."""
        said, thought = self._take([] if self._parting is None else self._parting.rest())
        return said + self._show(self._stop.rest()), thought

    def _take(self, parts: Sequence[Part]) -> tuple[str, str]:
        said, thought = "", ""
        for part in parts:
            if self.stopped:
                break
            if part.thinking:
                thought += part.text
                self._parts.append(part)
            else:
                self._waiting.append(part)
                said += self._show(self._stop.feed(part.text))
        return said, thought

    def _show(self, text: str) -> str:
        """Note where in the whole text this is that may be shown now."""
        left = len(text)
        while left:
            part = self._waiting.pop(0)
            shown, held = part.text[:left], part.text[left:]
            left -= len(shown)
            self._parts.append(part._replace(text=shown))
            if held:
                self._waiting.insert(0, part._replace(start=part.start + len(shown), text=held))
        return text


class Outcome(NamedTuple):
    """What one search came to."""

    text: str
    reasoning: str
    """The model's thinking."""
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
    reasoning: str = ""
    """The model's thinking."""


class Choice:
    """Reads the events of one search; ``parting`` as in `Job`."""

    def __init__(self, plan: Plan, engine: ServingEngine, parting: Parting | None) -> None:
        self._plan, self._engine, self._parting = plan, engine, parting
        self._cut = _Cut(plan.stop, parting)
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
                yield Chunk(None, {"nodes": [_node(node, self._path_confidence, self._parting) for node in nodes]})
            case Settled(_, text, confidence, thinking):
                if not self._plan.withheld:
                    yield from self._step(text, round(confidence, 4), thinking)
            case Done(solution, path):
                if not solution.abstained:
                    for node in path[self._steps :]:
                        yield from self._step(node.step.text, _confidence(node), node.step.thinking)
                    said, thought = self._cut.rest()
                    if said or thought:
                        yield Chunk(said, None, thought)

    def _step(self, text: str, confidence: float, thinking: bool) -> Iterator[Chunk]:
        index, self._steps = self._steps, self._steps + 1
        if not self._cut.stopped:
            said, thought = self._cut.feed(text)
            note: StepCaspo = {"step": {"index": index, "confidence": confidence, "thinking": thinking}}
            yield Chunk(None if thought and not said else said, note, thought)

    def outcome(self, done: Done) -> Outcome:
        """The whole answer. May ask the engine for the tokens' texts."""
        plan, solution, path = self._plan, done.solution, done.path
        refusal = None
        if solution.abstained:
            path = ()
            refusal = (
                f"Abstained: the confidence in the answer is {solution.confidence:.4g}, under the threshold "
                f"abstain_below of {plan.method.settings.abstain_below:.4g}."
            )
        cut = _Cut(plan.stop, self._parting)
        for node in path:
            cut.feed(node.step.text)
        cut.rest()
        parts = cut.parts
        caspo: CaspoOut = {
            "answer": solution.answer,
            "confidence": round(solution.confidence, 4),
            "abstained": solution.abstained,
            "method": plan.method.name,
            "generated_tokens": solution.generated_tokens,
            "steps": _steps(path, parts),
        }
        if plan.tree:
            caspo["tree"] = _tree(solution.tree, self._parting)
        text, reasoning = ("".join(part.text for part in parts if part.thinking is side) for side in (False, True))
        whole = len(text) == sum(len(node.step.text) for node in path)
        shown = None if whole and not plan.logprobs else _shown(path, self._engine, cut)
        return Outcome(
            text,
            reasoning,
            "stop" if cut.stopped or _ended(path, plan.method.settings.max_tokens) else "length",
            refusal,
            caspo,
            _length(path) if shown is None else len(shown),
            [token for token in shown if token[0]] if shown is not None and plan.logprobs else None,
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


def _tree(tree: Tree, parting: Parting | None) -> TreeOut:
    path_confidence = {ROOT: 1.0}
    return {"nodes": [_node(node, path_confidence, parting) for node in tree.nodes], "prompt_tokens": len(tree.prompt_ids)}


def _node(node: Node, path_confidence: dict[int, float], parting: Parting | None) -> NodeOut:
    """A node whose parent's path confidence is known; its own is noted."""
    confidence = _confidence(node)
    path_confidence[node.id] = round(path_confidence[node.parent] * confidence, 4)
    return {
        "id": node.id,
        "parent": node.parent,
        "depth": node.depth,
        "text": node.step.text if parting is None else parting.plain(node.step.text),
        "confidence": confidence,
        "path_confidence": path_confidence[node.id],
        "tokens": len(node.step.token_ids),
        "decision": node.decision,
        "final": node.final,
        "thinking": node.step.thinking,
    }


def _confidence(node: Node) -> float:
    """The step's score, exp(-mean entropy), to four digits. A step without a token (an answer of nothing) is certain."""
    return round(step_score(node.step.trace), 4) if len(node.step.trace) else 1.0


def _steps(path: Sequence[Node], parts: Sequence[Part]) -> list[StepOut]:
    """What is told of each step; one in which the model's thinking ends and something is said is told of in two."""
    steps: list[StepOut] = []
    end = 0
    for node in path:
        start, end = end, end + len(node.step.text)
        for part in parts:
            text = part.text[max(0, start - part.start) : max(0, end - part.start)]
            if text:
                steps.append({"text": text, "confidence": _confidence(node), "thinking": part.thinking})
    return steps


def _shown(path: Sequence[Node], engine: ServingEngine, cut: _Cut) -> list[tuple[bytes, float]]:
    """The tokens of what is said, with their log probabilities; of one that is said in part only those bytes.

    A character may be several tokens: the last of them is taken for all of it here, the others for nothing before it.
    """
    said = [(part.start, part.start + len(part.text)) for part in cut.parts if not part.thinking]
    ids = [token for node in path for token in node.step.token_ids]
    logprobs = [float(value) for node in path for value in node.step.trace.logprob]
    shown: list[tuple[bytes, float]] = []
    characters, end, waiting = Characters(), 0, 0
    for piece, logprob in zip(engine.pieces(ids), logprobs, strict=True):
        text = characters.take(piece)
        start, end = end, end + len(text)
        before, waiting = waiting, max(0, waiting + len(piece) - len(text.encode()))
        for first, last in said:
            if max(first, start) < min(last, end):
                left, right = (len(part.encode()) for part in (text[: max(0, first - start)], text[max(0, last - start) :]))
                tail = right + waiting if right or (cut.stopped and last == end) else 0
                shown.append((piece[max(0, left - before) if left else 0 : len(piece) - tail], _finite(logprob)))
            elif start == end and first <= start < last:
                shown.append((piece, _finite(logprob)))
        if start == end == cut.length and cut.says:  # part of a character that is not whole, or EOS
            shown.append((piece, _finite(logprob)))
    return shown


def _finite(logprob: float) -> float:
    return round(logprob, 5) if math.isfinite(logprob) else -9999.0


def _ended(path: Sequence[Node], most: int) -> bool:
    """Whether a path came to an end of its own, and not to a limit; nothing has no limit."""
    return not path or path[-1].final or (path[-1].decision == "finished" and _length(path) < most)


def _length(path: Sequence[Node]) -> int:
    """Its tokens."""
    return sum(len(node.step.token_ids) for node in path)
