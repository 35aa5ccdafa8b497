"""From a question to the tokens a model continues, how its text becomes tokens again, and how a turn of it ends."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from caspo.core.errors import DataError
from caspo.core.rows import lone_surrogate
from caspo.engines.base import Message

__all__ = [
    "DATE", "INSTRUCTION", "PLAIN_TEMPLATE", "TODAY", "Example", "asking", "begin_ids", "beginning", "chat_ids",
    "end_of_turn", "prompt_ids", "refuse_halves", "solution_ids", "step_ids", "template_of", "turn_ends",
]  # fmt: skip

INSTRUCTION = "Solve the problem step by step, one short step a line. The last line is: The answer is X."
"""What an instruction-tuned model is asked for. Models that were trained to write steps do not need it."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "Question: {{ message['content'] }}\nAnswer:\n{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] }}\n\n{% endif %}{% endfor %}"
)
"""A chat template without roles: what models trained by `caspo` carry, and what a model without any template gets."""

_PLAIN_BEFORE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "Question: {{ message['content'] }}\nAnswer:\n{% endif %}{% endfor %}"
)
"""What models carry that were trained before it showed answers; the same for a single question."""

DATE = datetime.date(2024, 7, 26)
"""Today, for templates that name the date (Llama 3.1, gpt-oss): the same prompt on every day. It is the date that Llama's
template takes where it knows none."""

TODAY = {"date_string": DATE.strftime("%d %b %Y")}
"""`DATE` under the name that templates can be told it by."""

_NOW = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
_CONTENT = "CONTENT"

Example: TypeAlias = tuple[str, str]
"""A question, and a solution of it that ends in its answer."""


def asking(question: str, instruction: str, examples: Sequence[Example] = ()) -> list[Message]:
    """The conversation that asks a question.

    Of ``examples`` all but one are shown, as earlier turns: the last is there to take the place of one that is this very
    question.

    Raises:
        DataError: the question is empty.
    """
    text = question.strip()
    if not text:
        raise DataError("The question is empty: there is nothing to solve. Give a question with some text.")
    messages = [{"role": "system", "content": instruction}] if instruction else []
    # A method may ask for more after the question (`Method.after`): it is the same question then.
    others = [(asked, solved) for asked, solved in examples if not text.startswith(asked)]
    for asked, solved in others[: max(0, len(examples) - 1)]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": solved}]
    return [*messages, {"role": "user", "content": text}]


def prompt_ids(
    tokenizer: Any, question: str, instruction: str = INSTRUCTION, examples: Sequence[Example] = ()
) -> tuple[int, ...]:
    """Tokens of the prompt for ``question`` in the tokenizer's chat template (`PLAIN_TEMPLATE` if it has none).

    The instruction is the system message, or stands before the first question where a template refuses system messages.

    Raises:
        DataError: the question is empty, or the template cannot render it, or leaves out the examples.
    """
    if examples and not _shows_earlier(tokenizer):
        raise DataError(
            "The model's chat template does not show what was answered before, so it cannot show examples. Set "
            "task.examples to 0, or correct the template."
        )
    return chat_ids(tokenizer, asking(question, instruction, examples))


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Tokens of the prompt that asks for the next message of a conversation, in the tokenizer's chat template.

    A system message stands before the first question where a template refuses system messages. BOS is in front once,
    whether the template writes it or the tokenizer puts it before a text.

    Raises:
        DataError: half of a character in a message, or the template cannot render these messages.
    """
    refuse_halves(messages)
    try:
        text = _render(tokenizer, messages)
    except Exception as error:  # templates raise jinja2 errors of their own when they take no system message
        if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
            raise DataError(f"The model's chat template cannot render a question: {error}") from error
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return chat_ids(tokenizer, [{"role": "user", "content": joined}, *messages[2:]])
    return begin_ids(tokenizer, text)


def beginning(tokenizer: Any) -> tuple[int, ...]:
    """BOS, where every text begins with it: the tokenizer says so, or puts it there. Else nothing: there are tokenizers that
    name a BOS which their model has never seen at the beginning."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return ()
    said = bool(getattr(tokenizer, "add_bos_token", False))
    return (bos,) if said or tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [bos] else ()


