"""What a request's body comes to: a method within the server's limits, and the prompts it is asked with.

Pure translation: no HTTP, nothing awaited, nothing kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError

from caspo.core.errors import DataError, EngineError
from caspo.engines.base import ServingEngine
from caspo.records import ROOT, Question
from caspo.search import METHODS, Method
from caspo.search.base import numbers
from caspo.serve.errors import ApiError, invalid, no_such_model
from caspo.serve.job import Job
from caspo.serve.request_schema import ChatMessage, ChatRequest, CompletionRequest
from caspo.serve.settings import ServeSettings
from caspo.steps import Parting
from caspo.trees import TreeBuilder

__all__ = ["Plan", "plan_chat", "plan_completion"]

Prompt: TypeAlias = tuple[dict[str, str], ...] | str | list[int]
"""A conversation as templates know it, or a text or its tokens to continue."""


@dataclass(frozen=True)
class Plan:
    """How a request is going to be answered."""

    method: Method[Any]
    prompts: Sequence[Prompt]
    n: int
    """Choices for each prompt."""
    seed: int
    stop: tuple[str, ...]
    seconds: float
    """From the request to its deadline."""
    stream: bool
    usage: bool
    """A stream ends with the usage."""
    tree: bool
    """The answer carries the tree."""
    events: bool
    """A stream tells of the tree's growth."""
    logprobs: bool
    tokens_named: bool
    """Whether the request itself said how many tokens a path may have."""
    max_prompt: int | None

    @property
    def withheld(self) -> bool:
        """Whether nothing may be shown before it is known that the answer is given at all."""
        return getattr(self.method.settings, "abstain_below", 0.0) > 0

    def jobs(self, engine: ServingEngine, client: str) -> list[Job]:
        """The searches of a client, in the order of the choices. Asks the engine for tokens, so it may take a moment.

        Raises:
            ApiError: a prompt is too long, or cannot be rendered.
        """
        jobs: list[Job] = []
        for place, prompt in enumerate(self.prompts):
            text, ids = self._encoded(prompt, engine)
            method = self._within(len(ids), engine.context_length)
            parting = _parting(text, ids, engine) if isinstance(prompt, tuple) else None
            for number in range(self.n):
                # A draw depends on the question's id: the same request with the same seed must have the same ones.
                question = Question(text, id=f"{place}-{number}")
                grow = self.stream and self.events
                jobs.append(Job(method, question, ids, self.seed, self.stop, parting, self.seconds, grow, client))
        return jobs

    @property
    def _field(self) -> str:
        """The request's field that holds the prompts."""
        return "messages" if isinstance(self.prompts[0], tuple) else "prompt"

    def _encoded(self, prompt: Prompt, engine: ServingEngine) -> tuple[str, tuple[int, ...]]:
        """What is asked, and all tokens before the answer."""
        after = self.method.after
        try:
            if isinstance(prompt, tuple):
                *before, last = prompt
                text = last["content"]
                ids = engine.chat([*before, {**last, "content": text + after}])
            elif isinstance(prompt, str):
                text, ids = prompt, engine.encode(prompt + after, begins=True)
            elif max(prompt) >= engine.vocab_size:  # it would take the whole batch down with it
                known = engine.vocab_size - 1
                raise invalid(f"The prompt holds {max(prompt)}; the model's tokens end at {known}.", "prompt")
            else:
                # Nothing looks at the text of what is given as tokens, and to ask a server for it may take a call for each.
                text, ids = "", tuple(prompt) + (engine.encode(after) if after else ())
        except DataError as error:
            raise invalid(str(error), self._field) from error
        except EngineError as error:
            raise ApiError(503, f"The engine cannot tell the prompt's tokens: {error}") from error
        if not ids:
            raise invalid("The prompt has no token: there is nothing to continue.", "prompt")
        return text, ids

    def _within(self, prompt: int, context: int) -> Method[Any]:
        """The method, with no more tokens than there is room for after a prompt of so many."""
        most = min(context - 1, self.max_prompt or context)
        if prompt > most:
            raise invalid(
                f"The prompt has {prompt} tokens, and {most} are the most here. Shorten it.",
                self._field,
                "context_length_exceeded",
            )
        room, wanted = context - prompt, self.method.settings.max_tokens
        if wanted <= room:
            return self.method
        if self.tokens_named:
            raise invalid(
                f"The prompt has {prompt} tokens and max_tokens is {wanted}: together more than the model's context of "
                f"{context}. Ask for {room} at most.",
                "max_tokens",
                "context_length_exceeded",
            )
        return _with(self.method, max_tokens=room)


