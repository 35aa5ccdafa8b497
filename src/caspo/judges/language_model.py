"""Judge `language_model`: a language model reads the whole solution and names its first wrong step.

Either any OpenAI-compatible endpoint (endpoint.py), or a local model through an engine. The model answers in JSON, which
is validated; several votes are a majority over the index of the first wrong step. Prose instead of JSON, an index that is
no step, votes that are split, an endpoint that fails: all of these are `unknown`, with the reason, and no wrong step.

The question asked is that of critics on ProcessBench (Zheng et al. 2024, arXiv:2412.06559): which step is the first that
is wrong? Not covered: several turns, and a schema forced on the decoding, which not every server can do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError, model_validator

from caspo.core.config import Config
from caspo.engines.base import Request
from caspo.judges.base import Chain, TextEngine, chain_key
from caspo.judges.endpoint import EndpointSettings, ModelAnswer
from caspo.records import Label, Verdict
from caspo.trees import seed_of

__all__ = ["INSTRUCTION", "AskModel", "LanguageModelJudge", "LanguageModelSettings", "ask_engine", "prompt_of"]

INSTRUCTION = """\
You check solutions of problems, step by step. A step is wrong if it makes a false statement, calculates wrongly, uses a
number or a fact that does not follow, or draws a conclusion that does not hold. A step that is only short, clumsy,
redundant or written in another language than the problem is not wrong. Think the steps through in order, and find the
first one that is wrong. Answer with one JSON object and nothing else:
{"reason": "why, in one sentence of plain words", "first_wrong_step": number of the first wrong step, or -1 if none is}"""


class LanguageModelSettings(Config):
    """Which model judges, and how it is asked."""

    kind: Literal["language_model"] = "language_model"
    model: str
    """Its name at the endpoint; without an endpoint a bundled name, a folder or a name of the hub."""
    endpoint: EndpointSettings | None = None
    """Where an OpenAI-compatible server listens. Without it the model is loaded here."""
    show_answer: bool = True
    """Whether the judge is shown the known answer of the question."""
    votes: int = Field(1, ge=1)
    """How often it is asked about each solution."""
    temperature: float = Field(0.0, ge=0)
    """0: greedy. Several votes need one above 0."""
    max_tokens: int = Field(1024, ge=1)
    """Tokens of one reply, at most."""
    seed: int = 0
    """All that is drawn follows from it."""

    @model_validator(mode="after")
    def _votes_differ(self) -> LanguageModelSettings:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("votes at temperature 0 are all the same: set a temperature, for example 0.7")
        return self


AskModel = Callable[[Sequence[str], Sequence[int]], list[ModelAnswer]]
"""Sends prompts to a model, with a seed for each; what it says to each, in order, or why it said nothing."""


class _Reply(BaseModel):
    """What the model is to answer; whatever else it adds is ignored."""

    reason: str = ""
    first_wrong_step: StrictInt


class LanguageModelJudge:
    """Judges chains by asking a model.

    Args:
        ask: `endpoint.ChatEndpoint`, or what `ask_engine` makes of a local model.
        settings: which model, and how it is asked.
    """

    name = "language_model"
    instant = False

    def __init__(self, ask: AskModel, settings: LanguageModelSettings) -> None:
        self.settings = settings
        self.fingerprint = f"{self.name} {settings.model_dump_json(exclude={'endpoint'})}"
        self._ask = ask

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """As `Judge.judge`; all votes on all chains are asked for at once, equal chains once."""
        keys = [chain_key(chain) for chain in chains]
        distinct = {key: chain for key, chain in zip(keys, chains, strict=True) if chain.given < len(chain.steps)}
        votes = [(key, vote) for key in distinct for vote in range(self.settings.votes)]
        prompts = {key: prompt_of(chain, show_answer=self.settings.show_answer) for key, chain in distinct.items()}
        seeds = [seed_of("language_model", self.settings.seed, key, vote) for key, vote in votes]
        answers = self._ask([prompts[key] for key, _ in votes], seeds)
        of: dict[str, list[ModelAnswer]] = {key: [] for key in distinct}
        for (key, _), answer in zip(votes, answers, strict=True):
            of[key].append(answer)
        found = {key: self._verdicts(chain, of[key]) for key, chain in distinct.items()}
        return [list(found.get(key, [])) for key in keys]

    def _verdicts(self, chain: Chain, answers: Sequence[ModelAnswer]) -> list[Verdict]:
        replies = [_read(answer, chain) for answer in answers]
        valid = [reply for reply in replies if isinstance(reply, _Reply)]
        given, length = chain.given, len(chain.steps)
        if not valid:
            return self._all("unknown", str(replies[0]), length - given, failed=answers[0].text is None)
        counted = Counter(reply.first_wrong_step for reply in valid).most_common(2)
        (first, votes), *others = counted
        if others and others[0][1] == votes:
            split = f"the votes are split between step {first} and step {others[0][0]}"
            return self._all("unknown", split, length - given)
        reason = next(reply.reason for reply in valid if reply.first_wrong_step == first)
        if len(answers) > 1:
            reason = f"{votes} of {len(answers)} votes: {reason}"
        if first < 0:
            return self._all("right", reason, length - given)
        return [*self._all("right", f"before the first wrong step, {first}", first - given), *self._all("wrong", reason, 1)]

    def _all(self, label: Label, reason: str, count: int, *, failed: bool = False) -> list[Verdict]:
        return [Verdict(label, reason, self.name, failed)] * count


def prompt_of(chain: Chain, *, show_answer: bool) -> str:
    """What the model is asked about a chain; steps are numbered from 0."""
    lines = [f"Problem:\n{chain.question.text.strip()}\n"]
    if show_answer and chain.question.answer.strip():
        lines.append(f"The right final answer is known: {chain.question.answer.strip()}\n")
    lines.append("Solution:" if chain.ended else "Beginning of a solution, which goes on after the last step:")
    lines += [f"[{number}] {step.strip() or '(empty)'}" for number, step in enumerate(chain.steps)]
    if chain.given:
        lines.append(f"\nSteps before [{chain.given}] are known to be right; look at those from [{chain.given}] on.")
    lines.append("\nWhich step is the first that is wrong? Answer with the JSON object only.")
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be sent


def _read(answer: ModelAnswer, chain: Chain) -> _Reply | str:
    """The validated reply, or why there is none."""
    if answer.text is None:
        return f"failed: {answer.problem}"
    found = _last_object(answer.text)
    if found is None:
        return f"the judge answered no JSON object: {answer.text.strip()[:80]!r}"
    try:
        reply = _Reply.model_validate(found)
    except ValidationError as error:
        return f"the judge's JSON is not what was asked for: {error.errors()[0]['msg']} ({str(found)[:80]})"
    if reply.first_wrong_step != -1 and not chain.given <= reply.first_wrong_step < len(chain.steps):
        return f"the judge names step {reply.first_wrong_step}, of {chain.given} to {len(chain.steps) - 1}"
    return reply


def _last_object(text: str) -> object | None:
    """The last JSON object in a text that has the key asked for: models think aloud before it, or fence it."""
    decoder = json.JSONDecoder(strict=False)
    end = len(text)
    for _ in range(_MAX_OBJECTS):
        end = text.rfind("{", 0, end)
        if end < 0:
            break
        try:
            found, _ = decoder.raw_decode(text, end)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "first_wrong_step" in found:
            return found
    return None


_MAX_OBJECTS = 64
"""Braces looked at from the end of a reply: it may hold thousands."""


def ask_engine(engine: Callable[[], TextEngine], settings: LanguageModelSettings) -> AskModel:
    """Ask a local model. The engine's own instruction should be `INSTRUCTION`; it is opened when first needed."""

    def ask(prompts: Sequence[str], seeds: Sequence[int]) -> list[ModelAnswer]:
        if not prompts:
            return []
        model = engine()
        requests = [
            Request(model.prompt(prompt), seed, max_new_tokens=settings.max_tokens, temperature=settings.temperature)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        fitting = [request for request in requests if len(request.prefix_ids) < model.context_length]
        texts = iter([completion.text for completion in model.generate(fitting)])
        long = ModelAnswer(None, "the solution leaves no room in the judge's context")
        return [ModelAnswer(next(texts)) if len(r.prefix_ids) < model.context_length else long for r in requests]

    return ask
