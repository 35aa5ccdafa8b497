"""Replies of servers as records: what is refused, and that the bounds hold for whatever list came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.engines.remote.reply import BadReply, Entry, Position, measure, positions, repaired

LISTS = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.5}]}


def entropy_of(logs: np.ndarray[Any, Any]) -> float:
    return -float((np.exp(logs) * logs).sum())


@given(st.lists(st.floats(-8, 8), min_size=3, max_size=30), st.integers(2, 30), st.sets(st.integers(0, 29), max_size=3))
def test_the_entropy_is_within_its_bounds_whichever_tokens_are_missing(
    logits: list[float], k: int, missing: set[int]
) -> None:
    logs = np.sort(np.array(logits) - np.logaddexp.reduce(logits))[::-1]
    k = min(k, len(logs))
    top = [Entry(i, None, float(p)) for i, p in enumerate(logs[:k]) if i not in missing]
    if not top:
        return
    found = measure(Position(top[0], tuple(top)), k, len(logs))
    assert found.entropy - 1e-6 <= entropy_of(logs) <= found.entropy_upper + 1e-6
    if len(top) == len(logs):
        assert found.varentropy == pytest.approx(float((np.exp(logs) * logs**2).sum()) - entropy_of(logs) ** 2, abs=1e-6)
    else:
        assert np.isnan(found.varentropy)


@settings(max_examples=400)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=20),
    st.lists(st.sampled_from("abcd"), min_size=20, max_size=20),
    st.integers(1, 6),
    st.integers(0, 19),
    st.booleans(),
)
def test_the_entropy_is_within_its_bounds_where_texts_collide(
    logits: list[float], texts: list[str], k: int, taken: int, overwritten: bool
) -> None:
    """A mapping from texts, as vLLM and llama-cpp-python send it: a text that two tokens share keeps the first or the last
    of them, and a sampled token that is not among the most probable is added."""
    logs = np.sort(np.array(logits) - np.logaddexp.reduce(logits))[::-1]
    k, taken = min(k, len(logs)), min(taken, len(logs) - 1)
    top: dict[str, float] = {}
    for place in [*range(k), *([taken] if taken >= k else [])]:
        if overwritten or texts[place] not in top:
            top[texts[place]] = float(logs[place])
    reply = {"tokens": [texts[taken]], "token_logprobs": [float(logs[taken])], "top_logprobs": [top]}
    (position,) = positions({"logprobs": reply}, k)
    found = measure(position, k, len(logs))
    assert found.entropy - 1e-6 <= entropy_of(logs) <= found.entropy_upper + 1e-6
    assert found.max_logprob >= found.logprob


def test_a_sampled_token_that_was_added_is_not_taken_for_one_of_the_most_probable() -> None:
    """Two tokens read "a", so that of the best two one is missing, and the third, sampled, stands in its place."""
    truth = np.log(np.array([0.6, 0.3, *[0.1 / 98] * 98]))
    sampled = float(truth[2])
    reply = {"tokens": ["c"], "token_logprobs": [sampled], "top_logprobs": [{"a": float(truth[0]), "c": sampled}]}
    (position,) = positions({"logprobs": reply}, 2)
    found = measure(position, 2, 100)
    assert found.entropy <= entropy_of(truth) <= found.entropy_upper
    # The same list by ids is what it says: then no token is above the last of it, and 0.4 is spread over hundreds.
    entries = (Entry(0, None, math.log(0.6)), Entry(2, None, sampled))
    with pytest.raises(BadReply, match="more than the"):
        measure(Position(entries[1], entries), 2, 100)


@pytest.mark.parametrize(
    "logprobs",
    [
        LISTS | {"token_logprobs": []},
        LISTS | {"top_logprobs": None},
        LISTS | {"top_logprobs": [{}]},
        LISTS | {"token_logprobs": [float("nan")]},
        LISTS | {"token_logprobs": [None]},
        LISTS | {"top_logprobs": [{"a": 1.0}]},
        {"content": [{"id": 1, "token": "a", "logprob": -1.0}]},
        {"content": [{"id": 1, "token": "a", "logprob": -1.0, "top_logprobs": []}]},
        {"content": [{"id": 1, "token": "a", "logprob": "x", "top_logprobs": [{"id": 1, "token": "a", "logprob": -1.0}]}]},
        {"content": [3]},
        ["tokens"],
    ],
)
def test_malformed_log_probabilities_are_refused(logprobs: Any) -> None:
    with pytest.raises(BadReply):
        positions({"logprobs": logprobs}, 5)


def test_tokens_without_log_probabilities_are_refused() -> None:
    assert positions({"text": "", "logprobs": None}, 5) == []
    with pytest.raises(BadReply):
        positions({"logprobs": None, "token_ids": [5]}, 5)


@pytest.mark.parametrize("top", [[-0.1, -0.1], [-3.0, -3.0]])
def test_lists_that_cannot_be_the_most_probable_ones_are_refused(top: list[float]) -> None:
    entries = tuple(Entry(i, None, p) for i, p in enumerate(top))
    with pytest.raises(BadReply):
        measure(Position(entries[0], entries), 2, 4)


def test_a_sampled_token_more_probable_than_the_first_is_refused() -> None:
    entries = (Entry(1, None, -1.0), Entry(2, None, -1.2))
    with pytest.raises(BadReply, match="more probable"):
        measure(Position(Entry(3, None, -0.5), entries), 2, 4)


def test_the_appended_token_is_cut_off_and_ids_are_read_wherever_they_stand() -> None:
    as_ids = {
        "tokens": ["token_id:9"], "token_logprobs": [-4.0],
        "top_logprobs": [{"token_id:1": -0.5, "token_id:2": -1.5, "token_id:9": -4.0}],
    }  # fmt: skip
    (found,) = positions({"logprobs": as_ids, "token_ids": [9]}, 2)
    assert [entry.token for entry in found.top] == [1, 2]
    assert (found.taken.token, found.taken.logprob) == (9, -4.0)
    (found,) = positions({"logprobs": LISTS, "token_ids": [7]}, 2)
    assert (found.taken.token, found.top[0].token) == (7, None)
    part = {"id": 5, "token": "\ufffd", "bytes": [0xF0, 0x9F], "logprob": -1.0}
    (found,) = positions({"logprobs": {"content": [part | {"top_logprobs": [part]}]}}, 2)
    assert found.taken == Entry(5, b"\xf0\x9f", -1.0)


def test_a_text_of_bytes_is_read_as_bytes() -> None:
    written = {"tokens": ["bytes:\\xe2\\x88"], "token_logprobs": [-1.0], "top_logprobs": [{"bytes:\\xe2\\x88": -1.0}]}
    (found,) = positions({"logprobs": written}, 2)
    assert found.taken == found.top[0] == Entry(None, b"\xe2\x88", -1.0)


LOST = "\ufffd"


@pytest.mark.parametrize(
    ("texts", "text", "pieces"),
    [
        (["a", LOST, LOST, " b"], "a√ b", ["a", "", "√", " b"]),
        ([LOST, LOST], "√", ["", "√"]),
        ([LOST], "", [""]),
        ([LOST, "a"], "a", ["", "a"]),
        ([" " + LOST, LOST + "a", "b"], " √ab", ["", " √a", "b"]),
        (["a", LOST, "x"], "something else", ["a", LOST, "x"]),
        ([LOST], LOST, [LOST]),
    ],
)
def test_what_tokens_lost_is_read_from_the_text(texts: list[str], text: str, pieces: list[str]) -> None:
    """Of a server without ids, which shows the parts of a character as U+FFFD; the text has the whole character."""
    entries = [Entry(None, one.encode(), -1.0) for one in texts]
    found = repaired([Position(entry, (entry,)) for entry in entries], text)
    assert [position.taken.piece for position in found] == [piece.encode() for piece in pieces]