def plan_chat(request: ChatRequest, server: ServeSettings) -> Plan:
    """What a body of `/v1/chat/completions` comes to.

    Raises:
        ApiError: it makes no sense here.
    """
    last = request.messages[-1]
    if last.role != "user":
        raise invalid(f"The last message is of role {last.role}; it must be the user's: it is what is answered.", "messages")
    if not last.text.strip():
        raise invalid("The last message is empty: there is nothing to answer.", f"messages.{len(request.messages) - 1}")
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older is not None and newer != older:
        raise invalid("max_tokens and max_completion_tokens differ. Give one of them.", "max_completion_tokens")
    prompt = _conversation(request.messages, server.instruction)
    return _plan(request, server, [prompt], older if newer is None else newer, logprobs=bool(request.logprobs))


def plan_completion(request: CompletionRequest, server: ServeSettings) -> Plan:
    """What a body of `/v1/completions` comes to.

    Raises:
        ApiError: it makes no sense here.
    """
    prompt = request.prompt
    several = isinstance(prompt, list) and isinstance(prompt[0], (str, list))
    prompts: Any = prompt if several else [prompt]
    return _plan(request, server, prompts, request.max_tokens, logprobs=request.logprobs is not None)


def _conversation(messages: Sequence[ChatMessage], instruction: str) -> tuple[dict[str, str], ...]:
    """With the server's instruction where no other stands."""
    roles = {"developer": "system"}
    told = [{"role": roles.get(message.role, message.role), "content": message.text} for message in messages]
    if instruction and not any(message["role"] == "system" for message in told):
        told.insert(0, {"role": "system", "content": instruction})
    return tuple(told)


def _plan(
    request: ChatRequest | CompletionRequest,
    server: ServeSettings,
    prompts: Sequence[Prompt],
    max_tokens: int | None,
    *,
    logprobs: bool,
) -> Plan:
    search, n = request.search, request.n or 1
    if request.model != server.model:
        raise no_such_model(request.model, server.model)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options are for streams. Leave them out, or set stream.", "stream_options")
    method = _method(request, server, max_tokens)
    tokens_named = max_tokens is not None or "max_tokens" in search.settings
    if not tokens_named and not server.fixed and method.settings.max_tokens > server.max_tokens:
        method = _with(method, max_tokens=server.max_tokens)
    choices = len(prompts) * n
    if choices > server.max_choices:
        raise invalid(
            f"{choices} choices are more than the {server.max_choices} that one request may ask for.",
            "n" if n > 1 else "prompt",
        )
    if n > 1 and not (method.draws() and method.settings.temperature > 0):
        raise invalid(
            f"n is {n}, and {method.name} draws nothing: its choices would all be the same. Leave n out, or "
            f"choose a method that draws, at a temperature above 0: {_drawing()}.",
            "n",
        )
    if search.seconds is not None and search.seconds > server.max_seconds:
        raise invalid(f"A deadline of {search.seconds:g} s is over the limit of {server.max_seconds:g}.", "caspo.seconds")
    return Plan(
        method=_limited(method, server, choices),
        prompts=prompts,
        n=n,
        seed=_seed(request, method),
        stop=request.stops,
        seconds=search.seconds or server.max_seconds,
        stream=bool(request.stream),
        usage=request.usage_in_stream,
        tree=search.tree,
        events=search.events,
        logprobs=logprobs,
        tokens_named=tokens_named,
        max_prompt=server.max_prompt,
    )


def _parting(text: str, ids: tuple[int, ...], engine: ServingEngine) -> Parting:
    """Tells the model's thinking from what it says, after a prompt that may have opened the thinking itself."""
    inside = TreeBuilder(Question(text), ids, engine).reader(ROOT).thinking
    return Parting(engine.reading.thinking, thinking=inside)


