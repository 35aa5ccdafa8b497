"""The earlier CaT on a scripted model: every branch, every vote and every token can be counted by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.confidence import SIGNALS
from caspo.engines.base import Completion, Request
from caspo.records import ROOT, Question, Solution
from caspo.search import ChainOfThought, PaperTree, PaperTreeSettings
from caspo.testing.scripted import Script, Scripted, ScriptedEngine
from tiny import Counting, same_tree

Q = Question("Q", "5", id="q")
GOOD, BAD = "2 + 3 = 5\n", "2 + 3 = 6\n"
FIVE, SIX = "The answer is 5.", "The answer is 6."


def end(answer: int, entropy: float = 0.0) -> list[Scripted]:
    return [Scripted(f"The answer is {answer}.", 1, entropy, eos=True)]


def fork(*options: tuple[str, float, int], entropy: float = 2.0) -> dict[str, list[Scripted]]:
    """First steps with their probabilities, and the answer that each comes to."""
    script = {"Q\n": [Scripted(text, p, entropy) for text, p, _ in options]}
    return script | {f"Q\n{text}": end(answer) for text, _, answer in options}


THREE = fork((BAD, 0.4, 6), (GOOD, 0.35, 5), ("5 = 3 + 2\n", 0.25, 5))
"""The greedy answer is 6, but the most probable one is 5."""


def method(**more: Any) -> PaperTree:
    """Where branches are found and what votes weigh is told from tokens' probabilities, so that they can be counted."""
    signals = {"branch_signal": "entropy_max", "branch_below": 0.6, "prune_signal": "entropy", "rank_signal": "logprob_sum"}
    return PaperTree(PaperTreeSettings(**{**signals, "prune_below": 0.0, "paths": 8, **more}))


def cat(script: Script, questions: Sequence[Question] = (Q,), **more: Any) -> list[Solution]:
    return method(**more).solve(questions, ScriptedEngine(script))


def counted(script: Script, **more: Any) -> tuple[Solution, Counting]:
    engine = Counting(script)
    (solution,) = method(**more).solve([Q], engine)
    assert solution.generated_tokens == engine.tokens["Q"], "all that was decoded is paid for"
    return solution, engine


def starts(engine: Counting) -> list[Request]:
    """The requests that began a path, without those that went on with one."""
    return [r for r in engine.requests if r.rank > 1 or r.step is None]


def decisions(solution: Solution) -> dict[str, str]:
    tree = solution.tree
    return {"".join(n.step.text for n in tree.path(node.id)): node.decision for node in tree.nodes}


def test_a_sure_path_costs_one_child() -> None:
    """A confident path is the greedy chain of thought and nothing else; an unsure step has up to `children`."""
    sure, engine = counted(fork((BAD, 0.4, 6), (GOOD, 0.6, 5), entropy=0.1))
    assert [r.rank for r in engine.requests] == [1]
    (greedy,) = ChainOfThought().solve([Q], ScriptedEngine(fork((BAD, 0.4, 6), (GOOD, 0.6, 5))))
    assert (sure.answer, sure.generated_tokens) == (greedy.answer, greedy.generated_tokens)
    assert [n.step.token_ids for n in sure.tree.nodes] == [n.step.token_ids for n in greedy.tree.nodes]
    for children, ranks in ((1, [1]), (2, [1]), (3, [1, 2, 3]), (9, [1, 2, 3])):  # one of 0.35 could not overtake 0.4
        _, engine = counted(THREE, children=children, width=1)
        assert [r.rank for r in starts(engine)] == ranks
        assert {r.prefix_ids for r in starts(engine)} == {engine.prompt("Q")}


def test_the_most_probable_answer_wins_not_the_most_probable_path() -> None:
    """Paths vote with their probabilities: 0.35 + 0.25 for 5 against 0.4 for 6; confidence knows of the steps too."""
    (solution,) = cat(THREE)
    assert solution.answer == "5"
    assert solution.confidence == pytest.approx(0.6 * math.exp(-2), rel=1e-5)
    assert list(decisions(solution).values()) == ["expanded", "finished"] * 3


