"""DeepConf, "Deep Think with Confidence" (Fu et al. 2025, arXiv 2508.15260): traces vote by confidence, unsure ones do not.

- Token confidence: minus the mean log p of the ``top_k`` most probable tokens, nats. High where the distribution is
  peaked, since the others of the k are then very improbable.
- Group confidence: the mean over ``window`` consecutive tokens; groups overlap, one ends at every token from the
  ``window``-th on. A trace shorter than that is one group, as in the reference code (facebookresearch/deepconf).
- Trace confidence (`MEASURES`): the lowest group, the mean of the lowest 10% of the groups, of the last ``window`` tokens,
  or of all tokens.

*Offline*: of the traces with an answer the most confident ``eta`` percent vote, with their confidence as weight. *Online*:
the lowest groups of ``warm_up`` traces give a threshold, above which ``eta`` percent of them lie. Further traces are
stopped as soon as a full group falls below it, and no trace with a group below it votes, stopped or not, warm-up or not.
Sampling ends when an answer has the share ``consensus`` of the votes. DeepConf-low is eta 10, DeepConf-high eta 90.

Further traces come in waves, and consensus is looked at when a wave is complete: which trace of a batch ends first depends
on what else is in the batch, and looking whenever one ends would make the result depend on it too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from caspo.engines.base import Completion, Engine, Request, Watch
from caspo.errors import EngineError
from caspo.search.base import Method
from caspo.search.sampled import SelfConsistencySettings, SeveralSamples
from caspo.search.vote import vote
from caspo.types import Measured, Question, Solution

__all__ = [
    "MEASURES", "DeepConfOffline", "DeepConfOfflineSettings", "DeepConfOnline", "DeepConfOnlineSettings",
    "group_confidences",
]  # fmt: skip

_TOLERANCE = 0.01
"""Confidences that differ by less are equal, nats: equal traces are frequent, and what a model computes for them differs by
rounding with what else is in the batch. The reference code rounds to 0.001."""


class _Groups:
    """The group confidences of one trace, token by token, nats."""

    def __init__(self, window: int) -> None:
        self._recent: deque[float] = deque(maxlen=window)

    def add(self, confidence: float) -> float | None:
        """Take a token's confidence in; that of the group it completes, None while the first is not full."""
        self._recent.append(confidence)
        return fmean(self._recent) if len(self._recent) == self._recent.maxlen else None


def group_confidences(confidences: Sequence[float], window: int) -> list[float]:
    """The confidence of every group of ``window`` tokens, or of all tokens where there are fewer; nats."""
    groups = _Groups(window)
    found = [group for confidence in confidences if (group := groups.add(confidence)) is not None]
    return found or [fmean(confidences)]


