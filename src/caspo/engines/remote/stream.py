"""One continuation on servers: its streams, read token by token and measured, until it is over.

A stream that breaks goes on, there or on another server, from the tokens that have arrived: no token is told of twice.
What it then draws at a temperature above 0 is a fresh draw. All of this runs in the pool's loop.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from caspo.core.errors import EngineError
from caspo.engines.base import Finish, Request
from caspo.engines.remote.lost import Lost, refuse_lost
from caspo.engines.remote.pool import Endpoint, Pool
from caspo.engines.remote.probe import Features, neutral
from caspo.engines.remote.reply import RANKS, BadReply, Entry, Position, measure, positions, repaired
from caspo.engines.retries import Passing
from caspo.records import Measured
from caspo.steps import Reading

__all__ = ["Ended", "Known", "Side", "Token", "TopLists", "tokens"]

_BAD_TRIES = 3
"""Malformed replies to one request before it fails."""
_REMEMBERED = 8192
"""Positions remembered."""


class Side(Protocol):
    """What a batch needs of its engine."""

    pool: Pool
    features: Features
    k: int
    vocab_size: int
    context_length: int
    known: TopLists
    lost: Lost

    def number(self, entry: Entry, *, last: bool = False) -> int:
        """The id of a token: the server's, or one for its text; ``last``: it ended a text."""

    async def resolved(self, entry: Entry) -> int:
        """The id of a token of a list, which may have come as text only."""

    def ends(self, token: int | None, piece: bytes | None) -> bool:
        """Whether a token is known to end a text."""

    def prompt_of(self, ids: Sequence[int]) -> str | list[int]:
        """What to send for a prefix."""

    @property
    def reading(self) -> Reading:
        """How the model's text is read."""

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""


class Known(NamedTuple):
    """A position that was seen: the `RANKS` most probable tokens, and what all that were shown came to."""

    top: tuple[Entry, ...]
    measured: Measured


class TopLists:
    """The most probable tokens at positions that were seen, so that asking for one of them costs no request."""

    def __init__(self) -> None:
        self._lists: OrderedDict[int, Known] = OrderedDict()

    @staticmethod
    def key(ids: Sequence[int], start: int = 0) -> int:
        """The key of a sequence; ``start`` is the key of what stands before it."""
        for token in ids:
            start = hash((start, token))
        return start

    def put(self, key: int, position: Position, measured: Measured) -> None:
        """Remember what came after a sequence."""
        self._lists[key] = Known(position.top[:RANKS], measured)
        self._lists.move_to_end(key)
        if len(self._lists) > _REMEMBERED:
            self._lists.popitem(last=False)

    def get(self, key: int) -> Known | None:
        """What came after a sequence, if it was seen."""
        return self._lists.get(key)

    def clear(self) -> None:
        """Forget all."""
        self._lists.clear()


class Token(NamedTuple):
    token: int
    measured: Measured
    last: bool
    """It is the EOS token."""


class Ended(NamedTuple):
    """The server ended the continuation, after the tokens told of."""

    finish: Finish


async def tokens(side: Side, request: Request) -> AsyncGenerator[Token | Ended, None]:
    """What happens to a request until it is over.

    Raises:
        EngineError: it was refused, or failed for longer than the pool's patience.
    """
    clock = asyncio.get_running_loop().time
    reader = _Reader(side, request)
    if request.rank > 1:
        chosen, known = await _ranked(side, request)
        yield reader.note(chosen, known, last=side.ends(chosen.token, chosen.piece))
    attempt, bad, until = 0, 0, clock() + side.pool.patience
    while True:
        try:
            async with side.pool.place() as endpoint:
                if attempt == 0:  # to wait for a place among others is no failure
                    until = clock() + side.pool.patience
                body = _body(side, request, reader.ids)
                events = side.pool.events(endpoint, body)
                async with aclosing(events):
                    async for found in reader.read(events, body["max_tokens"]):
                        attempt, until = 0, clock() + side.pool.patience
                        yield found
            if reader.over:
                return
        except BadReply as error:
            bad += 1
            if bad >= _BAD_TRIES:
                raise EngineError(f"{error} ({bad} times). Check the server ({side.pool.names}).") from error
        except Passing as error:
            await side.pool.pause(error, attempt, until)
            attempt += 1


async def _ranked(side: Side, request: Request) -> tuple[Entry, Known]:
    """The token of the request's rank, with its id, and the position at which it stands."""
    key = TopLists.key(request.prefix_ids)
    known = side.known.get(key)
    if known is None or len(known.top) < min(request.top_k, side.k):
        body = _body(side, request, []) | {"max_tokens": 1, "temperature": 0.0, "stream": False}
        body.pop("stream_options", None)

        async def look(endpoint: Endpoint) -> Position:
            reply = await side.pool.request(endpoint, "POST", "/v1/completions", body)
            found = positions(_choice(reply), side.k)
            if not found:
                raise BadReply("the server sent no log-probabilities")
            return found[0]

        position = await side.pool.retried(look)
        measured = measure(position, side.k, side.vocab_size)
        side.known.put(key, position, measured)
        known = Known(position.top, measured)
    if request.rank > len(known.top):
        raise EngineError(
            f"A token of rank {request.rank} was asked for, and the server shows {len(known.top)} at most. "
            "Ask for fewer children, or raise top_logprobs."
        )
    entry = known.top[request.rank - 1]
    return entry._replace(token=await side.resolved(entry)), known


