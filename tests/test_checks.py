"""Refusals before training: each says what is wrong, where, and what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from caspo.core.errors import DataError
from caspo.loop.warm_start import train_tokenizer
from caspo.records import ROOT, Question, Step, Tree
from caspo.train.checks import check_pairs, check_tokens
from caspo.train.tree_packing import pack
from tiny import VOCABULARY, build, bushy_tree, node, pairs_of, tokenizer, trace

TREE = bushy_tree()
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def chain(texts: list[str], prompt: str = "Question: 2 + 2?\nAnswer:\n", by: Any = None) -> Tree:
    """A path of steps, each made tokens by itself, as sampling does."""
    encode = (by or tokenizer()).encode
    nodes = []
    for i, text in enumerate(texts):
        ids = tuple(encode(text, add_special_tokens=False))
        nodes.append(replace(node(i, i - 1, i + 1, ids, "right"), step=Step(text, ids, trace(len(ids)))))
    return Tree(Question("", id="q"), tuple(encode(prompt, add_special_tokens=False)), tuple(nodes))


def with_ids(tree: Tree, number: int, ids: tuple[int, ...]) -> Tree:
    nodes = list(tree.nodes)
    nodes[number] = replace(nodes[number], step=replace(nodes[number].step, token_ids=ids))
    return replace(tree, nodes=tuple(nodes))


STORY = ["Mia has 12 + 3 * 4 = 24 apples.\n", "She gives away 24 / 2 = 12 apples.\n", "The answer is 12.\n"]


def test_good_trees_and_pairs_pass() -> None:
    """What training needs is not refused."""
    check_pairs([TREE, bushy_tree("b", 1)], pairs_of(TREE))
    check_tokens([TREE, bushy_tree("b", 1)], build("llama"))
    check_tokens([chain(STORY)], build("llama"), tokenizer())


@pytest.mark.parametrize(("trees", "said"), [([], "0 trees, 0"), ([TREE], "1 trees, 0"), (None, "2 trees, 1")])
def test_no_pairs(trees: list[Tree] | None, said: str) -> None:
    """Nothing to train on says how many trees have no two steps at all, and what to sample instead."""
    lone = replace(TREE, nodes=TREE.nodes[:1])
    with pytest.raises(DataError, match=rf"no pairs.*\({said} with fewer than two steps\).*Sample more"):
        check_pairs([lone, TREE] if trees is None else trees, [])


def test_trees_of_one_step_beside_others_pass() -> None:
    """A tree without pairs is no error where another has some."""
    check_pairs([TREE, replace(bushy_tree("b"), nodes=TREE.nodes[:1])], pairs_of(TREE))


def test_two_trees_of_one_question() -> None:
    """Pairs name questions, so a question with two trees is ambiguous."""
    with pytest.raises(DataError, match="Question q has two trees"):
        check_pairs([bushy_tree("a"), TREE, bushy_tree("q", 1)], pairs_of(TREE))


def test_pairs_without_a_tree() -> None:
    """Pairs of another run name the question that is not there."""
    with pytest.raises(DataError, match="question q have no tree"):
        check_pairs([bushy_tree("a")], pairs_of(TREE))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": 9}, "node 9 under node -1"),
        ({"rejected": -1}, "node -1 under node -1"),
        ({"rejected": 3}, "node 3 under node -1"),
        ({"parent": 2}, "node 0 under node 2"),
    ],
)
def test_pairs_that_name_other_nodes(change: dict[str, Any], said: str) -> None:
    """Nodes that do not exist, or that are no children of the pair's prefix."""
    pairs = pairs_of(TREE)
    assert pairs[0].parent == ROOT
    with pytest.raises(DataError, match=f"question q names {said}"):
        check_pairs([TREE], [*pairs[1:], replace(pairs[0], **change)])


def test_ids_outside_the_vocabulary() -> None:
    """Tokens that the model has no embedding for: in a step, in the prompt, or negative."""
    model = build("llama")
    for bad in (with_ids(TREE, 4, (5, VOCABULARY)), replace(TREE, prompt_ids=(3, VOCABULARY)), with_ids(TREE, 4, (-1,))):
        with pytest.raises(DataError, match=rf"question q holds token .* has {VOCABULARY}: .*another model"):
            check_tokens([bushy_tree("a"), bad], model)
    check_tokens([with_ids(TREE, 4, (5, VOCABULARY - 1))], model)


def test_negative_ids_are_named() -> None:
    """The message names the token that is wrong, not the largest one."""
    with pytest.raises(DataError, match="holds token -1,"):
        check_tokens([with_ids(TREE, 4, (-1,))], build("llama"))


