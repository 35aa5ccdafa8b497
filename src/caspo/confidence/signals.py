"""From what a decode step knows about its tokens to the confidence of a step. Numpy only.

Two layers, all pure functions:

- a *signal* is one number for one step, higher is more confident, in nats where it is a log-like quantity (`SIGNALS`);
- a *step score* maps a signal into (0, 1] (`step_score`; default ``exp(-mean_t H_t)``, the signal of the CASPO paper).

A score is not a probability of being right: a calibrator (`caspo.confidence.calibration`) makes it one.

`entropy_bounds` is for engines that show only the k best tokens. What is not here: computing entropies from logits
(that happens inside the decode step of an engine), and any choice between right and wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caspo.core.errors import ConfigError, DataError, EngineError
from caspo.records import TokenTrace

__all__ = [
    "DEFAULT_SIGNAL", "SIGNALS", "Signal", "best_possible", "entropy_bounds", "signals", "step_score",
]  # fmt: skip

Floats64 = NDArray[np.float64]
Signal = Callable[[TokenTrace], float]

DEFAULT_SIGNAL = "entropy"

TOLERANCE = 1e-4
"""How far rounding (float32, bf16 logits) may push a value over its mathematical bound before it is an error, nats."""

MASS_TOLERANCE = 1e-3
"""How far k probabilities may sum over 1, or leave more mass than the rest of the vocabulary can hold."""

TAIL_SHARE = 0.2
"""`entropy_tail` looks at this share of the tokens, those with the highest entropy; at least one token."""

SMALLEST = float(np.finfo(np.float64).tiny)
"""A score never reaches 0, so that its logarithm stays finite."""


def _values(trace: TokenTrace, name: str, low: float | None = None, high: float | None = None) -> Floats64:
    """One array of the trace in float64, (T,), checked, and clipped to its mathematical range."""
    if trace.kind == "none":
        raise DataError(
            "this tree's engine told nothing of its tokens' probabilities. Score the trees with the model itself: "
            "caspo annotate RECIPE --rescore TREES --out FOLDER."
        )
    values = np.asarray(getattr(trace, name), dtype=np.float64)
    if name == "varentropy" and values.size and np.isnan(values).all():
        raise DataError(
            "varentropy cannot be had from the most probable tokens alone, which is all that this server shows. Choose "
            "another signal, or ask for the whole vocabulary (llama.cpp: top_logprobs)."
        )
    if values.ndim != 1:
        raise DataError(f"a trace's {name} has shape {values.shape}, expected (T,). Pass one step of one sequence.")
    if values.size == 0:
        raise DataError(
            f"a step without tokens has no confidence (its {name} is empty). Drop empty steps before scoring them."
        )
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise EngineError(
            f"{name} of token {at} of {values.size} is {values[at]}: the model's logits held NaN or inf, or a token of "
            "probability 0 was taken. Run the model in float32 or bfloat16 and check its weights."
        )
    if low is not None and float(values.min()) < low - TOLERANCE:
        raise EngineError(f"{name} is {values.min():.6g}, below its minimum {low:g}: the engine computes it wrongly.")
    if high is not None and float(values.max()) > high + TOLERANCE:
        raise EngineError(
            f"{name} is {values.max():.6g}, above its maximum {high:g}: the engine computes it wrongly "
            "(logits taken for log-probabilities?)."
        )
    return np.clip(values, low, high)


def _entropy(trace: TokenTrace) -> Floats64:
    return _values(trace, "entropy", low=0.0)


def entropy(trace: TokenTrace) -> float:
    """Minus the mean token entropy, nats. The paper's signal; with a `top_k` trace, of the lower (optimistic) bound."""
    return -float(_entropy(trace).mean())


def entropy_sum(trace: TokenTrace) -> float:
    """Minus the summed token entropy, nats: a long step is less certain than a short one."""
    return -float(_entropy(trace).sum())


def entropy_max(trace: TokenTrace) -> float:
    """Minus the highest token entropy, nats: a chain is as strong as its weakest link."""
    return -float(_entropy(trace).max())


def entropy_tail(trace: TokenTrace) -> float:
    """Minus the mean of the highest 20% of the token entropies (rounded up, so at least one token), nats."""
    values = np.sort(_entropy(trace))
    return -float(values[-math.ceil(TAIL_SHARE * values.size) :].mean())


def perplexity(trace: TokenTrace) -> float:
    """Mean log p of the tokens taken, nats: minus the logarithm of the step's perplexity."""
    return float(_values(trace, "logprob", high=0.0).mean())


def logprob_sum(trace: TokenTrace) -> float:
    """Log p of the whole step given its prefix, nats."""
    return float(_values(trace, "logprob", high=0.0).sum())


def max_probability(trace: TokenTrace) -> float:
    """Mean log p of the most probable token, nats, whether it was taken or not."""
    return float(_values(trace, "max_logprob", high=0.0).mean())


def margin(trace: TokenTrace) -> float:
    """Mean lead of the most probable token over the second, a difference of probabilities in [0, 1]."""
    return float(_values(trace, "margin", low=0.0, high=1.0).mean())


def varentropy(trace: TokenTrace) -> float:
    """Minus the mean variance of -ln p under p, nats squared. Also 0 (most confident) for a uniform distribution."""
    return -float(_values(trace, "varentropy", low=0.0).mean())


SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "entropy": entropy,
        "entropy_sum": entropy_sum,
        "entropy_max": entropy_max,
        "entropy_tail": entropy_tail,
        "perplexity": perplexity,
        "logprob_sum": logprob_sum,
        "max_probability": max_probability,
        "margin": margin,
        "varentropy": varentropy,
    }
)
"""Every per-step signal by its name in `metrics.json`. Higher is more confident, for all of them."""


