"""DeepConf on a scripted model: its formulas by hand, who votes, and what is stopped."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pydantic import ValidationError

from caspo.answers import extract_answer
from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Request
from caspo.search import (
    DeepConfOffline,
    DeepConfOfflineSettings,
    DeepConfOnline,
    DeepConfOnlineSettings,
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.search.deepconf import MEASURES, group_confidences
from caspo.testing.scripted import Script, Scripted, ScriptedEngine
from caspo.trees import seed_of
from recording import FIVE, SEVEN, SIX, Q, Recording, counts, decisions, ends, plain, solve, wild


def test_group_and_trace_confidence_by_hand() -> None:
    """Groups overlap, one ends at every token from the window's length on."""
    confidences = [4.0, 2.0, 6.0, 8.0, 1.0]
    assert group_confidences(confidences, 2) == [3.0, 4.0, 7.0, 4.5]
    assert {name: measure(confidences, 2) for name, measure in MEASURES.items()} == {
        "lowest": 3.0, "bottom": 3.0, "tail": 4.5, "mean": 4.2,
    }  # fmt: skip
    assert MEASURES["bottom"]([float(i) for i in range(20, 0, -1)], 1) == 1.5, "of 20 groups the lowest two"
    assert MEASURES["bottom"]([float(i) for i in range(19, 0, -1)], 1) == 1.0, "of fewer, the lowest one"
    assert group_confidences(confidences, 5) == group_confidences(confidences, 6) == [4.2], "shorter: one group"
    assert {measure(confidences, 9) for measure in MEASURES.values()} == {4.2}


