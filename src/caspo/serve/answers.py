"""From a search's events to OpenAI's JSON, whole or in chunks. Pure translation: no HTTP, nothing awaited.

A `Choice` reads the events of one search. Its content is the text of the answer's path, cut exactly before the first stop
string; a stream and a whole answer come from the same cut, so that the chunks joined are the content.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from caspo.engines.base import ServingEngine
from caspo.serve.job import Done, Grown, Settled
from caspo.serve.tree_json import confidence_of, node_json, tree_json
from caspo.serve.wire import Asked
from caspo.types import ROOT, Node

__all__ = ["Answer", "Choice", "Form", "StopCut", "usage"]


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


class Answer(NamedTuple):
    """What one search came to."""

    text: str
    finish: Literal["stop", "length"]
    refusal: str | None
    caspo: dict[str, Any]
    generated: int
    shown: int
    """Tokens of ``text``."""
    logprobs: list[tuple[str, float]] | None


class Chunk(NamedTuple):
    """A piece of a choice, before it has OpenAI's form."""

    text: str | None = None
    caspo: dict[str, Any] | None = None


class Choice:
    """Reads the events of one search."""

    def __init__(self, asked: Asked, engine: ServingEngine) -> None:
        self._asked, self._engine = asked, engine
        self._cut = StopCut(asked.stop)
        self._steps = 0
        """Steps that were shown."""
        self._path_confidence = {ROOT: 1.0}
        """Of the nodes that were told of."""

    def chunks(self, event: Settled | Grown) -> Iterator[Chunk]:
        """What a stream shows of an event."""
        if isinstance(event, Grown):
            yield Chunk(caspo={"nodes": [self._node(node) for node in event.nodes]})
        elif not self._asked.withheld:
            yield from self._step(event.text, round(event.confidence, 4))

    def last_chunks(self, event: Done) -> Iterator[Chunk]:
        """The steps that were not shown yet; none of an answer that is withheld."""
        if event.solution.abstained:
            return
        for node in event.path[self._steps :]:
            yield from self._step(node.step.text, confidence_of(node))
        if rest := self._cut.rest():
            yield Chunk(rest)

    def _step(self, text: str, confidence: float) -> Iterator[Chunk]:
        index, self._steps = self._steps, self._steps + 1
        if not self._cut.stopped:
            yield Chunk(self._cut.feed(text), {"step": {"index": index, "confidence": confidence}})

    def _node(self, node: Node) -> dict[str, Any]:
        told = node_json(node, self._path_confidence[node.parent])
        self._path_confidence[node.id] = told["path_confidence"]
        return told

    def answer(self, event: Done) -> Answer:
        """The whole answer. May ask the engine for the tokens' texts."""
        asked, solution, path = self._asked, event.solution, event.path
        text, stopped = _content(path, asked.stop)
        refusal = None
        if solution.abstained:
            text, path, stopped = "", (), False
            refusal = (
                f"Abstained: the confidence in the answer is {solution.confidence:.4g}, under the threshold "
                f"abstain_below of {asked.method.settings.abstain_below:.4g}."
            )
        caspo: dict[str, Any] = {
            "answer": solution.answer,
            "confidence": round(solution.confidence, 4),
            "abstained": solution.abstained,
            "method": asked.method.name,
            "generated_tokens": solution.generated_tokens,
            "steps": _steps(path, len(text)),
        }
        if asked.tree:
            caspo["tree"] = tree_json(solution.tree)
        shown = _shown(path, self._engine, len(text)) if stopped or asked.logprobs else None
        count = sum(len(node.step.token_ids) for node in path) if shown is None else len(shown)
        ended = stopped or solution.abstained or _ended(path, asked.method.settings.max_tokens)
        return Answer(
            text,
            "stop" if ended else "length",
            refusal,
            caspo,
            solution.generated_tokens,
            count,
            shown if asked.logprobs else None,
        )


