"""The bodies of requests, checked strictly: OpenAI's fields, and ``caspo``.

A field that is not listed is refused, never dropped. What OpenAI has and this server has not is listed with the values that
ask for nothing (``tools: []``, ``presence_penalty: 0``): clients that send every default work, and who asks for it is told.
Lists are read up to their first mistake: to describe half a million of them takes a gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from caspo.search import METHODS
from caspo.serve.errors import ApiError, invalid

__all__ = ["CaspoFields", "ChatMessage", "ChatRequest", "CompletionRequest", "parse"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


def _caspo_schema(schema: dict[str, Any]) -> None:
    """The settings of all methods, as properties beside our own."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, method in METHODS.items():
        own = method.settings_type.model_json_schema()
        for key, value in own["properties"].items():
            # settings of settings stand in a list beside them, which the document has no place for
            whole = {**own["$defs"][value["$ref"].rpartition("/")[2]], **value} if "$ref" in value else value
            # what a method takes by default is told by the method, not by the request
            kept = {k: v for k, v in whole.items() if k not in ("title", "default", "$ref")}
            found.setdefault(key, []).append((name, kept))
    for key, variants in found.items():
        distinct = [v for i, (_, v) in enumerate(variants) if v not in [w for _, w in variants[:i]]]
        of = f"A setting of {', '.join(name for name, _ in variants)}."
        schema["properties"][key] = {**(distinct[0] if len(distinct) == 1 else {"anyOf": distinct}), "description": of}
    schema["additionalProperties"] = False


class CaspoFields(_Body):
    """How to search, and what to tell of it. Any setting of the method stands beside these fields."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_caspo_schema)

    method: str | None = Field(None, json_schema_extra={"enum": [*METHODS, None]})
    """A method of `docs/search.md`; the server's own by default."""
    tree: bool = False
    """The answer carries the tree that was searched."""
    events: bool = False
    """A stream tells of the tree's growth."""
    seconds: float | None = Field(None, gt=0)
    """Deadline, from the request's arrival."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method that were given."""
        return dict(self.model_extra or {})


class StreamOptions(_Body):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """A last chunk with the tokens spent."""
    include_obfuscation: Literal[False] | None = None
    """There is none."""


class TextFormat(_Body):
    """Plain text."""

    type: Literal["text"]


class TextPart(_Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


_Nothing = Annotated[list[Any], Field(max_length=0)]
_Zero = Annotated[float, Field(ge=0, le=0)]
_Name = Annotated[str, Field(max_length=512)]


class ChatMessage(_Body):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    """Text, or parts of it."""
    name: _Name | None = None
    """Accepted and not used."""
    refusal: str | None = None
    """Accepted and not used: an answer of this server may be sent back as it came."""
    annotations: _Nothing | None = None
    audio: None = None
    function_call: None = None
    tool_calls: _Nothing | None = None

    @property
    def text(self) -> str:
        """Its parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


def _stop_strings(value: str | list[str] | None) -> str | list[str] | None:
    if value == "" or (isinstance(value, list) and "" in value):
        raise ValueError("an empty stop string would end every answer before it begins; leave it out")
    return value


_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Temperature = Annotated[float, Field(ge=0, le=2)]
_Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
_Count = Annotated[int, Field(ge=1)]


class _Request(_Body):
    """What both endpoints take."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    """The name that `/v1/models` tells."""
    caspo: CaspoFields | None = None
    """Settings of the search, and what to tell of it."""
    stream: bool | None = None
    """Steps are sent as they are settled."""
    stream_options: StreamOptions | None = None
    n: _Count | None = None
    """Choices, each a search of its own; above 1 only for methods that draw."""
    max_tokens: _Count | None = None
    """Tokens of one reasoning path, at most."""
    temperature: _Temperature | None = None
    """For methods that draw; 0 and 1 are accepted by those that do not."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens are drawn from the most probable ones that hold this share of the probability."""
    seed: _Seed | None = None
    """The same seed gives the same draws; without one they differ from request to request."""
    stop: Annotated[_Stop | Annotated[list[_Stop], Field(max_length=4)] | None, AfterValidator(_stop_strings)] = None
    """The answer ends before the first of these."""
    user: _Name | None = None
    """Accepted and not used."""
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def search(self) -> CaspoFields:
        """The ``caspo`` fields, with their defaults."""
        return self.caspo or CaspoFields()

    @property
    def usage_in_stream(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(_Request):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    """The conversation; its last message is the user's."""
    max_completion_tokens: _Count | None = None
    """The newer name of ``max_tokens``."""
    logprobs: bool | None = None
    """The answer's tokens with their log probability."""
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    response_format: TextFormat | None = None
    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    """Accepted and not used: there are no tools."""
    functions: _Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    audio: None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    """Accepted and not used."""
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: _Name | None = None
    """Accepted and not used."""
    prompt_cache_key: _Name | None = None
    """Accepted and not used: beginnings that prompts share are kept anyway."""


_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(min_length=1, fail_fast=True)]
_Text = Annotated[str, Field(min_length=1)]


class CompletionRequest(_Request):
    """Body of `/v1/completions`."""

    prompt: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, fail_fast=True)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, fail_fast=True)]
    )
    """A text or its tokens, or several: one choice for each."""
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    """0: the answer's tokens with their log probability. More is refused: of other tokens none is kept."""
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None


