"""What a server with a small prefix cache has to compute of our prompts: the order of requests lets it reuse them."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pytest

from caspo.records import Question
from caspo.search import (
    Beam,
    BeamSettings,
    ConfidenceTree,
    ConfidenceTreeSettings,
    PaperTree,
    PaperTreeSettings,
    SelfConsistency,
    SelfConsistencySettings,
)
from fake_server import serving
from test_remote import engine_for

BLOCK = 16
"""Tokens that are kept, and found again, together: vLLM's on a GPU."""
IN_FLIGHT = 8
QUESTIONS = [Question(f"{n} and {'aceg'[n % 4] * 120}?", id=str(n)) for n in range(20)]

METHODS: dict[str, Any] = {
    "self_consistency": SelfConsistency(SelfConsistencySettings(samples=10)),
    "cat": ConfidenceTree(ConfidenceTreeSettings(level=1.0, paths=10)),
    "cat, branches": ConfidenceTree(ConfidenceTreeSettings(level=1.0, paths=6, branches=True)),
    "cat_paper": PaperTree(PaperTreeSettings(branch_below=1.0, prune_below=0.0, paths=4)),
    "beam": Beam(BeamSettings(beam_width=2, children=3)),
}


def blocks(text: str) -> list[str]:
    """The whole blocks of a text, each with all that stands before it."""
    return [text[:end] for end in range(BLOCK, len(text) + 1, BLOCK)]


def computed(seen: Sequence[tuple[str, str]], room: int) -> int:
    """Prompt tokens that are computed by a server that keeps ``room`` blocks, the least recently used ones leaving first.

    As vLLM's: a request's own blocks are there for the next one at once, and its last token is always computed.
    """
    kept: OrderedDict[str, None] = OrderedDict()
    tokens = 0
    for moment, text in seen:
        if moment == "asked":
            found = 0
            for block in blocks(text[:-1]):
                if block not in kept:
                    break
                found += 1
            tokens += len(text) - BLOCK * found
        for block in reversed(blocks(text)):  # of a sequence its end leaves first
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > room:
            kept.popitem(last=False)
    return tokens


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_a_small_prefix_cache_could_reuse_is_lost(name: str) -> None:
    """With room for ten sequences, eight of which are under way, a server computes hardly more than with room for all:
    each prompt, and each prefix that paths share, once. In another order it would compute far more."""
    with serving("vllm") as server, engine_for(server, concurrency=IN_FLIGHT) as engine:
        engine.instruction = ""  # no beginning that all prompts share
        METHODS[name].solve(QUESTIONS, engine)
        seen = list(server.seen)
        assert server.most_streaming <= IN_FLIGHT
    room = 10 * max(len(text) for _, text in seen) // BLOCK
    floor = computed(seen, 10**9)
    assert computed(seen, room) <= 1.05 * floor
    asked = [one for one in seen if one[0] == "asked"]
    assert floor < 0.5 * sum(len(text) for _, text in asked), "there is much to reuse"
    random.Random(0).shuffle(asked)
    assert computed(asked, room) > 1.5 * floor, "the order matters"
