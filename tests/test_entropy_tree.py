"""Entropy-Tree on a scripted model: where paths part, what is decoded, and how sure it is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies

from caspo.answers import group_answers
from caspo.engines.rows import shared_length
from caspo.search import EntropyTree, EntropyTreeSettings, SelfConsistency, SelfConsistencySettings
from caspo.steps import text_of
from caspo.testing.scripted import Script, Scripted
from recording import FIVE, SIX, Q, Recording, ends, prose, solve, wild

HEAD = "2 + 3 is\n"
FORK: Script = {"Q\n": [Scripted(HEAD)], f"Q\n{HEAD}": ends((FIVE, 1), (SIX, 1))}
"""One place of doubt, of ln 2 nats."""


def tree(**more: float) -> EntropyTree:
    return EntropyTree(EntropyTreeSettings.model_validate({"temperature": 1.0, "branch_above": 0.5} | more))


def test_paths_part_where_the_model_is_unsure() -> None:
    """What stands before is decoded once; a place is branched once, so there are two leaves and not ten."""
    answers = set()
    for seed in range(12):
        engine = Recording(FORK)
        (solution,) = tree().solve([Q], engine, seed)
        first, second = engine.requests
        assert second.prefix_ids == first.prefix_ids + engine.encode(HEAD)
        assert second.max_new_tokens == 512 - len(HEAD)
        assert all(request.keep for request in engine.requests), "what follows continues from the state that is there"
        assert solution.generated_tokens == engine.tokens == len(HEAD) + 2 * (len(FIVE) + 1)
        assert solution.confidence == pytest.approx(1.0 if len(set(solution.answers)) == 1 else 0.5)
        assert solution.answer == solution.answers[0], "the first of equally frequent ones"
        answers |= {solution.answers}
    assert answers == {("5", "5"), ("5", "6"), ("6", "5"), ("6", "6")}


def test_children_are_further_continuations_of_one_place() -> None:
    """All but the path itself are drawn at its token, each by a seed of its own, and no more than `paths` in all."""
    for children, paths, leaves in ((1, 10, 1), (2, 10, 2), (5, 10, 5), (20, 10, 10), (20, 4, 4)):
        engine = Recording(FORK)
        (solution,) = tree(children=children, paths=paths).solve([Q], engine)
        assert len(solution.answers) == len(engine.requests) == leaves
        assert len({request.seed for request in engine.requests}) == leaves
        assert len({request.prefix_ids for request in engine.requests[1:]}) == min(1, leaves - 1)


def test_the_most_uncertain_place_is_branched_first() -> None:
    """Of any path; those that are not above the threshold never."""
    line = Scripted("abc", 1.0, (0.4, 0.9, 0.6, 0.0), eos=True)
    for above, heads in ((0.3, ["b", "c", "a"]), (0.5, ["b", "c"]), (0.7, ["b"]), (1.0, [])):
        engine = Recording({"Q\n": [line]})
        tree(branch_above=above).solve([Q], engine)
        assert ["abc"[len(request.prefix_ids) - 2] for request in engine.requests[1:]] == heads
    engine = Recording({"Q\n": [line]})
    tree(branch_above=0.3, paths=2).solve([Q], engine)
    assert len(engine.requests) == 2


def test_a_new_path_opens_places_of_its_own() -> None:
    """Where it goes on from where it parted; what it shares with any other path has been there before."""
    script = {
        "Q\n": [Scripted("a\n", 1, (0.9, 0.0)), Scripted("b\n", 1, (0.9, 0.0))],
        "Q\na\n": ends((FIVE, 1), entropy=0.0),
        "Q\nb\n": [Scripted(SIX, 1, (0.8, *[0.0] * len(SIX)), eos=True)],
    }
    for seed in range(12):
        engine = Recording(script)
        (solution,) = tree().solve([Q], engine, seed)
        texts = [completion.text[0] for completion in engine.completions[:2]]
        assert len(solution.answers) == (3 if "b" in texts else 2)
        assert [len(r.prefix_ids) - 2 for r in engine.requests] == [0, 0, 2][: len(engine.requests)]


def test_the_first_path_is_the_first_of_self_consistency() -> None:
    """A model that is nowhere unsure has one path, and one sample's price."""
    for seed in range(8):
        single = solve(SelfConsistency(SelfConsistencySettings(samples=1)), wild(seed), seed)
        one = solve(EntropyTree(EntropyTreeSettings(branch_above=100)), wild(seed), seed)
        assert (one.answer, one.confidence, one.generated_tokens) == (
            single.answer, single.confidence, single.generated_tokens,
        )  # fmt: skip


