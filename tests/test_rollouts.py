"""The rollouts judge with a scripted model: what it says, what it never says, and what it spends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from caspo.judges.base import Chain, Judge
from caspo.judges.rollouts import RolloutJudge, RolloutSettings, fixed_sample
from caspo.records import Question, Verdict
from caspo.testing.scripted import Script, Scripted
from tiny import Counting

QUESTION = Question("How many?", "5", id="q")
WALD = RolloutSettings(reached=0.4, lost=0.05)  # two successes or seven failures in a row decide


class Engine(Counting):
    """A scripted engine whose text can be made tokens."""

    context_length = 10_000

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.tokenizer: Any = lambda text, add_special_tokens: {"input_ids": [ord(c) for c in text]}


def finishing(chance: Callable[[str], float]) -> Callable[[str], list[Scripted]]:
    """A model that ends every prefix at once, and right with a chance that depends on its steps."""

    def script(text: str) -> list[Scripted]:
        right = chance(text.partition("\n")[2])
        options = [("The answer is 5.", right), ("The answer is 6.", 1 - right)]
        return [Scripted(answer, share, eos=True) for answer, share in options if share > 0]

    return script


def error_at(step: str, *, before: float = 1.0, after: float = 0.0) -> Script:
    """A model that is lost once this step is written."""
    return finishing(lambda steps: after if step in steps else before)


def told(judge: Judge, *steps: str, ended: bool = False, given: int = 0, question: Question = QUESTION) -> list[str]:
    (verdicts,) = judge.judge([Chain(question, steps, ended, given)])
    return [verdict.label for verdict in verdicts]


def judge_of(script: Script, asked: RolloutSettings = WALD) -> tuple[RolloutJudge, Engine]:
    engine = Engine(script)
    return RolloutJudge(lambda: engine, asked, "scripted"), engine


@pytest.mark.parametrize("length", range(1, 9))
def test_the_first_error_is_found_wherever_it_is(length: int) -> None:
    """By binary search: in about log2 of the length many prefixes, whatever its place."""
    steps = [f"step {i}\n" for i in range(length)]
    for error in range(length):
        judge, _ = judge_of(error_at(f"step {error}\n"))
        assert told(judge, *steps) == ["right"] * error + ["wrong"]
        assert judge.counts.tests <= 2 + (length - 1).bit_length()
    judge, _ = judge_of(error_at("none"))
    assert told(judge, *steps) == ["right"] * length
    assert judge.counts.tests == 1, "the longest prefix reaches the answer, so do all"


def test_reasons_say_how_many_completions_reached_the_answer() -> None:
    judge, _ = judge_of(error_at("bad"))
    (verdicts,) = judge.judge([Chain(QUESTION, ("good\n", "bad\n"), False)])
    assert verdicts[1] == Verdict(
        "wrong", "0 of 7 completions reach the answer; before it 2 of 2 completions reach the answer", "rollouts"
    )


def test_what_the_model_never_solves_is_unknown_not_wrong() -> None:
    """No completion of the question itself succeeds: that none does after a step tells nothing about the step."""
    judge, _ = judge_of(finishing(lambda steps: 0.0))
    assert told(judge, "a\n", "b\n", "c\n") == ["unknown"] * 3
    assert told(judge, "a\n", "The answer is 6.", ended=True) == ["unknown", "wrong"], "an answer can be compared"
    assert told(judge, "a\n", "The answer is 5.", ended=True) == ["right", "right"]


def test_a_prefix_between_the_two_rates_is_unknown() -> None:
    """Neither sure to reach the answer nor sure to be lost after the samples allowed: it is left open."""
    judge, _ = judge_of(error_at("b", after=0.17), WALD.model_copy(update={"samples": 8}))
    labels = {tuple(told(judge, "a\n", f"b {i}\n", "c\n")) for i in range(40)}
    assert ("right", "unknown", "unknown") in labels


def test_a_question_without_an_answer_is_unknown_and_costs_nothing() -> None:
    judge, engine = judge_of(error_at("none"))
    assert told(judge, "a\n", "b\n", question=Question("How many?", " ", id="q")) == ["unknown"] * 2
    assert told(judge) == []
    assert not engine.requests


def test_given_steps_are_not_judged_but_their_prefix_may_be_tested() -> None:
    judge, _ = judge_of(error_at("b"))
    assert told(judge, "a\n", "b\n", "c\n", given=1) == ["wrong"]
    assert told(judge, "a\n", "c\n", given=1) == ["right"]
    assert told(judge, "b\n", "c\n", given=1) == ["unknown"], "what is given as right is lost to this model already"


def test_a_final_step_is_judged_by_its_answer() -> None:
    """Without a completion where it is right; an ending that states no answer is completed like any other prefix."""
    judge, engine = judge_of(error_at("b"))
    assert told(judge, "a\n", "The answer is 5.", ended=True) == ["right", "right"]
    assert not engine.requests
    assert told(judge, "a\n", "The answer is 6.", ended=True) == ["right", "wrong"]
    assert told(judge, "a\n", "It is done.", ended=True) == ["right", "right"]


def test_a_false_equation_is_wrong_whatever_completions_come_to() -> None:
    """Models correct themselves: that the answer is reached does not make 2 + 2 = 5 right. An earlier error comes first."""
    judge, _ = judge_of(error_at("b"))
    assert told(judge, "a\n", "2 + 2 = 5\n", "c\n") == ["right", "wrong"]
    assert told(judge, "a\n", "2 + 2 = 5\n", "The answer is 5.", ended=True) == ["right", "wrong"]
    assert told(judge, "b\n", "2 + 2 = 5\n") == ["wrong"]
    assert told(judge, "2 + 2 = 5\n", "2 + 2 = 4\n", given=1) == ["right"]
    assert told(judge, "2 + 2 = 5\n") == ["wrong"]
    judge, _ = judge_of(error_at("b"), WALD.model_copy(update={"equations": False}))
    assert told(judge, "a\n", "2 + 2 = 5\n", "c\n") == ["right"] * 3
    judge, _ = judge_of(finishing(lambda steps: 0.0))
    assert told(judge, "a\n", "2 + 2 = 5\n") == ["unknown", "wrong"]


def test_answers_are_read_by_the_kind_of_the_question() -> None:
    """A choice is a letter, however the completion puts it."""
    choice = Question("Which?", "B", id="q", meta={"answer_type": "choice", "choices": ["a cat", "a dog"]})

    def script(text: str) -> list[Scripted]:
        return [Scripted("The answer is a cat." if "bad" in text else "The answer is (B).", eos=True)]

    judge, _ = judge_of(script)
    assert told(judge, "good\n", "bad\n", question=choice) == ["right", "wrong"]
    assert told(judge, "good\n", "The answer is a dog.", ended=True, question=choice) == ["right", "right"]


def test_an_empty_step_changes_nothing() -> None:
    """It is right where its prefix is, and never the first error."""
    judge, _ = judge_of(error_at("b"))
    assert told(judge, "a\n", "", "  \n", "b\n", "") == ["right", "right", "right", "wrong"]


def test_steps_in_another_language_are_completed_like_all_others() -> None:
    judge, _ = judge_of(error_at("六"))
    assert told(judge, "二加三等于五。\n", "Теперь шесть яблок.\n", "所以是六。\n") == ["right", "right", "wrong"]


def test_one_success_is_enough_by_the_rule_of_math_shepherd() -> None:
    """lost=0: hard estimation. A prefix is wrong only after as many failures as the error allows."""
    judge, engine = judge_of(error_at("b", before=0.6), RolloutSettings(reached=0.3))
    assert told(judge, "a\n", "b\n") == ["right", "wrong"]
    assert sum("b" in "".join(map(chr, r.prefix_ids)) for r in engine.requests) == 9


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 7), st.booleans()), min_size=1, max_size=8), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_verdicts_depend_neither_on_the_batch_nor_on_its_order(asked: list[tuple[int, int, bool]], seed: int) -> None:
    """Each chain alone, all together, and backwards: the same verdicts; the same seed gives the same again."""
    chains = [
        Chain(Question(f"How many {error}?", "5", id=f"q{error}"), tuple(f"step {i}\n" for i in range(length)), ended)
        for error, length, ended in asked
    ]

    def script(text: str) -> list[Scripted]:
        lost = f"step {text[len('How many ')]}" in text
        return [Scripted("The answer is 5.", 0.15 if lost else 0.7, eos=True), Scripted("The answer is 6.", 0.3, eos=True)]

    def new() -> RolloutJudge:
        return judge_of(script, RolloutSettings(seed=seed))[0]

    together = new().judge(chains)
    assert together == new().judge(chains)
    assert together[::-1] == new().judge(chains[::-1])
    assert together == [new().judge([chain])[0] for chain in chains]


def test_equal_prefixes_are_sampled_once() -> None:
    """Within a call and over calls: siblings share the prefix before them, and duplicates everything."""
    judge, engine = judge_of(error_at("b"))
    chain = Chain(QUESTION, ("a\n", "b\n"), False)
    judge.judge([chain] * 5)
    sampled = len(engine.requests)
    assert sampled == judge.counts.completions == 7 + 2 + 2
    judge.judge([chain, Chain(QUESTION, ("a\n",), False)])
    assert len(engine.requests) == sampled


def test_what_is_spent_and_what_a_scan_would_have_spent() -> None:
    """A scan tests every step up to the first error, with as many completions as give the same certainty."""
    judge, _ = judge_of(error_at("step 5"))
    told(judge, *(f"step {i}\n" for i in range(8)))
    counts, fixed = judge.counts, fixed_sample(judge.settings)
    assert fixed == 14
    assert counts.scanned == 6
    assert counts.verdicts == 6
    assert counts.tests == 5, "8, 0, 4, 6, 5"
    assert counts.completions == 2 * 7 + 3 * 2
    assert counts.saved(judge.settings) == pytest.approx(1 - 20 / (6 * 14))


def test_a_prefix_that_leaves_no_room_is_unknown() -> None:
    judge, engine = judge_of(error_at("b"))
    engine.context_length = 30
    (verdicts,) = judge.judge([Chain(QUESTION, ("x" * 40,), False)])
    assert verdicts[0].label == "unknown"
    assert "no room" in verdicts[0].reason


def test_completions_are_sampled_as_asked() -> None:
    judge, engine = judge_of(error_at("b"), RolloutSettings(temperature=0.6, top_p=0.9, max_tokens=77))
    told(judge, "a\n")
    asked = engine.requests
    assert {(r.temperature, r.top_p, r.max_new_tokens) for r in asked} == {(0.6, 0.9, 77)}
    assert len({r.seed for r in asked}) == len(asked)


@pytest.mark.parametrize("wrong", [{"lost": 0.2}, {"lost": 0.5}, {"samples": 13}, {"error": 0.5}])
def test_settings_that_could_never_tell_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        RolloutSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_the_test_errs_as_seldom_as_it_says(rate: float) -> None:
    """At the two rates themselves, where it is hardest: at most 5% of the decided ones are decided wrongly."""
    judge, _ = judge_of(finishing(lambda steps: rate if steps else 1.0), WALD.model_copy(update={"samples": 200}))
    found = [told(judge, f"a {i}\n")[0] for i in range(1500)]
    expected = "right" if rate == 0.4 else "wrong"
    assert found.count(expected) / len(found) >= 0.94
    assert judge.counts.completions / len(found) < fixed_sample(judge.settings)


INDENTED = ("  First:\n\n", "\tstep a\n", "    x = 5\n")


def test_the_model_goes_on_from_the_text_as_it_stands() -> None:
    """Indentation and blank lines included: asked about another text it would be another prefix."""
    judge, engine = judge_of(error_at("none"))
    told(judge, *INDENTED)
    asked = {"".join(map(chr, request.prefix_ids)) for request in engine.requests}
    assert asked == {"How many?\n" + "".join(INDENTED)}
    judge, engine = judge_of(error_at("none"))
    told(judge, "a step of a file", "  and another")
    asked = {"".join(map(chr, request.prefix_ids)) for request in engine.requests}
    assert asked == {"How many?\na step of a file\n  and another\n"}, "a step without a line break gets one"


def test_the_model_goes_on_from_the_tokens_it_wrote() -> None:
    """Those of the tree, whatever the tokenizer makes of their text; of another model's prompt the text is all there is."""
    judge, engine = judge_of(error_at("b"))
    engine.tokenizer = lambda text, add_special_tokens: {"input_ids": [ord("!")]}
    prompt = engine.prompt(QUESTION.text)
    ids = tuple(tuple(map(ord, f" {step}")) for step in ("a\n", "b\n"))
    chain = Chain(QUESTION, ("a\n", "b\n"), False, given=1, prompt_ids=prompt, token_ids=ids)
    (verdicts,) = judge.judge([chain])
    assert [verdict.label for verdict in verdicts] == ["wrong"]
    assert {request.prefix_ids for request in engine.requests} == {prompt + ids[0], prompt + ids[0] + ids[1]}
    other = Chain(QUESTION, ("a\n", "b\n"), False, given=1, prompt_ids=(*prompt, 1), token_ids=ids)
    engine.requests.clear()
    RolloutJudge(lambda: engine, WALD, "scripted").judge([other])
    assert {request.prefix_ids for request in engine.requests} == {(*prompt, ord("!"))}


