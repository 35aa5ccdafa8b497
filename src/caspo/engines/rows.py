"""A request on its way through a batch: its tokens so far, and when it ends. What every decoding engine shares."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Finish, Request
from caspo.records import Measured, TokenTrace
from caspo.steps import Characters, text_of

__all__ = ["SHARED", "Row", "check", "shared_length"]

SHARED = 16
"""Tokens that sequences must share at their beginning to have it computed once; of fewer, copying costs as much."""


@dataclass
class Row:
    """One continuation while it is decoded."""

    place: int
    """Its caller's name for it."""
    request: Request
    tokens: list[int] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    """One for each token."""
    pieces: list[bytes] = field(default_factory=list)
    """The bytes of each."""
    turn: str = ""
    """What begins another turn (`Reading.turn`)."""
    before: bytes = b""
    """The bytes of the prefix's last token."""
    text: str = ""
    finish: Finish | None = None
    own: int | None = None
    """Tokens that belong to the continuation, where more were decoded than that."""

    def __post_init__(self) -> None:
        self._characters = Characters()
        self._starts: list[int] = []
        """Characters of the text before each token."""
        self._step = None if self.request.step is None else self.request.step.copy()
        self._known = 0 if self._step is None else self._step.tokens

    @property
    def last(self) -> int:
        """The token that the next step feeds."""
        return self.tokens[-1] if self.tokens else self.request.prefix_ids[-1]

    def take(self, token: int, measured: Measured, piece: bytes, *, ends: bool, context_length: int) -> bool:
        """Take the next token in; whether the continuation ends with it (``finish`` says why).

        Args:
            token: the token that was drawn.
            measured: what its distribution said.
            piece: its bytes.
            ends: whether it is an EOS token.
            context_length: of the model. A full context is `length`: nothing can be continued from there.
        """
        self.tokens.append(token)
        if not self.request.top_k and measured.top_k_logprob is not None:
            measured = measured._replace(top_k_logprob=None)  # a neighbour asked for it
        self.measured.append(measured)
        self.pieces.append(piece)
        self.finish = self._finish(piece, ends, context_length)
        watch = self.request.watch
        if self.finish is None and watch is not None and not watch(token, measured):
            self.finish, self.own = "abandoned", None  # all that the watch was shown
        return self.finish is not None

    def completion(self, kind: Literal["full", "top_k"] = "full", k: int | None = None) -> Completion:
        """The finished continuation."""
        assert self.finish is not None
        own = len(self.tokens) if self.own is None else self.own
        top_k = np.array([m.top_k_logprob for m in self.measured[:own]], dtype=np.float32) if self.request.top_k else None
        return Completion(
            tuple(self.tokens[:own]),
            text_of(self.pieces[:own]),
            TokenTrace.of(self.measured[:own], kind, k),
            self.finish,
            top_k,
            tuple(self.tokens[own:]),
            TokenTrace.of(self.measured[own:], kind, k),
        )

    def _finish(self, piece: bytes, ends: bool, context_length: int) -> Finish | None:
        request = self.request
        if ends:
            return "eos"
        if len(request.prefix_ids) + len(self.tokens) >= context_length:
            return "length"
        tail, self.text = len(self.text), self.text + self._characters.take(piece)
        self._starts.append(tail)
        if self._step is not None and self.own is None:
            self.own = next((end - self._known for end, _ in self._step.take(piece) if end > self._known), None)
        line = self._line_start if self.turn else None
        if line is not None and self.text.startswith(self.turn, line):
            self.own = bisect_left(self._starts, line)
            return "eos"
        if self.own is not None and not (line is not None and self.turn.startswith(self.text[line:])):
            return "stop"
        for stop in request.stop:
            at = self.text.find(stop, max(0, tail - len(stop) + 1))
            while at >= 0:
                if self.text[:at].strip():
                    return "stop"
                at = self.text.find(stop, at + 1)
        return "length" if len(self.tokens) >= request.max_new_tokens else None

    @property
    def _line_start(self) -> int | None:
        """Where the line begins that is being written; None: before this continuation."""
        at = self.text.rfind("\n") + 1
        return at if at or self.before.endswith(b"\n") else None


def check(request: Request, context_length: int, name: str, vocab_size: int | None = None) -> None:
    """Refuse a request that no model with this context, and a vocabulary of this size where it is told, can serve.

    Raises:
        EngineError: its prefix is empty, leaves no room, or holds tokens that the model does not have.
    """
    if not request.prefix_ids:
        raise EngineError("A prompt needs at least one token. Is the question or the chat template empty?")
    if len(request.prefix_ids) >= context_length:
        raise EngineError(
            f"A prompt of {len(request.prefix_ids)} tokens leaves no room in the context of {name} "
            f"({context_length} tokens). Shorten the question, or use a model with a longer context."
        )
    if vocab_size is not None and not all(0 <= token < vocab_size for token in request.prefix_ids):
        raise EngineError(f"A prefix holds tokens that {name} does not have: it knows those from 0 to {vocab_size - 1}.")


def shared_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
