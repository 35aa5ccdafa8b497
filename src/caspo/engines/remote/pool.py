"""Servers of one model, side by side: who is up, who has the least to do, and what a request may run into there.

A server that fails is left out and asked again, at growing intervals, whether it is back. All of this runs in one event
loop in a thread of its own; `Pool.wait_for` is the way in from other threads.

Not here: what is asked and what the replies mean.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx2

from caspo.core.errors import ConfigError, EngineError
from caspo.engines.remote.settings import RemoteSettings
from caspo.engines.retries import ApiKey, Passing, backoff, passing, retry_after

__all__ = ["Endpoint", "Pool"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT = 10.0
"""Seconds to reach a server."""
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 15.0
"""Seconds before a failed server is asked whether it is back, and a failed request is tried again."""


class Endpoint:
    """One server."""

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.up = True
        self.known = False
        """Whether it was asked what it can do."""
        self.load = 0
        """Requests on their way."""


class Pool:
    """Endpoints (with or without ``/v1`` in their URLs) and the connections to them."""

    def __init__(self, settings: RemoteSettings) -> None:
        self.endpoints = [Endpoint(url) for url in settings.urls]
        self.settings, self.key, self.patience = settings, ApiKey(settings.key_variable), settings.patience
        self.admit: Callable[[Endpoint], Coroutine[Any, Any, None]] | None = None
        """Asks an endpoint what it can do; raises if it cannot take part."""
        self._recovering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="caspo-remote", daemon=True)
        self._thread.start()
        self._freed = asyncio.Condition()
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(settings.timeout, connect=_CONNECT, read=None, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the loop, from another thread, to its end."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin ``work`` in the loop, from another thread; cancel what comes back to give it up."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def call(self, function: Callable[[], Any]) -> None:
        """Have the loop call ``function`` soon, from another thread; nothing happens once it is closed."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Give up whatever is on its way, and the connections."""
        if self._loop.is_running():
            self.wait_for(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            self._loop.close()

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Endpoint]:
        """A place at the endpoint with the least to do, waited for.

        Raises:
            EngineError: none is up, and none comes back in time.
        """
        async with self._freed:
            while not (open_ := [e for e in self.endpoints if e.up and e.load < self.settings.concurrency]):
                try:
                    await asyncio.wait_for(self._freed.wait(), self.patience)
                except TimeoutError as error:
                    if any(e.up for e in self.endpoints):
                        continue  # all are busy, which is no failure
                    raise EngineError(
                        f"None of the servers ({self.names}) answers, for {self.patience:.0f} s. Start one of them."
                    ) from error
            endpoint = min(open_, key=lambda e: e.load)
            endpoint.load += 1
        try:
            if not endpoint.known and self.admit is not None:
                try:
                    await self.admit(endpoint)
                except (EngineError, ConfigError) as error:
                    raise Passing(str(error), down=True) from error
                endpoint.known = True
            yield endpoint
        except Passing as error:
            if error.down:
                self._leave_out(endpoint, str(error))
            raise
        finally:
            endpoint.load -= 1
            async with self._freed:
                self._freed.notify_all()

    @property
    def names(self) -> str:
        """The endpoints, for messages."""
        return ", ".join(e.root for e in self.endpoints)

    def _leave_out(self, endpoint: Endpoint, why: str) -> None:
        if endpoint.up:
            log.warning("%s is left out until it answers again: %s", endpoint.root, why)
            endpoint.up = False
            task = asyncio.get_running_loop().create_task(self._recover(endpoint))
            self._recovering.add(task)
            task.add_done_callback(self._recovering.discard)

    async def _recover(self, endpoint: Endpoint) -> None:
        attempt = 0
        while not endpoint.up:
            await asyncio.sleep(backoff(attempt, _FIRST_WAIT, _LONGEST_WAIT))
            attempt += 1
            try:
                await self.request(endpoint, "GET", "/v1/models")
                if self.admit is not None:  # what came back may be another server
                    await self.admit(endpoint)
            except (EngineError, ConfigError) as error:
                log.info("%s is still out: %s", endpoint.root, error)
                continue
            endpoint.up = endpoint.known = True
            log.warning("%s is back", endpoint.root)
        async with self._freed:
            self._freed.notify_all()

    async def request(self, endpoint: Endpoint, method: str, path: str, body: Any = None) -> Any:
        """One request to one endpoint; the JSON of its answer.

        Raises:
            Passing: it may work later.
            EngineError: it never will.
        """
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await self._client.request(method, endpoint.root + path, json=body, headers=self.key.headers())
            self._check(response, endpoint)
            return response.json()
        except (httpx2.RequestError, TimeoutError) as error:
            raise Passing(f"{endpoint.root}: {type(error).__name__}", down=True) from error
        except ValueError as error:
            raise Passing(f"{endpoint.root}{path} did not answer with JSON") from error

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request to any endpoint, tried until it works; as `request`."""
        return await self.retried(lambda endpoint: self.request(endpoint, method, path, body))

    async def retried(self, work: Callable[[Endpoint], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` at one endpoint after the other until it does not fail in passing, as long as patience lasts."""
        loop = asyncio.get_running_loop()
        until, attempt = loop.time() + self.patience, 0
        while True:
            try:
                async with self.place() as endpoint:
                    return await work(endpoint)
            except Passing as error:
                await self.pause(error, attempt, until)
                attempt += 1

    async def pause(self, error: Passing, attempt: int, until: float) -> None:
        """Wait before the next try; raise where that would last beyond ``until`` (of the loop's clock)."""
        wait = max(error.wait, backoff(attempt, _FIRST_WAIT, _LONGEST_WAIT))
        if asyncio.get_running_loop().time() + wait > until:
            raise EngineError(
                f"{error} (given up after {self.patience:.0f} s without progress, {attempt + 1} tries)"
            ) from error
        log.info("%s; waiting %.1f s", error, wait)
        await asyncio.sleep(wait)

    async def events(self, endpoint: Endpoint, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed completion. Close it to have the server stop.

        Raises:
            Passing: the connection or the server failed, or sent nothing for too long.
            EngineError: it refuses the request.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + self.settings.timeout
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout_at(until):
                    response = await stack.enter_async_context(
                        self._client.stream("POST", f"{endpoint.root}/v1/completions", json=body, headers=self.key.headers())
                    )
                    if not response.is_success:
                        await response.aread()
                self._check(response, endpoint)
                lines = response.aiter_lines()
                while True:
                    async with asyncio.timeout_at(until):
                        line = await anext(lines, None)
                    if line is None or line[5:].strip() == "[DONE]":
                        return
                    if line.startswith("data:"):  # anything else may be a ping, and is no sign of life
                        yield self._event(line[5:].strip(), endpoint)
                        until = clock() + self.settings.token_timeout
        except httpx2.RequestError as error:
            raise Passing(f"{endpoint.root}: {type(error).__name__} in a stream", down=True) from error
        except TimeoutError as error:
            raise Passing(f"{endpoint.root} sent nothing for too long") from error

    def _check(self, response: httpx2.Response, endpoint: Endpoint) -> None:
        if response.is_success:
            return
        status = response.status_code
        problem = f"{endpoint.root} answered {status}: {self.key.shown(response.text)}"
        if passing(status):
            wait = retry_after(response.headers) or 0.0
            raise Passing(problem, down=status >= 500, wait=wait, answered=True)
        if status in (401, 403):
            problem += f". Put the API key into the environment variable {self.key.variable}"
        elif status == 404:
            problem += ". Check the URL and the model's name"
        raise EngineError(problem + ".")

    def _event(self, data: str, endpoint: Endpoint) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise Passing(f"{endpoint.root} sent half an event") from error
        if not isinstance(event, dict):
            raise Passing(f"{endpoint.root} sent an event that is no object")
        problem = event.get("error")
        if problem:
            code = problem.get("code") if isinstance(problem, dict) else None
            message = str(problem.get("message")) if isinstance(problem, dict) else str(problem)
            text = f"{endpoint.root} broke a stream off: {self.key.shown(message)}"
            if isinstance(code, int) and not passing(code):
                raise EngineError(text + ".")
            raise Passing(text)
        return event