def signals(trace: TokenTrace) -> dict[str, float]:
    """All signals of one step, by name; those that a trace of the most probable tokens cannot tell are left out."""
    untold = ("varentropy",) if trace.kind == "top_k" else ()
    return {name: signal(trace) for name, signal in SIGNALS.items() if name not in untold}


def step_score(trace: TokenTrace, signal: str = DEFAULT_SIGNAL) -> float:
    """The confidence of one step, in (0, 1].

    ``exp(signal)`` for every signal but `margin`, which is in [0, 1] already. So: `entropy` gives exp(-mean_t H_t), the
    default; `perplexity` 1 / perplexity; `logprob_sum` the probability of the step's text;
    `max_probability` the geometric mean of the top probabilities. What would underflow to 0 is the smallest normal
    float64 instead.

    Raises:
        ConfigError: no such signal.
        DataError: the step has no tokens.
        EngineError: NaN, inf, a positive log-probability or a negative entropy (beyond 1e-4) in what the signal reads.
    """
    if signal not in SIGNALS:
        raise ConfigError(f"no confidence signal is called {signal!r}. Choose one of: {', '.join(SIGNALS)}.")
    value = SIGNALS[signal](trace)
    return min(1.0, max(SMALLEST, value if signal == "margin" else math.exp(value)))


def best_possible(trace: TokenTrace, signal: str, more: int) -> float:
    """The highest `step_score` that an unfinished step can still reach with up to ``more`` further tokens.

    The score it has if every token to come is certain: for a sum or a maximum that is the score so far, a mean recovers.
    """
    ideal = {"entropy": 0.0, "logprob": 0.0, "max_logprob": 0.0, "margin": 1.0, "varentropy": 0.0}
    longer: dict[str, Any] = {
        name: np.concatenate([getattr(trace, name), np.full(more, value, np.float32)]) for name, value in ideal.items()
    }
    return step_score(replace(trace, **longer, entropy_upper=None), signal)


def entropy_bounds(top_logprobs: ArrayLike, vocab_size: int) -> tuple[Floats64, Floats64]:
    """Bounds of the entropy of T distributions over ``vocab_size`` = V tokens, from the k most probable of each.

    With S the mass of the k, r = 1 - S, H_k = -sum p ln p over them and p_k the smallest of them:

    - lower: the rest is as concentrated as it may be, no token above p_k. With m = floor(r / p_k) and rho = r - m p_k:
      H >= H_k - m p_k ln p_k - rho ln rho
    - upper: the rest is spread evenly: H <= H_k + r ln((V - k) / r)

    Both are equal to H for k = V. A search that prunes on entropy must use the lower one.

    Args:
        top_logprobs: (T, k) natural-log probabilities of the k *most probable* tokens, in any order, before
            temperature; -inf is a token of probability 0. Where a server appends the sampled token as entry k+1 when it
            is not among the best (vLLM, llama.cpp), the caller takes it off first: with it p_k would be too small, and
            the lower bound no bound at all.
        vocab_size: V, of the model's output layer.

    Returns:
        (low, high), each (T,), nats, low <= high.

    Raises:
        DataError: not a (T, k) array, or k is 0 or above V.
        EngineError: NaN, a positive log-probability (beyond 1e-4), more mass than 1, or more mass left than V - k
            tokens below p_k can hold (then the entries are not the k best, or not of the raw distribution).
    """
    logs = np.asarray(top_logprobs, dtype=np.float64)
    if logs.ndim != 2 or not 1 <= logs.shape[1] <= vocab_size:
        raise DataError(
            f"top log-probabilities have shape {logs.shape}, expected (T, k), 1 <= k <= {vocab_size} (the vocabulary)."
        )
    if np.isnan(logs).any():
        raise EngineError("a top log-probability is NaN: the model's logits held NaN or inf. Check the model and its dtype.")
    if logs.size and float(logs.max()) > TOLERANCE:
        raise EngineError(
            f"a top log-probability is {logs.max():.6g} > 0: the engine returned logits, not log-probabilities."
        )
    probs_TK = np.exp(np.minimum(logs, 0.0))
    entropy_T = _plogp(probs_TK).sum(axis=1)
    mass_T = probs_TK.sum(axis=1)
    if mass_T.size and float(mass_T.max()) > 1.0 + MASS_TOLERANCE:
        raise EngineError(
            f"top probabilities sum to {mass_T.max():.6g} > 1: an entry is listed twice, or is not of one token."
        )
    others = vocab_size - probs_TK.shape[1]
    rest_T = np.maximum(0.0, 1.0 - mass_T)
    smallest_T = probs_TK.min(axis=1)
    room_T = others * smallest_T
    if rest_T.size and float((rest_T - room_T).max()) > MASS_TOLERANCE:
        raise EngineError(
            f"the k best tokens leave a mass of {rest_T.max():.6g}, more than the {others} others can hold if "
            "none is above the k-th: these are not the k most probable of the raw distribution. "
            "Take the appended sampled token off."
        )
    rest_T = np.minimum(rest_T, room_T)
    whole_T = np.floor(np.divide(rest_T, smallest_T, out=np.zeros_like(rest_T), where=smallest_T > 0.0))
    last_T = np.clip(rest_T - whole_T * smallest_T, 0.0, 1.0)
    low = entropy_T + whole_T * _plogp(smallest_T) + _plogp(last_T)
    high = entropy_T + _plogp(rest_T) + rest_T * math.log(max(others, 1))
    return low, np.maximum(low, high)


def _plogp(probs: Floats64) -> Floats64:
    """-p ln p, elementwise, 0 for p = 0."""
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0.0)
    return np.asarray(-probs * logs)
