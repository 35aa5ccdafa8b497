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
from caspo.records import ROOT, Solution
from caspo.search.base import Method, Paths, PathSettings, Search, SignalName, Tokens
from caspo.search.vote import agreement
from caspo.trees import TreeBuilder, seed_of

__all__ = ["Beam", "BeamSettings"]


class BeamSettings(PathSettings):
    """How wide the beam is and what it is scored by."""

    beam_width: Paths = 2
    """Paths that go on at each depth, at most."""
    children: Paths = 5
    """Continuations sampled of each path at each depth."""
    temperature: float = Field(0.7, gt=0)
    """Logits are divided by it before a token is drawn."""
    signal: SignalName = "perplexity"
    """Measured over each step, higher is better; `perplexity` is the mean log p of its tokens, nats."""
    score: Literal["cumulative", "last"] = "cumulative"
    """A path is as good as the product of its steps' scores, or as its last step's score."""
    max_step_tokens: Tokens = 512
    """Tokens of one step, at most; a longer one ends its path without an answer."""

    @property
    def rows(self) -> int:
        """Every continuation of every path."""
        return self.beam_width * self.children


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


class Beam(Method[BeamSettings]):
    """Step beam search by confidence: the best finished path's answer.

    Its confidence is the share of the finished paths that agree with it.
    """

    name, title = "beam", "Beam search"
    settings_type = BeamSettings

    def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
        """Depth by depth, from a beam of one empty path."""
        live, finished, spent = [_Path()], list[_Path](), 0
        while live:
            asked = [(path, child) for path in live for child in range(self.settings.children)]
            found = yield [self._request(tree, path, seed, child) for path, child in asked]
            spent += sum(one.decoded for one in found)
            children: dict[int, _Path] = {}
            for (path, _), one in zip(asked, found, strict=True):
                size = tree.step_size(path.node, one.token_ids, one.ahead)
                if size:  # otherwise it goes on with the path's last step, or ends where the path is, without an answer
                    child = self._child(tree, path, one, size)
                    children.setdefault(child.node, child)
            live = self._kept(tree, list(children.values()), finished)
        if not finished:
            return Solution(tree.question.id, None, 0.0, tree.build(), spent)
        best = max(range(len(finished)), key=lambda place: finished[place].score)
        confidence = agreement([path.answer for path in finished], best)
        return Solution(tree.question.id, finished[best].answer, confidence, tree.build(), spent)

    def _request(self, tree: TreeBuilder, path: _Path, seed: int, child: int) -> Request:
        settings = self.settings
        return Request(
            prefix_ids=tree.prefix_ids(path.node),
            seed=seed_of("beam", seed, tree.question.id, tuple(tree.texts(path.node)), child),
            max_new_tokens=min(settings.max_step_tokens, settings.longest_path - path.tokens),
            temperature=settings.temperature,
            top_p=settings.top_p,
            step=tree.reader(path.node),
            keep=True,
        )

    def _child(self, tree: TreeBuilder, path: _Path, completion: Completion, size: int) -> _Path:
        """The path and one more step: the first ``size`` tokens of what was decoded."""
        settings, finish = self.settings, completion.finish if size == len(completion.token_ids) else "stop"
        node = tree.add_step(path.node, completion.token_ids[:size], completion.trace[:size], final=finish == "eos")
        score = math.log(step_score(tree.nodes[node].step.trace, settings.signal))
        tokens = path.tokens + size
        return _Path(
            node,
            score + (path.score if settings.score == "cumulative" else 0.0),
            tokens,
            stated_answer(tree.question, tree.answer_text(node), ended=finish != "length"),
            ended=finish != "stop" or tokens >= settings.longest_path,
        )

    def _kept(self, tree: TreeBuilder, children: list[_Path], finished: list[_Path]) -> list[_Path]:
        """The best of this depth, which go on; those that came to an answer join the finished ones instead."""
        live: list[_Path] = []
        places = self.settings.beam_width - len(finished)
        for path in sorted(children, key=lambda path: (-path.score, path.node)):
            if path.ended and path.answer is None:
                tree.decide(path.node, "finished" if tree.nodes[path.node].final else "cut")
            elif places == 0 or self._beaten(path, finished):
                tree.decide(path.node, "dropped")
            else:
                places -= 1
                tree.decide(path.node, "expanded" if path.answer is None else "finished")
                (live if path.answer is None else finished).append(path)
        return live

    def _beaten(self, path: _Path, finished: list[_Path]) -> bool:
        """Whether a finished path is at least as good, whatever follows this one."""
        return self.settings.score == "cumulative" and any(path.score <= done.score for done in finished)