@given(
    strategies.lists(strategies.floats(0, 30, width=32), min_size=1, max_size=60), strategies.integers(1, 70)
)  # fmt: skip
def test_groups_against_a_plain_sum(confidences: list[float], window: int) -> None:
    """The same as a convolution, and the measures in their order."""
    span = min(window, len(confidences))
    expected = np.convolve(confidences, np.ones(span) / span, "valid")
    groups = group_confidences(confidences, window)
    assert np.allclose(groups, expected)
    lowest, bottom, tail, mean = (MEASURES[name](confidences, window) for name in ("lowest", "bottom", "tail", "mean"))
    assert lowest == min(groups) <= bottom + 1e-9
    assert bottom == pytest.approx(np.mean(sorted(expected)[: max(1, len(expected) // 10)]))
    assert tail == groups[-1]
    assert mean == pytest.approx(np.mean(confidences))


SURE, UNSURE, PLENTY = "a\n", "b\n", 20


def doubt(after: Sequence[Scripted] = tuple(ends((FIVE, 1))), said: str = UNSURE) -> Script:
    """A rare start that is certain of its answer, and a frequent one with a token that could be any of 20."""
    return {"Q\n": [Scripted(SURE, 0.3), Scripted(said, 0.7)], f"Q\n{SURE}": after, f"Q\n{said}": ends(*[(SIX, 1)] * PLENTY)}


START = -(math.log(0.3) + math.log(0.7) + 18 * math.log(1e-9)) / 20
"""Confidence of the first token: two scripted ones, and 18 that the script gives 1e-9."""
LOW = math.log(PLENTY)
"""Of a token with 20 equally probable ones."""


def test_deepconf_offline_filters_and_weighs() -> None:
    """The unsure majority is outvoted by confidence, or has no vote at all; the answer is not that of the plain majority."""
    base = {"measure": "lowest", "window": 1, "samples": 12, "temperature": 1.0}
    majority = SelfConsistency(SelfConsistencySettings(samples=12, temperature=1.0))
    seed, voted = next((i, s) for i in range(20) if 1 < counts(s := solve(majority, doubt(), i))[SURE] < 6)
    sure = counts(voted)[SURE]
    assert voted.answer == "6"
    everyone = solve(DeepConfOffline(DeepConfOfflineSettings(**base, eta=100)), doubt(), seed)
    assert everyone.answer == "5"
    weights = sure * START, (12 - sure) * LOW
    assert everyone.confidence == pytest.approx(weights[0] / sum(weights), rel=1e-4)
    assert set(decisions(everyone).values()) == {"", "finished"}
    best = solve(DeepConfOffline(DeepConfOfflineSettings(**base, eta=10)), doubt(), seed)
    assert (best.answer, best.confidence) == ("5", 1.0)
    assert decisions(best)[UNSURE + SIX] == "pruned"
    assert best.generated_tokens == everyone.generated_tokens == voted.generated_tokens


def test_deepconf_offline_counts_traces_with_an_answer() -> None:
    """The most confident share is one of those that have something to say; top_k is asked for."""
    shape = DeepConfOfflineSettings(measure="lowest", window=1, eta=10, samples=12, temperature=1.0)
    silent = 0
    for seed in range(6):
        engine = Recording(doubt(after=ends(("I rest my case.", 1))))
        (solution,) = DeepConfOffline(shape).solve([Q], engine, seed)
        assert (solution.answer, solution.confidence) == ("6", 1.0)
        assert {request.top_k for request in engine.requests} == {20}
        silent = max(silent, counts(solution)[SURE])
    assert silent > 2, "more than the most confident share of all"


def online(**more: Any) -> DeepConfOnline:
    return DeepConfOnline(DeepConfOnlineSettings(window=1, temperature=1.0, **more))


def test_deepconf_online_stops_what_loses_confidence() -> None:
    """At the very token; the trace is paid for up to there and has no vote, whatever it said before."""
    said = "The answer is 6.\n"  # stated with confidence, before the doubt
    after = ends((FIVE, 0.6), (SEVEN, 0.4))
    stopped = 0
    for seed in range(6):
        engine = Recording(doubt(after, said))
        (solution,) = online(samples=16, warm_up=5, eta=10, consensus=1.0).solve([Q], engine, seed)
        first = [c for c in engine.completions[:5] if c.text.startswith(SURE)]
        if not first or len(engine.requests) == 5:
            continue  # no sure trace in the warm-up, or agreement at once
        assert all(request.watch is None for request in engine.requests[:5])
        for completion in engine.completions[5:]:
            unsure = completion.text.startswith(said)
            assert (completion.finish == "abandoned") == unsure
            if unsure:
                stopped += 1
                assert completion.text == said + "T"
        assert solution.generated_tokens == engine.tokens
        assert solution.answer in ("5", "7")
        assert decisions(solution)[said + "T"] == "pruned"
    assert stopped > 5


def test_a_stopped_trace_has_no_vote() -> None:
    """Whatever is measured of it afterwards, and though it has stated its answer."""

    class Doubting(Recording):
        def play(self, request: Request) -> Completion:
            watch = request.watch
            if watch is not None:
                request = replace(request, watch=lambda token, m: token != ord(".") and watch(token, m))
            return super().play(request)

    engine = Doubting({"Q\n": ends((FIVE, 1), (SIX, 1))})
    (solution,) = online(samples=12, warm_up=4, consensus=1.0).solve([Q], engine, 1)
    assert [c.finish for c in engine.completions] == ["eos"] * 4 + ["abandoned"] * 8
    assert solution.confidence in (0.5, 0.75), "a share of the warm-up"


def test_deepconf_online_agrees_early() -> None:
    """With consensus after the warm-up there is no further trace; without it there are no more than `samples`."""
    engine = Recording(lambda text: ends((FIVE, 1)))
    (solution,) = online(samples=12, warm_up=3).solve([Q], engine)
    assert len(engine.requests) == 3
    assert solution.generated_tokens == 3 * (len(FIVE) + 1)
    for wave in (1, 4, 100):
        engine = Recording({"Q\n": ends((FIVE, 1), (SIX, 1))})
        online(samples=12, warm_up=3, wave=wave, consensus=1.0).solve([Q], engine, 1)
        assert len({extract_answer(c.text) for c in engine.completions}) == 2
        assert len(engine.requests) == 12


def test_deepconf_online_whose_window_is_longer_than_its_traces() -> None:
    """No group is ever full, so nothing is stopped; a whole trace below the threshold still has no vote."""
    shape = DeepConfOnlineSettings(window=500, samples=16, warm_up=6, eta=10, consensus=1.0, temperature=1.0)
    seen = 0
    for seed in range(6):
        engine = Recording(doubt(ends((FIVE, 0.6), (SEVEN, 0.4))))
        (solution,) = DeepConfOnline(shape).solve([Q], engine, seed)
        assert all(completion.finish == "eos" for completion in engine.completions)
        if any(c.text.startswith(SURE) for c in engine.completions[:6]):
            seen += 1
            assert solution.answer != "6"
    assert seen > 2


def test_deepconf_online_of_warm_up_only_is_offline() -> None:
    """By the lowest group, where every trace has an answer."""
    for seed in range(5):
        for eta in (10, 50, 90):
            shape: dict[str, Any] = {"samples": 8, "window": 4, "eta": eta}
            one = solve(DeepConfOnline(DeepConfOnlineSettings(**shape, warm_up=8)), doubt(), seed)
            other = solve(DeepConfOffline(DeepConfOfflineSettings(**shape, measure="lowest")), doubt(), seed)
            assert plain(one) == plain(other)


@given(
    seed=strategies.integers(0, 10**6), window=strategies.integers(1, 40), eta=strategies.sampled_from([10, 50, 90, 100]),
    wave=strategies.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_deepconf_online_against_traces_that_are_never_stopped(seed: int, window: int, eta: float, wave: int) -> None:
    """Stopping saves tokens and changes no vote: the same comes out of whole traces, filtered afterwards by hand."""
    shape = DeepConfOnlineSettings(samples=9, warm_up=3, window=window, eta=eta, wave=wave, consensus=0.9)
    engine = Recording(wild(seed))
    (solution,) = DeepConfOnline(shape).solve([Q], engine, seed)
    whole = ScriptedEngine(wild(seed)).generate(
        [
            Request(engine.prompt("Q"), seed_of("self_consistency", seed, "q", i), 512, shape.temperature, top_k=20)
            for i in range(shape.samples)
        ]
    )
    assert not any(c.top_k_logprob is None for c in whole)
    confidences = [-np.asarray(c.top_k_logprob, dtype=np.float64) for c in whole]
    lowest = [float(min(np.convolve(c, np.ones(n := min(window, len(c))) / n, "valid"))) for c in confidences]
    threshold = np.percentile(lowest[:3], 100 - eta) - 0.01  # what differs by less is equal
    count = 3
    while True:
        totals: dict[str, float] = {}
        for i in range(count):
            if lowest[i] >= threshold and (answer := extract_answer(whole[i].text)) is not None:
                totals[answer] = totals.get(answer, 0.0) + lowest[i]
        share = max(totals.values(), default=0.0) / max(1e-9, sum(totals.values()))
        if share >= 0.9 or count == shape.samples:
            break
        count = min(count + wave, shape.samples)
    assert len(engine.requests) == count
    assert solution.confidence == pytest.approx(share, abs=1e-4)
    assert solution.answer is None or totals[solution.answer] == pytest.approx(max(totals.values()), rel=1e-4)
    assert engine.tokens <= sum(len(c.token_ids) for c in whole[:count])
    for completion, full in zip(engine.completions, whole, strict=False):
        assert completion.token_ids == full.token_ids[: len(completion.token_ids)]


def test_equal_traces_are_equal_up_to_rounding() -> None:
    """What a batch adds to the last digits neither stops a trace nor takes its vote."""

    class Noisy(Recording):
        def play(self, request: Request) -> Completion:
            noise, watch = random.Random(request.seed).uniform(-1e-3, 1e-3), request.watch
            if watch is not None:
                request = replace(
                    request, watch=lambda token, m: watch(token, m._replace(top_k_logprob=m.top_k_logprob + noise))
                )
            found = super().play(request)
            assert found.top_k_logprob is not None
            return replace(found, top_k_logprob=found.top_k_logprob + np.float32(noise))

    for seed in range(5):
        engine = Noisy({"Q\n": ends((FIVE, 1), (SIX, 1))})
        (solution,) = online(samples=12, warm_up=4, consensus=1.0).solve([Q], engine, seed)
        assert {c.finish for c in engine.completions} == {"eos"}
        assert set(decisions(solution).values()) == {"finished"}
        share = max(counts(solution).values()) / len(engine.completions)
        assert solution.confidence == pytest.approx(share, abs=1e-3)


def test_deepconf_settings() -> None:
    """What cannot be is refused; an engine that does not measure is told from one that is sure."""
    with pytest.raises(ValidationError, match="warm_up is 16, more than the 10 samples"):
        DeepConfOnlineSettings(warm_up=16)
    with pytest.raises(ValidationError):
        DeepConfOfflineSettings(top_k=1)

    class Silent(ScriptedEngine):
        def play(self, request: Request) -> Completion:
            return replace(super().play(replace(request, top_k=0)), top_k_logprob=None)

    for method in (DeepConfOffline(), DeepConfOnline()):
        with pytest.raises(EngineError, match="measured no top-k log-probabilities"):
            method.solve([Q], Silent(doubt()))