def test_no_token_is_decoded_twice() -> None:
    """A branch in the middle of a step starts there: its beginning, and all before it, is taken from the other path."""
    script = {
        "Q\n": [Scripted("So.\n", 1)],
        "Q\nSo.\n": [Scripted("2 + 3 = ", 1)],
        "Q\nSo.\n2 + 3 = ": [Scripted("6\n", 0.4), Scripted("5\n", 0.35), Scripted("10 / 2 = 5\n", 0.25)],
        "Q\nSo.\n2 + 3 = 6\n": end(6),
        "Q\nSo.\n2 + 3 = 5\n": end(5),
        "Q\nSo.\n2 + 3 = 10 / 2 = 5\n": end(5),
    }
    solution, engine = counted(script)
    assert solution.answer == "5"
    assert {r.prefix_ids for r in starts(engine)[1:]} == {engine.prompt("Q\nSo.\n2 + 3 = ")[:-1]}
    texts = ["So.\n2 + 3 = 6\n" + SIX, "5\n" + FIVE, "10 / 2 = 5\n" + FIVE]
    assert solution.generated_tokens == sum(map(len, texts)) + 3
    (so,) = solution.tree.children(ROOT)
    steps = solution.tree.children(so.id)
    assert [n.step.text for n in steps] == ["2 + 3 = 6\n", "2 + 3 = 5\n", "2 + 3 = 10 / 2 = 5\n"]
    for node in steps:
        assert len(node.step.trace) == len(node.step.token_ids)
        assert node.step.trace.entropy[8] == steps[0].step.trace.entropy[8], "the place where they part is the same"


def test_equal_steps_are_one_and_vote_once() -> None:
    """A continuation that differs in white space only is the same step."""
    script = fork((BAD, 0.4, 6), (GOOD, 0.35, 5), ("2 + 3 =  6\n", 0.25, 6))
    solution, _ = counted(script)
    assert [(n.step.text, n.count) for n in solution.tree.children(ROOT)] == [(BAD, 2), (GOOD, 1)]
    assert solution.confidence == pytest.approx(0.4 / 0.75 * math.exp(-2), rel=1e-5)


def test_it_stops_when_the_leader_cannot_be_overtaken() -> None:
    """What open branches may still add is less than the lead: nothing more is decoded."""
    _, engine = counted(fork((GOOD, 0.6, 5), (BAD, 0.4, 6)))
    assert len(engine.requests) == 1, "0.4 at most against 0.6"
    _, engine = counted(fork((GOOD, 0.45, 5), (BAD, 0.3, 6), ("6\n", 0.25, 6)), width=1)
    assert len(starts(engine)) == 3, "0.3 and 0.25 might agree"
    _, engine = counted(fork((GOOD, 0.45, 5), ("5\n", 0.3, 5), ("6\n", 0.25, 6)), width=1)
    assert len(starts(engine)) == 2, "0.25 cannot overtake 0.45 and 0.3"
    _, engine = counted(fork((GOOD, 0.6, 5), (BAD, 0.4, 6)), rank_signal="perplexity")
    assert len(starts(engine)) == 2, "the bound of probabilities holds for no other signal"


def test_what_a_search_that_stops_early_did_not_explore_counts_against_its_answer() -> None:
    """One path of 0.6 is not unanimous: an unexplored 0.4 may say something else, and a full search may find it."""
    early, engine = counted(fork((GOOD, 0.6, 5), (BAD, 0.4, 6)))
    assert len(engine.requests) == 1
    assert early.confidence == pytest.approx(0.6 * math.exp(-2), rel=1e-5)
    some, _ = counted(fork((GOOD, 0.45, 5), ("5\n", 0.3, 5), ("6\n", 0.25, 6)), width=1)
    assert some.confidence == pytest.approx(0.75 * math.exp(-2), rel=1e-5)
    alone, _ = counted(fork((GOOD, 0.6, 5), (BAD, 0.4, 6)), paths=1)
    assert alone.confidence == pytest.approx(math.exp(-2), rel=1e-5), "no other path was to come"
    spent, _ = counted(fork((GOOD, 0.45, 5), (BAD, 0.4, 6)), budget=len(GOOD + FIVE) + 1)
    assert spent.confidence == pytest.approx(0.45 / 0.85 * math.exp(-2), rel=1e-5), "the budget ended it"