def _bottom(confidences: Sequence[float], window: int) -> float:
    groups = sorted(group_confidences(confidences, window))
    return fmean(groups[: max(1, len(groups) // 10)])


MEASURES: Mapping[str, Callable[[Sequence[float], int], float]] = MappingProxyType(
    {
        "lowest": lambda confidences, window: min(group_confidences(confidences, window)),
        "bottom": _bottom,
        "tail": lambda confidences, window: fmean(confidences[-window:]),
        "mean": lambda confidences, window: fmean(confidences),
    }
)
"""Trace confidence from the confidences of its tokens and the window, by name; nats."""


class _Settings(SelfConsistencySettings):
    eta: float = Field(90.0, gt=0, le=100)
    """Percent of the traces that are confident enough to vote: 10 is DeepConf-low, 90 DeepConf-high."""
    window: int = Field(32, ge=1)
    """Tokens of a group. The paper takes 2048, of traces of tens of thousands; ours have tens to hundreds."""
    top_k: int = Field(20, ge=2)
    """Most probable tokens whose log p make a token's confidence. With 1 it would be highest where the model is unsure."""


class DeepConfOfflineSettings(_Settings):
    """All traces are sampled to their ends."""

    measure: Literal["lowest", "bottom", "tail", "mean"] = "tail"
    """Confidence of a trace, see `MEASURES`: what it is filtered and weighted by."""


class DeepConfOnlineSettings(_Settings):
    """Traces are stopped when they lose confidence, and sampling when they agree. ``samples`` is the most there may be."""

    warm_up: int = Field(4, ge=1)
    """Traces that are sampled to their ends first, for the threshold."""
    consensus: float = Field(0.95, gt=0, le=1)
    """Share of the votes with which an answer needs no more traces."""
    wave: int = Field(1, ge=1)
    """Traces sampled at a time after that: 1 looks at the consensus after each; more is faster where questions are few."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warm_up > self.samples:
            raise ValueError(f"warm_up is {self.warm_up}, more than the {self.samples} samples there may be; lower it")
        return self


class DeepConfOffline(Method[DeepConfOfflineSettings]):
    """The most confident traces vote: the answer with the most confidence behind it, and its share of the votes cast."""

    name = "deepconf_offline"
    settings_type = DeepConfOfflineSettings

    def search(self, question: Question, engine: Engine, seed: int) -> _Offline:
        """All traces."""
        return _Offline(question, engine, seed, self.settings)


class DeepConfOnline(Method[DeepConfOnlineSettings]):
    """Traces that lose confidence are stopped; sampling ends with consensus. Answer and confidence as offline."""

    name = "deepconf_online"
    settings_type = DeepConfOnlineSettings

    def search(self, question: Question, engine: Engine, seed: int) -> _Online:
        """The warm-up, then waves."""
        return _Online(question, engine, seed, self.settings)


class _Traces(SeveralSamples):
    """The solutions of self-consistency, with token confidences."""

    def __init__(self, question: Question, engine: Engine, seed: int, settings: _Settings) -> None:
        super().__init__(question, engine, seed, settings)
        self._deepconf = settings

    def measure(self, name: str) -> list[float]:
        """The confidence of each trace, nats."""
        return [MEASURES[name](_token_confidences(c), self._deepconf.window) for c in self.completions]

    def votes(self, confidences: Sequence[float], threshold: float) -> dict[int, str]:
        """The traces that vote, and for what: those with an answer, not stopped, and not below the threshold."""
        return {
            number: answer
            for number, (trace, answer) in enumerate(zip(self.completions, self.answers(), strict=True))
            if answer is not None and trace.finish != "abandoned" and confidences[number] >= threshold
        }

    def voted(self, confidences: Sequence[float], threshold: float) -> Solution:
        """The vote's outcome. Traces that had none are `pruned` in the tree."""
        votes = self.votes(confidences, threshold)
        ends = self._grow()
        voting = {ends[number] for number in votes}
        for end in ends:
            self.builder.decide(end, "finished" if end in voting else "pruned")
        return self._answered(*vote(list(votes.values()), [confidences[number] for number in votes]))

    def _request(self, number: int) -> Request:
        return replace(super()._request(number), top_k=self._deepconf.top_k)


class _Offline(_Traces):
    """The most confident percent of the traces with an answer vote."""

    def __init__(self, question: Question, engine: Engine, seed: int, settings: DeepConfOfflineSettings) -> None:
        super().__init__(question, engine, seed, settings)
        self._measure = settings.measure

    def solution(self) -> Solution:
        confidences = self.measure(self._measure)
        answered = [c for c, answer in zip(confidences, self.answers(), strict=True) if answer is not None]
        return self.voted(confidences, _threshold(answered, self._deepconf.eta) if answered else 0.0)


class _Online(_Traces):
    """Warm-up, then waves."""

    def __init__(self, question: Question, engine: Engine, seed: int, settings: DeepConfOnlineSettings) -> None:
        super().__init__(question, engine, seed, settings)
        self._online = settings
        self.threshold = float("-inf")
        """What a group must not fall below, nats; none during the warm-up."""

    def begin(self) -> list[tuple[int, Request]]:
        """The warm-up."""
        return self._ask(self._online.warm_up)

    def receive(self, key: int, completion: Completion) -> list[tuple[int, Request]]:
        """Keep a trace; once its wave is complete, the next one, unless they agree."""
        super().receive(key, completion)
        if not self.over:
            return []
        lowest = self.measure("lowest")
        if self._asked == self._online.warm_up:
            self.threshold = _threshold(lowest, self._online.eta)
        votes = self.votes(lowest, self.threshold)
        _, share = vote(list(votes.values()), [lowest[number] for number in votes])
        if share >= self._online.consensus:
            return []
        return self._ask(min(self._online.wave, self._online.samples - self._asked))

    def solution(self) -> Solution:
        return self.voted(self.measure("lowest"), self.threshold)

    def _request(self, number: int) -> Request:
        watch = None if number < self._online.warm_up else _stop_below(self.threshold, self._online.window)
        return replace(super()._request(number), watch=watch)


def _threshold(confidences: Sequence[float], eta: float) -> float:
    """What the most confident ``eta`` percent do not fall below: a percentile, interpolated as in the reference code."""
    return float(np.percentile(confidences, 100 - eta)) - _TOLERANCE


def _token_confidences(completion: Completion) -> list[float]:
    if completion.top_k_logprob is None:
        raise EngineError(
            "The engine measured no top-k log-probabilities, from which DeepConf takes a token's confidence. "
            "Use an engine that does (a model of transformers), or another method."
        )
    return [-value for value in completion.top_k_logprob.tolist()]


def _stop_below(threshold: float, window: int) -> Watch:
    groups = _Groups(window)

    def watch(token: int, measured: Measured) -> bool:
        assert measured.top_k_logprob is not None, "asked for by top_k"
        group = groups.add(-measured.top_k_logprob)
        return group is None or group >= threshold

    return watch