def test_padded_vocabularies_pass() -> None:
    """What counts is the embedding, not the tokenizer: models may have more rows than tokens."""
    check_tokens([with_ids(TREE, 4, (330,))], build("llama", vocab_size=352))


def test_empty_steps_and_prompts() -> None:
    """Nothing predicts the first step of an empty prompt, and an empty step has no log-probability."""
    with pytest.raises(DataError, match=r"question q has a step without tokens \(node 4\)"):
        check_tokens([with_ids(TREE, 4, ())], build("llama"))
    with pytest.raises(DataError, match="question q has no prompt tokens"):
        check_tokens([replace(TREE, prompt_ids=())], build("llama"))


def test_paths_longer_than_the_context() -> None:
    """The longest path counts, not the tokens of the tree; exactly the context is allowed."""
    longest = max(len(TREE.prefix_ids(n.id)) for n in TREE.nodes)
    assert longest < sum(len(n.step.token_ids) for n in TREE.nodes)
    check_tokens([TREE], build("llama", max_position_embeddings=longest))
    with pytest.raises(DataError, match=rf"question q has a path of {longest} tokens; .* context is {longest - 1}"):
        check_tokens([TREE], build("llama", max_position_embeddings=longest - 1))


def test_rotary_tables_that_depend_on_the_batch() -> None:
    """LongRoPE changes its tables with the longest position of a batch: beyond its usual context a path is refused."""
    longest = max(len(TREE.prefix_ids(n.id)) for n in TREE.nodes)
    assert longest > 16
    with pytest.raises(DataError, match=rf"path of {longest} tokens, and beyond 16 .*longrope"):
        check_tokens([TREE], build("llama", rope_parameters=dict(LONGROPE)))
    check_tokens([TREE], build("llama", rope_parameters=LONGROPE | {"original_max_position_embeddings": longest}))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(DataError, match="path of"):
        check_tokens([TREE], build("llama", rope_parameters=dynamic, max_position_embeddings=longest - 1))
    check_tokens([TREE], build("llama", rope_parameters=dynamic))


def test_the_same_tokenizer_passes() -> None:
    """White space and the token that ends a solution are no difference."""
    last = chain(["  The answer\n is 12.\n\n"])
    ended = with_ids(last, 0, (*last.nodes[0].step.token_ids, 0))
    for tree in (chain([*STORY, "  so\n\n", "ends.\n"]), ended):
        check_tokens([tree], build("llama"), tokenizer())


def test_cut_characters_pass() -> None:
    """Where tokens end within a character, step texts hold its pieces: nothing is concluded from them."""
    tree = chain(["€", "€"])
    assert len(tree.nodes[0].step.token_ids) == 3
    nodes = tuple(replace(n, step=replace(n.step, text="\ufffd" * 3)) for n in tree.nodes)
    check_tokens([replace(tree, nodes=nodes)], build("llama"), tokenizer())


def test_another_tokenizer_is_seen() -> None:
    """Trees of a model of the same size with another vocabulary: the message shows a step both ways."""
    words = "zebra quick jumping fox lazily vexed dwarves balk"
    other = train_tokenizer([Question(words, id="q", solution=words)] * 5, VOCABULARY)
    with pytest.raises(DataError, match=r"another tokenizer: of 3 steps \d read differently \('Mia has"):
        check_tokens([chain(STORY)], build("llama"), other)
    check_tokens([chain(STORY, by=other)], build("llama"), other)


def test_a_few_odd_steps_are_no_other_tokenizer() -> None:
    """Text that decoding normalised here and there is not taken for another vocabulary."""
    tree = chain(STORY)
    nodes = (replace(tree.nodes[0], step=replace(tree.nodes[0].step, text="as it was shown")), *tree.nodes[1:])
    check_tokens([replace(tree, nodes=nodes)], build("llama"), tokenizer())


def test_what_is_trained_on_are_the_sampled_tokens() -> None:
    """Steps whose border falls inside what the tokenizer would merge keep the ids they were sampled with."""
    halves = ["The pen costs 3 dol", "lars.\n"]
    tree = chain(halves)
    sampled = tuple(t for n in tree.nodes for t in n.step.token_ids)
    assert tuple(tokenizer().encode("".join(halves), add_special_tokens=False)) != sampled, "this border is no test"
    check_tokens([tree], build("llama"), tokenizer())
    assert tuple(pack(tree, [1]).ids) == tree.prompt_ids + sampled