def test_a_path_cut_in_its_answer_has_not_finished() -> None:
    """ "The answer is 125." that is cut after 12 states nothing, however sure the model was."""
    text = "The answer is 125."
    for limit in range(1, len(text) + 1):
        solution, _ = counted({"Q\n": [Scripted(text, 1, 0.0, eos=True)]}, max_tokens=limit)
        assert (solution.answer, solution.confidence) == (None, 0.0)
        assert set(decisions(solution).values()) == {"cut"}
    said = text + " Let us look again: 5 * 25 is 125"
    solution, _ = counted({"Q\n": [Scripted(said, 1, 0.0, eos=True)]}, max_tokens=len(said) - 2)
    assert (solution.answer, set(decisions(solution).values())) == ("125", {"finished"}), "what follows cannot change it"


def test_most_probable_branches_first() -> None:
    """Of the open branches the most probable are decoded, at most `paths` in all."""
    script = {
        "Q\n": [Scripted("a\n", 0.5, 2.0), Scripted("b\n", 0.3, 2.0), Scripted("c\n", 0.2, 2.0)],
        "Q\na\n": [Scripted("Answer: 1", 0.5, 2.0, eos=True), Scripted("Answer: 2", 0.5, 2.0, eos=True)],
        "Q\nb\n": end(7),
        "Q\nc\n": end(8),
    }
    for paths, seen in ((1, {"a\nAnswer: 1"}), (2, {"b\n"}), (3, {"b\n", "a\nAnswer: 2"})):
        solution, engine = counted(script, paths=paths, width=1)
        assert len(starts(engine)) == paths
        assert seen <= decisions(solution).keys()


def test_prunes_on_cumulative_confidence() -> None:
    """A path is pruned when the product of its steps' confidence falls below the threshold, not when one step does."""
    script = THREE | {f"Q\n{GOOD}": end(5, 0.7)}  # exp(-2) a first step, exp(-0.7) the answer after GOOD
    for threshold, decision in ((0.05, "finished"), (0.1, "pruned")):
        solution = cat(script, prune_below=threshold)[0]
        assert decisions(solution)[GOOD + FIVE] == decision
        assert solution.answer == ("5" if decision == "finished" else "6"), "a pruned path does not vote"


def test_a_hopeless_path_is_abandoned_in_the_middle_of_a_step() -> None:
    """With a sum, as soon as the threshold is passed; never if the rest of the step could still save it."""
    script = THREE | {f"Q\n{GOOD}": [Scripted(FIVE, 1, 0.5, eos=True)]}
    solution, engine = counted(script, width=1, prune_signal="entropy_sum", prune_below=1e-11)
    assert len(starts(engine)) == 2, "without it, 0.25 cannot overtake 0.4"
    assert decisions(solution)[GOOD + "The answer "] == "pruned"  # 10 tokens of 2 nats, then 11 of 0.5: over 25.3
    assert solution.answer == "6"
    whole = cat(script, prune_signal="entropy_sum", prune_below=1e-13)[0]
    assert decisions(whole)[GOOD + FIVE] == "finished"


@pytest.mark.parametrize("signal", sorted(SIGNALS))
def test_abandoning_is_pruning_early(signal: str) -> None:
    """Whatever the signal: a path that is abandoned would have been pruned at its end, and the answer is the same."""
    script = THREE | {f"Q\n{GOOD}": [Scripted("Well.\n", 1, 1.5)], f"Q\n{GOOD}Well.\n": end(5, 0.9)}
    for exponent in range(1, 60, 2):
        threshold = 0.75**exponent
        early = cat(script, prune_signal=signal, prune_below=threshold)[0]
        late = _never_abandons(script, prune_signal=signal, prune_below=threshold)
        pruned = [{path for path, decision in decisions(s).items() if decision == "pruned"} for s in (early, late)]
        assert early.answer == late.answer
        assert len(pruned[0]) == len(pruned[1])
        assert all(any(full.startswith(part) for full in pruned[1]) for part in pruned[0])


def _never_abandons(script: Script, **more: Any) -> Solution:
    class Deaf(ScriptedEngine):
        def play(self, request: Request) -> Completion:
            return super().play(replace(request, watch=None))

    return method(**more).solve([Q], Deaf(script))[0]


