"""The HTTP application: OpenAI's endpoints over a scheduler. It starts no thread, opens no socket and reads no file."""

from __future__ import annotations

import time
from functools import cache, partial

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from caspo import __version__
from caspo.engines.base import ServingEngine
from caspo.serve import openapi, static
from caspo.serve import response_schema as schema
from caspo.serve.errors import ApiError, no_such_model
from caspo.serve.forms import ChatForm, CompletionForm
from caspo.serve.guard import Guard
from caspo.serve.metrics import Metrics
from caspo.serve.plan import plan_chat, plan_completion
from caspo.serve.request_schema import ChatRequest, CompletionRequest, parse
from caspo.serve.respond import Responder
from caspo.serve.scheduler import Scheduler
from caspo.serve.settings import ServeSettings

__all__ = ["Application", "create_app"]

_DESCRIPTION = "Confidence-guided tree search behind the OpenAI API: answers with the confidence of each step."


class Application(FastAPI):
    """FastAPI with the guard around all of it."""

    guard: Guard
    outermost: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        await self.outermost(scope, receive, send)

    async def inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the guard let through."""
        await super().__call__(scope, receive, send)

    def close(self) -> None:
        """From now on requests are refused; those under way go on."""
        self.guard.closing = True


def create_app(scheduler: Scheduler, engine: ServingEngine, settings: ServeSettings) -> Application:
    """The application. The scheduler is the caller's to start and to stop."""
    settings.default_method()  # a mistake in the settings is told now, not at the first request
    app = Application(
        title="caspo", version=__version__, description=_DESCRIPTION, openapi_url=None, docs_url=None, redoc_url=None
    )
    metrics = Metrics(scheduler.load)
    responder = Responder(scheduler, engine, metrics)
    app.include_router(static.router)
    open_paths = static.PATHS | {"/healthz"}  # the page is the same for everyone
    app.guard = app.outermost = Guard(app.inner, settings, metrics, open_paths)
    if settings.cors:
        app.outermost = CORSMiddleware(  # outside the guard: its refusals must be readable too
            app.guard,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id"],
        )

    asking = openapi.failures(400, 404, 405, 408, 413, 415, 429, 500, 504)

    @app.post(
        "/v1/chat/completions",
        responses=openapi.streamed(schema.ChatCompletion, schema.ChatCompletionChunk) | asking,
        openapi_extra=openapi.body(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        plan = plan_chat(parse(ChatRequest, await request.body()), settings)
        return await responder.respond(plan, ChatForm(settings.model), request)

    @app.post(
        "/v1/completions",
        responses=openapi.streamed(schema.Completion, schema.CompletionChunk) | asking,
        openapi_extra=openapi.body(CompletionRequest),
    )
    async def completions(request: Request) -> Response:
        """Continue a text."""
        plan = plan_completion(parse(CompletionRequest, await request.body()), settings)
        return await responder.respond(plan, CompletionForm(settings.model), request)

    own: schema.Model = {"id": settings.model, "object": "model", "created": int(time.time()), "owned_by": "caspo"}
    every: schema.Models = {"object": "list", "data": [own]}

    @app.get("/v1/models", responses=openapi.answer(schema.Models) | openapi.failures())
    async def models() -> Response:
        """The one model."""
        return JSONResponse(every)

    @app.get("/v1/models/{model:path}", responses=openapi.answer(schema.Model) | openapi.failures(404))
    async def model(model: str) -> Response:
        """A model by its name."""
        if model != settings.model:
            raise no_such_model(model, settings.model)
        return JSONResponse(own)

    health = openapi.answer(schema.Health) | openapi.answer(schema.Health, 503, "Requests are not answered now.")

    @app.get("/healthz", responses=openapi.failures() | health)
    async def healthz() -> Response:
        """Whether requests are answered now."""
        healthy = scheduler.load().healthy and not app.guard.closing
        told: schema.Health = {"status": "closing" if app.guard.closing else "ok" if healthy else "unhealthy"}
        return JSONResponse(told, 200 if healthy else 503)

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **openapi.failures()})
    async def measured() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    document = cache(partial(openapi.document, app, keys=bool(settings.keys), open_paths=open_paths))

    @app.get("/openapi.json", include_in_schema=False)
    def described() -> Response:  # in a thread, since not async: to read all the schemas takes half a second
        """This document."""
        return JSONResponse(document())

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        known = {404: "There is no such path here. See /openapi.json.", 405: "This path takes another method."}
        told = ApiError(error.status_code, known.get(error.status_code, str(error.detail)))
        return JSONResponse(told.body(), error.status_code, {**told.headers, **(error.headers or {})})

    return app
