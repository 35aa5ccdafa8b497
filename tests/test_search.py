"""Ways to solve, on a scripted model: every decision and every token can be counted by hand."""

from __future__ import annotations

import math

import pytest

from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.engines.base import Request
from caspo.records import Question
from caspo.search import (
    METHODS,
    ChainOfThought,
    ChainOfThoughtSettings,
    SelfConsistency,
    SelfConsistencySettings,
)  # fmt: skip
from caspo.search.vote import vote
from caspo.testing.scripted import EOS, Scripted, ScriptedEngine
from tiny import Counting, same_tree

Q = Question("Q", "5", id="q")
GOOD, BAD = "2 + 3 = 5\n", "2 + 3 = 6\n"
FIVE, SIX = "The answer is 5.", "The answer is 6."


def fork(entropy: float, good: float = 0.6, **after: float) -> dict[str, list[Scripted]]:
    """A good and a bad first step, both of the given entropy a token, then their answers."""
    return {
        "Q\n": [Scripted(GOOD, good, entropy), Scripted(BAD, 1 - good, entropy)],
        f"Q\n{GOOD}": [Scripted(FIVE, 1, after.get("five", 0.0), eos=True)],
        f"Q\n{BAD}": [Scripted(SIX, 1, after.get("six", 0.0), eos=True)],
    }


def test_chain_of_thought() -> None:
    """The most probable solution, cut into steps, and what it cost."""
    (solution,) = ChainOfThought().solve([Q], ScriptedEngine(fork(0.1)))
    assert (solution.answer, solution.confidence, solution.abstained) == ("5", 1.0, False)
    assert [n.step.text for n in solution.tree.nodes] == [GOOD, FIVE]
    assert [n.final for n in solution.tree.nodes] == [False, True]
    assert solution.generated_tokens == len(GOOD + FIVE) + 1
    assert solution.tree.prefix_ids(1)[-1] == EOS


def test_chain_of_thought_without_an_answer() -> None:
    """Nothing extracted, or cut at the limit: no answer, no confidence."""
    (solution,) = ChainOfThought().solve([Q], ScriptedEngine({"Q\n": [Scripted("I do not know.", eos=True)]}))
    assert (solution.answer, solution.confidence) == (None, 0.0)
    (solution,) = ChainOfThought(ChainOfThoughtSettings(max_tokens=12)).solve([Q], ScriptedEngine(fork(0.1)))
    assert (solution.answer, solution.generated_tokens) == (None, 12)
    assert not any(n.final for n in solution.tree.nodes)


def test_self_consistency_votes_by_value() -> None:
    """1/2 and 0.5 are one answer; its share of all samples is the confidence; every sample is paid for."""
    texts = [("The answer is 1/2.", 3), ("The answer is 0.5.", 3), ("The answer is 3.", 3), ("Hm.", 1)]
    script = {"Q\n": [Scripted(text, weight, eos=True) for text, weight in texts]}
    engine = Counting(script)
    method = SelfConsistency(SelfConsistencySettings(samples=40, temperature=1.0))
    (solution,) = method.solve([Q], engine, seed=1)
    counts = {n.step.text: n.count for n in solution.tree.nodes}
    half = counts["The answer is 1/2."] + counts["The answer is 0.5."]
    assert sum(counts.values()) == 40
    assert half > counts["The answer is 3."]
    assert solution.answer in ("1/2", "0.5")
    assert solution.confidence == pytest.approx(half / 40)
    assert solution.generated_tokens == engine.tokens["Q"]
    assert len({r.seed for r in engine.requests}) == 40


def test_vote() -> None:
    """Weights add up by value, ties go to the first, paths without an answer count in the share only."""
    assert vote(["1,000", "1000", "7"], [1, 1, 1.5]) == ("1,000", pytest.approx(2 / 3.5))
    assert vote(["7", "8"], [1, 1]) == ("7", 0.5)
    assert vote([None, "8", None], [3, 1, 0]) == ("8", 0.25)
    assert vote([None], [1]) == (None, 0.0)
    assert vote([], []) == (None, 0.0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_independent_and_deterministic(name: str) -> None:
    """A question's solution depends on itself and the seed, not on the other questions; progress adds up."""

    def script(text: str) -> list[Scripted]:
        if text.count("\n") >= 3:
            return [Scripted(FIVE, 2, 1.0, eos=True), Scripted(SIX, 1, 1.0, eos=True)]
        return [Scripted(f"{text[0]} {i} = {i}\n", 4 - i, 1.0) for i in range(4)]

    questions = [Question(f"{n}?", "5", id=n) for n in "abc"]
    method = METHODS[name]()
    done: list[int] = []
    together = method.solve(questions, ScriptedEngine(script), 1, done.append)
    assert sum(done) == len(questions)
    assert [s.question_id for s in together] == ["a", "b", "c"]
    alone = method.solve(questions[1:2], ScriptedEngine(script), 1)[0]
    assert same_tree(alone.tree, together[1].tree)
    assert (alone.answer, alone.confidence, alone.generated_tokens) == (
        together[1].answer, together[1].confidence, together[1].generated_tokens,
    )  # fmt: skip
    if name not in ("chain_of_thought", "cat_paper", "dipt"):  # greedy
        others = method.solve(questions, ScriptedEngine(script), 2)
        assert not all(same_tree(a.tree, b.tree) for a, b in zip(together, others, strict=True))
    assert method.solve([], ScriptedEngine(script)) == []


def test_scripted_traces() -> None:
    """The scripted engine's numbers agree with its script, and what it takes with the request."""
    engine = ScriptedEngine(fork(2.0) | {"R\n": [Scripted("ab", 3), Scripted("cd", 1, eos=True)]})
    (good,) = engine.generate([Request(engine.prompt("Q"), 0, temperature=0, stop=("\n",))])
    assert (good.text, good.finish) == (GOOD, "stop")
    assert good.trace.entropy.tolist() == [2.0] * len(GOOD)
    assert good.trace.logprob.sum() == pytest.approx(math.log(0.6))
    (cut,) = engine.generate([Request(engine.prompt("R"), 0, 1, temperature=0)])
    assert (cut.text, cut.finish, len(cut.trace)) == ("a", "length", 1)
    assert cut.trace.entropy[0] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert cut.trace.margin[0] == pytest.approx(0.5)
    drawn = [c.text for c in engine.generate([Request(engine.prompt("R"), s, 2) for s in range(400)])]
    assert 0.68 < drawn.count("ab") / 400 < 0.82
    nucleus = engine.generate([Request(engine.prompt("R"), s, 2, top_p=0.7) for s in range(50)])
    assert {c.text for c in nucleus} == {"ab"}


def test_scripts_with_mistakes() -> None:
    """A text without an entry, an entry that cannot be played, an empty question."""
    with pytest.raises(EngineError, match="no continuation for the text"):
        ChainOfThought().solve([Q], ScriptedEngine({}))
    for option in (Scripted(""), Scripted("a", 0), Scripted("ab", 1, [0.1])):
        with pytest.raises(ConfigError):
            ChainOfThought().solve([Q], ScriptedEngine({"Q\n": [option]}))
    with pytest.raises(DataError, match="question is empty"):
        ChainOfThought().solve([Question(" ", "1", id="e")], ScriptedEngine({}))