def test_thresholds_of_nothing_and_of_one() -> None:
    """0 prunes nothing; 1 prunes all that is not certain, but the first path, and asks for no others."""
    assert "pruned" not in decisions(cat(THREE, prune_below=0)[0]).values()
    solution, engine = counted(THREE, prune_below=1)
    assert len(engine.requests) == 1
    assert (solution.answer, solution.confidence) == ("6", pytest.approx(math.exp(-2)))
    more = cat(THREE, prune_below=1, min_survivors=2, width=1)[0]
    assert list(decisions(more).values()).count("finished") == 2


def test_a_model_that_is_always_certain() -> None:
    """No entropy, nothing to branch at; a rank score of certainty does not divide by zero, a hopeless one not underflow."""
    (solution,) = cat({"Q\n": [Scripted(FIVE, entropy=0.0, eos=True)]}, branch_below=1, prune_below=1)
    assert (solution.answer, solution.confidence, len(solution.tree.nodes)) == ("5", 1.0, 1)
    (solution,) = cat({"Q\n": [Scripted(FIVE, entropy=1e5, eos=True)]}, rank_signal="entropy_sum")
    assert (solution.answer, solution.confidence) == ("5", pytest.approx(0, abs=1e-99))


def test_a_tie_goes_to_the_greedy_answer() -> None:
    """Two answers with equal votes: the first one, whatever the batch."""
    solution = cat(fork((GOOD, 0.5, 5), (BAD, 0.5, 6)))[0]
    assert (solution.answer, solution.confidence) == ("5", pytest.approx(0.5 * math.exp(-2)))


def test_abstention() -> None:
    """An answer without enough confidence is withheld, and says so; a missing answer is not an abstention."""
    solution = cat(THREE, abstain_below=0.6 * math.exp(-1.9))[0]
    assert (solution.answer, solution.abstained) == (None, True)
    assert solution.confidence == pytest.approx(0.6 * math.exp(-2), rel=1e-5)
    assert cat(THREE, abstain_below=0.6 * math.exp(-2.1))[0].answer == "5"
    nothing = cat({"Q\n": [Scripted("I do not know.", eos=True)]}, abstain_below=0.7)[0]
    assert (nothing.answer, nothing.abstained) == (None, False)


def endless(text: str) -> list[Scripted]:
    n = text.count("\n")
    return [Scripted(f"{n} + 1 = {n + 1}\n", 2, 2.0), Scripted(f"{n} + 2 = {n + 2}\n", 1, 2.0)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 400), st.integers(1, 4), st.integers(1, 4))
def test_limits(limit: int, budget: int, children: int, width: int) -> None:
    """No path over `max_tokens`, no question over its `budget`; a path that got there is cut and does not vote."""
    solution, _ = counted(endless, max_tokens=limit, budget=budget, children=children, width=width, paths=20)
    tree = solution.tree
    assert max(len(tree.prefix_ids(n.id)) - len(tree.prompt_ids) for n in tree.nodes) <= limit
    assert solution.generated_tokens <= budget
    assert set(decisions(solution).values()) <= {"cut", "expanded", "dropped"}
    assert (solution.answer, solution.confidence) == (None, 0.0)


def test_independent_of_the_batch() -> None:
    """A question's tree is the same alone and among others."""

    def script(text: str) -> list[Scripted]:
        if text.count("\n") >= 3:
            return [Scripted(FIVE, 2, 1.0, eos=True), Scripted(SIX, 1, 1.0, eos=True)]
        return [Scripted(f"{text[0]} {i} = {i}\n", 4 - i, 1.0 + ord(text[0]) % 3) for i in range(4)]

    questions = [Question(f"{n}?", "5", id=n) for n in "abcdef"]
    together = cat(script, questions, prune_below=1e-3)
    for question, found in zip(questions, together, strict=True):
        alone = cat(script, [question], prune_below=1e-3)[0]
        assert same_tree(alone.tree, found.tree)
        assert (alone.answer, alone.confidence, alone.generated_tokens) == (
            found.answer, found.confidence, found.generated_tokens,
        )  # fmt: skip


@pytest.mark.parametrize("signal", sorted(SIGNALS))
def test_every_signal_serves_for_every_question(signal: str) -> None:
    """The paper's choice, entropy for everything, is one setting of many."""
    solution = cat(THREE, branch_signal=signal, prune_signal=signal, rank_signal=signal, branch_below=1)[0]
    assert solution.answer in ("5", "6")
    assert len(solution.tree.children(ROOT)) > 1
