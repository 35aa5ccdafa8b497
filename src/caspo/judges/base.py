"""What a judge is: something that says which steps of a solution are right, up to the first that is not."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from caspo.engines.base import Engine
from caspo.engines.reading import MARKS
from caspo.records import Label, Question, Verdict
from caspo.steps import Reading

__all__ = ["SAID", "Chain", "Judge", "StepJudge", "TextEngine", "chain_key"]

SAID = Reading(thinking=MARKS)
"""Reads what a solution says after its thinking, whoever wrote it."""


@dataclass(frozen=True)
class Chain:
    """The steps of one solution, or of the beginning of one."""

    question: Question
    steps: tuple[str, ...]
    """In order."""
    ended: bool
    """The solution ends with the last of them (the model's EOS)."""
    given: int = 0
    """The first ``given`` steps stand before what is asked about and are not judged."""
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()
    """Tokens of the prompt and of each step, where a model wrote them: a judge that lets this model go on asks it about
    these, and not about what their text would be cut into anew. Empty: not known."""


@runtime_checkable
class Judge(Protocol):
    """Judges the steps of many chains at once.

    A step is judged given that everything before it is right. A judge that cannot tell, or that failed, says
    ``unknown``: a failed judge is not a wrong step.
    """

    @property
    def name(self) -> str:
        """Stands in every verdict, and in the provenance of every pair built from it."""

    @property
    def instant(self) -> bool:
        """It answers at once, from the text alone: annotation may ask it while the engine decodes."""

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """Per chain the verdicts on ``steps[given:]``, up to and including the first wrong one; `unknown` is no end."""


class TextEngine(Engine, Protocol):
    """An engine whose model can be asked to go on from any text: what judges that ask a local model need."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""

    @property
    def context_length(self) -> int:
        """Tokens that the model can read."""


class StepJudge(ABC):
    """A judge that looks at one step at a time, at the text alone."""

    name: ClassVar[str]
    instant = True

    @abstractmethod
    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        """The verdict on ``step`` after the right steps ``prefix``; ``final``: the solution ends here."""

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """Step after step, as `Judge.judge`."""
        return [self._judge_chain(chain) for chain in chains]

    def _judge_chain(self, chain: Chain) -> list[Verdict]:
        verdicts: list[Verdict] = []
        answers = chain.ended and bool(SAID.answer_text("".join(chain.steps)))
        for at in range(chain.given, len(chain.steps)):
            final = answers and at + 1 == len(chain.steps)
            verdicts.append(self.judge_step(chain.question, chain.steps[:at], chain.steps[at], final=final))
            if verdicts[-1].label == "wrong":
                break
        return verdicts

    def _verdict(self, label: Label, reason: str) -> Verdict:
        return Verdict(label, reason, self.name)


def chain_key(chain: Chain) -> str:
    """A digest of everything that a verdict on this chain may depend on, the judge apart."""
    question = chain.question
    parts: list[Any] = [question.id, question.text, question.answer, question.solution, dict(question.meta)]
    parts += [chain.steps, chain.ended, chain.given]
    parts += [chain.prompt_ids, chain.token_ids] if chain.token_ids else []
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
