"""Growing trees: merging, prefixes, and cutting whole solutions into steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspo.records import ROOT, Question, Step, TokenTrace, Verdict
from caspo.steps import Reading
from caspo.trees import TreeBuilder, seed_of
from tiny import bushy_tree, trace

QUESTION = Question("?", "5", id="q")


class Model:
    """Who writes a tree: tokens by their bytes."""

    reading = Reading()

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self._pieces = pieces

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return [self._pieces.get(i, b"?") for i in token_ids]


def step(text: str, *ids: int) -> Step:
    return Step(text, ids, trace(len(ids)))


def test_equal_steps_merge() -> None:
    """Equal up to white space under the same parent: one node that counts both and keeps the first one's tokens."""
    builder = TreeBuilder(QUESTION, (1, 2))
    a = builder.add(ROOT, step("2 + 3 = 5\n", 10, 11), final=False)
    assert builder.add(ROOT, step(" 2 + 3  = 5", 12), final=False) == a
    assert builder.nodes[a].count == 2
    assert builder.nodes[a].step.token_ids == (10, 11)
    assert builder.add(ROOT, step("2 + 3 = 5", 13), final=True) != a, "ending the solution is another continuation"
    assert builder.add(a, step("2 + 3 = 5", 14), final=False) not in (a, ROOT), "another parent, another node"
    tree = builder.build()
    assert [n.depth for n in tree.nodes] == [1, 1, 2]
    assert [n.parent for n in tree.nodes] == [ROOT, ROOT, a]


def test_prefixes() -> None:
    """Tokens and texts of a path, the same by the builder and by the tree."""
    tree = bushy_tree()
    builder = TreeBuilder(tree.question, tree.prompt_ids)
    for node in tree.nodes:
        builder.add(node.parent, node.step, final=node.final)
    assert builder.prefix_ids(ROOT) == tree.prefix_ids(ROOT) == tree.prompt_ids
    for node in tree.nodes:
        assert builder.prefix_ids(node.id) == tree.prefix_ids(node.id)
        assert builder.prefix_ids(node.id)[-len(node.step.token_ids) :] == node.step.token_ids
    assert builder.texts(ROOT) == []
    assert builder.texts(7) == ["step 0\n", "step 3\n", "step 7\n"]


def test_whole_solutions() -> None:
    """A sampled solution becomes a path; tokens and traces are cut at the same places; only the last step is final."""
    builder = TreeBuilder(QUESTION, (1,), Model({20: b"A", 21: b" b\n", 22: b"C", 23: b"\n", 24: b"\n", 25: b"D", 26: b""}))
    values = np.arange(7, dtype=np.float32)
    whole = TokenTrace(values, -values, -values, values / 10, values, "top_k", 3, values + 1)
    last = builder.add_solution(range(20, 27), whole, final=True)
    tree = builder.build()
    assert [n.step.text for n in tree.path(last)] == ["A b\n", "C\n\n", "D"]
    assert [n.step.token_ids for n in tree.nodes] == [(20, 21), (22, 23, 24), (25, 26)]
    assert [n.final for n in tree.nodes] == [False, False, True]
    for node, span in zip(tree.nodes, (slice(0, 2), slice(2, 5), slice(5, 7)), strict=True):
        for name in ("entropy", "logprob", "max_logprob", "margin", "varentropy", "entropy_upper"):
            np.testing.assert_array_equal(getattr(node.step.trace, name), getattr(whole, name)[span])
        assert (node.step.trace.kind, node.step.trace.k) == ("top_k", 3)
    again = builder.add_solution(range(20, 25), whole, final=False)
    assert again == 1, "the shared beginning is merged"
    assert [n.count for n in builder.nodes] == [2, 2, 1]


def test_blank_solutions() -> None:
    """Only EOS, or only line breaks, is one (blank) step; no tokens at all is none."""
    builder = TreeBuilder(QUESTION, (1,), Model({7: b"\n", 9: b""}))
    assert builder.add_solution((), trace(0), final=False) == ROOT
    assert builder.add_solution((9,), trace(1), final=True) == 0
    assert builder.nodes[0].final
    assert builder.add_solution((7, 7), trace(2), final=False) == 1


