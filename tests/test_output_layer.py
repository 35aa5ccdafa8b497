"""Logits made a part at a time are the logits, forwards and backwards; what changes them afterwards is not passed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from caspo.train import output_layer
from caspo.train.output_layer import OutputLayer
from caspo.train.scoring import Scorer
from test_scoring import FAMILIES, forest, weighted
from tiny import VOCABULARY, build

CHANGED = {"gemma2", "granite"}
"""Families that cap or divide their logits."""


def results(model: Any, *, packed: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradients of all weights, and all traces in one tensor."""
    scorer = Scorer(model, packed=packed)
    rows = [row for tree in forest() for row in scorer.rows(tree, range(len(tree.nodes)))]
    model.zero_grad()
    weighted(scorer.score(model, rows)).backward()  # type: ignore[no-untyped-call]
    traces = scorer.traces(model, rows)
    return {name: p.grad.clone() for name, p in model.named_parameters()}, torch.cat(list(traces.values()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_changed_logits_are_seen(kind: str) -> None:
    """Only an output layer whose result is the model's may be run a part at a time."""
    found = OutputLayer.of(build(kind, **({"attn_implementation": "eager"} if kind == "gemma2" else {})))
    assert (found.module is None) == (kind in CHANGED)
    assert found.vocabulary == VOCABULARY


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "granite"])
def test_parts_equal_the_whole(kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven places at a time: the same traces and the same gradient of every weight, the output layer's too."""
    whole, traces = results(build(kind), packed=packed)
    monkeypatch.setattr(output_layer, "HELD", 7 * 4 * VOCABULARY)
    parts, found = results(build(kind), packed=packed)
    torch.testing.assert_close(found, traces, atol=1e-6, rtol=1e-5)
    assert parts.keys() == whole.keys()
    for name, grad in whole.items():
        assert float((parts[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-7, name


def test_no_more_than_a_part_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the layer is left as it was, after an error too."""
    monkeypatch.setattr(output_layer, "HELD", 7 * 4 * VOCABULARY)
    model = build("llama")
    rows: list[int] = []
    inner = torch.nn.functional.linear

    def counted(given: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if weight is model.lm_head.weight:
            rows.append(len(given))
        return inner(given, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    results(model, packed=True)
    assert max(rows) == 7
    assert "forward" not in vars(model.lm_head)
    layer, one = OutputLayer.of(model), np.zeros(1, dtype=np.int64)
    ids = {"input_ids": torch.zeros(1, 2, dtype=torch.long), "logits_to_keep": 1}

    def refuse(*_: Any) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        layer.reduce(model, ids, one, one, one, refuse)
    assert "forward" not in vars(model.lm_head)
