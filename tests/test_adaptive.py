"""Adaptive-Consistency, ESC and ReASC on a scripted model: their formulas by hand, and when they stop."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pydantic import ValidationError

from caspo.answers import extract_answer
from caspo.core.errors import DataError, EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.memo import MemoEngine
from caspo.records import Question
from caspo.search import (
    ESC,
    AdaptiveConsistency,
    AdaptiveConsistencySettings,
    DeepConfOffline,
    DeepConfOfflineSettings,
    ESCSettings,
    ReASC,
    ReASCSettings,
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.search.adaptive import doubt
from caspo.search.reasc import gate
from caspo.search.vote import tally
from caspo.testing.scripted import Script, Scripted, ScriptedEngine
from recording import FIVE, SIX, Q, Recording, ends, plain, solve, wild

ANSWERS = strategies.lists(strategies.sampled_from(["1", "2", "3", None]), max_size=24)
TWO: Script = {"Q\n": ends((FIVE, 1), (SIX, 1))}


def answers(engine: Recording) -> list[str | None]:
    return [extract_answer(completion.text) for completion in engine.completions]


def test_tally_by_hand() -> None:
    """Equal values count together; the first of equal totals stands first; who says nothing is not there."""
    assert tally(["8", "0.5", None, "1/2", "8"], [1, 2, 9, 3, 4]) == [("8", 5), ("0.5", 5)]
    assert tally([None], [1]) == tally([], []) == []


# ---------------------------------------------------------------------------------------------------- Adaptive-Consistency


def test_doubt_by_hand() -> None:
    """n equal answers leave 1/2^(n+1); 2 against 1 is P(fewer than 2 heads... of 4 tosses), 5/16; the third is not asked."""
    for n in range(8):
        assert doubt(["5"] * n, [1.0] * n) == pytest.approx(0.5 ** (n + 1))
    assert doubt(["5", "6", "5"], [1.0] * 3) == pytest.approx(5 / 16)
    assert doubt(["5", "6", "7"], [1.0] * 3) == doubt(["5", None, "6"], [1.0] * 3) == 0.5
    assert doubt(["5", "6", "5", "7"], [1.0] * 4) == pytest.approx(5 / 16)
    assert doubt(["0.5", "1/2"], [1.0] * 2) == pytest.approx(1 / 8), "of equal value"
    assert doubt([], []) == doubt([None, None], [1.0] * 2) == 0.5
    assert doubt(["5", "6"], [2.5, 1.0]) < doubt(["5", "6"], [2.0, 1.0])


@given(ANSWERS)
def test_doubt_against_a_sum(said: list[str | None]) -> None:
    """P(Beta(a + 1, b + 1) < 1/2) for whole a and b: of a + b + 1 tosses of a coin more than a are heads."""
    counts = sorted((said.count(answer) for answer in ("1", "2", "3")), reverse=True)
    a, tosses = counts[0], counts[0] + counts[1] + 1
    expected = sum(math.comb(tosses, heads) for heads in range(a + 1, tosses + 1)) / 2**tosses
    assert doubt(said, [1.0] * len(said)) == pytest.approx(expected)


def test_adaptive_consistency_stops_when_the_majority_is_clear() -> None:
    """At 0.95 four equal answers are enough, and three are not: 15/16 < 0.95 < 31/32."""
    for level, drawn in {0.9: 3, 0.95: 4, 0.97: 5, 0.99: 6, 1.0: 12}.items():
        engine = Recording(lambda text: ends((FIVE, 1)))
        (solution,) = AdaptiveConsistency(AdaptiveConsistencySettings(samples=12, level=level)).solve([Q], engine)
        assert (len(engine.requests), solution.answer, solution.confidence) == (drawn, "5", 1.0)
        assert solution.generated_tokens == engine.tokens == drawn * (len(FIVE) + 1)


@given(seed=strategies.integers(0, 10**6), level=strategies.floats(0.51, 0.999), wave=strategies.integers(1, 12))
@settings(max_examples=60)
def test_adaptive_consistency_against_its_rule(seed: int, level: float, wave: int) -> None:
    """It stops after the first wave that leaves little doubt, and answers as self-consistency of as many samples does."""
    engine = Recording(wild(seed))
    shape = AdaptiveConsistencySettings(samples=9, level=level, wave=wave)
    (solution,) = AdaptiveConsistency(shape).solve([Q], engine, seed)
    said, drawn = answers(engine), len(engine.requests)
    assert drawn <= 9
    assert drawn == 9 or doubt(said, [1.0] * drawn) <= 1 - level
    assert all(doubt(said[:n], [1.0] * n) > 1 - level for n in range(wave, drawn, wave))
    plainly = solve(SelfConsistency(SelfConsistencySettings(samples=drawn)), wild(seed), seed)
    assert plain(solution) == plain(plainly)


@given(seed=strategies.integers(0, 10**6), wave=strategies.integers(1, 12))
@settings(max_examples=30)
def test_adaptive_consistency_that_is_never_sure_is_self_consistency(seed: int, wave: int) -> None:
    """The same samples, answer, confidence and tree."""
    never = AdaptiveConsistency(AdaptiveConsistencySettings(samples=7, level=1.0, wave=wave))
    whole = SelfConsistency(SelfConsistencySettings(samples=7))
    assert plain(solve(never, wild(seed), seed)) == plain(solve(whole, wild(seed), seed))


def test_no_two_answers_alike_or_none_at_all() -> None:
    """Every sample is drawn. Of answers that are all different the first wins; without one there is no confidence."""
    different = {"Q\n": [Scripted(f"The answer is {n}.", eos=True) for n in range(2000)]}
    silent = {"Q\n": ends(("I do not know.", 1))}
    for method in (AdaptiveConsistency(), ESC(), ReASC()):
        engine = Recording(different)
        (solution,) = method.solve([Q], engine)
        assert (len(engine.requests), len(set(answers(engine)))) == (10, 10)
        assert (solution.answer, solution.confidence) == (answers(engine)[0], 0.1)
        engine = Recording(silent)
        (solution,) = method.solve([Q], engine)
        assert (len(engine.requests), solution.answer, solution.confidence) == (10, None, 0.0)


def test_samples_are_shared_with_self_consistency() -> None:
    """What one of them drew no other has to draw again."""
    engine = Recording(TWO)
    memo = MemoEngine(engine)
    SelfConsistency().solve([Q], memo)
    assert len(engine.requests) == 10
    for method in (AdaptiveConsistency(), ESC()):
        method.solve([Q], memo)
    assert len(engine.requests) == 10
    DeepConfOffline(DeepConfOfflineSettings()).solve([Q], memo)
    ReASC().solve([Q], memo)
    assert len(engine.requests) == 20, "ReASC looks at what DeepConf looks at"


# --------------------------------------------------------------------------------------------------------------------- ESC


@given(seed=strategies.integers(0, 10**6), window=strategies.integers(1, 9))
@settings(max_examples=60)
def test_esc_against_its_rule(seed: int, window: int) -> None:
    """It stops after the first window of equal answers, and answers as self-consistency of as many samples does."""
    engine = Recording(wild(seed))
    (solution,) = ESC(ESCSettings(samples=9, window=window)).solve([Q], engine, seed)
    said = answers(engine)
    windows = [said[start : start + window] for start in range(0, len(said), window)]
    agreed = [len(set(one)) == 1 and one[0] is not None for one in windows]
    assert not any(agreed[:-1])
    assert agreed[-1] or len(said) == 9
    plainly = solve(SelfConsistency(SelfConsistencySettings(samples=len(said))), wild(seed), seed)
    assert plain(solution) == plain(plainly)


def test_esc_of_one_window_is_self_consistency() -> None:
    """All samples are drawn at once, whatever they say."""
    for seed in range(10):
        whole = solve(SelfConsistency(SelfConsistencySettings(samples=7)), TWO, seed)
        assert plain(solve(ESC(ESCSettings(samples=7, window=7)), TWO, seed)) == plain(whole)


def test_esc_stops_with_a_window_that_agrees() -> None:
    """A sample without an answer agrees with nobody, nor do several; the majority of all samples answers."""
    engine = Recording(lambda text: ends((FIVE, 1)))
    (solution,) = ESC(ESCSettings(samples=40)).solve([Q], engine)
    assert (len(engine.requests), solution.answer, solution.confidence) == (5, "5", 1.0)
    equal = {"Q\n": ends(("The answer is 0.5.", 1), ("The answer is \\frac{1}{2}.", 1))}
    engine = Recording(equal)
    (solution,) = ESC(ESCSettings(samples=40)).solve([Q], engine)
    assert (len(engine.requests), solution.confidence) == (5, 1.0), "equal values agree"
    outvoted = 0
    for seed in range(300):
        engine = Recording(TWO)
        (solution,) = ESC(ESCSettings(samples=20, window=4)).solve([Q], engine, seed)
        said = answers(engine)
        outvoted += len(said) < 20 and solution.answer != said[-1]
    assert outvoted > 0, "by the windows before"


def test_a_window_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(ValidationError, match="window is 11, more than the 10 samples"):
        ESCSettings(window=11)


# ------------------------------------------------------------------------------------------------------------------- ReASC

SURE, UNSURE, PLENTY = "a\n", "b\n", 20
HALF: Script = {
    "Q\n": [Scripted(SURE, 1), Scripted(UNSURE, 1)],
    f"Q\n{SURE}": ends((FIVE, 1)), f"Q\n{UNSURE}": ends(*[(SIX, 1)] * PLENTY),
}  # fmt: skip
"""A path that is certain of 5, and one with a token that could be any of 20."""
START = -(2 * math.log(0.5) + 18 * math.log(1e-9)) / 20
LOW = math.log(PLENTY)
"""The lowest confidences of a token of the two paths: the first one's, and that of the token that could be any."""


