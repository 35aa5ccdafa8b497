"""Ways to solve, on a scripted model: every decision and every token can be counted by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from caspo.engines.base import Completion, Request
from caspo.engines.scripted import EOS, Script, Scripted, ScriptedEngine
from caspo.errors import ConfigError, DataError, EngineError
from caspo.search import (
    METHODS,
    ChainOfThought,
    ChainOfThoughtSettings,
    ConfidenceTree,
    ConfidenceTreeSettings,
    SelfConsistency,
    SelfConsistencySettings,
)  # fmt: skip
from caspo.search.vote import vote
from caspo.types import ROOT, Question, Solution
from tiny import same_tree

Q = Question("q", "Q", "5")
GOOD, BAD = "2 + 3 = 5\n", "2 + 3 = 6\n"
FIVE, SIX = "The answer is 5.", "The answer is 6."


def fork(entropy: float, good: float = 0.6, **after: float) -> dict[str, list[Scripted]]:
    """A good and a bad first step, both of the given entropy a token, then their answers."""
    return {
        "Q\n": [Scripted(GOOD, good, entropy), Scripted(BAD, 1 - good, entropy)],
        f"Q\n{GOOD}": [Scripted(FIVE, 1, after.get("five", 0.0), eos=True)],
        f"Q\n{BAD}": [Scripted(SIX, 1, after.get("six", 0.0), eos=True)],
    }


def cat(script: Script, seed: int = 0, questions: Sequence[Question] = (Q,), **more: Any) -> list[Solution]:
    return ConfidenceTree(ConfidenceTreeSettings(**more)).solve(questions, ScriptedEngine(script), seed)


def decisions(solution: Solution) -> dict[str, str]:
    tree = solution.tree
    return {"".join(n.step.text for n in tree.path(node.id)): node.decision for node in tree.nodes}


class Counting(ScriptedEngine):
    """Counts what it decodes for each prompt."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.tokens: dict[str, int] = {}
        self.requests: list[Request] = []

    def _play(self, request: Request) -> Completion:
        completion = super()._play(request)
        self.requests.append(request)
        name = "".join(self.pieces(request.prefix_ids)).partition("\n")[0]
        self.tokens[name] = self.tokens.get(name, 0) + len(completion.token_ids)
        return completion


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


def test_cat_branches_only_when_unsure() -> None:
    """A confident greedy step is taken as it is; an unsure one is sampled `children - 1` times more."""
    for entropy, requests in ((0.1, 2), (2.0, None)):
        engine = Counting(fork(entropy))
        ConfidenceTree(ConfidenceTreeSettings(children=9, prune_below=0)).solve([Q], engine)
        first = [r for r in engine.requests if r.prefix_ids == engine.prompt("Q")]
        assert len(first) == (1 if requests else 9)
        assert [r.temperature for r in first] == [0.0] + [0.8] * (len(first) - 1)
        assert len({r.seed for r in first}) == len(first)


def test_cat_merges_equal_steps() -> None:
    """However often a step is sampled it is one path; all its tokens are paid for, also those of pruned paths."""
    engine = Counting(fork(2.0, five=0.1, six=0.1))
    settings = ConfidenceTreeSettings(children=16, prune_below=0)
    (solution,) = ConfidenceTree(settings).solve([Q], engine, seed=3)
    top = solution.tree.children(ROOT)
    assert [n.step.text for n in top] == [GOOD, BAD]
    assert sum(n.count for n in top) == 16
    assert solution.generated_tokens == engine.tokens["Q"] == 16 * len(GOOD) + len(FIVE) + len(SIX) + 2
    assert set(decisions(solution).values()) == {"expanded", "finished"}


def test_cat_weighs_votes_by_rank() -> None:
    """Finished paths vote by the probability of their steps."""
    (solution,) = cat(fork(2.0, good=0.6), children=16, prune_below=0, seed=3)
    assert solution.answer == "5"
    assert solution.confidence == pytest.approx(0.6)
    (solution,) = cat(fork(2.0, good=0.45), children=16, prune_below=0, seed=3)
    assert solution.answer == "6"
    assert solution.confidence == pytest.approx(0.55)


def test_cat_prunes_on_cumulative_confidence() -> None:
    """A path is pruned when the product of its steps' confidence falls below the threshold, not when one step does."""
    script = fork(0.7, five=0.1, six=0.7)  # exp(-0.7) = 0.50 a step; together 0.45 and 0.25
    (solution,) = cat(script, children=16, prune_below=0.3)
    assert decisions(solution) == {
        GOOD: "expanded", BAD: "expanded", GOOD + FIVE: "finished", BAD + SIX: "pruned",
    }  # fmt: skip
    assert (solution.answer, solution.confidence) == ("5", 1.0), "a pruned path does not vote"
    (solution,) = cat(script, children=16, prune_below=0.2)
    assert decisions(solution)[BAD + SIX] == "finished"


