"""Serving a model that thinks: `reasoning_content` apart from the content, and characters made of several tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import ConfigError
from caspo.engines.reading import reading_of
from caspo.serve.app import create_app
from caspo.serve.compose import _Cut
from caspo.serve.scheduler import Scheduler
from caspo.steps import Parting, Reading, text_of
from caspo.testing.scripted import EOS, Scripted, ScriptedEngine
from serving import MODEL, QUESTION, Client
from serving import settings as serve_settings

MARKS = (("<think>", "</think>"),)
THOUGHT = "First 2 + 3 = 5.\n\nSo √25 is 5.\n"
SAID = "The sum is 5.\n\nThe answer is 5."
CHAIN = {"caspo": {"method": "chain_of_thought"}}


class Bytes(ScriptedEngine):
    """A scripted engine whose every token is one byte of UTF-8: a script writes them as the characters of Latin-1."""

    vocab_size = EOS + 1

    def encode(self, text: str, *, begins: bool = False) -> tuple[int, ...]:
        return tuple(text.encode())

    def prompt(self, question: str) -> tuple[int, ...]:
        return self.encode(f"{question}\n")

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return [b"" if token == EOS else bytes([token]) for token in token_ids]


@contextmanager
def thinking(text: str, prompt: str = "", *, by_bytes: bool = False, reading: Reading | None = None) -> Iterator[Client]:
    """A server of a model that answers everything by this text; ``prompt`` is what its template puts behind a question."""

    def script(so_far: str) -> Sequence[Scripted]:
        rest = text[len(so_far.partition("\n")[2]) - len(prompt) :]
        return [Scripted(rest.encode().decode("latin-1") if by_bytes else rest, eos=True)]

    kind = Bytes if by_bytes else ScriptedEngine

    class Engine(kind):  # type: ignore[misc, valid-type]
        def chat(self, messages: Any) -> tuple[int, ...]:
            return self.encode(f"{messages[-1]['content']}\n{prompt}")

    engine = Engine(script, MODEL, reading or Reading(thinking=MARKS))
    scheduler = Scheduler(engine)
    scheduler.start()
    try:
        yield Client(create_app(scheduler, engine, serve_settings()))
    finally:
        scheduler.stop(0.0)


def streamed(client: Client, **fields: Any) -> tuple[str, str, list[dict[str, Any]]]:
    """The content, the reasoning and the choices of a stream."""
    lines = client.chat(stream=True, **fields).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ") and "[DONE]" not in line]
    choices = [choice for event in data for choice in json.loads(event)["choices"]]
    said, thought = ("".join(c["delta"].get(name, "") for c in choices) for name in ("content", "reasoning_content"))
    return said, thought, choices


@pytest.mark.parametrize(
    ("text", "prompt"), [(f"<think>\n{THOUGHT}</think>\n\n{SAID}", ""), (f"{THOUGHT}</think>\n\n{SAID}", "<think>\n")]
)
@pytest.mark.parametrize("by_bytes", [False, True])
def test_thinking_is_told_apart_without_its_marks(text: str, prompt: str, by_bytes: bool) -> None:
    with thinking(text, prompt, by_bytes=by_bytes) as client:
        whole = client.chat(logprobs=True, **CHAIN).json()
        choice, usage = whole["choices"][0], whole["usage"]
        assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (SAID, THOUGHT)
        assert (choice["finish_reason"], choice["caspo"]["answer"]) == ("stop", "5")
        steps = choice["caspo"]["steps"]
        assert [step["thinking"] for step in steps] == [True, True, False, False]
        for side, joined in ((True, THOUGHT), (False, SAID)):
            assert "".join(step["text"] for step in steps if step["thinking"] is side) == joined
        tokens = choice["logprobs"]["content"]
        assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == SAID
        spent = usage["completion_tokens_details"]["reasoning_tokens"]
        assert spent == usage["completion_tokens"] - len(tokens) - 1, "EOS is the answer's"
        said, thought, choices = streamed(client, **CHAIN)
        assert (said, thought) == (SAID, THOUGHT)
        notes = [c["caspo"]["step"]["thinking"] for c in choices if "step" in c.get("caspo", {})]
        assert notes == [True, True, False, False]


def test_the_tree_has_no_marks_and_says_what_is_thinking() -> None:
    with thinking(f"<think>\n{THOUGHT}</think>\n\n{SAID}") as client:
        choice = client.chat(caspo={**CHAIN["caspo"], "tree": True}).json()["choices"][0]
        told = [(node["text"], node["thinking"]) for node in choice["caspo"]["tree"]["nodes"]]
        assert told == [(step["text"], step["thinking"]) for step in choice["caspo"]["steps"]]
        assert [thinking for _, thinking in told] == [True, True, False, False]


def test_completions_are_the_text_as_it_is() -> None:
    text = f"<think>\n{THOUGHT}</think>\n\n{SAID}"
    with thinking(text) as client:
        choice = client.complete(logprobs=0, **CHAIN).json()["choices"][0]
        assert choice["text"] == text
        assert "".join(choice["logprobs"]["tokens"]) == text
        cut = client.complete(stop="So", **CHAIN).json()["choices"][0]
        assert cut["text"] == text[: text.index("So")], "a stop string is one wherever it stands"


def test_stop_strings_are_of_what_is_said() -> None:
    with thinking(f"<think>\n{THOUGHT}</think>\n\n{SAID}") as client:
        for stop in ("5", "sum is", "<think>", "2 + 3"):
            choice = client.chat(stop=stop, **CHAIN).json()["choices"][0]
            assert choice["message"]["reasoning_content"] == THOUGHT
            assert choice["message"]["content"] == SAID.partition(stop)[0]
            assert choice["finish_reason"] == "stop"
            assert streamed(client, stop=stop, **CHAIN)[:2] == (SAID.partition(stop)[0], THOUGHT)


def test_unfinished_thinking_says_nothing() -> None:
    with thinking(f"<think>\n{THOUGHT}</think>\n\n{SAID}") as client:
        whole = client.chat(max_tokens=30, **CHAIN).json()
        choice = whole["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert choice["message"]["reasoning_content"] == THOUGHT[: 30 - len("<think>\n")]
        assert (choice["caspo"]["answer"], choice["caspo"]["confidence"]) == (None, 0.0)
        assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 30
        said, thought, _ = streamed(client, max_tokens=30, **CHAIN)
        assert (said, thought) == ("", choice["message"]["reasoning_content"])


def test_a_model_that_does_not_think_has_no_field_for_it() -> None:
    with thinking(SAID) as client:
        assert set(client.chat(**CHAIN).json()["choices"][0]["message"]) == {"role", "content", "refusal"}
    with thinking(f"<think>\n\n</think>\n\n{SAID}") as client:
        message = client.chat(**CHAIN).json()["choices"][0]["message"]
        assert (message["content"], "reasoning_content" in message) == (SAID, False)


GPT_OSS = (
    "<|channel|>analysis<|message|>We add 2 and 3.<|end|><|start|>assistant<|channel|>analysis<|message|>That is 5."
    "<|end|><|start|>assistant<|channel|>final<|message|>The answer is 5."
)


def test_messages_of_gpt_oss_are_thinking_but_for_the_last() -> None:
    reading = reading_of("<|start|>assistant<|channel|>analysis<|message|> ... <|channel|>final<|message|>")
    with thinking(GPT_OSS, reading=reading) as client:
        message = client.chat(**CHAIN).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "We add 2 and 3.That is 5."
        assert message["content"] == "The answer is 5."
    with thinking("<|channel|>final<|message|>The answer is 5.", reading=reading) as client:
        assert client.chat(**CHAIN).json()["choices"][0]["message"]["content"] == "The answer is 5."


def test_marks_of_ones_own_have_to_be_two_texts() -> None:
    """An empty mark would be found everywhere; white space around one is not written by every model."""
    assert reading_of(None, thinking=["<reason>\n", "\n</reason>"]).thinking == (("<reason>", "</reason>"),)
    for wrong in (["", ""], ["<reason>", " "], ["---", "---"]):
        with pytest.raises(ConfigError, match="two different texts"):
            reading_of(None, thinking=wrong)


ODD = "Roots: √25 = 5.\n\n½ + ⅓ ≈ ✅ 日本.\n\nThe answer is 5."


@pytest.mark.parametrize("stop", ["⅓", "✅", "√", "≈ ✅", "½"])
def test_stop_strings_in_characters_of_several_tokens_cut_exactly(stop: str) -> None:
    with thinking(ODD, by_bytes=True) as client:
        choice = client.chat(stop=stop, logprobs=True, **CHAIN).json()["choices"][0]
        assert choice["message"]["content"] == ODD.partition(stop)[0]
        assert b"".join(bytes(t["bytes"]) for t in choice["logprobs"]["content"]).decode() == ODD.partition(stop)[0]
        assert streamed(client, stop=stop, **CHAIN)[0] == ODD.partition(stop)[0]


@pytest.mark.parametrize("method", ["chain_of_thought", "cat"])
def test_half_a_character_at_a_limit_is_told_by_its_bytes_alone(method: str) -> None:
    most = len(ODD.partition("⅓")[0].encode()) + 2
    asked = {"max_tokens": most, "caspo": {"method": method, "tree": True, "events": True}}
    with thinking(ODD, by_bytes=True) as client:
        choice = client.chat(logprobs=True, **asked).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (ODD.partition("⅓")[0], "length")
        assert "".join(step["text"] for step in choice["caspo"]["steps"]) == ODD.partition("⅓")[0]
        tokens = choice["logprobs"]["content"]
        assert b"".join(bytes(token["bytes"]) for token in tokens) == ODD.encode()[:most]
        assert [token["token"] for token in tokens[-2:]] == ["\\xe2", "\\x85"]
        said, _, choices = streamed(client, **asked)
        assert said == ODD.partition("⅓")[0]
        assert "\ufffd" not in json.dumps([choices, choice["caspo"]], ensure_ascii=False)


@pytest.mark.parametrize("before", ["", "<think>√</think>", "<think>\nOne.\n</think>\n\n"])
def test_half_a_character_is_told_also_where_nothing_was_said_before_it(before: str) -> None:
    with thinking(f"{before}✅ The answer is 5.", by_bytes=True) as client:
        asked = {"max_tokens": len(before.encode()) + 2, **CHAIN}
        choice = client.chat(logprobs=True, **asked).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert [token["bytes"] for token in choice["logprobs"]["content"]] == [[byte] for byte in "✅".encode()[:2]]


def test_half_a_character_of_thinking_is_not_said() -> None:
    with thinking("<think>\nOne ✅.\n</think>\n\nThe answer is 5.", by_bytes=True) as client:
        asked = {"max_tokens": len(b"<think>\nOne ") + 2, **CHAIN}
        choice = client.chat(logprobs=True, **asked).json()["choices"][0]
        assert (choice["message"]["reasoning_content"], choice["logprobs"]["content"]) == ("One ", [])


def test_offsets_of_the_older_form_count_characters() -> None:
    with thinking(ODD, by_bytes=True) as client:
        told = client.complete(logprobs=0, **CHAIN).json()["choices"][0]["logprobs"]
    at = ODD.index("√")
    place = len(ODD[:at].encode())
    assert told["tokens"][place : place + 4] == ["bytes:\\xe2", "bytes:\\x88", "bytes:\\x9a", "2"]
    assert told["text_offset"][place : place + 4] == [at, at, at, at + 1]
    assert told["text_offset"][-1] == len(ODD) - 1


TEXTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "<", "a", "b\n", " ", "STOP", "ST", "OP"]), max_size=12
).map("".join)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.integers(1, 9), max_size=12), st.booleans())
def test_parts_do_not_depend_on_the_pieces(text: str, sizes: list[int], inside: bool) -> None:
    def parted(pieces: Sequence[str]) -> tuple[list[tuple[int, str, bool]], str, str]:
        cut = _Cut(("STOP",), Parting(MARKS, thinking=inside))
        told = [*(cut.feed(piece) for piece in pieces), cut.rest()]
        return [tuple(p) for p in cut.parts], "".join(said for said, _ in told), "".join(thought for _, thought in told)

    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    parts, said, thought = parted([*pieces, text[at:]])
    assert (parts, said, thought) == parted([text])
    for side, joined in ((False, said), (True, thought)):
        assert "".join(part for _, part, thinking in parts if thinking is side) == joined
    assert all(text[start:].startswith(part) for start, part, _ in parts)
    assert "STOP" not in said
    assert not any(mark in part for _, part, _ in parts for mark in MARKS[0])


def test_bytes_make_the_text() -> None:
    engine = Bytes({}, MODEL)
    assert text_of(engine.pieces(engine.encode(QUESTION + ODD))) == QUESTION + ODD
