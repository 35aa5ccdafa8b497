"""The protocol of judges: what is judged of a chain, where it stops, and what a chain's digest depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Chain, Judge, StepJudge, chain_key
from caspo.judges.reference import ReferenceJudge
from caspo.records import Label, Question, Verdict

QUESTION = Question("Ann has 2 nuts and finds 3. How many has she?", "5", id="q")


class Told(StepJudge):
    """Reads the verdict in the step itself; notes what it was asked."""

    name = "told"

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], str, bool]] = []

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        self.asked.append((tuple(prefix), step, final))
        label: Label = "right" if step == "good" else "wrong" if step == "bad" else "unknown"
        return Verdict(label, "told so", self.name)


def labels(judge: Judge, chain: Chain) -> list[str]:
    (verdicts,) = judge.judge([chain])
    return [verdict.label for verdict in verdicts]


@pytest.mark.parametrize("judge", [Told(), ReferenceJudge(), ArithmeticJudge()])
def test_they_are_judges(judge: object) -> None:
    """The interface that annotation uses."""
    assert isinstance(judge, Judge)
    assert judge.instant
    assert judge.judge([]) == []


def test_verdicts_end_with_the_first_wrong_step_and_go_on_after_unknown() -> None:
    """What follows a wrong step has no meaning; "unknown" says nothing about what follows."""
    told = Told()
    assert labels(told, Chain(QUESTION, ("good", "?", "good", "bad", "good"), True)) == [
        "right",
        "unknown",
        "right",
        "wrong",
    ]
    assert told.asked[-1] == (("good", "?", "good"), "bad", False)
    assert labels(told, Chain(QUESTION, (), True)) == []


def test_given_steps_are_not_judged_and_only_the_last_step_of_an_ended_chain_is_final() -> None:
    told = Told()
    assert labels(told, Chain(QUESTION, ("bad", "good", "good"), True, given=1)) == ["right", "right"]
    assert told.asked == [(("bad",), "good", False), (("bad", "good"), "good", True)]
    told.asked.clear()
    labels(told, Chain(QUESTION, ("good",), False))
    assert told.asked == [((), "good", False)]


def test_the_digest_of_a_chain_tells_apart_whatever_a_verdict_may_depend_on() -> None:
    """And is the same for equal chains: it is what verdicts are kept under."""
    chain = Chain(QUESTION, ("a", "b"), True)
    assert chain_key(chain) == chain_key(Chain(replace(QUESTION, meta={}), ("a", "b"), True))
    others = [
        replace(chain, steps=("ab",)),
        replace(chain, steps=("a", "b", "")),
        replace(chain, ended=False),
        replace(chain, given=1),
        *(replace(chain, question=replace(QUESTION, **{key: "x"})) for key in ("id", "text", "answer", "solution")),
        replace(chain, question=replace(QUESTION, meta={"quantities": [1]})),
    ]
    assert len({chain_key(c) for c in [chain, *others]}) == len(others) + 1
    assert chain_key(replace(chain, steps=("\ud800",))), "half a surrogate pair is text to Python"
