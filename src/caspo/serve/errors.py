"""Errors as OpenAI writes them: ``{"error": {"message", "type", "param", "code"}}`` with an HTTP status.

    status  type                   when
    400     invalid_request_error  what was asked makes no sense here; ``param`` names the field
    401     authentication_error   no key, or a wrong one
    403     permission_error       a page of another origin, or a host name that is not ours
    404     invalid_request_error  no such path, no such model
    405     invalid_request_error  the path takes another method
    413     invalid_request_error  the body is too large
    415     invalid_request_error  the body is not said to be JSON
    429     rate_limit_error       too many requests wait already; Retry-After says when to come again
    500     server_error           the engine failed
    503     server_error           shutting down, or the upstream is down
    504     server_error           the request's deadline passed

Clients of OpenAI send a request again after any 5xx of itself. Where the same work would be done, and fail, once more, the
header ``x-should-retry: false``, which they heed, tells them not to.
"""

from __future__ import annotations

from typing import Any

from caspo.errors import CaspoError

__all__ = ["ApiError", "invalid"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(CaspoError):
    """What a client is told in place of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        repeat: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, round(retry_after)))
        if not repeat:
            self.headers["x-should-retry"] = "false"

    def body(self) -> dict[str, Any]:
        """The JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)
