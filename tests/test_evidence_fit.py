"""Fitting what the confidence of paths is worth, to a story whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest

from caspo.core.errors import DataError
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence, log_loss
from test_evidence import story

TRUE = EvidenceModel(bias=1.5, slopes={"entropy_sum": 0.05, "numbers.entropy": 4.0}, spread=1.0, scatter=4.0)


def told(number: int, paths: int, seed: int) -> list[Told]:
    """Questions whose paths have signals of a real size."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        signals = -np.stack([rng.gamma(6, 7, size=paths), rng.gamma(1.5, 0.08, size=paths)], axis=1)
        logits = TRUE.bias + signals @ np.array(list(TRUE.slopes.values())) + TRUE.spread * rng.normal()
        groups, right = story(1 / (1 + np.exp(-logits)), TRUE.scatter, rng)
        found.append(Told(groups, signals, right))
    return found


def test_finds_the_numbers_that_the_paths_come_from() -> None:
    """On other questions what was fitted loses next to nothing against the truth, and is better than knowing nothing."""
    start = EvidenceModel(bias=0.0, slopes=dict.fromkeys(TRUE.slopes, 0.0), spread=0.5, scatter=10.0)
    found, fresh = fit_evidence(told(150, 8, 0), start), told(400, 8, 1)
    assert log_loss(found, fresh) <= log_loss(TRUE, fresh) + 0.02
    assert log_loss(found, fresh) <= log_loss(start, fresh) - 0.05
    assert min(found.slopes.values()) >= 0
    assert list(found.slopes) == list(TRUE.slopes)


def test_refuses_paths_that_tell_nothing() -> None:
    """None at all, or all of one kind: any slope would do."""
    signals = np.zeros((2, 2))
    for questions in ([], [Told([0, 0], signals, 0)], [Told([0, 1], signals, None)], [Told([None, None], signals, None)]):
        with pytest.raises(DataError, match="neither all too hard"):
            fit_evidence(questions)
