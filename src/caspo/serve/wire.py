"""From a request's body to the searches it asks for. Pure translation: no HTTP, nothing awaited, nothing kept.

What comes back, from events to JSON, is in `answers`; the bodies themselves are in `requests`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from caspo.engines.base import ServingEngine
from caspo.errors import DataError, EngineError
from caspo.search import METHODS, DiPT, Method
from caspo.serve.errors import ApiError, invalid
from caspo.serve.job import Job
from caspo.serve.requests import ChatMessage, ChatRequest, CompletionRequest
from caspo.serve.settings import ServeSettings
from caspo.types import Question

__all__ = ["Asked", "asked_chat", "asked_completion"]

Prompt = list[ChatMessage] | str | list[int]


@dataclass(frozen=True)
class Asked:
    """What a request comes to."""

    method: Method[Any]
    prompts: tuple[Prompt, ...]
    """A conversation, or texts or tokens to continue."""
    n: int
    """Choices for each prompt."""
    seed: int
    stop: tuple[str, ...]
    seconds: float
    stream: bool
    usage: bool
    """A stream ends with the usage."""
    tree: bool
    events: bool
    logprobs: bool
    tokens_named: bool
    """Whether the request itself said how many tokens a path may have."""
    instruction: str
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
            for number in range(self.n):
                # A draw depends on the question's id: the same request with the same seed must have the same ones.
                question = Question(text, id=f"{place}-{number}")
                jobs.append(
                    Job(
                        method,
                        question,
                        ids,
                        self.seed,
                        self.stop,
                        self.seconds,
                        grow=self.stream and self.events,
                        client=client,
                    )
                )
        return jobs

    def _encoded(self, prompt: Prompt, engine: ServingEngine) -> tuple[str, tuple[int, ...]]:
        """What is asked, and all tokens before the answer."""
        after = f"\n\n{self.method.settings.instruction}" if isinstance(self.method, DiPT) else ""
        chat = _is_chat(prompt)
        try:
            if chat:
                messages, text = _messages(prompt, self.instruction, after)  # type: ignore[arg-type]
                ids = engine.chat(messages)
            elif isinstance(prompt, str):
                text, ids = prompt, engine.encode(prompt + after)
            else:
                # Nothing looks at the text of what is given as tokens, and to ask a server for it may take a call for each.
                text, ids = "", _known(prompt, engine)  # type: ignore[arg-type]
                ids += engine.encode(after) if after else ()
        except DataError as error:
            raise invalid(str(error), "messages" if chat else "prompt") from error
        except EngineError as error:
            raise ApiError(503, f"The engine cannot tell the prompt's tokens: {error}") from error
        if len(ids) < 2:  # engines decode after the prompt but its last token, which must be something
            raise invalid("The prompt has fewer than two tokens: there is too little to continue.", "prompt")
        return text, ids

    def _within(self, prompt: int, context: int) -> Method[Any]:
        """The method, with no more tokens than there is room for after the prompt."""
        most = min(context - 1, self.max_prompt or context)
        if prompt > most:
            raise invalid(
                f"The prompt has {prompt} tokens, and {most} are the most here. Shorten it.",
                "messages" if _is_chat(self.prompts[0]) else "prompt",
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
        return type(self.method)(self.method.settings.model_copy(update={"max_tokens": room}))


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], ChatMessage)


def asked_chat(request: ChatRequest, server: ServeSettings) -> Asked:
    """What a body of `/v1/chat/completions` asks for.

    Raises:
        ApiError: it makes no sense here.
    """
    last = request.messages[-1]
    if last.role != "user":
        raise invalid(
            f"The last message is of role {last.role}; it must be the user's: it is what is answered.", "messages"
        )
    if not last.text.strip():
        raise invalid("The last message is empty: there is nothing to answer.", f"messages.{len(request.messages) - 1}")
    newer, older = request.max_completion_tokens, request.max_tokens
    if newer is not None and older is not None and newer != older:
        raise invalid("max_tokens and max_completion_tokens differ. Give one of them.", "max_completion_tokens")
    given = {"max_tokens": older if newer is None else newer}
    return _asked(request, server, (request.messages,), given, logprobs=bool(request.logprobs))


def asked_completion(request: CompletionRequest, server: ServeSettings) -> Asked:
    """What a body of `/v1/completions` asks for.

    Raises:
        ApiError: it makes no sense here.
    """
    prompt = request.prompt
    several = isinstance(prompt, list) and isinstance(prompt[0], (str, list))
    prompts: tuple[Any, ...] = tuple(prompt) if several else (prompt,)
    given = {"max_tokens": request.max_tokens}
    return _asked(request, server, prompts, given, logprobs=request.logprobs is not None)


def _asked(
    request: ChatRequest | CompletionRequest,
    server: ServeSettings,
    prompts: tuple[Prompt, ...],
    given: dict[str, Any],
    *,
    logprobs: bool,
) -> Asked:
    search = request.search
    if request.model != server.model:
        raise ApiError(
            404,
            f"There is no model {request.model[:100]!r} here; it is called {server.model!r}.",
            param="model",
            code="model_not_found",
        )
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options are for streams. Leave them out, or set stream.", "stream_options")
    method, tokens_named = _method(request, server, given)
    if not tokens_named and not server.fixed and method.settings.max_tokens > server.max_tokens:
        method = type(method)(method.settings.model_copy(update={"max_tokens": server.max_tokens}))
    choices = len(prompts) * (request.n or 1)
    if choices > server.max_choices:
        raise invalid(
            f"{choices} choices are more than the {server.max_choices} that one request may ask for.",
            "n" if (request.n or 1) > 1 else "prompt",
        )
    if (request.n or 1) > 1 and getattr(method.settings, "temperature", 0.0) == 0:
        raise invalid(
            f"n is {request.n}, and {method.name} draws nothing: its choices would all be the same. Leave n out, or "
            f"choose a method that draws, at a temperature above 0: {_drawing()}.",
            "n",
        )
    if search.seconds is not None and search.seconds > server.max_seconds:
        raise invalid(
            f"A deadline of {search.seconds:g} s is over the limit of {server.max_seconds:g}.", "caspo.seconds"
        )
    return Asked(
        method=_limited(method, server, choices),
        prompts=prompts,
        n=request.n or 1,
        seed=secrets.randbits(62) if request.seed is None else request.seed,
        stop=request.stops,
        seconds=search.seconds or server.max_seconds,
        stream=bool(request.stream),
        usage=request.usage_in_stream,
        tree=search.tree,
        events=search.events,
        logprobs=logprobs,
        tokens_named=tokens_named,
        instruction=server.instruction,
        max_prompt=server.max_prompt,
    )


def _method(
    request: ChatRequest | CompletionRequest, server: ServeSettings, given: dict[str, Any]
) -> tuple[Method[Any], bool]:
    """The method with its settings, and whether ``max_tokens`` was among those that were named."""
    search = request.search
    name = search.method or server.method
    if name not in METHODS:
        raise invalid(f"There is no method {name[:100]!r}. Choose one of {', '.join(METHODS)}.", "caspo.method")
    chosen = METHODS[name]
    known = chosen.settings_type.model_fields
    given = {**given, "top_p": request.top_p}
    if "temperature" in known:
        given["temperature"] = request.temperature
    elif request.temperature not in (None, 0, 1):
        raise invalid(
            f"temperature is {request.temperature:g}, and {name} draws nothing: it takes the most probable tokens, and "
            f"branches where the model is unsure. Leave temperature out, or choose a method that draws: {_drawing()}.",
            "temperature",
        )
    given = {key: value for key, value in given.items() if value is not None}
    twice = sorted(given.keys() & search.settings.keys())
    if twice:
        raise invalid(f"{twice[0]} is given twice, by itself and in caspo. Give it once.", f"caspo.{twice[0]}")
    base = server.settings if name == server.method else {}
    data = {**base, **search.settings, **given}
    try:
        method = chosen(chosen.settings_type.model_validate(data, strict=True))
    except ValidationError as error:
        raise _explained(error, name, list(known), given) from error
    if server.fixed and (name != server.method or method.settings != server.default_method().settings):
        raise invalid(
            f"This server answers by {server.method} with calibrated settings; with others its guarantee would not hold. "
            "Leave the method, its settings, temperature, top_p and max_tokens out.",
            "caspo" if search.settings or search.method else next(iter(given), "caspo"),
        )
    return method, "max_tokens" in given or "max_tokens" in search.settings


def _explained(error: ValidationError, name: str, known: list[str], given: dict[str, Any]) -> ApiError:
    problem = error.errors(include_url=False)[0]
    key = ".".join(map(str, problem["loc"]))[:200]
    if problem["type"] == "extra_forbidden":
        return invalid(
            f"The method {name} has no setting {key[:100]!r}. It has {', '.join(known)}.",
            f"caspo.{key}",
            "unknown_parameter",
        )
    return invalid(
        f"{key or name}: {problem['msg']}.", key if key in given else f"caspo.{key}".rstrip("."), "invalid_value"
    )


_TOKENS = ("max_tokens", "max_step_tokens", "window")


def _limited(method: Method[Any], server: ServeSettings, choices: int) -> Method[Any]:
    """The method with a budget, if it knows one. Raises `ApiError` where it may come to more than the server allows."""
    settings = method.settings
    for key, value in settings:
        if isinstance(value, bool) or not isinstance(value, int) or key == "budget":
            continue
        most = server.max_tokens if key in _TOKENS else server.max_paths
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
    return type(method)(settings.model_copy(update={"budget": settings.budget or budget}))


def _messages(messages: Sequence[ChatMessage], instruction: str, after: str) -> tuple[list[dict[str, str]], str]:
    """The conversation as templates know it, and what is asked."""
    roles = {"developer": "system"}
    out = [{"role": roles.get(message.role, message.role), "content": message.text} for message in messages]
    if instruction and not any(message["role"] == "system" for message in out):
        out.insert(0, {"role": "system", "content": instruction})
    text = out[-1]["content"]
    out[-1]["content"] += after
    return out, text


def _known(ids: Sequence[int], engine: ServingEngine) -> tuple[int, ...]:
    if max(ids) >= engine.vocab_size:  # it would take the whole batch down with it
        raise invalid(f"The prompt holds {max(ids)}; the model's tokens end at {engine.vocab_size - 1}.", "prompt")
    return tuple(ids)


def _drawing() -> str:
    return ", ".join(name for name, method in METHODS.items() if "temperature" in method.settings_type.model_fields)
