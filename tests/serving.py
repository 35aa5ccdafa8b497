"""A server for the tests of `caspo.serve`: a scripted engine behind the real scheduler, in process or on a loopback port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from caspo.serve.app import Application, create_app
from caspo.serve.scheduler import Scheduler
from caspo.serve.server import Server, listening
from caspo.serve.settings import ServeSettings
from caspo.testing.scripted import Scripted, ScriptedEngine

MODEL = "scripted"
QUESTION = "How many?"

SCRIPT: dict[str, Sequence[Scripted]] = {
    "How many?\n": [Scripted("2 + 3 = 5\n", 0.7), Scripted("2 + 3 = 6\n", 0.3)],
    "How many?\n2 + 3 = 5\n": [Scripted("So it is 5.\n", entropy=0.1)],
    "How many?\n2 + 3 = 5\nSo it is 5.\n": [Scripted("The answer is 5.", eos=True)],
    "How many?\n2 + 3 = 6\n": [Scripted("The answer is 6.", eos=True)],
}
CONTENT = "2 + 3 = 5\nSo it is 5.\nThe answer is 5."


def script(text: str) -> Sequence[Scripted]:
    """The script above; any other text is continued by an answer."""
    return SCRIPT.get(text) or [Scripted("The answer is 1.", 0.6, eos=True), Scripted("The answer is 2.", 0.4, eos=True)]


@dataclass
class Slow:
    """A script whose continuations wait until they are let go."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, text: str) -> Sequence[Scripted]:
        if "slow" in text:
            self.begun.set()
            self.go.wait(10)
        return script(text)


def settings(**more: Any) -> ServeSettings:
    """Of a server of `MODEL` without a system message, whose paths are all alike: what is asked without a seed, too."""
    alike = {"temperature": 0.01}
    return ServeSettings(**{"model": MODEL, "instruction": "", "port": 0, "grace": 5.0, "settings": alike, **more})


@contextmanager
def application(
    played: Any = script, *, active: int = 128, waiting: int = 512, **more: Any
) -> Iterator[tuple[Application, Scheduler]]:
    """The application with a scheduler that runs."""
    engine = ScriptedEngine(played, MODEL)
    scheduler = Scheduler(engine, active=active, waiting=waiting)
    app = create_app(scheduler, engine, settings(**more))
    scheduler.start()
    try:
        yield app, scheduler
    finally:
        scheduler.stop(0.0)


@contextmanager
def server(played: Any = script, **more: Any) -> Iterator[tuple[str, Scheduler]]:
    """The address of a real server, and its scheduler."""
    with application(played, **more) as (app, scheduler):
        bound = listening(settings())
        running = Server(app, scheduler, settings())
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([bound])), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}", scheduler
        finally:
            running.should_exit = True
            thread.join(10)
            bound.close()


class Client:
    """Calls an application in process."""

    def __init__(self, app: Application, headers: Mapping[str, str] | None = None) -> None:
        self._app, self._headers = app, dict(headers or {})

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request."""

        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **{"headers": self._headers, **more})

        return asyncio.run(call())

    def get(self, path: str, **more: Any) -> httpx.Response:
        """A GET."""
        return self.request("GET", path, **more)

    def chat(self, **fields: Any) -> httpx.Response:
        """A chat completion that asks `QUESTION`, with these fields."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], **fields}
        return self.request("POST", "/v1/chat/completions", json=body)

    def complete(self, **fields: Any) -> httpx.Response:
        """A completion of `QUESTION` and a line break, with these fields."""
        return self.request("POST", "/v1/completions", json={"model": MODEL, "prompt": f"{QUESTION}\n", **fields})
