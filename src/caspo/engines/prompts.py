"""From a question to the tokens a model continues, and how its text becomes tokens again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.core.rows import lone_surrogate
from caspo.engines.base import Message

__all__ = ["INSTRUCTION", "PLAIN_TEMPLATE", "chat_ids", "prompt_ids", "refuse_halves", "solution_ids"]

INSTRUCTION = "Solve the problem step by step, one short step a line. The last line is: The answer is X."
"""What an instruction-tuned model is asked for. Models that were trained to write steps do not need it."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "Question: {{ message['content'] }}\nAnswer:\n{% endif %}{% endfor %}"
)
"""A chat template without roles: what models trained by `caspo` carry, and what a model without any template gets."""


def prompt_ids(tokenizer: Any, question: str, instruction: str = INSTRUCTION) -> tuple[int, ...]:
    """Tokens of the prompt for ``question`` in the tokenizer's chat template (`PLAIN_TEMPLATE` if it has none).

    The instruction is the system message, or stands before the question where a template refuses system messages.

    Raises:
        DataError: the question is empty.
    """
    if not question.strip():
        raise DataError("The question is empty: there is nothing to solve. Give a question with some text.")
    system = [{"role": "system", "content": instruction}] if instruction else []
    return chat_ids(tokenizer, [*system, {"role": "user", "content": question.strip()}])


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of the prompt that asks for the next message of a conversation, in the tokenizer's chat template.

    A system message stands before the first question where a template refuses system messages.

    Raises:
        DataError: half of a character in a message, or the template cannot render these messages.
    """
    refuse_halves(messages)
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    try:
        text = _render(tokenizer, messages, template)
    except Exception as error:  # templates raise jinja2 errors of their own when they take no system message
        if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
            raise DataError(f"The model's chat template cannot render a question: {error}") from error
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return chat_ids(tokenizer, [{"role": "user", "content": joined}, *messages[2:]])
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if template == PLAIN_TEMPLATE and getattr(tokenizer, "add_bos_token", False) and bos is not None:
        ids = (bos, *ids)
    return ids


def refuse_halves(messages: Sequence[Message]) -> None:
    """Raise `DataError` where a message holds half of a character: no tokenizer knows it, and no server can be sent it."""
    for message in messages:
        if half := lone_surrogate(message["content"]):
            raise DataError(f"The text holds {half}, half of a character, which no tokenizer knows. Correct the text.")


def solution_ids(tokenizer: Any, solution: str) -> tuple[int, ...]:
    """Tokens of a written solution, each line ended by a line break but the last, which EOS ends."""
    ids = tokenizer(solution.strip(), add_special_tokens=False)["input_ids"]
    return (*ids, tokenizer.eos_token_id)


def _render(tokenizer: Any, messages: Sequence[Message], template: str) -> str:
    return str(
        tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, add_generation_prompt=True)
    )
