"""The OpenAPI document: FastAPI's own, with the bodies that we read ourselves, the errors and the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from caspo.serve.requests import ChatRequest, CompletionRequest
from caspo.serve.responses import ChatCompletionChunk, CompletionChunk, Error

__all__ = ["body", "document", "failures", "streamed"]

_REFERENCE = "#/components/schemas/{model}"
_MEANINGS = {
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


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": _content(model)}}}


def streamed(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The answer in one piece, or as events."""
    content = {"text/event-stream": {"schema": {"type": "string"}, "x-event": _content(chunk)["schema"]}}
    text = "The answer; with `stream`, server-sent events whose data are chunks, then `[DONE]`."
    return {200: {"model": whole, "description": text, "content": content}}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route."""
    found = sorted({401, 403, 503, *statuses})
    return {status: {"model": Error, "description": _MEANINGS[status]} for status in found}


def document(app: FastAPI, *, keys: bool, open_paths: frozenset[str]) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, openapi_version="3.1.0", routes=app.routes
    )
    models: list[tuple[type[BaseModel], Any]] = [
        (model, "validation") for model in (ChatRequest, CompletionRequest, ChatCompletionChunk, CompletionChunk)
    ]
    _, more = models_json_schema(models, ref_template=_REFERENCE)
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(more["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # bad requests are 400 here
            if keys and path not in open_paths:
                operation["security"] = [{"bearer": []}]
    if keys:
        found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return found
