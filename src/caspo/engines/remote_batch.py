"""Continuations under way on servers: one stream each, read token by token, measured, and closed as soon as one is to end.

Streams are read in the pool's thread; stop strings, watches and the end of a continuation are decided in the thread of the
batch's owner. A stream that breaks goes on, there or on another server, from the tokens that have arrived: no token is
told of twice. What it then draws at a temperature above 0 is a fresh draw.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from caspo.engines.base import Completion, Finish, Request
from caspo.engines.remote_pool import Passing, Pool
from caspo.engines.remote_probe import Features, neutral
from caspo.engines.remote_reply import BadReply, Entry, Measured, Position, measure, positions
from caspo.errors import CaspoError, EngineError
from caspo.types import TokenTrace

__all__ = ["RemoteBatch", "Side", "TopLists"]

_WAIT = 0.05
"""Seconds that a step waits for something to arrive."""
_BAD_TRIES = 3
"""Malformed replies to one request before it fails."""
_RANKS = 32
"""Most probable tokens remembered of a position."""
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

    def number(self, entry: Entry) -> int:
        """The id of a token: the server's, or one for its text."""

    async def resolved(self, entry: Entry) -> int:
        """The id of a token of a list, which may have come as text only."""

    def ends(self, token: int | None, text: str | None) -> bool:
        """Whether a token is known to end a text."""

    def prompt_of(self, ids: Sequence[int]) -> str | list[int]:
        """What to send for a prefix."""

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens together."""


class TopLists:
    """The most probable tokens at positions that were seen, so that asking for one of them costs no request."""

    def __init__(self) -> None:
        self._lists: OrderedDict[int, Position] = OrderedDict()

    @staticmethod
    def key(ids: Sequence[int], start: int = 0) -> int:
        """Of a sequence; ``start`` is the key of what stands before it."""
        for token in ids:
            start = hash((start, token))
        return start

    def put(self, key: int, position: Position) -> None:
        """Remember what came after a sequence."""
        self._lists[key] = position
        self._lists.move_to_end(key)
        if len(self._lists) > _REMEMBERED:
            self._lists.popitem(last=False)

    def get(self, key: int) -> Position | None:
        """What came after a sequence, if it was seen."""
        return self._lists.get(key)

    def clear(self) -> None:
        """Forget all."""
        self._lists.clear()


class _Token(NamedTuple):
    token: int
    measured: Measured
    top_k: float
    """Mean log p of the request's top k; 0 if it asks for none."""
    last: bool
    """It is the EOS token."""


class _Ended(NamedTuple):
    """The server ended the continuation, after the tokens told of."""

    finish: Finish


@dataclass
class _Row:
    """A continuation as its owner sees it."""

    request: Request
    task: asyncio.Task[None] | None = None
    gone: bool = False
    ids: list[int] = field(default_factory=list)
    statistics: list[tuple[float, ...]] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    text: str = ""