def test_confidence_is_of_the_answers_distribution() -> None:
    """exp(-H): two against one is 3 / 4^(1/3); a leaf without an answer agrees with nobody; with none there is none."""
    seen = {}
    for seed in range(80):
        script = {"Q\n": ends((FIVE, 1), (SIX, 1), ("Hm.", 1))}
        solution = solve(tree(children=3), script, seed)
        seen[solution.answers] = solution
    assert seen["5", "5", "6"].confidence == pytest.approx(4 ** (1 / 3) / 3)
    assert seen["6", None, "6"].confidence == pytest.approx(4 ** (1 / 3) / 3)
    assert seen[None, None, "6"].confidence == pytest.approx(1 / 3)
    assert seen[None, "6", "5"].answer == "6"
    assert (seen[None, None, None].answer, seen[None, None, None].confidence) == (None, 0.0)
    equal = solve(tree(children=9), {"Q\n": ends(("The answer is 0.5.", 1), ("The answer is \\frac{1}{2}.", 1))})
    assert (equal.confidence, len(equal.tree.nodes)) == (1.0, 2)


@given(
    seed=strategies.integers(0, 10**6), paths=strategies.integers(1, 9), children=strategies.integers(1, 4),
    wave=strategies.integers(1, 4), above=strategies.floats(0, 1.2), stories=strategies.booleans(),
)  # fmt: skip
@settings(max_examples=80)
def test_every_path_is_whole_and_paid_for_once(
    seed: int, paths: int, children: int, wave: int, above: float, stories: bool
) -> None:
    """No more leaves than asked for; each begins with tokens of an earlier one, parts from it at an unsure token, and is in
    the tree; no two requests are alike."""
    script = prose(seed) if stories else wild(seed)
    engine = Recording(script)
    shape = EntropyTreeSettings(paths=paths, children=children, wave=wave, branch_above=above, max_tokens=150)
    (solution,) = EntropyTree(shape).solve([Q], engine, seed)
    assert 1 <= len(engine.requests) == len(solution.answers) <= paths
    assert solution.generated_tokens == engine.tokens
    assert len({(request.prefix_ids, request.seed) for request in engine.requests}) == len(engine.requests)
    prompt = engine.prompt("Q")
    whole: list[tuple[int, ...]] = []
    for request, completion in zip(engine.requests, engine.completions, strict=True):
        head = request.prefix_ids[len(prompt) :]
        ids = head + completion.token_ids
        assert len(ids) <= 150
        assert not whole or any(shared_length(ids, other) >= len(head) for other in whole)
        whole.append(ids)
    built = solution.tree
    texts = {"".join("".join(n.step.text for n in built.path(node.id)).split()) for node in built.nodes}
    assert all("".join(text_of(engine.pieces(ids)).split()) in texts for ids in whole)
    groups = group_answers(solution.answers)
    shares = [groups.count(group) / len(groups) for group in set(groups)]
    if solution.answer is None:
        assert set(solution.answers) == {None}
    else:
        assert solution.confidence == pytest.approx(math.exp(sum(share * math.log(share) for share in shares)))
        said = [answer for answer in solution.answers if answer is not None]
        assert said.count(solution.answer) == max(map(said.count, said))
