"""How an engine's model is to be read: the rule for its steps, the marks of its thinking, and where its turn ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.core.errors import ConfigError
from caspo.engines.prompts import PLAIN_TEMPLATE
from caspo.steps import THINKING, Reading

__all__ = ["MARKS", "reading_of", "shown_ids"]

MARKS = (
    THINKING,  # Qwen3, DeepSeek-R1, SmolLM3, GLM, MiniMax
    # gpt-oss: messages to itself, then one to the user; what stands between two messages is part of the mark.
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("<|end|><|start|>assistant<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|end|><|start|>assistant<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),
)
"""Marks in use. Those that a model's template names are looked for in its text."""

_TURN = "Question:"
"""What begins a question in `PLAIN_TEMPLATE`: a model that writes it has begun to invent another one."""


def reading_of(template: str | None, *, steps: str = "reasoning", thinking: Sequence[str] | None = None) -> Reading:
    """How a model with this chat template is read.

    ``thinking``: its marks as (opening, closing), where the template does not tell them.

    Raises:
        ConfigError: the marks cannot be told from nothing, or from each other.
    """
    marks: tuple[tuple[str, str], ...]
    if thinking:
        opening, closing = (mark.strip() for mark in thinking)
        if not opening or not closing or opening == closing:
            raise ConfigError(
                f"{list(thinking)!r} are no marks of thinking: two different texts are needed, the one that opens it and "
                'the one that closes it, such as ["<think>", "</think>"].'
            )
        marks = ((opening, closing),)
    else:
        named = template or ""
        marks = tuple(pair for pair in MARKS if pair == THINKING or any(mark in named for mark in pair))
    return Reading(steps, marks, _TURN if template is None or template == PLAIN_TEMPLATE else "")


def shown_ids(tokenizer: Any, reading: Reading) -> frozenset[int]:
    """Special tokens that the marks of thinking are made of: they are text, where others have none."""
    special = {int(i): str(name) for i, name in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    marks = [mark for pair in reading.thinking for mark in pair]
    return frozenset(i for i, name in special.items() if any(name in mark for mark in marks))
