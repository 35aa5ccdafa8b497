"""Scores of finished trees on disk: found again, never mistaken, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caspo.core.errors import DataError
from caspo.records import Tree
from caspo.train import reference
from caspo.train.reference import Wanted, fingerprint, rescore, score_trees
from caspo.train.scoring import Scorer
from tiny import build, bushy_tree, same_tree

BUDGET = 30
TREES = [bushy_tree(f"q {i}/é", i) for i in range(4)]
EVERY: list[Wanted] = [(tree, frozenset(range(9))) for tree in TREES]
Scores = dict[tuple[str, int], np.ndarray[Any, np.dtype[np.float32]]]


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file after every forward pass."""
    monkeypatch.setattr(reference, "_PART", 1)


def scores(
    cache: Path | None, model: Any = None, wanted: list[Wanted] = EVERY, *, packed: bool = True, budget: int = BUDGET,
    **more: Any,
) -> Scores:  # fmt: skip
    model = model or build("llama")
    return score_trees(model, Scorer(model, packed=packed), wanted, budget, cache, **more)


def counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the tokens of every forward pass of ``model``."""
    calls: list[int] = []
    forward = model.forward

    def count(**inputs: Any) -> Any:
        calls.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", count)
    return calls


def refuse(**inputs: Any) -> Any:
    raise AssertionError("nothing was to be computed")


def equal(a: Scores, b: Scores) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_scores_are_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut, dealt into passes within the budget, written and read: every node once, numbers as from one whole pass."""
    model = build("llama")
    scorer = Scorer(model, packed=True)
    expected = {k: v for tree in TREES for k, v in scorer.traces(model, scorer.rows(tree, range(9))).items()}
    calls = counted(model, monkeypatch)
    found = scores(tmp_path, model)
    assert found.keys() == expected.keys()
    assert len(calls) > len(TREES), "the trees are larger than the budget"
    assert max(calls) <= BUDGET
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value.numpy(), atol=1e-5, rtol=1e-5)
    assert equal(scores(None, model), found)


def test_only_what_is_wanted(tmp_path: Path) -> None:
    """Of a tree of which few nodes are needed, these are scored, and nothing on the way to them."""
    found = scores(tmp_path, wanted=[(TREES[0], frozenset([4])), (TREES[1], frozenset([1]))])
    assert found.keys() == {(TREES[0].question.id, 4), (TREES[1].question.id, 1)}


def test_a_second_call_computes_nothing(tmp_path: Path) -> None:
    """The same model, loaded anew, and the same trees: read from the disk."""
    first = scores(tmp_path)
    model = build("llama")
    model.forward = refuse
    assert equal(scores(tmp_path, model), first)


def edited(tree: Tree) -> Tree:
    node = tree.nodes[8]
    changed = replace(node.step, token_ids=(5, *node.step.token_ids[1:]))
    return replace(tree, nodes=(*tree.nodes[:8], replace(node, step=changed)))