def test_cat_keeps_at_least_one() -> None:
    """Where all paths are below the threshold the best-ranked goes on."""
    (solution,) = cat(fork(3.0, five=3.0, six=3.0), children=16, prune_below=0.9)
    assert decisions(solution) == {GOOD: "expanded", BAD: "pruned", GOOD + FIVE: "finished"}
    assert solution.answer == "5"


def test_cat_keeps_to_its_width() -> None:
    """Of many continuations the most probable go on."""
    options = [Scripted(f"2 + {i} = {2 + i}\n", 10 - i, 2.0) for i in range(5)]

    def script(text: str) -> list[Scripted]:
        return options if text == "Q\n" else [Scripted(FIVE, eos=True)]

    (solution,) = cat(script, children=40, prune_below=0, width=2)
    first = {n.step.text: n.decision for n in solution.tree.children(ROOT)}
    assert list(first.values()).count("expanded") == 2
    assert [first[o.text] for o in options] == ["expanded"] * 2 + ["dropped"] * 3


def test_cat_that_never_branches_is_chain_of_thought() -> None:
    """The same steps, tokens and answer as the greedy chain."""
    (greedy,) = ChainOfThought().solve([Q], ScriptedEngine(fork(2.0)))
    (solution,) = cat(fork(2.0), branch_below=0, prune_below=0)
    assert [n.step.token_ids for n in solution.tree.nodes] == [n.step.token_ids for n in greedy.tree.nodes]
    assert (solution.answer, solution.generated_tokens) == (greedy.answer, greedy.generated_tokens)
    (solution,) = cat(fork(2.0), children=1, prune_below=0)
    assert solution.generated_tokens == greedy.generated_tokens


def test_cat_on_certain_paths_costs_nothing_more() -> None:
    """A rank score of certainty does not divide by zero, a hopeless one does not underflow."""
    (solution,) = cat({"Q\n": [Scripted(FIVE, entropy=0.0, eos=True)]})
    assert (solution.answer, solution.confidence) == ("5", 1.0)
    (solution,) = cat({"Q\n": [Scripted(FIVE, entropy=1e5, eos=True)]}, rank_signal="entropy_sum")
    assert (solution.answer, solution.confidence) == ("5", 1.0)


def endless(text: str) -> list[Scripted]:
    n = text.count("\n")
    return [Scripted(f"{n} + 1 = {n + 1}\n", 2, 2.0), Scripted(f"{n} + 2 = {n + 2}\n", 1, 2.0)]


@pytest.mark.parametrize("limit", [1, 7, 30, 100])
def test_paths_keep_to_their_budget(limit: int) -> None:
    """No path is longer than `max_tokens`; a path that got there is cut and does not vote."""
    (solution,) = cat(endless, max_tokens=limit, prune_below=0)
    tree = solution.tree
    lengths = [len(tree.prefix_ids(n.id)) - len(tree.prompt_ids) for n in tree.nodes]
    assert max(lengths) == limit
    assert "cut" in decisions(solution).values()
    assert (solution.answer, solution.confidence) == (None, 0.0)


def test_a_step_over_its_limit_ends_its_path() -> None:
    """A step without a line break in sight is cut; one that ends exactly at the limit is whole."""
    script = {"Q\n": [Scripted(GOOD)], f"Q\n{GOOD}": [Scripted("x" * 50 + "\n")]}
    (solution,) = cat(script, max_step_tokens=len(GOOD))
    assert list(decisions(solution).values()) == ["expanded", "cut"]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_independent_and_deterministic(name: str) -> None:
    """A question's solution depends on itself and the seed, not on the other questions; progress adds up."""

    def script(text: str) -> list[Scripted]:
        if text.count("\n") >= 3:
            return [Scripted(FIVE, 2, 1.0, eos=True), Scripted(SIX, 1, 1.0, eos=True)]
        return [Scripted(f"{text[0]} {i} = {i}\n", 4 - i, 1.0) for i in range(4)]

    questions = [Question(n, f"{n}?", "5") for n in "abc"]
    method = METHODS[name]()
    done: list[int] = []
    together = method.solve(questions, ScriptedEngine(script), 1, done.append)
    assert sum(done) == len(questions) * (10 if name == "self_consistency" else 1)
    assert [s.question_id for s in together] == ["a", "b", "c"]
    alone = method.solve(questions[1:2], ScriptedEngine(script), 1)[0]
    assert same_tree(alone.tree, together[1].tree)
    assert (alone.answer, alone.confidence, alone.generated_tokens) == (
        together[1].answer, together[1].confidence, together[1].generated_tokens,
    )  # fmt: skip
    if name != "chain_of_thought":
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
        ChainOfThought().solve([Question("e", " ", "1")], ScriptedEngine({}))
