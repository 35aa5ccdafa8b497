"""pass@k and maj@k, of methods that sample several solutions of a question alike. Numpy only; pure functions.

pass@k is the chance that at least one of k samples is right, maj@k that the majority of k is. Both are means over the
questions. Where every question counts 0 or 1 the interval is Wilson's, otherwise that of a resampled mean (`intervals`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from caspo.evaluate.estimates import wilson
from caspo.evaluate.intervals import estimate_mean
from caspo.evaluate.resampling import draw_questions
from caspo.evaluate.run import Outcome
from caspo.search.vote import vote
from caspo.trees import seed_of

__all__ = ["pass_at_k", "sample_figures"]

_DRAWS = 40
"""Random subsets of a question's samples for its maj@k."""


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that k samples hold a right one, ``right`` of ``samples`` being right.

    1 - C(samples - right, k) / C(samples, k), Chen et al. 2021 (arXiv 2107.03374), equation 1; needs k <= samples.
    """
    assert 0 <= right <= samples
    assert 1 <= k <= samples
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def sample_figures(outcomes: Sequence[Outcome], *, majority: bool) -> dict[str, Any]:
    """``pass_at_k`` and ``maj_at_k`` of a method in `metrics.json`: for k = 1, 2, 4, ... and all samples, a share each.

    Args:
        outcomes: of one method; without samples both figures are None.
        majority: whether the method's own answer is the majority of all samples. Then it is taken for the last maj@k:
            random draws have another order, which decides a tie.
    """
    if not outcomes or not all(outcome.samples for outcome in outcomes):
        return {"pass_at_k": None, "maj_at_k": None}
    count = min(len(outcome.samples) for outcome in outcomes)
    passed, voted = {}, {}
    for k in [k for k in (1, 2, 4, 8, 16, 32) if k < count] + [count]:
        passed[str(k)] = _share([pass_at_k(len(o.samples), sum(s.correct for s in o.samples), k) for o in outcomes])
        whole = majority and k == count
        voted[str(k)] = _share([float(o.correct) if whole else _majority_right(o, k) for o in outcomes])
    return {"pass_at_k": passed, "maj_at_k": voted}


def _majority_right(outcome: Outcome, k: int) -> float:
    """How often the majority of ``k`` of the samples is right, in random draws."""
    rng = random.Random(seed_of("maj@k", outcome.question_id, k))
    right = {sample.answer: sample.correct for sample in outcome.samples}
    draws = ([sample.answer for sample in rng.sample(outcome.samples, k)] for _ in range(_DRAWS))
    return sum(right[vote(answers, [1.0] * k)[0]] for answers in draws) / _DRAWS


def _share(values: Sequence[float]) -> dict[str, Any]:
    """The mean over the questions, with its 95% interval."""
    if set(values) <= {0.0, 1.0}:
        return {"value": float(np.mean(values)), "ci95": list(wilson(round(sum(values)), len(values)))}
    n = len(values)
    found = estimate_mean(np.array(values), np.ones(n), np.arange(n), draw_questions(n))
    return {"value": float(np.mean(values)), "ci95": found.ci95}
