"""What stands before the application: who may call it, how large a body may be, what every answer carries.

Plain ASGI, so that it holds while a body still arrives and while a stream is sent. It logs one line a
request: the method, the route, the status and the time; no query, no header, no body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
import traceback
from collections.abc import Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caspo.serve.errors import ApiError
from caspo.serve.metrics import Metrics
from caspo.serve.settings import ServeSettings, is_loopback

__all__ = ["Guard"]

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""Headers of every answer that does not set them itself."""

_BODY_SECONDS = 30.0
"""A body that takes longer to arrive is refused."""

_DRAINED = 32 << 20
"""Bytes of a too large body that are read and dropped before the answer, so that the client is there to read it."""

_log = logging.getLogger("caspo.serve")


class Guard:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, open_paths: Collection[str]) -> None:
        self._app, self._settings, self._metrics, self._open = app, settings, metrics, frozenset(open_paths)
        self._digests = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.keys]
        self.closing = False
        """Set at shutdown: what comes now is refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = _Sending(send, self._settings.send_seconds)
        start = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            try:
                self._admit(scope)
                await self._app(scope, self._bounded(scope, receive), answer.send)
            except ApiError as error:
                await answer.refuse(error, scope, receive)
            except asyncio.CancelledError:
                raise
            except TimeoutError:
                answer.status = answer.status or 499  # the client reads nothing; there is nobody to tell
            except Exception as error:
                # The places in our code, without the message: it may hold a prompt.
                places = "".join(traceback.format_tb(error.__traceback__))
                _log.error("%s in a request:\n%s", type(error).__name__, places)
                failed = ApiError(500, "The server failed on this request; its log says where.")
                await answer.refuse(failed, scope, receive)
            finally:
                seconds = time.perf_counter() - start
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.told(route, answer.status or 499, seconds)
                _log.info("%s %s %d %.3f s", scope["method"][:10], route, answer.status or 499, seconds)

    def _admit(self, scope: Scope) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        scope["caspo.client"] = (scope.get("client") or ("",))[0]
        path = scope["path"]
        if not self._digests:
            self._same_machine(headers)
        elif path not in self._open and scope["method"] != "OPTIONS":
            scope["caspo.client"] = self._known(headers.get(b"authorization", b""))
        if self.closing and path != "/healthz":
            raise ApiError(503, "The server is shutting down. Send the request again later.", retry_after=5)
        length = headers.get(b"content-length", b"0")
        if scope["method"] == "POST" and path.startswith("/v1/"):
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            # Without this a form of any web page could post here: browsers ask first only where the type is not a form's.
            if kind != b"application/json":
                raise ApiError(415, "The body must be JSON. Send the header Content-Type: application/json.")
        if not length.isdigit():
            raise ApiError(400, "The header Content-Length is not a number.")

    def _same_machine(self, headers: dict[bytes, bytes]) -> None:
        """Without keys only this machine's own programs and pages are let in, whatever name a page gave our address."""
        host = headers.get(b"host", b"").decode("latin-1")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not is_loopback(name):
            raise ApiError(
                403,
                "The host name of this request is not this machine's. Call the server by localhost or 127.0.0.1, or start "
                "it with API keys.",
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        ours = (f"http://{host}", f"https://{host}", *self._settings.cors)
        if origin and origin not in ours and "*" not in self._settings.cors:
            raise ApiError(403, "Pages of other origins may not call this server. Allow theirs: caspo serve --cors ORIGIN.")

    def _known(self, authorization: bytes) -> str:
        """Whose key it is, by a name that does not tell the key."""
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them, whichever matches
        if scheme.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "This API key is not known." if key else "An API key is needed: send Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
        return digest.hex()[:16]

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """``receive`` that refuses a body that is too large, said or not, or too slow."""
        most, taken, ended = self._settings.max_body, 0, False
        deadline = time.monotonic() + _BODY_SECONDS

        async def bounded() -> Message:
            nonlocal taken, ended
            while not ended:
                message = await _until(receive, deadline)
                taken += len(message.get("body", b""))
                ended = not message.get("more_body", False)  # also where the client has left
                if taken <= most:
                    return message
                if ended or taken >= _DRAINED:
                    raise ApiError(413, f"The body is larger than the {most} bytes that are allowed here. Shorten it.")
            return await receive()

        return bounded


async def _until(receive: Receive, deadline: float) -> Message:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await receive()
    except TimeoutError:
        raise ApiError(408, "The body did not arrive in time.", repeat=False) from None


class _Sending:
    """Sends, adds the headers, and gives up a client that does not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send, self._seconds = send, seconds
        self.status: int | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """One message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            known = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _HEADERS.items() if name not in known]
            headers.append((b"x-request-id", f"req_{secrets.token_hex(12)}".encode()))
            message = {**message, "headers": headers}
        async with asyncio.timeout(self._seconds):
            await self._send(message)

    async def refuse(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status is None:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, self.send)
