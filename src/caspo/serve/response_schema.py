"""The JSON that goes out, described once: what `compose` and `forms` build is checked against it by mypy, and the OpenAPI
document is made from it.

A key that is `NotRequired` is absent where there is nothing to tell; it is never null then.
"""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic reads that of `typing` from Python 3.12 on

from caspo.records import Decision

__all__ = ["ChatCompletion", "ChatCompletionChunk", "Completion", "CompletionChunk", "Error", "Health", "Model", "Models"]


_Time = Annotated[int, Field(description="Unix time, seconds.")]
_Share = Annotated[float, Field(ge=0, le=1)]
_Finish = Literal["stop", "length"]


@with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))
class _Part(TypedDict):
    pass


class ErrorBody(_Part):
    """What went wrong, why, and what to do."""

    message: str
    type: str
    param: str | None
    """The field that is at fault."""
    code: str | None


class Error(_Part):
    """OpenAI's form of an error."""

    error: ErrorBody


class StepOut(_Part):
    """A step of the answer."""

    text: str
    confidence: _Share
    """exp(-mean entropy of its tokens in nats)."""
    thinking: bool
    """It stands in the model's thinking: its text is part of ``reasoning_content``, otherwise of ``content``."""


class NodeOut(_Part):
    """A step of the tree."""

    id: int
    parent: int
    """-1: the prompt."""
    depth: int
    text: str
    confidence: float
    path_confidence: float
    """Product of the confidences from the first step on."""
    tokens: int
    decision: Decision
    """Empty while it is under way."""
    final: bool
    """The model ended the solution here."""
    thinking: bool
    """It stands in the model's thinking."""


class TreeOut(_Part):
    """Every step that was looked at."""

    nodes: list[NodeOut]
    prompt_tokens: int


class CaspoOut(_Part):
    """What the search came to."""

    answer: str | None
    """The final answer that the text states, alone; null where it states none, or where it was withheld."""
    confidence: _Share
    """In the answer, by the method's measure (`docs/search.md`); 0 where the text states none."""
    abstained: bool
    """There is an answer, and it was withheld: its confidence is under ``abstain_below``."""
    method: str
    generated_tokens: int
    """All that were decoded for this choice, those of pruned paths included."""
    steps: list[StepOut]
    tree: NotRequired[TreeOut]
    """If asked for."""


class TokenOut(_Part):
    """A token and its log probability."""

    token: str
    """Its text; bytes that are no whole character are written as ``\\xe2\\x88``."""
    logprob: float
    """Natural, of the model's own distribution."""
    bytes: list[int] | None
    """UTF-8; those of all tokens joined are the text's."""
    top_logprobs: Annotated[list[None], Field(max_length=0)]


class LogprobsOut(_Part):
    """Log-probabilities of the answer's tokens."""

    content: list[TokenOut]
    refusal: None


class LegacyLogprobs(_Part):
    """Log-probabilities of the answer's tokens, as `/v1/completions` has them."""

    tokens: list[str]
    """Their texts; one that is no whole characters is written as ``bytes:\\xe2\\x88``."""
    token_logprobs: list[float]
    top_logprobs: None
    text_offset: list[int]
    """Characters of the text before each; before a part of a character those before that character."""


class CompletionDetails(_Part):
    """Where the generated tokens went."""

    reasoning_tokens: int
    """Those that are not in the answer's text: of the model's thinking, and of other paths."""


class Usage(_Part):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    """All that were generated for the request."""
    total_tokens: int
    completion_tokens_details: CompletionDetails


class MessageOut(_Part):
    """The answer."""

    role: Literal["assistant"]
    content: str
    """What the model says; its thinking, and the marks of it, are not in it."""
    reasoning_content: NotRequired[str]
    """What the model thought before; absent where it did not."""
    refusal: str | None
    """Why the answer was withheld."""


class ChatChoice(_Part):
    """One answer."""

    index: int
    message: MessageOut
    finish_reason: _Finish
    """``length``: the text ends at a limit of tokens."""
    logprobs: LogprobsOut | None
    caspo: CaspoOut


class _Head(_Part):
    id: str
    created: _Time
    model: str


class ChatCompletion(_Head):
    """Answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(_Part):
    """One answer."""

    index: int
    text: str
    finish_reason: _Finish
    logprobs: LegacyLogprobs | None
    caspo: CaspoOut


class Completion(_Head):
    """Answer of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class StepNote(_Part):
    """The step whose text the chunk carries."""

    index: int
    confidence: float
    thinking: bool


class StepCaspo(_Part):
    """A step was settled."""

    step: StepNote


class NodesCaspo(_Part):
    """The tree grew: nodes that are new, or that changed."""

    nodes: list[NodeOut]


class Delta(_Part):
    """What is added to the message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]
    refusal: NotRequired[str]


class ChatChunkChoice(_Part):
    """A piece of one answer."""

    index: int
    delta: Delta
    finish_reason: _Finish | None
    logprobs: NotRequired[LogprobsOut | None]
    caspo: NotRequired[StepCaspo | NodesCaspo | CaspoOut]


class ChatCompletionChunk(_Head):
    """An event of a stream of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage]


class CompletionChunkChoice(_Part):
    """A piece of one answer."""

    index: int
    text: str
    finish_reason: _Finish | None
    logprobs: NotRequired[LegacyLogprobs | None]
    caspo: NotRequired[StepCaspo | NodesCaspo | CaspoOut]


class CompletionChunk(_Head):
    """An event of a stream of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage]


class Model(_Part):
    """A model."""

    id: str
    object: Literal["model"]
    created: _Time
    owned_by: str


class Models(_Part):
    """The models."""

    object: Literal["list"]
    data: list[Model]


class Health(_Part):
    """Whether requests are answered."""

    status: Literal["ok", "unhealthy", "closing"]