def nudged() -> Any:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[7, 3] += 1e-6
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda: {"model": build("llama", seed=1)},
        lambda: {"model": nudged()},
        lambda: {"model": build("llama", rms_norm_eps=1e-3)},
        lambda: {"model": build("llama").bfloat16()},
        lambda: {"packed": False},
        lambda: {"bf16": True},
        lambda: {"wanted": [*EVERY[:3], (edited(TREES[3]), frozenset(range(9)))]},
        lambda: {"wanted": [*EVERY[:3], (replace(TREES[3], prompt_ids=(9, 9)), frozenset(range(9)))]},
        lambda: {"wanted": EVERY[:3]},
        lambda: {"wanted": [*EVERY[:3], (TREES[3], frozenset([1]))]},
        lambda: {"budget": BUDGET + 1},
    ],
    ids=["seed", "a weight", "config", "dtype", "layout", "autocast", "tokens", "prompt", "fewer", "nodes", "budget"],
)
def test_other_work_is_not_taken_for_it(
    other: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another weight, configuration, precision, layout or token: scored again, and the first scores stay."""
    first = scores(tmp_path)
    arguments = {"model": build("llama"), **other()}
    calls = counted(arguments["model"], monkeypatch)
    scores(tmp_path, **arguments)
    assert calls
    model = build("llama")
    model.forward = refuse
    assert equal(scores(tmp_path, model), first)


def test_a_killed_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two parts, only the others are computed, and the numbers are those of an uninterrupted pass."""
    model = build("llama")
    calls = counted(model, monkeypatch)
    whole = scores(tmp_path / "a", model)
    passes = len(calls)

    def kill(done: int, total: int) -> None:
        assert total == passes
        if done == 2:
            raise Killed

    calls.clear()
    with pytest.raises(Killed):
        scores(tmp_path / "b", model, on_part=kill)
    assert len(calls) == 2
    calls.clear()
    assert equal(scores(tmp_path / "b", model), whole)
    assert len(calls) == passes - 2


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    """A truncated file is an error that says what to delete; deleting it is enough."""
    first = scores(tmp_path)
    file = sorted(tmp_path.rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{file.name}.*damaged.*Delete it"):
        scores(tmp_path)
    file.unlink()
    assert equal(scores(tmp_path), first)


def test_two_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each computes its share and waits for the other; then both read all scores, those of a single process."""
    alone = scores(tmp_path / "alone")
    shares: list[list[int]] = []

    def other_rank() -> None:
        """What the barrier of rank 0 waits for: rank 1 runs through, to find all parts there."""
        model = build("llama")
        shares.append(counted(model, monkeypatch))
        found.append(scores(tmp_path / "both", model, rank=1, world=2))

    found: list[Scores] = []
    first = build("llama")
    shares.append(counted(first, monkeypatch))
    found.append(scores(tmp_path / "both", first, rank=0, world=2, wait=other_rank))
    assert len(found) == 2
    assert equal(found[0], alone)
    assert equal(found[1], alone)
    passes = len(list((tmp_path / "alone").rglob("*.safetensors")))
    assert sum(map(len, shares)) == passes
    assert abs(len(shares[0]) - len(shares[1])) <= 1


def test_rescore_fills_exact_traces(tmp_path: Path) -> None:
    """Trees with made-up traces get those of the model; nothing else of them changes."""
    found = scores(tmp_path)
    after = rescore(TREES, found)
    for tree, new in zip(TREES, after, strict=True):
        for old, node in zip(tree.nodes, new.nodes, strict=True):
            trace = node.step.trace
            values = found[tree.question.id, node.id]
            assert trace.kind == "full"
            assert len(trace) == len(node.step.token_ids)
            np.testing.assert_array_equal(trace.entropy, values[:, 0])
            np.testing.assert_array_equal(trace.logprob, values[:, 1])
            np.testing.assert_array_equal(trace.max_logprob, values[:, 2])
            np.testing.assert_array_equal(trace.margin, values[:, 3])
            np.testing.assert_array_equal(trace.varentropy, values[:, 4])
            assert not np.array_equal(trace.logprob, old.step.trace.logprob)
        back = tuple(
            replace(node, step=replace(node.step, trace=old.step.trace))
            for old, node in zip(tree.nodes, new.nodes, strict=True)
        )
        assert same_tree(replace(new, nodes=back), tree)


def test_fingerprint() -> None:
    """Of the same weights the same, of one changed bit another; neither mode nor kernel matters."""
    model = build("llama")
    assert fingerprint(model) == fingerprint(build("llama").train())
    assert fingerprint(model) != fingerprint(nudged())
    assert fingerprint(model) != fingerprint(build("qwen2"))


def test_two_trees_of_one_question_are_refused(tmp_path: Path) -> None:
    """Scores are kept by question: one tree's would silently be the other's."""
    model = build("llama")
    wanted = [(bushy_tree("same", seed), frozenset(range(9))) for seed in (0, 1)]
    with pytest.raises(DataError, match="of one question"):
        score_trees(model, Scorer(model, packed=True), wanted, 100, None)
