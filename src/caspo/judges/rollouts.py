"""Judge `rollouts`: a step is right while the model still completes the solution to the known answer.

It needs no second model and no intermediate values: the model itself continues a prefix a few times, and the share of
continuations that reach the answer says whether the prefix can still be saved (Wang et al. 2024, Math-Shepherd,
arXiv:2312.08935). Two things make it cheap. A prefix is sampled only until the verdict is sure: Wald's sequential
probability ratio test (Annals of Mathematical Statistics 16, 1945) between "at least `reached` of them get there" and "at
most `lost` do". And the first error of a chain is found by binary search (Luo et al. 2024, OmegaPRM, arXiv:2406.06592),
which assumes that a prefix that lost the answer never finds it again. The model goes on from the very tokens that it
wrote where these are known (steps of trees), and from the text as it stands otherwise.

What completions do not show is a wrong step after which the answer is reached all the same, such as a sum that the model
corrects on the way: so a false equation is wrong before anything is sampled (`equations`, by the arithmetic judge). Any
other mistake in a solution that comes to the right answer stays unseen. What it never calls wrong, apart from false
equations and other answers: a step of a problem that the model does not solve from the prefix before it either, such as
all steps of a problem beyond its powers. These are `unknown`. Answers that are graded by running them (code) are not
covered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from pydantic import Field, model_validator

from caspo.answers import right_answer, stated_answer
from caspo.core.config import Config
from caspo.engines.base import Request
from caspo.engines.drive import Asking, drive
from caspo.engines.reading import MARKS
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import SAID, Chain, TextEngine
from caspo.records import ROOT, Label, Question, Verdict
from caspo.steps import Reading
from caspo.trees import TreeBuilder, seed_of

__all__ = ["RolloutCounts", "RolloutJudge", "RolloutSettings", "fixed_sample"]


_Told = tuple[Label, str]
"""A label and its reason."""


class RolloutSettings(Config):
    """How the model's own completions are sampled, and when they are enough."""

    kind: Literal["rollouts"] = "rollouts"
    samples: int = Field(16, ge=1)
    """Completions of one prefix, at most; a prefix that is undecided by then is unknown."""
    reached: float = Field(0.2, gt=0, lt=1)
    """A prefix is right if at least this share of its completions reaches the answer (a probability)."""
    lost: float = Field(0.0, ge=0, lt=1)
    """It is lost if at most this share does (a probability). 0: a single success makes it right (the hard estimation of
    Math-Shepherd)."""
    error: float = Field(0.05, gt=0, lt=0.5)
    """Probability of calling a right prefix lost, and of calling a lost one right."""
    temperature: float = Field(1.0, gt=0)
    """Logits are divided by it before a token is drawn."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Tokens are drawn from the most probable ones that hold this share of the probability."""
    max_tokens: int = Field(512, ge=1)
    """Tokens of one completion, at most; one that is cut before it states an answer has not reached it."""
    equations: bool = True
    """A step with a false equation is wrong, whatever its completions come to."""
    seed: int = 0
    """All that is drawn follows from it."""

    @model_validator(mode="after")
    def _decidable(self) -> RolloutSettings:
        if self.lost >= self.reached:
            raise ValueError(f"lost ({self.lost:g}) must be below reached ({self.reached:g})")
        needed = math.ceil(_bound(self) / -_weights(self)[1])
        if self.samples < needed:
            raise ValueError(f"{self.samples} samples never tell a lost prefix at these rates; {needed} are needed")
        return self


@dataclass
class RolloutCounts:
    """What a judge has spent so far."""

    completions: int = 0
    """Sampled."""
    tokens: int = 0
    """Generated in them."""
    tests: int = 0
    """Different prefixes that were sampled from."""
    scanned: int = 0
    """Different prefixes that a scan from the first step to the first error would have sampled from."""
    verdicts: int = 0
    """Right and wrong ones."""

    def saved(self, settings: RolloutSettings) -> float:
        """The share of completions saved against a scan with as many at each prefix as the same certainty needs."""
        return 1 - self.completions / (self.scanned * fixed_sample(settings)) if self.scanned else 0.0


@dataclass(frozen=True)
class _Reach:
    """How often completions of a prefix reached the answer."""

    label: Label
    successes: int
    samples: int

    def __str__(self) -> str:
        if not self.samples:
            return "the prefix leaves no room in the model's context"
        return f"{self.successes} of {self.samples} completions reach the answer"


