"""OpenAI's form of what the choices say: that of a chat, and that of a completion. All that tells the two apart is here."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TypeAlias

from caspo.serve import response_schema as schema
from caspo.serve.compose import Chunk, Outcome
from caspo.steps import Characters

__all__ = ["ChatForm", "CompletionForm", "Form"]


class _Head:
    def __init__(self, model: str) -> None:
        self._model, self._created, self._number = model, int(time.time()), secrets.token_hex(12)


class ChatForm(_Head):
    """The form of one answer of `/v1/chat/completions`."""

    def whole(self, outcomes: Sequence[Outcome], spent: schema.Usage) -> schema.ChatCompletion:
        """The answer in one piece."""
        return {
            "id": f"chatcmpl-{self._number}",
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": index,
                    "message": _message(outcome),
                    "logprobs": _logprobs(outcome),
                    "finish_reason": outcome.finish,
                    "caspo": outcome.caspo,
                }
                for index, outcome in enumerate(outcomes)
            ],
            "usage": spent,
        }

    def first(self, index: int) -> schema.ChatCompletionChunk:
        """The event that opens a choice."""
        return self._event({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def chunk(self, index: int, chunk: Chunk) -> schema.ChatCompletionChunk:
        """An event with a piece of a choice."""
        choice: schema.ChatChunkChoice = {"index": index, "delta": {}, "finish_reason": None}
        if chunk.text is not None:
            choice["delta"]["content"] = chunk.text
        if chunk.reasoning:
            choice["delta"]["reasoning_content"] = chunk.reasoning
        if chunk.caspo is not None:
            choice["caspo"] = chunk.caspo
        return self._event(choice)

    def last(self, index: int, outcome: Outcome) -> schema.ChatCompletionChunk:
        """The event that ends a choice. The tokens' log probabilities, if asked for, come all at once with it."""
        return self._event(
            {
                "index": index,
                "logprobs": _logprobs(outcome),
                "finish_reason": outcome.finish,
                "caspo": outcome.caspo,
                "delta": {} if outcome.refusal is None else {"refusal": outcome.refusal},
            }
        )

    def usage(self, spent: schema.Usage) -> schema.ChatCompletionChunk:
        """The event with the tokens."""
        return {**self._event(), "usage": spent}

    def _event(self, *choices: schema.ChatChunkChoice) -> schema.ChatCompletionChunk:
        return {
            "id": f"chatcmpl-{self._number}",
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": list(choices),
        }


class CompletionForm(_Head):
    """The form of one answer of `/v1/completions`; its events are those of `ChatForm`."""

    def whole(self, outcomes: Sequence[Outcome], spent: schema.Usage) -> schema.Completion:
        """The answer in one piece."""
        return {
            "id": f"cmpl-{self._number}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [_completion_choice(index, outcome) for index, outcome in enumerate(outcomes)],
            "usage": spent,
        }

    def first(self, index: int) -> schema.CompletionChunk:
        """The event that opens a choice."""
        return self.chunk(index, Chunk(""))

    def chunk(self, index: int, chunk: Chunk) -> schema.CompletionChunk:
        """An event with a piece of a choice."""
        choice: schema.CompletionChunkChoice = {"index": index, "text": chunk.text or "", "finish_reason": None}
        if chunk.caspo is not None:
            choice["caspo"] = chunk.caspo
        return self._event(choice)

    def last(self, index: int, outcome: Outcome) -> schema.CompletionChunk:
        """The event that ends a choice."""
        return self._event({**_completion_choice(index, outcome), "text": ""})

    def usage(self, spent: schema.Usage) -> schema.CompletionChunk:
        """The event with the tokens."""
        return {**self._event(), "usage": spent}

    def _event(self, *choices: schema.CompletionChunkChoice) -> schema.CompletionChunk:
        return {
            "id": f"cmpl-{self._number}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": list(choices),
        }


Form: TypeAlias = ChatForm | CompletionForm


def _message(outcome: Outcome) -> schema.MessageOut:
    message: schema.MessageOut = {"role": "assistant", "content": outcome.text, "refusal": outcome.refusal}
    if outcome.reasoning:
        message["reasoning_content"] = outcome.reasoning
    return message


def _completion_choice(index: int, outcome: Outcome) -> schema.CompletionChoice:
    return {
        "index": index,
        "text": outcome.text,
        "logprobs": _legacy_logprobs(outcome),
        "finish_reason": outcome.finish,
        "caspo": outcome.caspo,
    }


def _logprobs(outcome: Outcome) -> schema.LogprobsOut | None:
    if outcome.logprobs is None:
        return None
    return {
        "content": [
            {"token": piece.decode(errors="backslashreplace"), "logprob": logprob, "bytes": list(piece), "top_logprobs": []}
            for piece, logprob in outcome.logprobs
        ],
        "refusal": None,
    }


def _legacy_logprobs(outcome: Outcome) -> schema.LegacyLogprobs | None:
    if outcome.logprobs is None:
        return None
    characters, offsets, offset = Characters(), [], 0
    for piece, _ in outcome.logprobs:
        offsets.append(offset)
        offset += len(characters.take(piece))
    return {
        "tokens": [_named(piece) for piece, _ in outcome.logprobs],
        "token_logprobs": [logprob for _, logprob in outcome.logprobs],
        "top_logprobs": None,
        "text_offset": offsets,
    }


def _named(piece: bytes) -> str:
    """A token as OpenAI's older form names it: the text, or, of what is no text, all bytes."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