class RemoteBatch:
    """Implements `Batch`."""

    def __init__(self, side: Side, most: int) -> None:
        self._side, self._most = side, most
        self._rows: dict[int, tuple[int, _Row]] = {}
        self._serial = itertools.count()
        self._arrived: queue.SimpleQueue[tuple[int, int, _Token | _Ended | EngineError]] = queue.SimpleQueue()
        self._closed = False

    @property
    def free(self) -> int:
        """How many more requests it takes now."""
        return max(0, self._most - len(self._rows))

    def add(self, place: int, request: Request) -> None:
        """Take a request in."""
        side = self._side
        _refuse(request, side)
        serial, row = next(self._serial), _Row(request)
        self._rows[place] = serial, row

        def begin() -> None:
            if not row.gone:
                row.task = asyncio.get_running_loop().create_task(self._follow(place, serial, request))

        side.pool.call(begin)

    def drop(self, place: int) -> None:
        """Close the stream of a request, so that its server stops."""
        found = self._rows.pop(place, None)
        if found is not None:
            self._cancel(found[1])

    def step(self) -> list[tuple[int, Completion | EngineError]]:
        """Take in what has arrived; wait for it for a moment if nothing has."""
        finished: list[tuple[int, Completion | EngineError]] = []
        if not self._rows:
            return finished
        wait = _WAIT
        while True:
            try:
                place, serial, event = self._arrived.get(timeout=wait) if wait else self._arrived.get_nowait()
            except queue.Empty:
                return finished
            wait = 0.0
            current, row = self._rows.get(place, (-1, None))
            if row is None or current != serial:
                continue  # of a request that was given up
            done = self._take(row, event)
            if done is not None:
                self.drop(place)
                finished.append((place, done))

    def close(self) -> None:
        """Close all streams."""
        for place in list(self._rows):
            self.drop(place)

    def _cancel(self, row: _Row) -> None:
        row.gone = True

        def cancel() -> None:
            if row.task is not None:
                row.task.cancel()

        self._side.pool.call(cancel)

    def _take(self, row: _Row, event: _Token | _Ended | EngineError) -> Completion | EngineError | None:
        if isinstance(event, EngineError):
            return event
        if isinstance(event, _Ended):
            return self._complete(row, event.finish)
        request, (token, measured) = row.request, event[:2]
        statistics = measured[:5] + ((event.top_k,) if request.top_k else ())
        row.ids.append(token)
        row.statistics.append(statistics)
        row.upper.append(measured.upper)
        finish = "eos" if event.last else self._finish(row, token)
        if finish is None and request.watch is not None and not request.watch(token, statistics):
            finish = "abandoned"
        return None if finish is None else self._complete(row, finish)

    def _finish(self, row: _Row, token: int) -> Finish | None:
        request = row.request
        if len(request.prefix_ids) + len(row.ids) >= self._side.context_length:
            return "length"
        tail, row.text = len(row.text), row.text + self._side.pieces([token])[0]
        for stop in request.stop:
            at = row.text.find(stop, max(0, tail - len(stop) + 1))
            while at >= 0:
                if row.text[:at].strip():
                    return "stop"
                at = row.text.find(stop, at + 1)
        return "length" if len(row.ids) >= request.max_new_tokens else None

    def _complete(self, row: _Row, finish: Finish) -> Completion | EngineError:
        if not row.ids:
            return EngineError("The server ended a continuation before its first token. Check the prompt and its log.")
        side = self._side
        columns = np.array(row.statistics, dtype=np.float32).T.copy()
        full = side.k >= side.vocab_size
        trace = TokenTrace(
            *columns[:5],
            kind="full" if full else "top_k",
            k=None if full else side.k,
            entropy_upper=None if full else np.array(row.upper, dtype=np.float32),
        )
        text = side.text(row.ids[:-1] if finish == "eos" and side.ends(row.ids[-1], None) else row.ids)
        return Completion(tuple(row.ids), text, trace, finish, columns[5] if row.request.top_k else None)

    async def _follow(self, place: int, serial: int, request: Request) -> None:
        """Read a continuation to its end, over as many streams as that takes."""
        try:
            async with aclosing(self._tokens(request)) as tokens:
                async for event in tokens:
                    self._arrived.put((place, serial, event))
        except asyncio.CancelledError:
            raise
        except EngineError as error:
            self._arrived.put((place, serial, error))
        except CaspoError as error:
            self._arrived.put((place, serial, EngineError(str(error))))
        except Exception as error:  # a bug of ours must not leave its owner waiting
            self._arrived.put((place, serial, EngineError(f"Reading a stream failed: {type(error).__name__}: {error}")))

    async def _tokens(self, request: Request) -> AsyncIterator[_Token | _Ended]:
        side, clock = self._side, asyncio.get_running_loop().time
        reader = _Reader(side, request)
        if request.rank > 1:
            chosen = await self._ranked(request)
            yield reader.take(chosen, last=side.ends(chosen.taken.token, chosen.taken.text))
        attempt, bad, until = 0, 0, clock() + side.pool.patience
        while True:
            try:
                async with side.pool.place() as endpoint:
                    events = side.pool.events(endpoint, _body(side, request, reader.ids))
                    async with aclosing(events):  # type: ignore[type-var]
                        async for found in reader.read(events):
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

    async def _ranked(self, request: Request) -> Position:
        """The token of the request's rank, as if it had been sampled."""
        side = self._side
        key = TopLists.key(request.prefix_ids)
        position = side.known.get(key)
        if position is None:
            body = _body(side, request, []) | {"max_tokens": 1, "temperature": 0.0, "stream": False}
            body.pop("stream_options", None)

            async def look(endpoint: Any) -> Position:
                reply = await side.pool.request(endpoint, "POST", "/v1/completions", body)
                found = positions(_choice(reply), side.k)
                if not found:
                    raise BadReply("the server sent no log-probabilities")
                return found[0]

            position = await side.pool.retried(look)
            side.known.put(key, position._replace(top=position.top[:_RANKS]))
        if request.rank > len(position.top):
            raise EngineError(
                f"A token of rank {request.rank} was asked for, and the server shows {len(position.top)} at most. "
                "Ask for fewer children, or raise top_logprobs."
            )
        entry = position.top[request.rank - 1]
        return Position(entry._replace(token=await side.resolved(entry)), position.top)


