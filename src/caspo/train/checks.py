"""What must hold of trees and pairs before a model is trained on them: refusals instead of silent wrong numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.records import StepPair, Tree

__all__ = ["check_pairs", "check_tokens"]

_LOOKED_AT = 200
"""Steps whose text is compared with the tokenizer's."""


def check_pairs(trees: Sequence[Tree], pairs: Sequence[StepPair]) -> None:
    """Refuse no pairs at all, and pairs that point at nothing.

    Raises:
        DataError: what is missing, and where.
    """
    if not pairs:
        one = sum(len(tree.nodes) < 2 for tree in trees)
        raise DataError(
            f"There are no pairs to train on ({len(trees)} trees, {one} with fewer than two steps): no prefix had both "
            "a right and a wrong continuation. Sample more (more questions, more samples, a higher temperature), or choose "
            "problems of another difficulty."
        )
    by_id = {tree.question.id: tree for tree in trees}
    if len(by_id) < len(trees):
        twice = next(t.question.id for i, t in enumerate(trees) if t.question.id in {u.question.id for u in trees[:i]})
        raise DataError(
            f"Question {twice} has two trees: its pairs could mean either. Give every tree a question id of its own."
        )
    for pair in pairs:
        tree = by_id.get(pair.question_id)
        if tree is None:
            raise DataError(f"Pairs of question {pair.question_id} have no tree. Build the pairs from these trees.")
        for node in (pair.chosen, pair.rejected):
            if not 0 <= node < len(tree.nodes) or tree.nodes[node].parent != pair.parent:
                raise DataError(
                    f"A pair of question {pair.question_id} names node {node} under node {pair.parent}, which its tree does "
                    "not have. Build the pairs from these trees."
                )


def check_tokens(trees: Sequence[Tree], model: Any, tokenizer: Any = None) -> None:
    """Refuse trees whose tokens are not this model's, and paths longer than its context.

    The ids of a step come from sampling and are never made again from its text; that they are this tokenizer's is seen by
    decoding a few of them. Trees of another model with the same tokenizer pass: the reference is scored anyway.

    Raises:
        DataError: empty steps, ids outside the vocabulary, ids of another tokenizer, or a path longer than the context.
    """
    config = model.config.get_text_config()
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    context = getattr(config, "max_position_embeddings", None)
    for tree in trees:
        name = f"The tree of question {tree.question.id}"
        if tree.token_source == "pieces":
            raise DataError(
                f"{name} was sampled from a server that gives no token ids: its tokens are pieces of text, and text that is "
                "tokenised again is not what was sampled. Sample from a server with ids (vLLM, llama.cpp), or with hf."
            )
        if not tree.prompt_ids:
            raise DataError(f"{name} has no prompt tokens: nothing predicts its first steps. Sample it again.")
        used = {*tree.prompt_ids, *(t for node in tree.nodes for t in node.step.token_ids)}
        bad = min(used) if min(used) < 0 else max(used)
        if not 0 <= bad < vocabulary:
            raise DataError(
                f"{name} holds token {bad}, but the model's vocabulary has {vocabulary}: the trees were sampled from "
                "another model. Train the model that sampled them, or sample new trees from this one."
            )
        empty = [node.id for node in tree.nodes if not node.step.token_ids]
        if empty:
            raise DataError(f"{name} has a step without tokens (node {empty[0]}). Sample it again.")
        lengths = [len(tree.prompt_ids)]
        for node in tree.nodes:
            lengths.append(lengths[node.parent + 1] + len(node.step.token_ids))
        if context is not None and max(lengths) > context:
            raise DataError(
                f"{name} has a path of {max(lengths)} tokens; the model's context is {context}. Leave the tree out, or "
                "sample with fewer steps (annotate.max_depth, annotate.max_step_tokens)."
            )
        _check_rope(config, max(lengths), name)
    if tokenizer is not None:
        _check_text(trees, tokenizer)


def _check_rope(config: Any, longest: int, name: str) -> None:
    """Rotary tables that change with the longest position in a batch would change with what is packed beside it."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in (parameters, *(inner for inner in parameters.values() if isinstance(inner, dict))):  # by kind of layer
        usual = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        if rope.get("rope_type") in ("dynamic", "longrope") and usual is not None and longest > usual:
            raise DataError(
                f"{name} has a path of {longest} tokens, and beyond {usual} the model's rotary embedding "
                f"({rope['rope_type']}) depends on what else is in the batch. Leave the tree out, or sample fewer steps."
            )


def _check_text(trees: Sequence[Tree], tokenizer: Any) -> None:
    seen = different = 0
    example = ""
    for tree in trees:
        for node in tree.nodes:
            if seen == _LOOKED_AT:
                break
            text = tokenizer.decode(node.step.token_ids, skip_special_tokens=True)
            if "\ufffd" in text or "\ufffd" in node.step.text:  # a character cut at the border of a step
                continue
            seen += 1
            # White space at the ends is not kept by every tokenizer.
            if "".join(text.split()) != "".join(node.step.text.split()):
                different += 1
                example = example or f"{node.step.text!r} in the tree is {text!r} here"
    if different * 2 > seen:
        raise DataError(
            f"The trees hold tokens of another tokenizer: of {seen} steps {different} read differently ({example}). Train "
            "the model that sampled them, or sample new trees from this one."
        )
