"""What a model says of every step of finished trees, scored once, in the layout that training uses, and kept on disk.

Two uses of the same pass: the reference of DPO (log p of every step that a pair needs), and `rescore` (the exact trace
of every token), which gives a tree from any engine, even one that returns no log-probabilities, its confidences.

The folder of the scores is named by a hash of the weights, the layout and the tokens, so that scores of one model are never
taken for another's, and another learning rate does not score again. A killed pass goes on at the part it was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from caspo.core.errors import DataError, StorageError
from caspo.core.storage import write_file
from caspo.records import TokenTrace, Tree
from caspo.train.scoring import Scorer
from caspo.train.tree_packing import NodeKey, cut, fill, packed_size

__all__ = ["Wanted", "fingerprint", "rescore", "score_passes", "score_trees"]

Wanted = tuple[Tree, frozenset[int]]
"""A tree and the nodes of it that are to be scored."""

_PART = 64
"""Passes scored between two files."""


def fingerprint(model: Any) -> str:
    """SHA-256 over the configuration and all weights, 16 hex digits."""
    digest = hashlib.sha256(repr(sorted(model.config.get_text_config().to_dict().items(), key=lambda i: i[0])).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


def score_trees(
    model: Any, scorer: Scorer, wanted: Sequence[Wanted], budget: int, cache: Path | None, **more: Any
) -> dict[NodeKey, np.ndarray[Any, np.dtype[np.float32]]]:
    """`score_passes` in as few forward passes of at most ``budget`` tokens as the trees fit in.

    Raises:
        DataError: two trees of one question.
        EngineError: NaN or infinite logits.
    """
    if len({tree.question.id for tree, _ in wanted}) < len(wanted):
        raise DataError("Two of the trees are of one question: their scores would mix. Give each a question id of its own.")
    pieces = [
        (tree, frozenset(nodes[i] for i in part))
        for tree, needed in wanted
        if (nodes := sorted(needed))
        for part in cut(tree, [frozenset([n]) for n in nodes], budget)
    ]
    bins = fill([packed_size(tree, nodes) for tree, nodes in pieces], budget)
    return score_passes(model, scorer, [[pieces[i] for i in chosen] for chosen in bins], cache, **more)


def score_passes(
    model: Any,
    scorer: Scorer,
    passes: Sequence[Sequence[Wanted]],
    cache: Path | None,
    *,
    bf16: bool = False,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> dict[NodeKey, np.ndarray[Any, np.dtype[np.float32]]]:
    """Per wanted node an array (n, 5): entropy, log p, max log p, margin, varentropy of each token, as in `TokenTrace`.

    Each of the ``passes`` is one forward pass over what it holds of trees, no two of one question. With ``world`` processes
    each scores its share of the parts into ``cache``, which they must share; ``wait`` is their barrier.

    Raises:
        EngineError: NaN or infinite logits.
    """
    parts = [passes[i : i + _PART] for i in range(0, len(passes), _PART)]
    assert cache is not None or world == 1, "processes share their scores through files"
    folder = None if cache is None else cache / f"{fingerprint(model)}-{_data_hash(passes, scorer, bf16)}"
    found: dict[NodeKey, np.ndarray[Any, np.dtype[np.float32]]] = {}
    device = next(model.parameters()).device.type
    for number, part in enumerate(parts):
        file = None if folder is None else folder / f"part-{number:05d}.safetensors"
        if number % world != rank or (file is not None and file.exists()):
            continue
        scores: dict[NodeKey, Any] = {}
        for chosen in part:
            rows = [row for tree, needed in chosen for row in scorer.rows(tree, needed)]
            # Without the cache of autocast, which would keep a bfloat16 copy of the whole model.
            with torch.autocast(device, torch.bfloat16, enabled=bf16, cache_enabled=False):
                traces = scorer.traces(model, rows)
            # What only lies on the way is left out: in bfloat16 it has other scores than in the pass that it is needed in.
            asked = {(tree.question.id, node) for tree, needed in chosen for node in needed}
            scores |= {key: trace.numpy() for key, trace in traces.items() if key in asked}
        if file is None:
            found |= scores
        else:
            tensors = {f"{node} {question}": np.ascontiguousarray(s) for (question, node), s in scores.items()}
            try:
                write_file(file, partial(save_file, tensors))
            except StorageError as error:
                raise StorageError(
                    f"{error} The scores of the reference lie in the cache: CASPO_CACHE names another."
                ) from error
        on_part(number + 1, len(parts))
    wait()
    if folder is not None:
        for number in range(len(parts)):
            found |= _read(folder / f"part-{number:05d}.safetensors")
    return found


def rescore(trees: Sequence[Tree], scores: Mapping[NodeKey, Any]) -> list[Tree]:
    """The trees with exact traces in place of their own, from scores of all their nodes."""
    return [
        replace(
            tree,
            nodes=tuple(
                replace(node, step=replace(node.step, trace=TokenTrace(*scores[tree.question.id, node.id].T.copy())))
                for node in tree.nodes
            ),
        )
        for tree in trees
    ]


def _read(file: Path) -> dict[NodeKey, Any]:
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors has its own kinds
        raise DataError(
            f"{file} cannot be read ({error}): it is damaged. Delete it and run the same command again."
        ) from error
    keys = {name: name.partition(" ") for name in tensors}
    return {(question, int(node)): tensors[name] for name, (node, _, question) in keys.items()}


def _data_hash(passes: Sequence[Sequence[Wanted]], scorer: Scorer, bf16: bool) -> str:
    digest = hashlib.sha256(f"3 {scorer.attention} {bf16}".encode())
    for part in passes:
        for tree, needed in part:
            nodes = [(n.id, n.parent, n.step.token_ids) for n in tree.nodes]
            digest.update(repr((tree.question.id, tree.prompt_ids, nodes, sorted(needed))).encode())
        digest.update(b"pass")
    return digest.hexdigest()[:16]