def reasc(**more: Any) -> ReASC:
    return ReASC(ReASCSettings(**{"window": 1, "temperature": 1.0} | more))


def test_reasc_measures_the_lowest_groups() -> None:
    """The mean of the lowest tenth of the groups."""
    engine = Recording(HALF)
    reasc(samples=16, level=1.0).solve([Q], engine)
    found = {c.text[:2]: reasc().measure(c) for c in engine.completions}
    assert found == {SURE: pytest.approx(START, rel=1e-4), UNSURE: pytest.approx(LOW, rel=1e-4)}
    whole = -np.mean(np.asarray(engine.completions[0].top_k_logprob))
    assert reasc(window=500).measure(engine.completions[0]) == pytest.approx(whole, rel=1e-4), "one group"


def test_reasc_answers_with_a_first_sample_that_is_sure() -> None:
    """One that passes the gate answers alone; with another, or one without an answer, sampling goes on."""
    seen = set()
    for seed in range(12):
        engine = Recording(HALF)
        (solution,) = reasc(sure_above=(START + LOW) / 2).solve([Q], engine, seed)
        sure = engine.completions[0].text.startswith(SURE)
        assert (len(engine.requests) == 1) == sure
        if sure:
            assert (solution.answer, solution.confidence) == ("5", 1.0)
        seen.add(sure)
    assert seen == {True, False}
    engine = Recording(lambda text: ends(("I do not know.", 1)))
    (solution,) = reasc(sure_above=0.0).solve([Q], engine)
    assert (len(engine.requests), solution.answer) == (10, None)