class _Reader:
    """Turns the events of one continuation's streams into its tokens."""

    def __init__(self, side: Side, request: Request) -> None:
        self.side, self.request = side, request
        self.ids: list[int] = []
        self.over = False
        self._key = TopLists.key(request.prefix_ids)

    def take(self, position: Position, *, last: bool) -> _Token:
        """Note a token."""
        side = self.side
        measured = measure(position, side.k, side.vocab_size)
        token = side.number(position.taken)
        side.known.put(self._key, position._replace(top=position.top[:_RANKS]))
        self._key = TopLists.key([token], self._key)
        self.ids.append(token)
        k = self.request.top_k
        top_k = sum(entry.logprob for entry in position.top[:k]) / min(k, len(position.top)) if k else 0.0
        self.over = self.over or last
        return _Token(token, measured, top_k, last)

    async def read(self, events: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[_Token | _Ended]:
        """Read one stream. A token without text is held back until it is known whether it was the end."""
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
            received += len(new)
            _refuse_lost(received, named, final=False)
            finish = choice.get("finish_reason") or finish
            waiting, held = held + new, []
            for position in waiting:
                final = position is waiting[-1]
                ended = side.ends(position.taken.token, position.taken.text)
                if final and not ended and finish == "stop":
                    ended = bool(new) or position.taken.text == ""
                elif final and not ended and finish is None and position.taken.text == "":
                    held = [position]
                    continue
                yield self.take(position, last=ended)
                if ended:
                    return
        if finish is None:
            raise Passing("a stream ended in the middle")
        _refuse_lost(received, named - (finish == "stop"), final=True)
        if finish not in ("stop", "length"):
            raise Passing(f"the server ended a stream for the reason {finish!r}")
        self.over = True
        yield _Ended("eos" if finish == "stop" else "length")

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


def _refuse_lost(received: int, named: int, *, final: bool) -> None:
    if received < named:
        raise EngineError(
            f"The server generated {named} tokens and told of {received}. llama.cpp's server leaves out the tokens of a "
            "character that is made of several (an emoji, say); where one token was lost there is no confidence"
            + (", and its reply is not whole." if final else ".")
        )


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


def _refuse(request: Request, side: Side) -> None:
    features = side.features
    if features.ids and len(request.prefix_ids) >= side.context_length:
        raise EngineError(
            f"A prompt of {len(request.prefix_ids)} tokens leaves no room in the context of {features.model} "
            f"({side.context_length} tokens). Shorten the question, or serve the model with a longer context."
        )
    if request.top_k > side.k:
        raise EngineError(f"The mean of the top {request.top_k} was asked for, and the server shows {side.k}.")
    if request.rank > min(side.k, _RANKS):
        raise EngineError(f"A token of rank {request.rank} was asked for, and the server shows {side.k}.")
    greedy = request.temperature == 0
    raw = features.greedy_raw if greedy else features.sampled_raw
    if not raw and (greedy or request.temperature != 1 or request.top_p != 1):
        raise EngineError(
            f"{features.server} shows the sampler's log-probabilities, not the model's, at temperature "
            f"{request.temperature:g} and top_p {request.top_p:g}: they would be taken for confidence. Use temperature 1 "
            "(or 0) and top_p 1, or start the server so that it shows the model's: vLLM with "
            "--logprobs-mode raw_logprobs, SGLang with SGLANG_RETURN_ORIGINAL_LOGPROB=1 in its environment."
        )