class RolloutJudge:
    """Judges chains by completing them. A verdict depends on the chain, the model and the settings, not on the batch.

    Args:
        engine: opens the engine, when it is first needed.
        settings: how to sample.
        model: name of the model, for `fingerprint`.
    """

    name = "rollouts"
    instant = False

    def __init__(self, engine: Callable[[], TextEngine], settings: RolloutSettings | None = None, model: str = "") -> None:
        self.settings = settings or RolloutSettings()
        self.counts = RolloutCounts()
        self.fingerprint = f"{self.name} {model} {self.settings.model_dump_json()}"
        self._engine = engine
        self._known: dict[int, _Reach] = {}
        self._scanned: set[int] = set()

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """As `Judge.judge`; all prefixes that are to be tested next are sampled in one batch."""
        false = [self._false_equation(chain) for chain in chains]
        searches = [
            _Search(chain if at is None else replace(chain, steps=chain.steps[: at[0]], ended=False))
            for chain, at in zip(chains, false, strict=True)
        ]
        while True:
            wanted = {found.key: found for search in searches if (found := search.advance(self._known)) is not None}
            if not wanted:
                break
            tests = [self._test(prefix) for prefix in wanted.values()]
            for test, reach in zip(tests, drive([test.run() for test in tests], self._engine()), strict=True):
                self._known[test.prefix.key] = reach
                self.counts.completions += test.samples
                self.counts.tokens += test.tokens
            self.counts.tests += len(tests)
        for search, at in zip(searches, false, strict=True):
            self._scanned |= search.scanned()
            if at is not None and all(label != "wrong" for label, _ in search.told):
                search.told.append(("wrong", at[1]))
            self.counts.verdicts += sum(label != "unknown" for label, _ in search.told)
        self.counts.scanned = len(self._scanned)
        return [[Verdict(label, reason, self.name) for label, reason in search.told] for search in searches]

    def _false_equation(self, chain: Chain) -> tuple[int, str] | None:
        """The place and the fault of the first step with a false equation."""
        if not self.settings.equations:
            return None
        bare = replace(chain, ended=False)  # answers are compared by the search
        (verdicts,) = ArithmeticJudge().judge([bare])
        wrong = bool(verdicts) and verdicts[-1].label == "wrong"
        return (chain.given + len(verdicts) - 1, verdicts[-1].reason) if wrong else None

    def _test(self, prefix: _Prefix) -> _Test:
        engine = self._engine()
        ids = engine.prompt(prefix.question.text)
        # Some templates open the model's thinking themselves: what stands before the end of it states nothing.
        thinking = TreeBuilder(prefix.question, ids, engine).reader(ROOT).thinking
        reading = replace(SAID, thinking=(*engine.reading.thinking, *MARKS))
        if prefix.token_ids and prefix.prompt_ids == ids:
            ids += prefix.token_ids
        elif prefix.text:
            ids += tuple(engine.tokenizer(prefix.text, add_special_tokens=False)["input_ids"])
        return _Test(prefix, ids if len(ids) < engine.context_length else None, self.settings, reading, thinking)


@dataclass(frozen=True)
class _Prefix:
    """The beginning of a solution that is to be completed."""

    question: Question
    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Of the steps, as the model wrote them; empty: those of the text."""
    key: int
    """Equal prefixes of one question have one key."""

    @staticmethod
    def of(chain: Chain, length: int) -> _Prefix:
        """The first ``length`` steps of a chain, exactly as they stand."""
        text = _text(chain.steps[:length])
        ids: tuple[int, ...] = ()
        if chain.token_ids and not (chain.ended and length == len(chain.steps)):  # there the model's EOS ends them
            ids = tuple(token for step in chain.token_ids[:length] for token in step)
        question = chain.question
        key = seed_of("rollouts", question.id, question.text, question.answer, text, *ids)
        return _Prefix(question, text, chain.prompt_ids, ids, key)


class _Search:
    """The search for a chain's first error; it waits for the test of one prefix at a time."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.told: list[_Told] = []
        """Labels and reasons, once it is over."""
        self._scan = range(0)
        self._run = self._first_error()
        self._waits_for = next(self._run, None)

    def advance(self, known: Mapping[int, _Reach]) -> _Prefix | None:
        """Go on as far as what is known allows; the prefix it waits for, None at the end."""
        while self._waits_for is not None:
            prefix = _Prefix.of(self.chain, self._waits_for)
            if prefix.key not in known:
                return prefix
            try:
                self._waits_for = self._run.send(known[prefix.key])
            except StopIteration:
                self._waits_for = None
        return None

    def scanned(self) -> set[int]:
        """The prefixes that a scan would have sampled from."""
        return {_Prefix.of(self.chain, length).key for length in self._scan}

    def _first_error(self) -> Generator[int, _Reach, None]:  # noqa: PLR0912
        """Yields how many steps of the chain to test next."""
        question, given, length = self.chain.question, self.chain.given, len(self.chain.steps)
        if given >= length:
            return
        if not question.answer.strip():
            self.told = [("unknown", "the question has no known answer")] * (length - given)
            return
        stated = stated_answer(question, SAID.answer_text(_text(self.chain.steps))) if self.chain.ended else None
        by_text = int(stated is not None)  # the last step needs no completions then
        if given and stated is None:  # tested already where a tree was grown to it; nothing can be told after a lost one
            before = yield given
            if before.label != "right":
                self._scan = range(given, given + 1)
                self.told = [("unknown", f"already before it {before}")] * (length - given)
                return
        if stated is not None:
            right = right_answer(stated, question.answer)
            end, why = ("right" if right else "wrong"), f"answers {stated}; the answer is {question.answer}"
        else:
            reach = yield length
            end, why = reach.label, str(reach)
        self._scan = range(given + 1, length + 1 - by_text)
        if end == "right":
            self.told = [("right", why)] * (length - given)
            return
        answer: list[_Told] = [("wrong", why)] * by_text
        before = yield given
        if before.label != "right":
            self._scan = range(given, given + 1)
            unknown: _Told = ("unknown", f"already before it {before}")
            self.told = [unknown] * (length - given - by_text) + answer
            return
        low, high = given, length
        while high - low > 1:
            middle = (low + high) // 2
            reach = yield middle
            if reach.label == "right":
                low, before = middle, reach
            else:
                high, end, why = middle, reach.label, str(reach)
        self._scan = range(given + 1, high + 1 - (by_text if high == length else 0))
        self.told = [("right", str(before))] * (low - given)
        if end == "wrong":
            self.told.append(("wrong", f"{why}; before it {before}"))
        else:
            unknown = ("unknown", why)
            self.told += [unknown] * (length - low - by_text) + answer


