"""Steps while they are decoded: a request ends with its step, trees are cut as their whole texts are, turns end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.data.annotate import AnnotateSettings, annotate
from caspo.engines.base import Completion, Request
from caspo.judges.base import Chain
from caspo.records import ROOT, Question, Tree, Verdict
from caspo.search import METHODS
from caspo.steps import Reading, split_steps
from caspo.testing.scripted import Scripted, ScriptedEngine
from caspo.trees import TreeBuilder
from recording import Q, prose

RULES = ["reasoning", "line", "paragraph", "sentence", "delimiter:;"]


def cut_as_a_whole(tree: Tree, rule: str) -> None:
    """Every path of the tree has the steps of its whole text."""
    inner = {node.parent for node in tree.nodes}
    for leaf in tree.nodes:
        if leaf.id not in inner:
            steps = [node.step.text for node in tree.path(leaf.id)]
            assert steps == (split_steps("".join(steps), rule) or steps)


class Everything:
    """Calls every step right, so that trees grow."""

    name, instant = "everything", True

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        return [[Verdict("right")] * (len(chain.steps) - chain.given) for chain in chains]


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES))
def test_trees_have_the_steps_of_their_texts(name: str, seed: int, rule: str) -> None:
    """Whole samples, step by step, or branches in the middle of a step: the same steps as the finished text's."""
    engine = ScriptedEngine(prose(seed), reading=Reading(rule))
    kind = METHODS[name]
    more: dict[str, Any] = {"max_tokens": 200}
    if name == "cat":
        more |= {"level": 1.0, "paths": 6}
    if name == "cat_paper":
        more |= {"paths": 6, "branch_signal": "entropy_max", "branch_below": 0.9, "prune_below": 0.0}
    (solution,) = kind(kind.settings_type(**more)).solve([Q], engine, seed)
    assert solution.tree.steps == rule
    cut_as_a_whole(solution.tree, rule)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), rule=st.sampled_from(RULES))
def test_annotated_trees_have_the_steps_of_their_texts(seed: int, rule: str) -> None:
    """What does not begin a new step after the prefix is no continuation of it."""
    engine = ScriptedEngine(prose(seed), reading=Reading(rule))
    (tree,) = annotate([Q], engine, Everything(), AnnotateSettings(samples=4, max_depth=6), seed)
    cut_as_a_whole(tree, rule)
    for node in tree.nodes:
        assert node.step.token_ids


def one(engine: ScriptedEngine, done: str = "", **more: Any) -> Completion:
    tree = TreeBuilder(Q, engine.prompt("Q"), engine)
    node = tree.add_solution(engine.encode(done), _trace(len(done)), final=False) if done else ROOT
    (found,) = engine.generate([Request(tree.prefix_ids(node), 0, temperature=0.0, step=tree.reader(node), **more)])
    return found


def _trace(n: int) -> Any:
    from tiny import trace

    return trace(n)


def test_a_request_ends_with_its_step() -> None:
    """Its tokens are the step's; what told that it had ended is ahead, and was paid for."""
    engine = ScriptedEngine({"Q\n": [Scripted("The sum is:\n\n3 + 4 = 7\n\nSo it is 7.", eos=True)]})
    found = one(engine)
    assert (found.text, found.finish) == ("The sum is:\n\n3 + 4 = 7\n\n", "stop")
    assert "".join(map(chr, found.ahead)) == "So", "a single letter may begin an item"
    assert found.decoded == len(found.token_ids) + 2 == len(found.trace) + len(found.ahead_trace)
    last = one(engine, done=found.text)
    assert (last.text, last.finish, last.ahead) == ("So it is 7.", "eos", ())
    short = one(engine, max_new_tokens=5)
    assert (short.text, short.finish, short.ahead) == ("The s", "length", ())


def test_an_invented_question_ends_the_turn() -> None:
    """A base model that goes on with another question has ended its solution; that question's answer is not its own."""

    def ending(text: str) -> ScriptedEngine:
        return ScriptedEngine({"Q\n": [Scripted(text, eos=True)]}, reading=Reading(turn="Question:"))

    said = "3 + 4 = 7\nThe answer is 7.\n\n"
    engine = ending(f"{said}Question: What is 1 + 1?\nAnswer:\nThe answer is 2.")
    (whole,) = engine.generate([Request(engine.prompt("Q"), 0)])
    assert (whole.text, whole.finish, "".join(map(chr, whole.ahead))) == (said, "eos", "Question:")
    for name in ("chain_of_thought", "cat", "beam"):
        solution = METHODS[name]().solve([Q], engine)[0]
        assert solution.answer == "7", name
        assert max(solution.tree.nodes, key=lambda node: node.depth).step.text == "The answer is 7.\n\n"
    stepwise = one(engine, done="3 + 4 = 7\n")
    assert (stepwise.text, stepwise.finish) == ("The answer is 7.\n\n", "eos")
    at_once = one(engine, done=said)
    assert (at_once.token_ids, at_once.finish) == ((), "eos")
    quick = ending("Quickly: 7.\nQuestions follow.")
    assert one(quick).text == "Quickly: 7.\n", "other words that begin so are not taken for it"
    assert METHODS["chain_of_thought"]().solve([Q], ending("Question: no"))[0].answer is None


