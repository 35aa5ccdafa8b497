"""From searches to an HTTP answer: submit them, listen to all of them at once, and give them up when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from caspo.engines.base import ServingEngine
from caspo.serve.answers import Answer, Choice, Form, event, usage
from caspo.serve.errors import ApiError
from caspo.serve.job import Closing, Done, Event, Failed, Job, Overloaded, Ticket
from caspo.serve.metrics import Metrics
from caspo.serve.scheduler import Scheduler
from caspo.serve.wire import Asked

__all__ = ["Runner"]

_PING_SECONDS = 15.0
"""A comment is sent into a stream that was silent for so long: proxies cut silent connections."""


class Runner:
    """Answers what was asked."""

    def __init__(self, scheduler: Scheduler, engine: ServingEngine, metrics: Metrics) -> None:
        self._scheduler, self._engine, self._metrics = scheduler, engine, metrics

    async def answer(self, asked: Asked, form: Form, request: Request) -> Response:
        """The answer, or the stream of it.

        Raises:
            ApiError: a prompt makes no sense, too many wait, or a search failed.
        """
        start = time.perf_counter()
        jobs = await asyncio.to_thread(asked.jobs, self._engine, request.scope.get("caspo.client", ""))
        prompt_tokens = sum(len(job.prompt_ids) for job in jobs[:: asked.n])
        answering = _Answering(self, asked, form, self._submitted(jobs), prompt_tokens, start)
        if asked.stream:
            return _Stream(answering)
        return await answering.whole(request)

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
        self._metrics.failed.labels(failed.reason).inc()
        if failed.reason == "deadline":
            return ApiError(504, failed.message, param="caspo.seconds", code="deadline_exceeded", repeat=False)
        if failed.reason == "shutdown":
            return ApiError(503, failed.message, code="shutting_down", retry_after=5)
        if not self._scheduler.load().healthy:
            return ApiError(503, failed.message, code="engine_down", retry_after=5)
        return ApiError(500, failed.message, code="engine_failed", repeat=False)


class _Answering:
    """One request's searches."""

    def __init__(
        self, runner: Runner, asked: Asked, form: Form, tickets: list[Ticket], prompt_tokens: int, start: float
    ) -> None:
        self._runner, self._asked, self._form, self._tickets = runner, asked, form, tickets
        self._prompt_tokens, self._start = prompt_tokens, start
        self._answers: dict[int, Answer] = {}
        self._settled = False
        self.metrics = runner._metrics
        self.over = False
        """Whether the client has been told all there is."""

    def cancel(self) -> None:
        """Give up whatever is still under way."""
        for ticket in self._tickets:
            ticket.cancel()

    async def whole(self, request: Request) -> Response:
        """The answer in one piece; given up at once when the client leaves."""
        work = asyncio.ensure_future(self._collected())
        leaving = asyncio.ensure_future(_left(request.receive))
        try:
            await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.metrics.hung_up.inc()
                return Response(status_code=499)
            return JSONResponse(work.result())
        finally:
            self.cancel()
            work.cancel()
            leaving.cancel()

    async def _collected(self) -> dict[str, Any]:
        choices = [Choice(self._asked, self._runner._engine) for _ in self._tickets]
        async for index, arrived in self._events():
            if isinstance(arrived, Failed):
                raise self._runner.failure(arrived)
            if isinstance(arrived, Done):
                await self._done(index, choices[index], arrived)
        return self._form.whole(self._in_order(), self._usage())

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of a stream. An error in its middle is its last event, as OpenAI has it."""
        choices = [Choice(self._asked, self._runner._engine) for _ in self._tickets]
        for index in range(len(choices)):
            yield self._form.first(index)
        async for index, arrived in self._events(ping=True):
            if arrived is None:
                yield b": waiting\n\n"
            elif isinstance(arrived, Failed):
                yield event(self._runner.failure(arrived).body())
                self.over = True
                return
            elif isinstance(arrived, Done):
                answer = await self._done(index, choices[index], arrived)
                for chunk in choices[index].last_chunks(arrived):
                    yield self._form.chunk(index, chunk)
                yield self._form.last(index, answer)
            else:
                for chunk in choices[index].chunks(arrived):
                    yield self._form.chunk(index, chunk)
        if self._asked.usage:
            yield self._form.usage(self._usage())
        yield b"data: [DONE]\n\n"
        self.over = True

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
                if not self._settled and not isinstance(arrived, Failed):
                    self._settled = True
                    self.metrics.first_step_seconds.observe(time.perf_counter() - self._start)
                yield index, arrived
        finally:
            for task in pumps:
                task.cancel()

    async def _done(self, index: int, choice: Choice, done: Done) -> Answer:
        answer = await asyncio.to_thread(choice.answer, done)  # may ask a tokenizer
        self._answers[index] = answer
        if done.solution.abstained:
            self.metrics.abstained.inc()
        return answer

    def _in_order(self) -> list[Answer]:
        return [self._answers[index] for index in range(len(self._tickets))]

    def _usage(self) -> dict[str, Any]:
        return usage(self._in_order(), self._prompt_tokens)


class _Stream(StreamingResponse):
    """A stream that gives its searches up however it ends, begun or not."""

    def __init__(self, answering: _Answering) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answering.stream(), media_type="text/event-stream", headers=headers)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answering.cancel()
            if not self._answering.over:
                self._answering.metrics.hung_up.inc()


async def _left(receive: Receive) -> None:
    """Comes back when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
