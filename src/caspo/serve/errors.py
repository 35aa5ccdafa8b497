"""Errors as OpenAI writes them: ``{"error": {"message", "type", "param", "code"}}`` with an HTTP status.

Clients of OpenAI send a request again after any 5xx of itself. Where the same work would be done, and fail, once more, the
header ``x-should-retry: false``, which they heed, tells them not to.
"""

from __future__ import annotations

from caspo.core.errors import CaspoError
from caspo.serve.response_schema import Error

__all__ = ["MEANINGS", "ApiError", "invalid", "no_such_model"]

MEANINGS = {
    400: "The request makes no sense here; `param` names the field.",
    401: "No API key, or a wrong one.",
    403: "Another origin's page, or a host name that is not this machine's.",
    404: "No such model or path.",
    405: "The path takes another method.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    429: "Too many requests wait; Retry-After says when to come again.",
    500: "The engine failed.",
    503: "Shutting down, or the engine is down.",
    504: "The deadline passed.",
}
"""When a client is told which status."""

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

    def body(self) -> Error:
        """The JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None, code: str | None = None) -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, param=param, code=code)


def no_such_model(asked: str, ours: str) -> ApiError:
    """A 404 that says how the one model here is called."""
    message = f"There is no model {asked[:100]!r} here; it is called {ours!r}."
    return ApiError(404, message, param="model", code="model_not_found")