_REFUSED = {
    "audio": "This server writes text only. Leave audio out.",
    "best_of": "best_of above 1 is not supported; the method best_of_n does this: caspo={'method': 'best_of_n'}.",
    "echo": "echo is not supported: the answer never repeats the prompt. Leave it out.",
    "frequency_penalty": "Penalties are not supported: they would change the distribution that confidence is measured on. "
    "Leave frequency_penalty out, or 0.",
    "function_call": "This server has no tools. Leave function_call out.",
    "functions": "This server has no tools. Leave functions out.",
    "logit_bias": "logit_bias is not supported: it would change the distribution that confidence is measured on. "
    "Leave it out.",
    "modalities": "This server writes text only. Leave modalities out.",
    "prediction": "Predicted outputs are not supported. Leave prediction out.",
    "presence_penalty": "Penalties are not supported: they would change the distribution that confidence is measured on. "
    "Leave presence_penalty out, or 0.",
    "reasoning_effort": "reasoning_effort is not supported; the effort is set by caspo={'paths': ..., 'budget': ...}.",
    "response_format": "Only response_format {'type': 'text'} is supported. Leave it out.",
    "store": "Answers are not stored here. Leave store out.",
    "suffix": "suffix is not supported: the model only continues. Leave it out.",
    "tool_choice": "This server has no tools. Leave tool_choice out.",
    "tools": "This server has no tools. Leave tools out.",
    "top_logprobs": "Only the log probability of a token itself is kept, not of others. Leave top_logprobs out, or 0.",
    "verbosity": "verbosity is not supported. Leave it out.",
    "web_search_options": "This server searches no web. Leave web_search_options out.",
}
"""OpenAI's fields that ask for what is not here."""

B = TypeVar("B", bound=_Request)


def parse(model: type[B], body: bytes) -> B:
    """A body as ``model``.

    Raises:
        ApiError: not JSON, not UTF-8, or not what the model says.
    """
    try:
        data = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except (ValueError, RecursionError) as error:
        raise invalid(f"The body is not valid JSON: {error}.", None, "invalid_json") from error
    if not isinstance(data, dict):
        raise invalid("The body must be a JSON object.", None, "invalid_json")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explained(error, data, model.model_fields) from error


def _explained(error: ValidationError, data: Any, known: Any) -> ApiError:
    """The innermost problem: of a field that takes several forms, that of the form which was meant."""
    problems = [(_place(problem["loc"], problem["type"], data), problem) for problem in error.errors(include_url=False)]
    place, problem = max(problems, key=lambda found: len(found[0]))
    param = ".".join(map(str, place))[:200]
    head = str(place[0]) if place else ""
    if problem["type"] == "missing":
        return invalid(f"The field {param} is missing.", param, "missing_required_parameter")
    if problem["type"] == "extra_forbidden":
        fields = f" Known fields: {', '.join(sorted(known))}." if len(place) == 1 else ""
        return invalid(f"The field {param} is not known.{fields}", param, "unknown_parameter")
    if len(place) == 1 and head in _REFUSED:
        return invalid(_REFUSED[head], param, "unsupported_parameter")
    if param.endswith((".type", ".role")):
        return invalid(f"{param}: {problem['msg']}. This server takes and writes text only.", param, "unsupported_value")
    return invalid(f"{param}: {problem['msg']}.", param, "invalid_type" if "type" in problem["type"] else "invalid_value")


def _place(location: Sequence[str | int], kind: str, data: Any) -> list[str | int]:
    """The location without what pydantic adds of its own: the names of a union's members."""
    place: list[str | int] = []
    for at, part in enumerate(location):
        inside = isinstance(data, dict) and part in data
        indexed = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if inside or indexed:
            data = data[part]
        elif not (kind == "missing" and at == len(location) - 1):
            continue
        place.append(part)
    return place
