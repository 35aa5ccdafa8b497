"""A request on its way through a batch: its tokens so far, and when it ends. What every decoding engine shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Finish, Request
from caspo.records import Measured, TokenTrace

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
    text: str = ""
    finish: Finish | None = None

    @property
    def last(self) -> int:
        """The token that the next step feeds."""
        return self.tokens[-1] if self.tokens else self.request.prefix_ids[-1]

    def take(self, token: int, measured: Measured, piece: str, *, ends: bool, context_length: int) -> bool:
        """Take the next token in; whether the continuation ends with it (``finish`` says why).

        Args:
            token: the token that was drawn.
            measured: what its distribution said.
            piece: its text.
            ends: whether it is an EOS token.
            context_length: of the model. A full context is `length`: nothing can be continued from there.
        """
        self.tokens.append(token)
        if not self.request.top_k and measured.top_k_logprob is not None:
            measured = measured._replace(top_k_logprob=None)  # a neighbour asked for it
        self.measured.append(measured)
        self.finish = self._finish(piece, ends, context_length)
        watch = self.request.watch
        if self.finish is None and watch is not None and not watch(token, measured):
            self.finish = "abandoned"
        return self.finish is not None

    def completion(self, text: str, kind: Literal["full", "top_k"] = "full", k: int | None = None) -> Completion:
        """The finished continuation, ``text`` being that of its tokens without EOS."""
        assert self.finish is not None
        top_k = np.array([m.top_k_logprob for m in self.measured], dtype=np.float32) if self.request.top_k else None
        trace = TokenTrace.of(self.measured, kind, k)
        return Completion(tuple(self.tokens), text, trace, self.finish, top_k)

    @property
    def written(self) -> list[int]:
        """The tokens that make its text: all but an EOS at the end."""
        return self.tokens[:-1] if self.finish == "eos" else self.tokens

    def _finish(self, piece: str, ends: bool, context_length: int) -> Finish | None:
        request = self.request
        if ends:
            return "eos"
        if len(request.prefix_ids) + len(self.tokens) >= context_length:
            return "length"
        tail, self.text = len(self.text), self.text + piece
        for stop in request.stop:
            at = self.text.find(stop, max(0, tail - len(stop) + 1))
            while at >= 0:
                if self.text[:at].strip():
                    return "stop"
                at = self.text.find(stop, at + 1)
        return "length" if len(self.tokens) >= request.max_new_tokens else None


def check(request: Request, context_length: int, name: str) -> None:
    """Refuse a request that no model with this context can serve.

    Raises:
        EngineError: its prefix is empty, or leaves no room.
    """
    if not request.prefix_ids:
        raise EngineError("A prompt needs at least one token. Is the question or the chat template empty?")
    if len(request.prefix_ids) >= context_length:
        raise EngineError(
            f"A prompt of {len(request.prefix_ids)} tokens leaves no room in the context of {name} "
            f"({context_length} tokens). Shorten the question, or use a model with a longer context."
        )


def shared_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