def test_nothing_is_sampled_after_a_step_from_which_the_answer_is_lost() -> None:
    """Trees grow past unknown steps; what stands below one costs no completions."""
    judge, engine = judge_of(finishing(lambda steps: 0.0))
    assert told(judge, "a\n") == ["unknown"]
    sampled = len(engine.requests)
    assert told(judge, "a\n", "b\n", given=1) == ["unknown"]
    assert told(judge, "a\n", "b\n", "c\n", given=2) == ["unknown"]
    assert len(engine.requests) == sampled + 7, "the prefix a, b is tested once, before c"


@pytest.mark.parametrize(("prompt_end", "prefix"), [("<think>\n", "2 + 3 = 5.\n"), ("", "<think>\n2 + 3 = 5.\n")])
@pytest.mark.parametrize(("rest", "reached"), [("The answer is 5.", False), ("Hm.\n</think>\n\nThe answer is 5.", True)])
def test_completions_state_their_answer_after_the_thinking(prompt_end: str, prefix: str, rest: str, reached: bool) -> None:
    class Thinker(Engine):
        def prompt(self, question: str) -> tuple[int, ...]:
            return (*super().prompt(question), *map(ord, prompt_end))

    engine = Thinker(lambda text: [Scripted(rest, eos=True)])
    judge = RolloutJudge(lambda: engine, WALD, "scripted")
    assert (told(judge, prefix) == ["right"]) is reached
