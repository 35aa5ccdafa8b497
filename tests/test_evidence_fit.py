"""Fitting what the confidence of paths is worth, to a story whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from caspo.core.errors import DataError
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence, log_loss
from test_evidence import story

TRUE = EvidenceModel(bias=4.0, slopes={"entropy": 9.0}, common={"length": 0.01}, falsehood=3.0, spread=1.0, scatter=4.0)


def told(number: int, paths: int, seed: int) -> list[Told]:
    """Questions whose paths have signals of a real size."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        entropy, length, false = rng.gamma(6, 0.03, size=paths), rng.gamma(9, 25, size=paths), rng.random(paths) < 0.15
        signals = np.stack([-entropy, -length, false], axis=1)
        logits = TRUE.logits(signals) + TRUE.spread * rng.normal()
        groups, right = story(1 / (1 + np.exp(-logits)), TRUE.scatter, rng)
        found.append(Told(groups, signals, right))
    return found


def test_finds_the_numbers_that_the_paths_come_from() -> None:
    """On other questions what was fitted loses next to nothing against the truth, and is better than knowing nothing."""
    start = EvidenceModel(bias=0.0, slopes={"entropy": 0.0}, common={"length": 0.0}, falsehood=0.0, spread=0.5, scatter=10.0)
    found, fresh = fit_evidence(told(150, 8, 0), start), told(400, 8, 1)
    assert log_loss(found, fresh) <= log_loss(TRUE, fresh) + 0.02
    assert log_loss(found, fresh) <= log_loss(start, fresh) - 0.05
    assert found.slopes["entropy"] > 3
    assert found.common["length"] > 0.003
    assert found.falsehood > 1
    other = EvidenceModel(slopes={"entropy": 0.0, "logprob_sum": 0.0}, common={})
    assert list(fit_evidence(told(20, 4, 2), other).slopes) == list(other.slopes)


def test_what_is_always_the_same_says_nothing() -> None:
    """A signal that does not vary has no slope, and is no division by zero."""
    flat = [one._replace(signals=one.signals * [1, 1, 0]) for one in told(30, 6, 0)]
    assert fit_evidence(flat, TRUE).falsehood == 0


def test_refuses_paths_that_tell_nothing() -> None:
    """None at all, or all of one kind: any slope would do."""
    signals = np.zeros((2, 3))
    for questions in ([], [Told([0, 0], signals, 0)], [Told([0, 1], signals, None)], [Told([None, None], signals, None)]):
        with pytest.raises(DataError, match="neither all too hard"):
            fit_evidence(questions)