def test_reasc_weighs_by_confidence() -> None:
    """A sample a standard deviation over the mean counts e^sharpness; one below it counts 1, as every sample at least."""
    known = {"mean": (START + LOW) / 2, "spread": (START - LOW) / 2, "sharpness": math.log(3)}
    decided = 0
    for seed in range(20):
        engine = Recording(HALF)
        (solution,) = reasc(samples=12, **known).solve([Q], engine, seed)
        weights = [3.0 if c.text.startswith(SURE) else 1.0 for c in engine.completions]
        fives = sum(w for w in weights if w == 3)
        others = sum(w for w in weights if w == 1)
        leading = (fives, others) if fives >= others else (others, fives)
        assert solution.answer == ("5" if fives >= others else "6")
        assert solution.confidence == pytest.approx(leading[0] / sum(weights), rel=1e-3)
        assert len(weights) == 12 or doubt(["5", "6"], leading) <= 0.05 + 1e-3
        decided += weights == [3.0, 3.0]
    assert decided > 0, "two sure samples are worth six: 1/128"


@given(seed=strategies.integers(0, 10**6), level=strategies.floats(0.51, 1), calibrated=strategies.booleans())
@settings(max_examples=60)
def test_reasc_whose_samples_all_count_alike_is_adaptive_consistency(seed: int, level: float, calibrated: bool) -> None:
    """Not calibrated, or without sharpness, behind a gate that none passes."""
    shape: dict[str, Any] = {"samples": 9, "level": level}
    alike = {"mean": 1.0, "spread": 0.1, "sharpness": 0.0, "sure_above": 1e9} if calibrated else {}
    one = solve(ReASC(ReASCSettings(**shape, **alike)), wild(seed), seed)
    other = solve(AdaptiveConsistency(AdaptiveConsistencySettings(**shape)), wild(seed), seed)
    assert plain(one) == plain(other)


