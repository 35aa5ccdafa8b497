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
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Engine, Watch
from caspo.records import Measured, Solution
from caspo.search.base import Method, Paths, Search, Tokens, Unit
from caspo.search.sampled import SelfConsistencySettings, answers_of, grow, several, solution
from caspo.search.vote import vote
from caspo.trees import TreeBuilder

__all__ = [
    "MEASURES", "DeepConfOffline", "DeepConfOfflineSettings", "DeepConfOnline", "DeepConfOnlineSettings",
    "group_confidences", "token_confidences",
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
    window: Tokens = 32
    """Tokens of a group. The paper takes 2048, of traces of tens of thousands; ours have tens to hundreds."""
    top_k: Annotated[int, Field(ge=2), Unit("paths")] = 20  # side by side, not one after the other: limited like paths
    """Most probable tokens whose log p make a token's confidence. With 1 it would be highest where the model is unsure."""


class DeepConfOfflineSettings(_Settings):
    """All traces are sampled to their ends."""

    measure: Literal["lowest", "bottom", "tail", "mean"] = "tail"
    """Confidence of a trace, see `MEASURES`: what it is filtered and weighted by."""


class DeepConfOnlineSettings(_Settings):
    """Traces are stopped when they lose confidence, and sampling when they agree. ``samples`` is the most there may be."""

    warm_up: Paths = 4
    """Traces that are sampled to their ends first, for the threshold."""
    consensus: float = Field(0.95, gt=0, le=1)
    """Share of the votes with which an answer needs no more traces."""
    wave: Paths = 1
    """Traces sampled at a time after that: 1 looks at the consensus after each; more is faster where questions are few."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warm_up > self.samples:
            raise ValueError(f"warm_up is {self.warm_up}, more than the {self.samples} samples there may be; lower it")
        return self


class DeepConfOffline(Method[DeepConfOfflineSettings]):
    """The most confident traces vote: the answer with the most confidence behind it, and its share of the votes cast."""

    name, title = "deepconf_offline", "DeepConf offline"
    settings_type = DeepConfOfflineSettings
    alike = True

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """All traces; of those with an answer the most confident percent votes."""
        settings = self.settings
        found = yield several(tree, settings, seed, range(settings.samples), settings.top_k)
        traces = _Traces(tree, found, settings, settings.measure)
        answered = [c for c, answer in zip(traces.confidences, traces.answers, strict=True) if answer is not None]
        return traces.voted(_threshold(answered, settings.eta) if answered else 0.0)


class DeepConfOnline(Method[DeepConfOnlineSettings]):
    """Traces that lose confidence are stopped; sampling ends with consensus. Answer and confidence as offline."""

    name, title = "deepconf_online", "DeepConf online"
    settings_type = DeepConfOnlineSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """The warm-up, which gives the threshold that no group must fall below, then waves."""
        settings = self.settings
        found = list((yield several(tree, settings, seed, range(settings.warm_up), settings.top_k)))
        traces = _Traces(tree, found, settings, "lowest")
        threshold = _threshold(traces.confidences, settings.eta)
        while len(found) < settings.samples and traces.agreement(threshold) < settings.consensus:
            wave = range(len(found), min(len(found) + settings.wave, settings.samples))
            requests = several(tree, settings, seed, wave, settings.top_k)
            found += yield [replace(request, watch=_stop_below(threshold, settings.window)) for request in requests]
            traces = _Traces(tree, found, settings, "lowest")
        return traces.voted(threshold)


class _Traces:
    """Solutions of self-consistency with their answers and confidences."""

    def __init__(self, tree: TreeBuilder, found: Sequence[Completion], settings: _Settings, measure: str) -> None:
        self._tree, self._found = tree, found
        self.answers = answers_of(tree, found)
        self.confidences = [MEASURES[measure](token_confidences(trace), settings.window) for trace in found]
        """Nats."""

    def agreement(self, threshold: float) -> float:
        """The share of the votes that the leading answer has."""
        return self._vote(self._voting(threshold))[1]

    def voted(self, threshold: float) -> Solution:
        """The vote's outcome. Traces that had none are `pruned` in the tree."""
        ends, numbers = grow(self._tree, self._found), self._voting(threshold)
        voting = {ends[number] for number in numbers}
        for end in ends:
            self._tree.decide(end, "finished" if end in voting else "pruned")
        return solution(self._tree, self._found, *self._vote(numbers))

    def _voting(self, threshold: float) -> list[int]:
        """The traces that vote: those with an answer, not stopped, and not below the threshold."""
        return [
            number
            for number, trace in enumerate(self._found)
            if self.answers[number] is not None and trace.finish != "abandoned" and self.confidences[number] >= threshold
        ]

    def _vote(self, numbers: Sequence[int]) -> tuple[str | None, float]:
        return vote([self.answers[number] for number in numbers], [self.confidences[number] for number in numbers])


def _threshold(confidences: Sequence[float], eta: float) -> float:
    """What the most confident ``eta`` percent do not fall below: a percentile, interpolated as in the reference code."""
    return float(np.percentile(confidences, 100 - eta)) - _TOLERANCE


def token_confidences(completion: Completion) -> list[float]:
    """The confidence of every token of a continuation that was asked for with ``top_k``, nats; of one without tokens a 0,
    which is less than any token has.

    Raises:
        EngineError: the engine measures no such thing.
    """
    if completion.top_k_logprob is None:
        raise EngineError(
            "The engine measured no top-k log-probabilities, from which DeepConf and ReASC take a token's confidence. "
            "Use an engine that does (a model of transformers), or another method."
        )
    return [-value for value in completion.top_k_logprob.tolist()] or [0.0]


def _stop_below(threshold: float, window: int) -> Watch:
    groups = _Groups(window)

    def watch(token: int, measured: Measured) -> bool:
        assert measured.top_k_logprob is not None, "asked for by top_k"
        group = groups.add(-measured.top_k_logprob)
        return group is None or group >= threshold

    return watch