def test_a_turn_that_ends_at_once_is_no_step() -> None:
    """One sample of a step ends with it, another one is followed by an invented question: nothing stands after the step."""
    script = {
        "Q\n": [Scripted("Tom has 3.\n\n")],
        "Q\nTom has 3.\n\n": [Scripted("Question: No?\n", eos=True), Scripted("The answer is 7.", eos=True)],
    }
    for seed in range(4):
        engine = ScriptedEngine(script, reading=Reading(turn="Question:"))
        solution = METHODS["beam"]().solve([Q], engine, seed)[0]
        (tree,) = annotate([Q], engine, Everything(), AnnotateSettings(samples=4), seed)
        assert solution.answer == "7"
        assert {n.step.text for n in (*solution.tree.nodes, *tree.nodes)} <= {"Tom has 3.\n\n", "The answer is 7."}


@pytest.mark.parametrize("end", ["42", "A", "7."])
def test_a_short_last_line_is_a_step_of_its_own(end: str) -> None:
    """It may have become a list's item until the solution ended: then one request has decoded two steps."""
    engine = ScriptedEngine({"Q\n": [Scripted(f"Tom has 3.\n\n{end}", eos=True)]})
    trees = [METHODS[name]().solve([Q], engine)[0].tree for name in ("chain_of_thought", "cat", "beam")]
    trees += annotate([Q], engine, Everything(), AnnotateSettings(samples=2), 0)
    for tree in trees:
        assert [(n.step.text, n.final) for n in tree.nodes] == [("Tom has 3.\n\n", False), (end, True)]


@pytest.mark.parametrize("name", METHODS)
def test_another_turn_at_once_is_no_solution(name: str) -> None:
    """A continuation without a single token of its own states nothing, and whatever looks at its confidence can take it."""
    engine = ScriptedEngine(lambda text: [Scripted("Question: no", eos=True)], reading=Reading(turn="Question:"))
    kind = METHODS[name]
    more = {"mean": 1.0, "spread": 1.0, "sure_above": 0.0} if name == "reasc" else {}
    solution = kind(kind.settings_type(**more)).solve([Q], engine)[0]
    assert (solution.answer, solution.confidence, solution.tree.nodes) == (None, 0.0, ())
    assert solution.generated_tokens > 0


@pytest.mark.parametrize("name", ["best_of_n", "deepconf_offline"])
def test_a_path_without_tokens_changes_no_other(name: str) -> None:
    """What is decided of it is not noted at another path's node."""
    options = [Scripted("Question: no", eos=True), Scripted("The answer is 7.", eos=True)]
    engine = ScriptedEngine(lambda text: options, reading=Reading(turn="Question:"))
    solution = METHODS[name]().solve([Q], engine)[0]
    assert (solution.answer, None in solution.answers) == ("7", True)
    assert [node.decision for node in solution.tree.nodes] == ["finished"]


def test_an_answer_is_the_same_by_whole_samples_and_step_by_step() -> None:
    """Thinking that only closes, and one that opens again: both are read from the text."""
    for text, answer in {
        "The answer is 3.\n\n</think>Well, the answer is 4.": "4", "The answer is 3.\n\n</think>Well.": None,
        "The answer is 4.\n\n<think>Or is the answer 5": "4",
    }.items():  # fmt: skip
        engine = ScriptedEngine({"Q\n": [Scripted(text, eos=True)]})
        for name in ("chain_of_thought", "cat", "beam"):
            assert METHODS[name]().solve([Q], engine)[0].answer == answer, (name, text)


def test_thinking_and_answer_have_limits_of_their_own() -> None:
    """Neither takes from the other; a path whose thinking is cut answers nothing."""
    thought = "<think>" + "Is it 7? Yes.\n\n" * 3 + "</think>"
    engine = ScriptedEngine({"Q\n": [Scripted(f"{thought}The answer is 7.", eos=True)]})
    for name in ("chain_of_thought", "cat", "self_consistency", "beam"):
        kind = METHODS[name]

        def solved(kind: Any = kind, **more: int) -> Any:
            return kind(kind.settings_type(**more)).solve([Q], engine)[0]

        whole = solved(max_tokens=30, max_thinking_tokens=60)
        assert whole.answer == "7", name
        assert [n.step.thinking for n in whole.tree.path(max(n.id for n in whole.tree.nodes))] == [True, True, True, False]
        assert solved(max_tokens=30, max_thinking_tokens=54).answer == "7", "from where the mark that opens ends"
        assert solved(max_tokens=30, max_thinking_tokens=53).answer is None, name
        assert solved(max_tokens=5, max_thinking_tokens=100).answer is None, name
        assert solved(max_tokens=100).answer == "7", "one limit for both"


def test_a_question_is_answered_after_its_thinking_only() -> None:
    """An answer that was considered is none."""
    engine = ScriptedEngine({"Q\n": [Scripted("<think>The answer is 3.</think>Well, the answer is 4.", eos=True)]})
    assert METHODS["self_consistency"]().solve([Question("Q", "4")], engine)[0].answer == "4"
    open_end = ScriptedEngine({"Q\n": [Scripted("<think>The answer is 3.\n\nHm.", eos=True)]})
    for name in ("chain_of_thought", "cat", "beam"):
        assert METHODS[name]().solve([Q], open_end)[0].answer is None, name
