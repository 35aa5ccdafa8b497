"""The OpenAPI document: FastAPI's own, with the bodies that we read and write ourselves, the errors and the key."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from caspo.serve import response_schema
from caspo.serve.errors import MEANINGS
from caspo.serve.request_schema import ChatRequest, CompletionRequest

__all__ = ["answer", "body", "document", "failures", "streamed"]

_REFERENCE = "#/components/schemas/{model}"

Responses: TypeAlias = dict[int | str, dict[str, Any]]
"""What FastAPI's routes take as ``responses``: by status."""


def _schema(model: type) -> dict[str, Any]:
    return {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}


def body(model: type) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": _schema(model)}}}


def answer(model: type, status: int = 200, text: str = "The answer.") -> Responses:
    """An answer in JSON."""
    return {status: {"description": text, "content": {"application/json": _schema(model)}}}


def streamed(whole: type, chunk: type) -> Responses:
    """The answer in one piece, or as events."""
    text = "The answer; with `stream`, server-sent events whose data are chunks, then `[DONE]`."
    found = answer(whole, text=text)
    found[200]["content"]["text/event-stream"] = {"schema": {"type": "string"}, "x-event": _schema(chunk)["schema"]}
    return found


def failures(*statuses: int) -> Responses:
    """The errors of a route."""
    found: Responses = {}
    for status in sorted({401, 403, 503, *statuses}):
        found |= answer(response_schema.Error, status, MEANINGS[status])
    return found


def document(app: FastAPI, *, keys: bool, open_paths: frozenset[str]) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(
        title=app.title, version=app.version, description=app.description, openapi_version="3.1.0", routes=app.routes
    )
    modes: list[tuple[str, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (model.__name__, "validation", TypeAdapter(model)) for model in (ChatRequest, CompletionRequest)
    ]
    for name in response_schema.__all__:
        modes.append((name, "serialization", TypeAdapter(getattr(response_schema, name))))
    _, schemas = TypeAdapter.json_schemas(modes, ref_template=_REFERENCE)
    found["components"] = {"schemas": schemas["$defs"]}
    for path, operations in found["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # bad requests are 400 here
            if keys and path not in open_paths:
                operation["security"] = [{"bearer": []}]
    if keys:
        found["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return found
