"""What every engine offers: prompts in, sampled continuations with their traces out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from caspo.core.errors import EngineError
from caspo.records import Measured, TokenTrace
from caspo.steps import Reading, StepReader

__all__ = ["Batch", "Completion", "Engine", "Finish", "Message", "OnDone", "Request", "ServingEngine", "Watch"]

Finish = Literal["eos", "stop", "length", "abandoned"]

Watch = Callable[[int, Measured], bool]
"""Called after every token that does not end the continuation by itself, with the token and what was measured of it. False
ends the continuation there: it was `abandoned`."""


@dataclass(frozen=True)
class Request:
    """One continuation to sample."""

    prefix_ids: tuple[int, ...]
    """Prompt and earlier steps, as tokens."""
    seed: int
    """The draw depends on this seed and the prefix, not on what else is in the batch."""
    max_new_tokens: int = 512
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Ends the continuation, itself included, once anything but white space stands before it."""
    step: StepReader | None = field(default=None, compare=False)
    """Ends the continuation with the step that it is in: a reader of the solution's tokens in the prefix, from which it
    follows. What was decoded to know that the step had ended is `Completion.ahead`."""
    rank: int = 1
    """Above 1: the first token is not drawn but the rank-th most probable one."""
    top_k: int = 0
    """Above 0: measure the mean log p of that many most probable tokens too (DeepConf's token confidence, negated)."""
    keep: bool = False
    """Whether something may be asked to follow this continuation, or a part of it: its state is kept, memory permitting."""
    watch: Watch | None = field(default=None, compare=False)
    """Must depend on this continuation's own tokens only, or results depend on what else is in the batch."""


@dataclass(frozen=True, eq=False)
class Completion:
    """The sampled continuation. An EOS token, where it came to that, is the last of ``token_ids`` but not in ``text``.

    It has no tokens where the model, instead of going on, began another turn at once.
    """

    token_ids: tuple[int, ...]
    text: str
    trace: TokenTrace
    finish: Finish
    top_k_logprob: NDArray[np.float32] | None = None
    """(T,) mean log p of the ``top_k`` most probable tokens, nats; None unless asked for."""
    ahead: tuple[int, ...] = ()
    """Tokens that were decoded beyond its end: the beginning of the next step, or of an invented turn."""
    ahead_trace: TokenTrace = field(default_factory=lambda: TokenTrace.of(()))

    @property
    def decoded(self) -> int:
        """Tokens that were decoded for it."""
        return len(self.token_ids) + len(self.ahead)

    def measured(self) -> list[Measured]:
        """Token by token, as a `Watch` is shown them."""
        rows = self.trace.measured()
        if self.top_k_logprob is None:
            return rows
        return [row._replace(top_k_logprob=p) for row, p in zip(rows, self.top_k_logprob.tolist(), strict=True)]


OnDone = Callable[[int, Completion], Sequence[Request]]
"""Called with the place of a request and its completion as soon as it is there. What it returns is sampled in the same
batch and takes the next places: a search goes on in one question while others are still in their step before."""


class Engine(Protocol):
    """A model that continues prefixes, in batches."""

    @property
    def name(self) -> str:
        """The model's name, for records."""

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the prompt that asks ``question``."""

    @property
    def reading(self) -> Reading:
        """How the model's text is read."""

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; special tokens have none. A text is made of all its bytes (`caspo.steps.text_of`)."""

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """Sample every request, and those that ``on_done`` adds; results in the order of their places."""

    def forget(self) -> None:
        """Drop whatever was kept of earlier prefixes, so that the next call pays for all of its own."""


class Batch(Protocol):
    """Continuations under way, gone on with step by step; requests come and go between steps. One thread's alone."""

    @property
    def free(self) -> int:
        """How many more requests it takes now."""

    def add(self, place: int, request: Request) -> None:
        """Take a request in. ``place`` is the caller's name for it, not in use by another one.

        Raises:
            EngineError: this request can never be served; the others are not touched.
        """

    def drop(self, place: int) -> None:
        """Give up a request: it is no longer decoded, and nothing is heard of it again. A finished one is left alone."""

    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Go on with all of them, by a token or for a moment; those that finished or failed, with their places."""

    def close(self) -> None:
        """Give up what is under way, and free what it holds."""


Message = Mapping[str, str]
"""A chat message: ``role`` (system, user, assistant) and ``content``."""


class ServingEngine(Engine, Protocol):
    """An engine that many users share: requests join and leave while others are under way.

    All but `batch` may be called from any thread, also while a batch is under way.
    """

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows, from 0: others never get into a batch."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and continuation together, at most."""

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        """Tokens of a text as it is: no template, no special token added. ``begins``: the text is a prompt of its own, with
        BOS in front, once, where the model knows texts with it; names of special tokens in it are meant."""

    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the prompt that asks for the assistant's next message. `prompt` is this with the engine's instruction
        and one question.

        Raises:
            DataError: the model's template cannot render these messages.
        """

    def batch(self, most: int | None = None) -> Batch:
        """An empty batch of ``most`` requests at once (the engine's own limit by default)."""