@dataclass
class _Test:
    """The sequential test of one prefix. As many completions are asked for as can decide it at the earliest, so none is
    sampled in vain."""

    prefix: _Prefix
    ids: tuple[int, ...] | None
    """Its tokens, those of the prompt included; None where the model's context has no room for a completion."""
    settings: RolloutSettings
    reading: Reading
    thinking: bool
    """Whether the prompt opens the model's thinking."""
    samples: int = 0
    successes: int = 0
    tokens: int = 0

    def run(self) -> Asking[_Reach]:
        """Sample until it is decided, or there are as many as there may be."""
        question = self.prefix.question
        while self.ids is not None and self._decided() is None and self.samples < self.settings.samples:
            found = yield [self._request(self.ids, number) for number in self._next()]
            for completion in found:
                said = self.reading.answer_text(self.prefix.text + completion.text, thinking=self.thinking)
                answer = stated_answer(question, said, ended=completion.finish == "eos")
                self.samples += 1
                self.successes += right_answer(answer, question.answer)
                self.tokens += completion.decoded
        return _Reach(self._decided() or "unknown", self.successes, self.samples)

    def _next(self) -> range:
        """Numbers of the completions that can decide it at the earliest."""
        ratio, bound = self._ratio(), _bound(self.settings)
        success, failure = _weights(self.settings)
        soonest = max(1, math.ceil(min((bound - ratio) / success, (bound + ratio) / -failure) - 1e-9))
        return range(self.samples, min(self.samples + soonest, self.settings.samples))

    def _request(self, ids: tuple[int, ...], number: int) -> Request:
        settings = self.settings
        return Request(
            prefix_ids=ids,
            seed=seed_of(self.prefix.key, settings.seed, number),
            max_new_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )

    def _ratio(self) -> float:
        """The logarithm of the likelihood ratio of `reached` to `lost`."""
        success, failure = _weights(self.settings)
        return (self.successes * success if self.successes else 0.0) + (self.samples - self.successes) * failure

    def _decided(self) -> Label | None:
        bound, ratio = _bound(self.settings), self._ratio()
        return "right" if ratio >= bound else "wrong" if ratio <= -bound else None


def _weights(settings: RolloutSettings) -> tuple[float, float]:
    """What a success and a failure add to the log-likelihood ratio."""
    success = math.log(settings.reached / settings.lost) if settings.lost else math.inf
    return success, math.log((1 - settings.reached) / (1 - settings.lost))


def _bound(settings: RolloutSettings) -> float:
    """Wald's bound on the log-likelihood ratio, either way."""
    return math.log((1 - settings.error) / settings.error)


def fixed_sample(settings: RolloutSettings) -> int:
    """The smallest fixed number of completions that tells `reached` from `lost` with the same chance of an error."""
    from scipy.special import bdtr, bdtrc

    error = settings.error
    return next(
        size
        for size in count(1)
        if any(bdtr(k, size, settings.reached) <= error >= bdtrc(k, size, settings.lost) for k in range(size))
    )


def _text(steps: Sequence[str]) -> str:
    """Steps as they stand, indentation and blank lines included; one without white space at its end gets a line break."""
    return "".join(step if not step or step[-1].isspace() else f"{step}\n" for step in steps)
