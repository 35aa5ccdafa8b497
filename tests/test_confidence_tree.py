"""CaT on a scripted model: when it stops, where paths begin, what they cost, and what is believed of them."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from caspo.answers import extract_answer
from caspo.engines.memo import MemoEngine
from caspo.records import ROOT, Question
from caspo.search import ChainOfThought, ConfidenceTree, ConfidenceTreeSettings, SelfConsistency, SelfConsistencySettings
from caspo.search.evidence import EvidenceModel
from caspo.search.threshold import choose_pruning
from caspo.testing.scripted import Script, Scripted, ScriptedEngine
from recording import FIVE, SEVEN, SIX, Q, Recording, decisions, ends, plain, prose, solve, wild

EVEN = EvidenceModel(bias=0.0, slopes={}, common={}, spread=1.3, scatter=3.0)
"""All paths are believed alike."""


def cat(**more: Any) -> ConfidenceTree:
    return ConfidenceTree(ConfidenceTreeSettings(**{"temperature": 1.0, "branches": True, **more}))


def searched(script: Script, seed: int = 0, **more: Any) -> tuple[Any, Recording]:
    engine = Recording(script)
    (solution,) = cat(**more).solve([Q], engine, seed)
    assert solution.generated_tokens == engine.tokens, "all that was decoded is paid for"
    return solution, engine


def heads(engine: Recording) -> list[int]:
    """Tokens that each path shares with those before it."""
    return [len(request.prefix_ids) - len(engine.prompt("Q")) for request in engine.requests]


TWO: Script = {"Q\n": ends((FIVE, 2), (SIX, 1))}


def test_the_first_path_is_the_chain_of_thought_and_level_0_is_nothing_else() -> None:
    solution, engine = searched(wild(3), level=0.0)
    (greedy,) = ChainOfThought().solve([Q], ScriptedEngine(wild(3)))
    assert len(engine.requests) == 1
    assert (solution.answer, solution.generated_tokens) == (greedy.answer, greedy.generated_tokens)
    assert [n.step.token_ids for n in solution.tree.nodes] == [n.step.token_ids for n in greedy.tree.nodes]


def test_level_1_without_branches_is_self_consistency_and_the_greedy_path() -> None:
    """The same samples, from the same requests: what the one has decoded the other need not."""
    _, engine = searched(TWO, level=1.0, branches=False, paths=9, evidence=EVEN)
    samples = Recording(TWO)
    SelfConsistency(SelfConsistencySettings(samples=8, temperature=1.0)).solve([Q], samples)
    assert [replace(request, keep=False) for request in engine.requests[1:]] == samples.requests
    assert [c.text for c in engine.completions[1:]] == [c.text for c in samples.completions]


def test_it_stops_when_it_is_sure_and_goes_on_while_it_is_not() -> None:
    """One certain path is enough; paths that contradict each other have others drawn, up to the limit."""
    told = EvidenceModel(bias=2, slopes={"entropy": 1.0}, common={}, spread=1.3)
    sure, engine = searched({"Q\n": ends((FIVE, 1), entropy=0.0)}, level=0.7, evidence=told)
    assert (len(engine.requests), sure.answer) == (1, "5")
    _, unsure = searched({"Q\n": ends((FIVE, 1), (SIX, 1))}, level=0.999, paths=7, evidence=EVEN)
    assert len(unsure.requests) == 7
    counts = [
        len(searched(TWO, seed, level=level, paths=30, evidence=EVEN)[1].requests)
        for level in (0.5, 0.9, 0.99) for seed in range(4)
    ]  # fmt: skip
    assert counts[:4] < counts[4:8] < counts[8:]


def test_sure_paths_count_more_and_many_that_agree_count_most() -> None:
    """The greedy path says 6 and is unsure: one that is sure of 5 wins against it."""
    sure_five = {"Q\n": [Scripted(SIX, 2, 1.5, eos=True), Scripted(FIVE, 1, 0.0, eos=True)]}
    model = EvidenceModel(bias=1.0, slopes={"entropy": 2.0})
    seen = set()
    for seed in range(30):
        solution, engine = searched(sure_five, seed, level=1.0, paths=4, branches=False, evidence=model)
        said = [extract_answer(c.text) for c in engine.completions]
        seen.add((said.count("5"), solution.answer))
    assert {(1, "5"), (2, "5"), (3, "5")} >= {pair for pair in seen if pair[0]}
    assert (0, "6") in seen or all(pair[0] for pair in seen)


def test_a_tie_goes_to_the_answer_that_came_first() -> None:
    solution, _ = searched({"Q\n": ends((FIVE, 1.001), (SIX, 1))}, 3, level=1.0, paths=2, branches=False, evidence=EVEN)
    assert solution.answer == "5"


@pytest.mark.parametrize("text", ["I do not know.", ""])
def test_no_path_states_an_answer(text: str) -> None:
    """A model that says nothing, or nothing that is an answer: none is given, with confidence 0."""
    solution, engine = searched({"Q\n": [Scripted(text, eos=True)]}, paths=3)
    assert (solution.answer, solution.confidence, len(engine.requests)) == (None, 0.0, 3)


def test_all_answers_differ() -> None:
    """One of them is given, with little confidence, after all paths that there may be."""

    def script(text: str) -> list[Scripted]:
        return [Scripted(f"The answer is {i}.", 1, eos=True) for i in range(500)]

    solution, engine = searched(script, level=0.9, paths=6, evidence=EVEN)
    assert len(engine.requests) == 6
    assert len({c.text for c in engine.completions}) == 6
    assert solution.confidence < 0.2


def late(text: str) -> list[Scripted]:
    """Three lines without a doubt, then a choice."""
    lines = text.count("\n")
    if lines < 4:
        return [Scripted(f"{lines} + {lines} = {2 * lines}\n", 1, 0.0)]
    return ends((FIVE, 1), (SIX, 1))


def early(text: str) -> list[Scripted]:
    """A choice at once, then three lines without a doubt."""
    lines = text.count("\n")
    if lines == 1:
        return [Scripted("2 + 2 = 4\n", 1), Scripted("2 + 3 = 5\n", 1)]
    return [Scripted(f"{lines} = {lines}\n", 1, 0.0)] if lines < 4 else ends((FIVE if "4" in text[:12] else SIX, 1))


def test_paths_begin_where_the_doubt_is() -> None:
    """Where all of it lies at the end, paths share what stands before and no token of it is decoded again; where it lies at
    the beginning, or branches are not wanted, each path has a beginning of its own."""
    solution, engine = searched(late, level=1.0, paths=4)
    first = len(engine.completions[0].token_ids)
    before = first - len(FIVE) - 1
    assert heads(engine) == [0, before, before, before]
    assert solution.generated_tokens == first + 3 * (first - before)
    assert heads(searched(early, level=1.0, paths=4)[1]) == [0] * 4
    assert heads(searched(late, level=1.0, paths=4, branches=False)[1]) == [0] * 4


def test_paths_that_share_their_doubtless_beginning_are_no_independent_witnesses() -> None:
    """Three continuations of one beginning are believed as one path of that vote; three beginnings more."""
    one = {"Q\n": [Scripted("2 + 3 = 5\n", 1, 0.0)], "Q\n2 + 3 = 5\n": ends((FIVE, 1), entropy=1.0)}
    alone, _ = searched(one, level=0.0, evidence=EVEN)
    shared, engine = searched(one, level=1.0, paths=3, evidence=EVEN)
    assert heads(engine)[1:] == [len("2 + 3 = 5\n")] * 2
    apart, _ = searched(one, level=1.0, paths=3, branches=False, evidence=EVEN)
    assert shared.confidence == pytest.approx(alone.confidence)
    assert apart.confidence > shared.confidence


def test_a_path_is_ended_with_its_first_step_that_is_too_unsure() -> None:
    """Once another path has finished, and no earlier; it has no vote, and the tree says so."""
    bad = "2 + 3 = 6\n"
    script = {
        "Q\n": [Scripted("2 + 3 = 5\n", 3, 0.1), Scripted(bad, 2, 2.0)],
        "Q\n2 + 3 = 5\n": ends((FIVE, 1), entropy=0.1),
        f"Q\n{bad}": ends((SIX, 1), entropy=0.1),
    }
    free, _ = searched(script, 1, level=1.0, paths=6, branches=False, prune_false=False)
    kept, engine = searched(script, 1, level=1.0, paths=6, branches=False, prune_below=math.exp(-1.5), prune_false=False)
    assert decisions(free)[bad + SIX] == "finished"
    assert "pruned" in decisions(kept).values()
    assert bad + SIX not in decisions(kept)
    assert kept.generated_tokens < free.generated_tokens
    assert any(c.finish == "abandoned" for c in engine.completions)
    late, _ = searched(script, 1, level=1.0, paths=6, branches=False, prune_below=math.exp(-1.5), min_survivors=6)
    assert plain(late) == plain(free)
    false, engine = searched(script, 1, level=1.0, paths=6, branches=False)
    assert decisions(false) == decisions(kept), "2 + 3 = 6 is false, however sure of it the model is"


def test_abstention() -> None:
    answered, _ = searched(TWO, evidence=EVEN, level=0.0)
    for below, answer in ((answered.confidence - 1e-9, "5"), (answered.confidence + 1e-9, None)):
        solution, _ = searched(TWO, evidence=EVEN, level=0.0, abstain_below=below)
        assert (solution.answer, solution.abstained) == (answer, answer is None)
        assert solution.confidence == answered.confidence


def test_a_budget_that_is_smaller_than_a_path() -> None:
    """The path is cut; what it has not said is no answer."""
    solution, engine = searched(TWO, budget=4)
    assert (solution.answer, solution.confidence, solution.generated_tokens) == (None, 0.0, 4)
    assert len(engine.requests) == 1
    assert [node.decision for node in solution.tree.nodes] == ["cut"]


@given(
    seed=strategies.integers(0, 10**6), paths=strategies.integers(1, 9),
    level=strategies.sampled_from([0.0, 0.6, 0.9, 1.0]), branches=strategies.booleans(),
    budget=strategies.none() | strategies.integers(1, 400), below=strategies.sampled_from([0.0, 0.4, 1.0]),
    stories=strategies.booleans(),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_limits_hold_and_every_path_is_paid_for_once(
    seed: int, paths: int, level: float, branches: bool, budget: int | None, below: float, stories: bool
) -> None:
    """No more paths or tokens than asked for, no request twice, and the same again from what was kept."""
    script = prose(seed) if stories else wild(seed)
    more = {"paths": paths, "level": level, "branches": branches, "budget": budget, "prune_below": below}
    solution, engine = searched(script, seed, **more, max_tokens=150)
    assert 1 <= len(engine.requests) <= paths
    assert solution.generated_tokens <= (budget or 150 * paths)
    assert len({(r.prefix_ids, r.seed, r.temperature) for r in engine.requests}) == len(engine.requests)
    assert 0 <= solution.confidence <= 1
    assert (solution.answer is None) == (solution.confidence == 0)
    for parent in {node.parent for node in solution.tree.nodes}:
        texts = [node.step.text for node in solution.tree.children(parent) if not node.final]
        assert len(texts) == len(set(texts))
    method = cat(**more, max_tokens=150)
    memo = MemoEngine(ScriptedEngine(script))
    for _ in range(2):
        assert plain(method.solve([Q], memo, seed)[0]) == plain(solution)


def test_independent_of_the_batch() -> None:
    """Whatever else is searched, and in whatever order rows end."""
    questions = [Question(f"Q{i}", id=f"q{i}") for i in range(6)]
    method = cat(paths=5, level=0.9)
    together = method.solve(questions, Recording(wild(5), order=1), 2)
    for question, solution in zip(questions, together, strict=True):
        assert plain(method.solve([question], ScriptedEngine(wild(5)), 2)[0]) == plain(solution)


def test_nothing_is_told_before_the_end_that_may_still_change() -> None:
    step = solve(cat(level=0.0), TWO).tree.children(ROOT)[0].step
    assert not cat().settles(step)
    assert cat(paths=1).settles(step)
    assert cat(level=0).settles(step)
    assert not cat(paths=1, abstain_below=0.5).settles(step)


def test_seven_is_never_made_up() -> None:
    """Another seed draws other paths; the answer is always one that a path states."""
    script = {"Q\n": ends((FIVE, 3), (SIX, 3), (SEVEN, 1))}
    answers = {solve(cat(level=1.0, paths=5, branches=False), script, seed).answer for seed in range(12)}
    assert {"5", "6"} <= answers <= {"5", "6", "7"}


def doubtful(text: str) -> list[Scripted]:
    """Questions that differ: a right and a wrong step, of which the wrong one is mostly, but not always, the less sure."""
    rng = random.Random(text.partition("\n")[0])
    chance, right, wrong = rng.uniform(0.2, 0.9), rng.uniform(0.0, 1.2), rng.uniform(0.3, 2.0)
    if text.count("\n") == 1:
        return [Scripted("2 + 3 = 5\n", chance, right), Scripted("2 + 3 = 6\n", 1 - chance, wrong)]
    return ends((FIVE if "5" in text.partition("\n")[2] else SIX, 1))


def test_a_right_path_is_lost_as_rarely_as_was_said() -> None:
    """Thresholds chosen on some questions, counted on others drawn alike, many times: the mean risk is at most alpha, and
    something is pruned for it."""
    questions = [Question(f"Q{i}", "5", id=f"q{i}") for i in range(150)]
    grid, memo = (0.0, 0.2, 0.35, 0.5, 0.7, 0.9), MemoEngine(ScriptedEngine(doubtful))
    columns = []
    for below in grid:
        solutions = cat(level=1.0, paths=4, branches=False, prune_below=below).solve(questions, memo)
        ended = [[n for n in solution.tree.nodes if n.decision == "finished"] for solution in solutions]
        columns.append([any(FIVE in node.step.text for node in nodes) for nodes in ended])
    found = np.array(columns, float).T
    found = found[found[:, 0] == 1]
    rng, alpha = np.random.default_rng(0), 0.15
    lost, chosen = [], set()
    for _ in range(300):
        order = rng.permutation(len(found))
        held, fresh = found[order[:40]], found[order[40:]]
        below, _ = choose_pruning(grid, held, alpha)
        chosen.add(below)
        lost.append(float((fresh[:, grid.index(below)] == 0).mean()))
    assert max(chosen) > 0
    assert 0 < np.mean(lost) <= alpha