def usage(answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
    """The tokens of a request."""
    generated = sum(answer.generated for answer in answers)
    shown = sum(answer.shown for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
        "completion_tokens_details": {"reasoning_tokens": max(0, generated - shown)},
    }


@dataclass(frozen=True)
class Form:
    """OpenAI's JSON of one request: of a chat, or of a completion."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[Answer], spent: dict[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head("chat.completion"), "choices": choices, "usage": spent}

    def first(self, index: int) -> bytes:
        """The event that opens a choice."""
        return self.chunk(index, Chunk(""), role=True)

    def chunk(self, index: int, chunk: Chunk, *, role: bool = False) -> bytes:
        """An event with a piece of a choice."""
        choice: dict[str, Any] = {"index": index}
        if self.chat:
            delta = {"role": "assistant"} if role else {}
            choice["delta"] = delta if chunk.text is None else {**delta, "content": chunk.text}
        else:
            choice["text"] = chunk.text or ""
        choice["finish_reason"] = None
        if chunk.caspo is not None:
            choice["caspo"] = chunk.caspo
        return self._event([choice])

    def last(self, index: int, answer: Answer) -> bytes:
        """The event that ends a choice. The tokens' log probabilities, if asked for, come all at once with it."""
        choice = self._choice(index, answer)
        if self.chat:
            del choice["message"]
            choice["delta"] = {} if answer.refusal is None else {"refusal": answer.refusal}
        else:
            choice["text"] = ""
        return self._event([choice])

    def usage(self, spent: dict[str, Any]) -> bytes:
        """The event with the tokens."""
        return self._event([], usage=spent)

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        if self.chat:
            message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
            logprobs = _logprobs(answer)
            return {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": answer.finish,
                "caspo": answer.caspo,
            }
        return {
            "index": index,
            "text": answer.text,
            "logprobs": _legacy_logprobs(answer),
            "finish_reason": answer.finish,
            "caspo": answer.caspo,
        }

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._head("chat.completion.chunk"), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, Any]:
        name, kind = ("chatcmpl", kind) if self.chat else ("cmpl", "text_completion")
        return {"id": f"{name}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _content(path: Sequence[Node], stops: Sequence[str]) -> tuple[str, bool]:
    """The path's text before a stop string, and whether there was one."""
    cut = StopCut(stops)
    text = "".join(cut.feed(node.step.text) for node in path)
    return text + cut.rest(), cut.stopped


def _steps(path: Sequence[Node], length: int) -> list[dict[str, Any]]:
    """The steps whose texts make the first ``length`` characters."""
    steps: list[dict[str, Any]] = []
    for node in path:
        text = node.step.text[:length]
        length -= len(text)
        if text:
            steps.append({"text": text, "confidence": confidence_of(node)})
    return steps


def _shown(path: Sequence[Node], engine: ServingEngine, length: int) -> list[tuple[str, float]]:
    """The tokens of the first ``length`` characters, with their log probability."""
    ids = [token for node in path for token in node.step.token_ids]
    logprobs = [float(value) for node in path for value in node.step.trace.logprob]
    shown: list[tuple[str, float]] = []
    for piece, logprob in zip(engine.pieces(ids), logprobs, strict=True):
        text = piece[:length]
        length -= len(text)
        if text:  # a special token, such as the end's, has no text
            shown.append((text, round(logprob, 5) if math.isfinite(logprob) else -9999.0))
    return shown


def _ended(path: Sequence[Node], most: int) -> bool:
    """Whether a path came to an end of its own, and not to a limit."""
    if not path or path[-1].final:
        return True
    return path[-1].decision == "finished" and sum(len(node.step.token_ids) for node in path) < most


def _logprobs(answer: Answer) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    content = [
        {"token": piece, "logprob": logprob, "bytes": list(piece.encode()), "top_logprobs": []}
        for piece, logprob in answer.logprobs
    ]
    return {"content": content, "refusal": None}


def _legacy_logprobs(answer: Answer) -> dict[str, Any] | None:
    if answer.logprobs is None:
        return None
    offsets, at = [], 0
    for piece, _ in answer.logprobs:
        offsets.append(at)
        at += len(piece)
    return {
        "tokens": [piece for piece, _ in answer.logprobs],
        "token_logprobs": [logprob for _, logprob in answer.logprobs],
        "top_logprobs": None,
        "text_offset": offsets,
    }
