"""Beam search over steps, scored by the model's own confidence instead of a reward model.

At every depth each live path is continued by ``children`` sampled steps; equal ones are merged, and of all of them the
best ``beam_width`` go on. A path that states an answer has finished: it is set aside and keeps its place in the beam, so
that no more than ``beam_width`` paths ever do. The best finished path answers. A path that ends without an answer, by EOS
or at a limit, is given up.

The scheme is that of search-and-learn and thinkbooster. Where they refill the beam and decode on to a fixed depth, a
cumulative score lets us stop earlier without another result: it never rises, so a live path that is no better than the
best finished one can never win.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from caspo.answers import stated_answer
from caspo.confidence import step_score
from caspo.engines.base import Completion, Engine, Request
from caspo.search.base import Method, PathSettings, SignalName
from caspo.search.vote import agreement
from caspo.trees import TreeBuilder, seed_of
from caspo.types import ROOT, Question, Solution, Step

__all__ = ["Beam", "BeamSettings"]


class BeamSettings(PathSettings):
    """How wide the beam is and what it is scored by."""

    beam_width: int = Field(2, ge=1)
    """Paths that go on at each depth, at most."""
    children: int = Field(5, ge=1)
    """Continuations sampled of each path at each depth."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token is drawn."""
    signal: SignalName = "perplexity"
    """Measured over each step, higher is better; `perplexity` is the mean log p of its tokens, nats."""
    score: Literal["cumulative", "last"] = "cumulative"
    """A path is as good as the product of its steps' scores, or as its last step's score."""
    max_step_tokens: int = Field(128, ge=1)
    """Tokens of one step, at most; a longer one ends its path without an answer."""

    @property
    def rows(self) -> int:
        """Every continuation of every path."""
        return self.beam_width * self.children


class Beam(Method[BeamSettings]):
    """Step beam search by confidence: the best finished path's answer.

    Its confidence is the share of the finished paths that agree with it.
    """

    name = "beam"
    settings_type = BeamSettings

    def search(self, question: Question, engine: Engine, seed: int) -> _Search:
        """A beam of one empty path."""
        return _Search(TreeBuilder(question, engine.prompt(question.text)), self.settings, seed)


@dataclass(frozen=True)
class _Path:
    node: int = ROOT
    score: float = 0.0
    """Log of the product of the steps' scores, or of the last one's."""
    tokens: int = 0
    answer: str | None = None
    """It has finished if it has one."""
    ended: bool = False
    """By EOS or at a limit."""


_Key = tuple[int, int]
"""Place of a path in the beam, and which of its continuations."""


class _Search:
    """The search for one question's answer."""

    def __init__(self, builder: TreeBuilder, settings: BeamSettings, seed: int) -> None:
        self.builder, self.settings, self.seed = builder, settings, seed
        self._live = [_Path()]
        self._finished: list[_Path] = []
        self._arrived: dict[_Key, Completion] = {}
        self._tokens = 0

    @property
    def over(self) -> bool:
        """Whether no path is left to continue."""
        return not self._live

    def begin(self) -> list[tuple[_Key, Request]]:
        """The continuations of every live path."""
        self._arrived = {}
        keys = [(place, child) for place in range(len(self._live)) for child in range(self.settings.children)]
        return [(key, self._request(*key)) for key in keys]

    def receive(self, key: _Key, completion: Completion) -> list[tuple[_Key, Request]]:
        """Take a continuation in; once all of this depth are there, those of the next."""
        self._arrived[key] = completion
        self._tokens += len(completion.token_ids)
        if len(self._arrived) < len(self._live) * self.settings.children:
            return []
        self._select()
        return self.begin()

    def solution(self) -> Solution:
        """The best finished path's answer; of equally good ones that of the first to finish."""
        answer, confidence = None, 0.0
        if self._finished:
            best = max(range(len(self._finished)), key=lambda place: self._finished[place].score)
            answer = self._finished[best].answer
            confidence = agreement([path.answer for path in self._finished], best)
        return Solution(self.builder.question.id, answer, confidence, self.builder.build(), self._tokens)

    def _request(self, place: int, child: int) -> Request:
        path, settings = self._live[place], self.settings
        return Request(
            prefix_ids=self.builder.prefix_ids(path.node),
            seed=seed_of("beam", self.seed, self.builder.question.id, tuple(self.builder.texts(path.node)), child),
            max_new_tokens=min(settings.max_step_tokens, settings.max_tokens - path.tokens),
            temperature=settings.temperature,
            top_p=settings.top_p,
            stop=("\n",),
            keep=True,
        )

    def _select(self) -> None:
        """Turn what arrived into paths; keep the best."""
        settings, builder = self.settings, self.builder
        children: dict[int, _Path] = {}
        for place, child in sorted(self._arrived):
            path = self._child(self._live[place], self._arrived[place, child])
            children.setdefault(path.node, path)
        places = settings.beam_width - len(self._finished)
        self._live = []
        for path in sorted(children.values(), key=lambda path: (-path.score, path.node)):
            if path.ended and path.answer is None:
                builder.decide(path.node, "finished" if builder.nodes[path.node].final else "cut")
            elif places == 0 or self._beaten(path):
                builder.decide(path.node, "dropped")
            else:
                places -= 1
                builder.decide(path.node, "expanded" if path.answer is None else "finished")
                (self._live if path.answer is None else self._finished).append(path)

    def _beaten(self, path: _Path) -> bool:
        """Whether a finished path is at least as good, whatever follows this one."""
        cumulative = self.settings.score == "cumulative"
        return cumulative and any(path.score <= finished.score for finished in self._finished)

    def _child(self, path: _Path, completion: Completion) -> _Path:
        settings = self.settings
        step = Step(completion.text, completion.token_ids, completion.trace)
        node = self.builder.add(path.node, step, final=completion.finish == "eos")
        score = math.log(step_score(self.builder.nodes[node].step.trace, settings.signal))
        tokens = path.tokens + len(completion.token_ids)
        return _Path(
            node,
            score + (path.score if settings.score == "cumulative" else 0.0),
            tokens,
            stated_answer(self.builder.question, "".join(self.builder.texts(node))),
            ended=completion.finish != "stop" or tokens >= settings.max_tokens,
        )