@given(
    seed=strategies.integers(0, 10**6), mean=strategies.floats(-5, 20), spread=strategies.floats(0.01, 5),
    above=strategies.none() | strategies.floats(0, 25), wave=strategies.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60)
def test_reasc_against_its_rule(seed: int, mean: float, spread: float, above: float | None, wave: int) -> None:
    """The first sample alone, then waves; what comes out is the vote by weight over what was drawn."""
    shape = ReASCSettings(samples=7, mean=mean, spread=spread, sure_above=above, wave=wave, window=4)
    engine = Recording(wild(seed))
    (solution,) = ReASC(shape).solve([Q], engine, seed)
    said, drawn = answers(engine), engine.completions
    excess = [0.7 * (ReASC(shape).measure(c) - mean) / spread for c in drawn]
    weights = [math.exp(min(max(0.0, x), 100)) for x in excess]
    sure = said[0] is not None and above is not None and ReASC(shape).measure(drawn[0]) >= above
    stops = [*range(1, 7, wave), 7]
    assert len(drawn) in stops
    enough = [n for n in stops if n == 7 or (n == 1 and sure) or (n <= len(drawn) and doubt(said[:n], weights[:n]) <= 0.05)]
    assert len(drawn) == next(n for n in enough if n == 7 or n <= len(drawn))
    counted = tally(said, weights)
    assert (solution.answer, solution.confidence) == (
        (counted[0][0], pytest.approx(counted[0][1] / sum(weights))) if counted else (None, 0.0)
    )
    assert solution.generated_tokens == engine.tokens


def test_gate_by_hand() -> None:
    """The lowest confidence from which on the share is right, and no lower than the mean of the right ones."""
    confidences = [5.0, 1.0, 3.0, 2.0, 4.0]
    right = [True, False, True, False, True]
    assert gate(confidences, right, 0.9) == 4.0, "from 3 on all are right; their mean is 4"
    assert gate([1, 2, 3, 9], [True, True, False, True], 1.0) == 9.0
    assert gate([1, 2, 3], [True, False, False], 0.9) == 1.0, "the largest share that there is: a third, from 1 on"
    assert gate([1, 2], [False, False], 0.9) is None
    assert gate([2, 2], [True, False], 0.9) == 2.0, "of equal ones all pass, or none"


def test_reasc_is_calibrated_on_first_samples() -> None:
    """Mean, spread and gate are those of the questions' first samples; the other settings stay."""
    questions = [Question("Q", "5", id=f"q{n}") for n in range(40)]
    engine = Recording(HALF)
    method = reasc(samples=8).calibrated(questions, engine, lambda question, answer: answer == question.answer)
    measured = [reasc().measure(c) for c in engine.completions]
    assert len(measured) == 40
    assert (method.settings.mean, method.settings.spread) == (np.mean(measured), np.std(measured))
    assert method.settings.sure_above == max(measured) == pytest.approx(START, rel=1e-4), "only the sure path is right"
    assert method.settings.samples == 8
    again = Recording(HALF)
    method.solve(questions[:1], again)
    assert again.requests[0] == engine.requests[0], "the sample that is looked at first"
    certain = reasc().calibrated(questions, ScriptedEngine(lambda text: ends((FIVE, 1))), lambda question, answer: False)
    assert (certain.settings.mean, certain.settings.spread, certain.settings.sure_above) == (None, None, None)
    with pytest.raises(DataError, match="calibrated on no questions"):
        reasc().calibrated([], engine, lambda question, answer: True)


def test_reasc_settings() -> None:
    """Mean and spread go together; an engine that measures nothing is told from one that is sure."""
    for half in ({"mean": 1.0}, {"spread": 1.0}):
        with pytest.raises(ValidationError, match="mean and spread go together"):
            ReASCSettings(**half)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ReASCSettings(mean=1.0, spread=0.0)

    class Silent(ScriptedEngine):
        def play(self, request: Request) -> Completion:
            return replace(super().play(replace(request, top_k=0)), top_k_logprob=None)

    with pytest.raises(EngineError, match="measured no top-k log-probabilities"):
        reasc(sure_above=1.0).solve([Q], Silent(HALF))