def test_a_path_that_goes_on_with_its_step_is_a_sibling_of_that_step() -> None:
    """A tree's steps are those of its whole paths, wherever a path leaves another one."""
    model = Model({n: letter.encode() for n, letter in enumerate("AB:\n")})
    builder = TreeBuilder(QUESTION, (1,), model)
    first = builder.add_steps(ROOT, (0, 3, 1, 3), trace(4), final=False)
    assert [builder.nodes[n].step.text for n in first] == ["A\n", "B\n"]
    assert builder.follows(first[0], (0,))
    assert not builder.follows(first[0], (3,)), "nothing that begins a step"
    (longer,) = builder.add_steps(first[0], (3,), trace(1), final=True)
    assert (builder.nodes[longer].parent, builder.nodes[longer].step.text) == (ROOT, "A\n\n")
    assert builder.nodes[longer].final


def test_a_step_whose_last_token_begins_the_next_one_is_gone_on_with() -> None:
    """Its end is known with that token and told only once: what follows it is a step after it all the same."""
    model = Model({1: b"<think>", 2: b"It is 3", 3: b".\nSo", 4: b" 7.\n", 5: b"And 8."})
    builder = TreeBuilder(QUESTION, (0,), model)
    first = builder.add_step(ROOT, (1, 2, 3), trace(3), final=False)
    assert builder.nodes[first].step.thinking
    assert builder.follows(first, (4, 5))
    assert builder.follows(builder.add_step(first, (4,), trace(1), final=False), (5,))
    assert not builder.follows(builder.add_step(ROOT, (1, 2), trace(2), final=False), (2,))
    whole = TreeBuilder(QUESTION, (0,), model)
    nodes = whole.add_steps(ROOT, (1, 2, 3), trace(3), final=False)
    nodes += whole.add_steps(nodes[-1], (4, 5), trace(2), final=True)
    assert [(node.parent, node.count, node.step.token_ids) for node in whole.nodes] == [
        (ROOT, 1, (1, 2, 3)), (0, 1, (4,)), (1, 1, (5,))
    ]  # fmt: skip


def test_a_path_of_thousands_of_steps() -> None:
    """A long trace of short lines has a prefix and a place to go on, like any other."""
    builder = TreeBuilder(QUESTION, (1,), Model({7: b"A b c.\n"}))
    last = builder.add_solution((7,) * 3000, trace(3000), final=False)
    assert builder.nodes[last].depth == 3000
    assert len(builder.prefix_ids(last)) == 3001
    assert builder.reader(last).tokens == 3000


def test_thinking_steps_are_marked_and_answer_nothing() -> None:
    """What a path says is what stands after its thinking."""
    text = "<think>A.\n\nB.\n</think>\n\nThe answer is 5."
    builder = TreeBuilder(QUESTION, (1,), Model({n: c.encode() for n, c in enumerate(text)}))
    nodes = builder.add_steps(ROOT, range(len(text)), trace(len(text)), final=True)
    tree = builder.build()
    assert [tree.nodes[n].step.thinking for n in nodes] == [True, True, False]
    assert [tree.answer_text(n) for n in nodes] == ["", "", "The answer is 5."]
    assert builder.said(text) == "\n\nThe answer is 5."
    assert tree.steps == "reasoning"


def test_verdicts_and_decisions() -> None:
    """Notes on a node leave the rest of it as it was."""
    builder = TreeBuilder(QUESTION, (1,))
    node = builder.add(ROOT, step("a", 5), final=False)
    builder.judge(node, Verdict("right", "so", "me"))
    builder.decide(node, "pruned")
    found = builder.build().nodes[0]
    assert (found.verdict, found.decision) == (Verdict("right", "so", "me"), "pruned")
    assert found.step.token_ids == (5,)


def test_prefix_right() -> None:
    """A verdict means something only below right steps."""
    tree = bushy_tree()
    assert all(tree.prefix_right(n.id) for n in tree.nodes if n.parent in (ROOT, 0, 2, 3))
    builder = TreeBuilder(QUESTION, (1,))
    wrong = builder.add(ROOT, step("a", 5), final=False)
    builder.judge(wrong, Verdict("wrong"))
    below = builder.add(wrong, step("b", 6), final=False)
    assert not builder.build().prefix_right(below)


def test_seeds() -> None:
    """Stable over runs and machines, 63 bits, and different for different parts."""
    assert seed_of("annotate", 0, "q", ("a\n",), 3) == seed_of("annotate", 0, "q", ("a\n",), 3)
    assert seed_of("caspo", 1) == 8905348520720838195
    seeds = {seed_of(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= s < 2**63 for s in seeds)
