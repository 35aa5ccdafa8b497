"""Annotation with a scripted model: what is sampled where, what is judged, and that nothing else matters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from caspo.core.errors import EngineError
from caspo.data.annotate import AnnotateSettings, annotate, judge_trees
from caspo.data.pairs import PairSettings, build_pairs
from caspo.judges.base import Chain
from caspo.judges.reference import ReferenceJudge
from caspo.records import ROOT, Node, Question, Tree, Verdict
from caspo.testing.scripted import Scripted, ScriptedEngine
from caspo.trees import TreeBuilder
from tiny import same_tree

META = {
    "quantities": [
        {"value": 6, "kind": "given"},
        {"value": 2, "kind": "given"},
        {"value": 12, "kind": "derived", "formula": "#0 * #1"},
        {"value": 14, "kind": "derived", "formula": "#2 + #1"},
    ]
}
A = "6 * 2 = 12\n"
SCRIPT = {
    "": [Scripted(A, 5), Scripted("6 + 2 = 8\n", 3), Scripted("2 * 6 = 12\n", 2), Scripted("Let me see.\n", 3)],
    A: [Scripted("12 + 2 = 14\n", 3), Scripted("12 - 2 = 10\n", 1), Scripted("12 + 2 = 14", 1, eos=True)],
    "2 * 6 = 12\n": [Scripted("12 + 2 = 14\n")],
}
END = [Scripted("The answer is 14.", 2, eos=True), Scripted("The answer is 12.", 1, eos=True)]


def script(text: str) -> list[Scripted]:
    steps = text.partition("\n")[2]
    return SCRIPT.get(steps) or (END if steps.endswith("14\n") else [])


def question(name: str) -> Question:
    return Question(f"Question {name}?", "14", id=name, meta=META)


def grow(names: str, seed: int = 0, **more: int) -> list[Tree]:
    settings = AnnotateSettings(**{"samples": 24, **more})  # type: ignore[arg-type]
    return annotate([question(n) for n in names], ScriptedEngine(script), ReferenceJudge(), settings, seed)


def by_text(tree: Tree) -> dict[str, Node]:
    return {"".join(n.step.text for n in tree.path(node.id)): node for node in tree.nodes}


def test_verdicts_and_growth() -> None:
    """Right steps are continued before unknown ones, wrong ones never; samples are counted; EOS ends final steps only."""
    (tree,) = grow("a", width=2)
    nodes = by_text(tree)
    labels = {text: node.verdict.label for text, node in nodes.items() if node.verdict}
    assert labels.keys() == nodes.keys(), "every node is judged"
    assert labels["6 + 2 = 8\n"] == "wrong"
    assert labels["Let me see.\n"] == "unknown"
    assert labels[A + "12 + 2 = 14\n"] == "right"
    assert labels[A + "12 + 2 = 14"] == "wrong", "ends without an answer"
    assert labels[A + "12 + 2 = 14\nThe answer is 14."] == "right"
    assert labels[A + "12 + 2 = 14\nThe answer is 12."] == "wrong"
    eos = ScriptedEngine({}).prompt("x")[0] and 0x110000
    for node in tree.nodes:
        assert node.final == (eos in node.step.token_ids)
        if tree.children(node.id):
            assert node.verdict is not None
            assert (node.verdict.label, node.final) == ("right", False)
    for parent, children in tree.groups():
        assert sum(child.count for child in children) == 24, parent


def test_width() -> None:
    """At most `width` right prefixes are continued at each depth."""
    for width in (1, 2):
        for tree in grow("abcdef", width=width):
            at_depth: dict[int, int] = {}
            for parent, _ in tree.groups():
                depth = 0 if parent == ROOT else tree.nodes[parent].depth
                at_depth[depth] = at_depth.get(depth, 0) + 1
            assert max(at_depth.values()) <= width
            assert at_depth[1] == width


def test_independent_of_the_others_and_deterministic() -> None:
    """A tree depends on its question, the seed and the settings: not on the batch or on the run."""
    together = grow("abc")
    assert all(same_tree(a, b) for a, b in zip(together, grow("abc"), strict=True))
    assert same_tree(together[1], grow("b")[0])
    assert not all(same_tree(a, b) for a, b in zip(together, grow("abc", seed=1), strict=True))


def test_cut_steps_are_unknown() -> None:
    """A step that met its token limit is neither right nor wrong, and is not continued."""
    (tree,) = grow("a", max_step_tokens=4)
    for node in tree.nodes:
        assert node.verdict is not None
        assert (node.verdict.label, node.verdict.reason) == ("unknown", "cut at the token limit")
    (tree,) = grow("a", max_step_tokens=11)
    labels = {n.step.text: n.verdict.label for n in tree.nodes if n.verdict}
    assert labels["6 * 2 = 12\n"] == "right", "a step of exactly the limit is whole"


def test_a_whole_step_stays_whole_beside_a_cut_twin() -> None:
    """Texts that differ by their line break merge; whether the step was cut goes by the tokens that were kept."""
    limit = len("6 * 2 = 12\n")
    twins = {"Question a?\n": [Scripted(A, 1), Scripted("6  * 2 = 12 \n", 1)]}
    labels = set()
    for seed in range(12):
        settings = AnnotateSettings(samples=8, max_depth=1, max_step_tokens=limit)
        (tree,) = annotate([question("a")], ScriptedEngine(twins), ReferenceJudge(), settings, seed)
        (node,) = tree.nodes
        assert node.verdict is not None
        assert (node.verdict.label == "unknown") == (not node.step.text.endswith("\n"))
        labels.add(node.verdict.label)
    assert labels == {"right", "unknown"}, "both orders were seen"


def test_max_depth() -> None:
    """Growth ends at the depth asked for."""
    settings = AnnotateSettings(samples=6, max_depth=1)
    trees = annotate([question("a")], ScriptedEngine(script), ReferenceJudge(), settings, 0)
    assert {n.depth for n in trees[0].nodes} == {1}
    assert sum(n.count for n in trees[0].nodes) == 6


def test_judge_tree() -> None:
    """Judging a finished tree gives what annotation gave, and nothing below a wrong step."""
    (tree,) = grow("a", width=2)
    bare = Tree(tree.question, tree.prompt_ids, tree.nodes, tree.steps)
    assert same_tree(judge_trees([bare], ReferenceJudge())[0], tree)
    builder = TreeBuilder(tree.question, tree.prompt_ids)
    wrong = builder.add(ROOT, next(n.step for n in tree.nodes if n.step.text == "6 + 2 = 8\n"), final=False)
    builder.add(wrong, tree.nodes[0].step, final=False)
    (judged,) = judge_trees([builder.build()], ReferenceJudge())
    assert [n.verdict.label if n.verdict else None for n in judged.nodes] == ["wrong", None]


class Slow:
    """The reference judge, asked between the depths; notes how many chains each call was about."""

    name = "reference"
    instant = False

    def __init__(self) -> None:
        self.calls: list[int] = []

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        self.calls.append(len(chains))
        return ReferenceJudge().judge(chains)


@pytest.mark.parametrize("settings", [{}, {"width": 2}, {"max_depth": 2}, {"max_step_tokens": 11, "samples": 3}])
def test_trees_do_not_depend_on_when_the_judge_is_asked(settings: dict[str, int]) -> None:
    """A judge that is not instant is asked once a depth, about all trees, and the trees are the same."""
    asked = AnnotateSettings(**{"samples": 8, **settings})  # type: ignore[arg-type]
    questions, judge = [question(name) for name in "abcdef"], Slow()
    slow = annotate(questions, ScriptedEngine(script), judge, asked, 0)
    fast = annotate(questions, ScriptedEngine(script), ReferenceJudge(), asked, 0)
    assert all(same_tree(a, b) for a, b in zip(slow, fast, strict=True))
    depths = max(node.depth for tree in slow for node in tree.nodes)
    assert len(judge.calls) == depths
    judge.calls.clear()
    assert all(same_tree(a, b) for a, b in zip(judge_trees(slow, judge), judge_trees(fast, ReferenceJudge()), strict=True))
    assert len(judge.calls) == depths


def test_a_hole_in_the_script() -> None:
    """The scripted engine names the text it knows nothing for."""
    with pytest.raises(EngineError, match=r"no continuation for the text 'Question a\?\\n'"):
        annotate([question("a")], ScriptedEngine({}), ReferenceJudge(), AnnotateSettings(), 0)


def opening(text: str) -> list[Scripted]:
    """A model that begins in words, in one of two ways, and calculates after them."""
    steps = text.partition("\n")[2]
    if not steps:
        return [Scripted("Let me see.\n", 3), Scripted("We count.\n", 1), Scripted("6 + 2 = 8\n", 1)]
    return [Scripted(A, 2), Scripted("6 + 2 = 8\n", 1)] if steps.count("\n") == 1 else END


def test_trees_grow_past_unknown_steps() -> None:
    """From an unknown step where none is known to be right, never from a wrong one; its pairs do not count."""
    (tree,) = annotate([question("a")], ScriptedEngine(opening), ReferenceJudge(), AnnotateSettings(samples=24), 0)
    nodes = by_text(tree)
    grown = [text for text, node in nodes.items() if tree.children(node.id)]
    first, second = sorted(grown, key=len)
    assert first in ("Let me see.\n", "We count.\n")
    assert second == first + A
    labels = {text: node.verdict.label for text, node in nodes.items() if node.verdict}
    assert labels[first + A] == "right"
    assert labels[first + "6 + 2 = 8\n"] == "wrong"
    pairs, report = build_pairs([tree], PairSettings(confident_from=0, unsure_to=1))
    assert pairs == []
    assert report.dropped["group: not after right steps"] == 2
    settings = AnnotateSettings(samples=24, past_unknown=False)
    (short,) = annotate([question("a")], ScriptedEngine(opening), ReferenceJudge(), settings, 0)
    assert {node.depth for node in short.nodes} == {1}


def test_right_steps_come_before_unknown_ones() -> None:
    """With room for two, the unknown one is second; with room for one it is left."""

    def both(text: str) -> list[Scripted]:
        steps = text.partition("\n")[2]
        return [Scripted(A, 1), Scripted("Let me see.\n", 2)] if not steps else END

    for width, grown in ((1, {A}), (2, {A, "Let me see.\n"})):
        settings = AnnotateSettings(samples=24, width=width, max_depth=2)
        (tree,) = annotate([question("a")], ScriptedEngine(both), ReferenceJudge(), settings, 0)
        assert {n.step.text for n in tree.nodes if tree.children(n.id)} == grown


def test_chains_carry_the_tokens_of_the_tree() -> None:
    """For judges that let the model go on."""
    seen: list[Chain] = []

    class Noting(Slow):
        def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
            seen.extend(chains)
            return super().judge(chains)

    (tree,) = annotate([question("a")], ScriptedEngine(script), Noting(), AnnotateSettings(samples=8), 0)
    assert seen
    for chain in seen:
        assert chain.prompt_ids == tree.prompt_ids
        assert [len(ids) > 0 for ids in chain.token_ids] == [True] * len(chain.steps)
