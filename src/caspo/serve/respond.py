"""From a plan to the HTTP response: submit its searches, listen to all of them, give them up when the client leaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from caspo.engines.base import ServingEngine
from caspo.serve.compose import Choice, Outcome, usage
from caspo.serve.errors import ApiError
from caspo.serve.forms import Form
from caspo.serve.job import Closing, Done, Event, Failed, Job, Overloaded, Settled, Ticket
from caspo.serve.metrics import Metrics
from caspo.serve.plan import Plan
from caspo.serve.response_schema import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk, Error, Usage
from caspo.serve.scheduler import Scheduler

__all__ = ["Responder"]

_PING_SECONDS = 15.0
"""A comment is sent into a stream that was silent for so long: proxies cut silent connections."""


class Responder:
    """Answers what was planned."""

    def __init__(self, scheduler: Scheduler, engine: ServingEngine, metrics: Metrics) -> None:
        self._scheduler, self.engine, self.metrics = scheduler, engine, metrics

    async def respond(self, plan: Plan, form: Form, request: Request) -> Response:
        """The answer, or the stream of it.

        Raises:
            ApiError: a prompt makes no sense, too many wait, or a search failed.
        """
        start = time.perf_counter()
        jobs = await asyncio.to_thread(plan.jobs, self.engine, request.scope.get("caspo.client", ""))
        exchange = _Exchange(self, plan, form, self._submitted(jobs), start)
        return _Stream(exchange) if plan.stream else await exchange.whole(request)

    def _submitted(self, jobs: Sequence[Job]) -> list[Ticket]:
        """All of them, or none."""
        tickets: list[Ticket] = []
        try:
            for job in jobs:
                tickets.append(self._scheduler.submit(job))
        except (Overloaded, Closing) as error:
            for ticket in tickets:
                ticket.cancel()
            if isinstance(error, Closing):
                raise ApiError(503, str(error), code="shutting_down", retry_after=5) from error
            raise ApiError(429, str(error), code="overloaded", retry_after=error.retry_after) from error
        return tickets

    def failure(self, failed: Failed) -> ApiError:
        """The error of a search that failed."""
        self.metrics.failed.labels(failed.reason).inc()
        if failed.reason == "deadline":
            return ApiError(504, failed.message, param="caspo.seconds", code="deadline_exceeded", repeat=False)
        if failed.reason == "shutdown":
            return ApiError(503, failed.message, code="shutting_down", retry_after=5)
        if not self._scheduler.load().healthy:
            return ApiError(503, failed.message, code="engine_down", retry_after=5)
        return ApiError(500, failed.message, code="engine_failed", repeat=False)


class _Exchange:
    """One request's searches, and what its client is told of them."""

    def __init__(self, responder: Responder, plan: Plan, form: Form, tickets: list[Ticket], start: float) -> None:
        self._responder, self._plan, self._form, self._tickets, self._start = responder, plan, form, tickets, start
        self._metrics = responder.metrics
        self._choices = [Choice(plan, responder.engine, ticket.job.parting) for ticket in tickets]
        self._outcomes: dict[int, Outcome] = {}
        self._settled = False
        self._over = False
        """Whether the client has been told all there is."""

    def close(self) -> None:
        """Give up whatever is still under way."""
        for ticket in self._tickets:
            ticket.cancel()
        if not self._over:
            self._metrics.hung_up.inc()

    async def whole(self, request: Request) -> Response:
        """The answer in one piece; given up at once when the client leaves."""
        work = asyncio.ensure_future(self._collected())
        leaving = asyncio.ensure_future(_left(request.receive))
        try:
            await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
            self._over = work.done()
            return JSONResponse(work.result()) if self._over else Response(status_code=499)
        finally:
            self.close()
            work.cancel()
            leaving.cancel()

    async def _collected(self) -> ChatCompletion | Completion:
        async for index, arrived in self._events():
            if isinstance(arrived, Failed):
                raise self._responder.failure(arrived)
            if isinstance(arrived, Done):
                await self._done(index, arrived)
        return self._form.whole(*self._told())

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of a stream. An error in its middle is its last event, as OpenAI has it."""
        for index in range(len(self._choices)):
            yield _event(self._form.first(index))
        async for index, arrived in self._events(ping=True):
            if arrived is None:
                yield b": waiting\n\n"
                continue
            if isinstance(arrived, Failed):
                yield _event(self._responder.failure(arrived).body())
                self._over = True
                return
            for chunk in self._choices[index].chunks(arrived):
                yield _event(self._form.chunk(index, chunk))
            if isinstance(arrived, Done):
                yield _event(self._form.last(index, await self._done(index, arrived)))
        if self._plan.usage:
            yield _event(self._form.usage(self._told()[1]))
        yield b"data: [DONE]\n\n"
        self._over = True

    async def _events(self, *, ping: bool = False) -> AsyncIterator[tuple[int, Event | None]]:
        """The events of all searches as they come, until all are over; None now and then with ``ping``."""
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue(1)  # what is not asked for yet waits in its ticket

        async def pump(index: int, ticket: Ticket) -> None:
            async for arrived in ticket:
                await queue.put((index, arrived))

        pumps = [asyncio.ensure_future(pump(index, ticket)) for index, ticket in enumerate(self._tickets)]
        left = len(pumps)
        try:
            while left:
                try:
                    index, arrived = await asyncio.wait_for(queue.get(), _PING_SECONDS if ping else None)
                except TimeoutError:
                    yield 0, None
                    continue
                left -= isinstance(arrived, (Done, Failed))
                if not self._settled and isinstance(arrived, (Settled, Done)):
                    self._settled = True
                    self._metrics.first_step_seconds.observe(time.perf_counter() - self._start)
                yield index, arrived
        finally:
            for task in pumps:
                task.cancel()

    async def _done(self, index: int, done: Done) -> Outcome:
        outcome = await asyncio.to_thread(self._choices[index].outcome, done)  # may ask a tokenizer
        self._outcomes[index] = outcome
        if done.solution.abstained:
            self._metrics.abstained.inc()
        return outcome

    def _told(self) -> tuple[list[Outcome], Usage]:
        """What the searches came to, in the order of the choices, and what they cost."""
        outcomes = [self._outcomes[index] for index in range(len(self._tickets))]
        prompts = self._tickets[:: self._plan.n]
        return outcomes, usage(outcomes, sum(len(ticket.job.prompt_ids) for ticket in prompts))


class _Stream(StreamingResponse):
    """A stream that gives its searches up however it ends, begun or not."""

    def __init__(self, exchange: _Exchange) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(exchange.stream(), media_type="text/event-stream", headers=headers)
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def _left(receive: Receive) -> None:
    """Comes back when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(data: ChatCompletionChunk | CompletionChunk | Error) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"