def begin_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Tokens of a text that a model continues, after `beginning`, unless the text begins with that by itself."""
    first, ids = beginning(tokenizer), tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if ids[: len(first)] == first else (*first, *ids)


def refuse_halves(messages: Sequence[Message]) -> None:
    """Raise `DataError` where a message holds half of a character: no tokenizer knows it, and no server can be sent it."""
    for message in messages:
        if half := lone_surrogate(message["content"]):
            raise DataError(f"The text holds {half}, half of a character, which no tokenizer knows. Correct the text.")


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template puts behind an answer; None where it puts none.

    It may be another one than EOS: a base model ends its texts with <|endoftext|>, and a turn in ChatML with <|im_end|>.
    """
    after = _after_an_answer(tokenizer).lstrip()
    if not after:
        return None
    first = int(tokenizer(after, add_special_tokens=False)["input_ids"][0])
    added = first in getattr(tokenizer, "added_tokens_decoder", ())
    return first if added or not tokenizer.decode([first], skip_special_tokens=True) else None


def turn_ends(tokenizer: Any) -> frozenset[int]:
    """All tokens that are known to end an answer: the tokenizer's EOS, and the chat template's end of a turn."""
    return frozenset(token for token in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if token is not None)


def solution_ids(tokenizer: Any, solution: str) -> tuple[int, ...]:
    """Tokens of a written solution, each line ended by a line break but the last, which ends as a turn of the model does."""
    return (*tokenizer(solution.strip(), add_special_tokens=False)["input_ids"], _end(tokenizer))


def step_ids(tokenizer: Any, steps: Sequence[str], *, ended: bool) -> list[tuple[int, ...]]:
    """The tokens of each step of a solution, all together those of its text: some tokenizers put a space before whatever
    they are given, so a step alone has other ones. ``ended``: the last step ends as a turn of the model does.

    Where a token holds the end of one step and the beginning of the next, the steps are tokenised apart: solutions that
    part there share the earlier step, and its tokens must not say what only one of them goes on with.
    """
    borders = list(accumulate(map(len, steps)))
    cuts = _cuts(tokenizer, "".join(steps), borders)
    if cuts is None:
        first = tuple(tokenizer(steps[0], add_special_tokens=False)["input_ids"])
        cuts = [first, *(_after_a_line(tokenizer, step) for step in steps[1:])]
    if ended:
        cuts[-1] = (*cuts[-1], _end(tokenizer))
    return cuts


def _cuts(tokenizer: Any, text: str, borders: Sequence[int]) -> list[tuple[int, ...]] | None:
    """The tokens of a text, cut at characters; None where one crosses a border."""
    offsets = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, add_special_tokens=False, **({"return_offsets_mapping": True} if offsets else {}))
    ids, found, at = tuple(encoded["input_ids"]), list[tuple[int, ...]](), 0
    for border in borders:
        if border == len(text):
            end = len(ids)
        elif offsets:
            end = next((i for i in range(at, len(ids)) if encoded["offset_mapping"][i][1] > border), len(ids))
            if end < len(ids) and encoded["offset_mapping"][end][0] < border:
                return None
        else:
            before = tuple(tokenizer(text[:border], add_special_tokens=False)["input_ids"])
            end = len(before)
            if ids[:end] != before:
                return None
        found.append(ids[at:end])
        at = end
    return found


def _after_a_line(tokenizer: Any, step: str) -> tuple[int, ...]:
    """The tokens of a step that stands behind a line break."""
    line, both = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("\n", f"\n{step}"))
    return both[len(line) :] if both[: len(line)] == line else tuple(tokenizer(step, add_special_tokens=False)["input_ids"])


def _end(tokenizer: Any) -> int:
    end = end_of_turn(tokenizer)
    return int(tokenizer.eos_token_id) if end is None else end


_TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CONTENT}]


def _after_an_answer(tokenizer: Any) -> str:
    """What the chat template puts behind an answer; nothing where it does not show it."""
    try:
        _, shown, after = _render(tokenizer, _TURNS, answered=True).rpartition(_CONTENT)
    except Exception:  # a template that takes no such conversation: it raises jinja2 errors of its own
        return ""
    return after if shown else ""


def _shows_earlier(tokenizer: Any) -> bool:
    """Whether the chat template shows what was answered before."""
    try:
        return _CONTENT in _render(tokenizer, [*_TURNS, _TURNS[0]])
    except Exception:
        return False


def template_of(tokenizer: Any) -> str:
    """The tokenizer's chat template, of several the one for conversations without tools; for it today is `DATE`."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    template = PLAIN_TEMPLATE if not found or found == _PLAIN_BEFORE else str(found)
    # transformers hands templates no functions of ours, so the date is written into the template.
    return _NOW.sub(lambda call: call["quote"] + DATE.strftime(call["format"]) + call["quote"], template)


def _render(tokenizer: Any, messages: Sequence[Message], *, answered: bool = False) -> str:
    """The text of a conversation, up to where the next answer begins; ``answered``: as it stands."""
    return str(
        tokenizer.apply_chat_template(
            list(messages), chat_template=template_of(tokenizer), tokenize=False, add_generation_prompt=not answered, **TODAY
        )
    )