class _Reader:
    """Turns the events of one continuation's streams into its tokens."""

    def __init__(self, side: Side, request: Request) -> None:
        self.side, self.request = side, request
        self.ids: list[int] = []
        self.over = False
        self._key = TopLists.key(request.prefix_ids)

    def take(self, position: Position, *, last: bool) -> Token:
        """Note a token that was sampled."""
        measured = measure(position, self.side.k, self.side.vocab_size)
        self.side.known.put(self._key, position, measured)
        return self.note(position.taken, Known(position.top, measured), last=last)

    def note(self, taken: Entry, known: Known, *, last: bool) -> Token:
        """Note a token at a position."""
        token = self.side.number(taken, last=last)
        self._key = TopLists.key([token], self._key)
        self.ids.append(token)
        k = self.request.top_k
        top_k = sum(entry.logprob for entry in known.top[:k]) / min(k, len(known.top)) if k else None
        self.over = self.over or last
        return Token(token, known.measured._replace(logprob=taken.logprob, top_k_logprob=top_k), last)

    async def read(self, events: AsyncIterator[Mapping[str, Any]], asked: int) -> AsyncGenerator[Token | Ended, None]:
        """Read one stream, of ``asked`` tokens at most. A token without text is held back until it is known whether it was
        the end."""
        side = self.side
        held: list[Position] = []
        finish: str | None = None
        received, named = 0, 0
        async for event in events:
            self._check_model(event)
            named = max(named, _counted(event))
            if not event.get("choices"):
                continue
            choice = _choice(event)
            new = positions(choice, side.k)
            if choice.get("text") and not new and finish is None:
                raise BadReply("the server sent text without log-probabilities")
            finish = choice.get("finish_reason") or finish
            missing = named - (finish == "stop") - received - len(new)
            if new and not side.features.ids:
                new = repaired(new, str(choice.get("text") or ""))
            elif new and missing > 0:
                there = (*self.request.prefix_ids, *self.ids, *(side.number(position.taken) for position in held))
                new = await side.lost.found(there, new, missing, side.k)
            received += len(new)
            waiting, held = held + new, []
            for position in waiting:
                final = position is waiting[-1]
                ended = side.ends(position.taken.token, position.taken.piece)
                if final and not ended and finish == "stop":
                    ended = bool(new) or position.taken.piece == b""
                elif final and not ended and finish is None and position.taken.piece == b"":
                    held = [position]
                    continue
                yield self.take(position, last=ended)
                if ended:
                    return
        if finish is None:
            raise Passing("a stream ended in the middle")
        end = self._end(finish, received, named, asked)
        if end is not None:
            self.over = True
            yield end

    def _end(self, finish: str, received: int, named: int, asked: int) -> Ended | None:
        """How a stream ended that told of ``received`` tokens, of ``named`` generated and ``asked`` asked for; None where
        the continuation goes on behind it.

        Raises:
            EngineError: tokens are lost.
        """
        features = self.side.features
        if finish == "stop" or not (received or self.ids):  # a limit may have cut a character in two: that much is told
            refuse_lost(received, named - (finish == "stop"))
        if finish not in ("stop", "length"):
            raise Passing(f"the server ended a stream for the reason {finish!r}")
        if finish == "length" and features.ids and features.context_length and 0 < max(received, named) < asked:
            return None  # a limit of the server's own (vLLM: max_new_tokens of its generation config)
        return Ended("eos" if finish == "stop" else "length")

    def _check_model(self, event: Mapping[str, Any]) -> None:
        told = event.get("model")
        if told and told != self.side.features.model:
            raise BadReply(f"the reply is of the model {told!r}, not of {self.side.features.model!r}")


def _choice(event: Any) -> Mapping[str, Any]:
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadReply("the server's reply holds no choice")
    return choices[0]


def _counted(event: Mapping[str, Any]) -> int:
    """How many tokens the server says that it has generated."""
    usage, timings = event.get("usage") or {}, event.get("timings") or {}
    return int(max(usage.get("completion_tokens") or 0, timings.get("predicted_n") or 0))


def _body(side: Side, request: Request, received: Sequence[int]) -> dict[str, Any]:
    features = side.features
    room = request.max_new_tokens - len(received)
    if features.ids:
        room = min(room, side.context_length - len(request.prefix_ids) - len(received))
    body: dict[str, Any] = {
        "model": features.model,
        "prompt": side.prompt_of((*request.prefix_ids, *received)),
        "max_tokens": max(1, room),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": (request.seed + len(received)) % 2**31,
        "logprobs": side.k,
        "stream": True,
        **neutral(features.extended, side.vocab_size),
    }
    if features.extended:
        body["stream_options"] = {"include_usage": True}
    return body