def _method(request: ChatRequest | CompletionRequest, server: ServeSettings, max_tokens: int | None) -> Method[Any]:
    """The method that is asked for, with its settings."""
    search = request.search
    name = search.method or server.method
    if name not in METHODS:
        raise invalid(f"There is no method {name[:100]!r}. Choose one of {', '.join(METHODS)}.", "caspo.method")
    chosen = METHODS[name]
    named: dict[str, Any] = {"max_tokens": max_tokens, "top_p": request.top_p}
    if chosen.draws():
        named["temperature"] = None if _steady(request, chosen) else request.temperature
    elif request.temperature not in (None, 0, 1):
        raise invalid(
            f"temperature is {request.temperature:g}, and {name} draws nothing: it takes the most probable tokens, and "
            f"branches where the model is unsure. Leave temperature out, or choose a method that draws: {_drawing()}.",
            "temperature",
        )
    named = {key: value for key, value in named.items() if value is not None}
    twice = sorted(named.keys() & search.settings.keys())
    if twice:
        raise invalid(f"{twice[0]} is given twice, by itself and in caspo. Give it once.", f"caspo.{twice[0]}")
    base = server.settings if name == server.method else {}
    try:
        settings = chosen.settings_type.model_validate({**base, **search.settings, **named}, strict=True)
    except ValidationError as error:
        raise _bad_setting(error, chosen, named) from error
    method = chosen(settings)
    if server.fixed and (name != server.method or settings != server.default_method().settings):
        raise invalid(
            f"This server answers by {server.method} with calibrated settings; with others its guarantee would not hold. "
            "Leave the method, its settings, temperature, top_p and max_tokens out.",
            "caspo" if search.settings or search.method else next(iter(named), "caspo"),
        )
    return method


def _steady(request: ChatRequest | CompletionRequest, method: type[Method[Any]]) -> bool:
    """Whether temperature 0 asks for the same answer each time: many clients always send it, and do not mean one path."""
    return method.greedy and request.temperature == 0


def _seed(request: ChatRequest | CompletionRequest, method: Method[Any]) -> int:
    """The request's own, or one that no other request has."""
    if request.seed is not None:
        return request.seed
    return 0 if _steady(request, type(method)) else secrets.randbits(62)


def _bad_setting(error: ValidationError, method: type[Method[Any]], named: dict[str, Any]) -> ApiError:
    """``named``: what was given as a field of its own, beside ``caspo``."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))[:200]
    if problem["type"] == "extra_forbidden":
        known = ", ".join(method.settings_type.model_fields)
        message = f"The method {method.name} has no setting {key[:100]!r}. It has {known}."
        return invalid(message, f"caspo.{key}", "unknown_parameter")
    param = key if key in named else f"caspo.{key}".rstrip(".")
    return invalid(f"{key or method.name}: {problem['msg']}.", param, "invalid_value")


def _limited(method: Method[Any], server: ServeSettings, choices: int) -> Method[Any]:
    """The method with a budget, if it knows one. Raises `ApiError` where it may come to more than the server allows."""
    settings = method.settings
    counts = (numbers(settings, "tokens"), server.max_tokens), (numbers(settings, "paths"), server.max_paths)
    for found, most in counts:
        for key, value in found.items():
            if value > most:
                raise invalid(f"{key} is {value if value < 1e15 else 'huge'}; this server allows {most}.", key)
    if settings.rows * choices > server.max_paths:
        raise invalid(
            f"These settings decode {settings.rows * choices} paths at once; this server allows {server.max_paths}.",
            "n" if choices > 1 else "caspo",
        )
    budget = server.max_budget // choices
    if "budget" not in type(settings).model_fields:
        if settings.rows * settings.max_tokens > budget:
            raise invalid(
                f"{settings.rows} paths of {settings.max_tokens} tokens are more than the {budget} that this server "
                "generates for one choice. Ask for fewer, or for a lower max_tokens.",
                "max_tokens",
            )
        return method
    if settings.budget is not None and settings.budget > budget:
        raise invalid(f"The budget is over the {budget} tokens that this server allows.", "caspo.budget")
    return _with(method, budget=settings.budget or budget)


def _with(method: Method[Any], **settings: int) -> Method[Any]:
    """The method with other settings."""
    return type(method)(method.settings.model_copy(update=settings))


def _drawing() -> str:
    return ", ".join(name for name, method in METHODS.items() if method.draws())
