"""The methods that CaT is compared with, on a scripted model: what each chooses, and what it pays."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies
from typer.testing import CliRunner

from caspo.answers import extract_answer
from caspo.cli.main import app
from caspo.core.config import settings_from
from caspo.core.errors import ConfigError, DataError
from caspo.evaluate.run import EvaluateSettings, evaluate_methods, read_outcomes
from caspo.records import ROOT, Question
from caspo.report.method_charts import SHAPES, SYMBOLS
from caspo.report.run_data import METHOD_NAMES
from caspo.search import (
    ESC,
    METHODS,
    AdaptiveConsistency,
    AdaptiveConsistencySettings,
    Beam,
    BeamSettings,
    BestOfN,
    BestOfNSettings,
    DeepConfOffline,
    DeepConfOfflineSettings,
    DeepConfOnline,
    DeepConfOnlineSettings,
    DiPT,
    DiPTSettings,
    EntropyTree,
    EntropyTreeSettings,
    ESCSettings,
    ReASC,
    ReASCSettings,
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.search.dipt import PERSPECTIVES
from caspo.search.vote import agreement
from caspo.tasks.base import grade
from caspo.testing.scripted import Scripted, ScriptedEngine
from recording import FIVE, SIX, Q, Recording, counts, decisions, ends, plain, solve, wild

BASELINES = (
    "best_of_n", "beam", "deepconf_offline", "deepconf_online", "dipt", "adaptive_consistency", "esc", "reasc",
    "entropy_tree",
)  # fmt: skip
SAMPLED = (*(name for name in BASELINES if name != "dipt"), "self_consistency")


# --------------------------------------------------------------------------------------------------- what all have to do


@given(seed=strategies.integers(0, 10**6), order=strategies.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", BASELINES)
def test_a_solution_depends_on_its_question_alone(name: str, seed: int, order: int) -> None:
    """Not on the other questions, nor on the order in which a batch happens to end; every decoded token is paid for."""
    method = METHODS[name]()
    questions = [Question(f"{n}?", "1", id=n) for n in "abcd"]
    engine = Recording(wild(seed), order)
    together = method.solve(questions, engine, seed)
    assert sum(s.generated_tokens for s in together) == engine.tokens
    for question, found in zip(questions, together, strict=True):
        (alone,) = method.solve([question], ScriptedEngine(wild(seed)), seed)
        assert plain(alone) == plain(found)
        assert found.tree.question is question
        assert 0 <= found.confidence <= 1
        assert (found.answer is None) == (found.confidence == 0)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_seed_decides(name: str) -> None:
    """The same seed gives the same trees, another one others."""
    questions = [Question(f"{n}?", "1", id=n) for n in "abcd"]
    once, again, other = ([plain(s) for s in METHODS[name]().solve(questions, Recording(wild(3)), k)] for k in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize("name", BASELINES)
def test_progress_counts_questions(name: str) -> None:
    """One for each, when it is solved."""
    questions = [Question(f"{n}?", "1", id=n) for n in "abcd"]
    done: list[int] = []
    METHODS[name]().solve(questions, Recording(wild(1), 5), 0, done.append)
    assert done == [1] * 4
    assert METHODS[name]().solve([], ScriptedEngine({})) == []


@pytest.mark.parametrize("name", BASELINES)
def test_no_answer_at_all(name: str) -> None:
    """None, without confidence; the tokens are paid for all the same."""
    engine = Recording(lambda text: ends(("I do not know.", 1), ("Who does?", 1)))
    (solution,) = METHODS[name]().solve([Q], engine)
    assert (solution.answer, solution.confidence) == (None, 0.0)
    assert solution.generated_tokens == engine.tokens > 0


@pytest.mark.parametrize("name", BASELINES)
def test_one_certain_path(name: str) -> None:
    """A model without any doubt: all entropies 0, all samples equal."""
    solution = solve(METHODS[name](), lambda text: ends((FIVE, 1), entropy=0.0))
    assert (solution.answer, solution.confidence) == ("5", 1.0)
    assert [n.step.text for n in solution.tree.nodes] == [FIVE]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("limit", [1, 9, 40, 45])
def test_paths_keep_to_their_budget(name: str, limit: int) -> None:
    """No path is longer than `max_tokens`."""
    method = METHODS[name]
    engine = Recording(lambda text: [Scripted("1 + 1 = 2\n", 2), Scripted("2 + 2 = 4\n", 1)])
    (solution,) = method(settings_from(type(method().settings), [f"max_tokens={limit}"])).solve([Q], engine)  # type: ignore[arg-type]
    tree = solution.tree
    assert max(len(tree.prefix_ids(n.id)) - len(tree.prompt_ids) for n in tree.nodes) == limit
    assert (solution.answer, solution.confidence) == (None, 0.0)
    assert solution.generated_tokens == engine.tokens


@pytest.mark.parametrize(
    ("method", "single"),
    [
        (BestOfN(BestOfNSettings(samples=1)), 1),
        (Beam(BeamSettings(beam_width=1, children=1)), 3),
        (DeepConfOffline(DeepConfOfflineSettings(samples=1)), 1),
        (DeepConfOnline(DeepConfOnlineSettings(samples=1, warm_up=1)), 1),
        (AdaptiveConsistency(AdaptiveConsistencySettings(samples=1)), 1),
        (ESC(ESCSettings(samples=1, window=1)), 1),
        (ReASC(ReASCSettings(samples=1)), 1),
        (EntropyTree(EntropyTreeSettings(paths=1)), 1),
    ],
)
def test_one_path(method: Any, single: int) -> None:
    """With one sample there is nothing to choose from: its answer, as often as the model is asked for it."""
    script = {
        "Q\n": [Scripted("1 + 1 = 2\n", 1), Scripted("2 + 1 = 3\n", 1)],
        "Q\n1 + 1 = 2\n": [Scripted("2 + 3 = 5\n")], "Q\n1 + 1 = 2\n2 + 3 = 5\n": ends((FIVE, 1)),
        "Q\n2 + 1 = 3\n": [Scripted("3 + 3 = 6\n")], "Q\n2 + 1 = 3\n3 + 3 = 6\n": ends((SIX, 1)),
    }  # fmt: skip
    found = set()
    for seed in range(12):
        engine = Recording(script)
        (solution,) = method.solve([Q], engine, seed)
        assert len(engine.requests) == single
        assert len(solution.tree.nodes) == 3
        assert (solution.answer == "5") == (solution.tree.nodes[0].step.text == "1 + 1 = 2\n")
        assert solution.confidence == 1.0
        found.add(solution.answer)
    assert found == {"5", "6"}


# ------------------------------------------------------------------------------------------------------------- best of n

LONG = "Two and three together make five, as anybody can count. The answer is 5."


def test_best_of_n_chooses_by_its_signal() -> None:
    """Mean log p per token by default: a long solution is not worse for its length; any other signal may decide."""
    script = {"Q\n": [Scripted(LONG, 0.4, 0.5, eos=True), Scripted(SIX, 0.6, 0.1, eos=True)]}
    assert math.log(0.4) / (len(LONG) + 1) > math.log(0.6) / (len(SIX) + 1)
    by = {name: solve(BestOfN(BestOfNSettings(signal=name)), script) for name in ("perplexity", "logprob_sum", "entropy")}
    assert {name: s.answer for name, s in by.items()} == {"perplexity": "5", "logprob_sum": "6", "entropy": "6"}
    assert decisions(by["entropy"]) == {LONG: "dropped", SIX: "finished"}
    shares = {name: counts(s) for name, s in by.items()}
    assert by["perplexity"].confidence == pytest.approx(shares["perplexity"][LONG] / 10)
    assert by["entropy"].confidence == pytest.approx(shares["entropy"][SIX] / 10)


def test_best_of_n_chooses_among_the_samples_of_self_consistency() -> None:
    """The same solutions at the same price: the difference is the choice."""
    script = {"Q\n": ends((FIVE, 5), (SIX, 3), ("Hm.", 2))}
    for seed in range(5):
        voted = solve(SelfConsistency(SelfConsistencySettings(samples=7)), script, seed)
        best = solve(BestOfN(BestOfNSettings(samples=7)), script, seed)
        assert counts(best) == counts(voted)
        assert best.generated_tokens == voted.generated_tokens


def test_best_of_n_needs_an_answer() -> None:
    """The most confident solution cannot win without one; of equally good ones the first sample wins."""
    script = {"Q\n": ends(("I am sure that I do not know.", 8), (FIVE, 2))}
    solution = solve(BestOfN(BestOfNSettings(samples=30)), script)
    assert solution.answer == "5"
    assert solution.confidence == pytest.approx(counts(solution)[FIVE] / 30)
    firsts = set()
    for seed in range(12):
        solution = solve(BestOfN(), {"Q\n": ends((FIVE, 1), (SIX, 1))}, seed)
        assert solution.answer == extract_answer(solution.tree.nodes[0].step.text)
        firsts.add(solution.answer)
    assert firsts == {"5", "6"}


def test_agreement() -> None:
    """By value; who has no answer agrees with nobody."""
    assert agreement(["0.5", "1/2", "3", None], 1) == 0.5
    assert agreement(["3", None], 0) == 0.5


@pytest.mark.parametrize("model", [BestOfNSettings, BeamSettings])
def test_an_unknown_signal_is_refused_at_once(model: Any) -> None:
    with pytest.raises(ConfigError, match="no confidence signal is called 'luck'; choose one of entropy,"):
        settings_from(model, ["signal=luck"])


# ------------------------------------------------------------------------------------------------------------------ beam


def test_beam_keeps_the_best() -> None:
    """Of the steps at one depth the best `beam_width` go on, equal ones as one; all that was decoded is paid for."""
    steps = [Scripted(f"2 + {i} = {2 + i}\n", 10 - i) for i in range(5)]
    engine = Recording(lambda text: steps if text == "Q\n" else ends((f"The answer is {text[6]}.", 1)))
    (solution,) = Beam(BeamSettings(beam_width=2, children=60)).solve([Q], engine)
    first = {n.step.text: n for n in solution.tree.children(ROOT)}
    assert [first[step.text].decision for step in steps] == ["expanded"] * 2 + ["dropped"] * 3
    assert sum(n.count for n in first.values()) == 60
    assert len(engine.requests) == 60 + 2 * 60
    assert solution.generated_tokens == engine.tokens == 60 * (len(steps[0].text) + 2) + 120 * (len(FIVE) + 1)
    assert solution.answer == "0"
    assert all(request.keep for request in engine.requests), "what follows continues from the state that is there"
    assert len({request.seed for request in engine.requests}) == 180


RISKY = {
    "Q\n": [Scripted("1 + 1 = 2\n", 0.7), Scripted("1 + 2 = 3\n", 0.3)],
    "Q\n1 + 1 = 2\n": ends((FIVE, 0.5), ("Hm.", 0.5)),
    "Q\n1 + 2 = 3\n": ends((SIX, 1.0)),
}


def test_beam_scores_whole_paths_or_last_steps() -> None:
    """0.7 x 0.5 is more than 0.3 x 1, but 1 is more than 0.5; what ended without an answer is given up."""
    by = {
        score: solve(Beam(BeamSettings(children=40, signal="logprob_sum", score=score)), RISKY)
        for score in ("cumulative", "last")
    }
    assert {score: s.answer for score, s in by.items()} == {"cumulative": "5", "last": "6"}
    assert decisions(by["cumulative"])["1 + 2 = 3\n" + SIX] == "dropped"
    assert (by["cumulative"].confidence, by["last"].confidence) == (1.0, 0.5)


def test_beam_stops_when_nothing_better_can_come() -> None:
    """A cumulative score never rises, so a worse live path is left; a last step's score may be anything."""

    def script(text: str) -> list[Scripted]:
        if text == "Q\n":
            return [Scripted(FIVE, 0.6, eos=True), Scripted("1 + 1 = 2\n", 0.4)]
        return [Scripted("so\n"), Scripted("and\n")]

    engines = {score: Recording(script) for score in ("cumulative", "last")}
    for score, engine in engines.items():
        shape = BeamSettings(children=20, signal="logprob_sum", score=score, max_tokens=30)
        (solution,) = Beam(shape).solve([Q], engine)
        assert (solution.answer, solution.confidence) == ("5", 1.0)
        assert decisions(solution)[FIVE] == "finished"
        expanded = [n.depth for n in solution.tree.nodes if n.decision == "expanded"]
        assert max(Counter(expanded).values(), default=0) <= 1, "a finished path keeps its place"
    assert len(engines["cumulative"].requests) == 20
    assert len(engines["last"].requests) > 20


@given(seed=strategies.integers(0, 10**6), width=strategies.integers(1, 3), children=strategies.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_beam_loses_nothing_by_stopping(seed: int, width: int, children: int) -> None:
    """Run on to the end of every path, the same answer comes out."""
    shape = BeamSettings(beam_width=width, children=children)
    stopped = Recording(wild(seed))
    (early,) = Beam(shape).solve([Q], stopped, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Beam, "_beaten", lambda self, path, finished: False)
        whole = Recording(wild(seed))
        (late,) = Beam(shape).solve([Q], whole, seed)
    assert early.answer == late.answer
    assert stopped.tokens <= whole.tokens


def test_beam_ties_go_to_the_first_sample() -> None:
    """All entropies 0 and scored by them: every path is as good as any other."""
    steps = [Scripted("1 + 1 = 2\n", 1, 0.0), Scripted("1 + 2 = 3\n", 1, 0.0)]
    script = {"Q\n": steps, "Q\n1 + 1 = 2\n": ends((FIVE, 1)), "Q\n1 + 2 = 3\n": ends((SIX, 1))}
    for seed in range(10):
        solution = solve(Beam(BeamSettings(signal="entropy")), script, seed)
        assert solution.answer == ("5" if solution.tree.nodes[0].step.text == steps[0].text else "6")
        solution = solve(Beam(BeamSettings(signal="entropy")), {"Q\n": ends((FIVE, 1), (SIX, 1), entropy=0.0)}, seed)
        assert solution.answer == extract_answer(solution.tree.nodes[0].step.text)


def test_a_step_over_its_limit_ends_its_path() -> None:
    """It is cut; the path without an answer does not count, the other answers."""
    script = {"Q\n": [Scripted("x" * 50 + "\n", 0.9), Scripted(FIVE, 0.1, eos=True)]}
    solution = solve(Beam(BeamSettings(children=60, max_step_tokens=len(FIVE) + 1)), script)
    assert decisions(solution) == {"x" * (len(FIVE) + 1): "cut", FIVE: "finished"}
    assert solution.answer == "5"


# ------------------------------------------------------------------------------------------------------------------ DiPT


def test_dipt_asks_for_perspectives() -> None:
    """In the prompt, greedily, once; the tree keeps the question as it was."""
    engine = Recording({f"Q\n\n{PERSPECTIVES}\n": ends(("One way: \\boxed{4}. Another gives 5.\n" + FIVE, 2), (SIX, 1))})
    (solution,) = DiPT().solve([Q], engine)
    (request,) = engine.requests
    assert request.temperature == 0
    assert (solution.answer, solution.confidence) == ("5", 1.0), "the last answer, not the boxed one before it"
    assert solution.tree.question == Q
    assert solution.tree.prompt_ids == engine.prompt(f"Q\n\n{PERSPECTIVES}")
    assert [n.step.text for n in solution.tree.nodes] == ["One way: \\boxed{4}. Another gives 5.\n", FIVE]
    other = DiPT(DiPTSettings(instruction="Think twice."))
    assert solve(other, {"Q\n\nThink twice.\n": ends((SIX, 1))}).answer == "6"
    with pytest.raises(DataError, match="question is empty"):
        DiPT().solve([Question(" ", "1", id="e")], ScriptedEngine({}))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 4.\n\\boxed{5}", "5"),
        ("\\boxed{4}\nThe answer is:\n5", "5"),
        ("#### 4\nThe answer is 5.\nThat was two ways.", "5"),
        ("\\boxed{\n4\n}\nthat is it", "4"),
        ("nothing", None),
        ("", None),
    ],
)
def test_last_answer(text: str, answer: str | None) -> None:
    """Whatever its form, the one that stands last."""
    assert extract_answer(text) == answer


# ------------------------------------------------------------------------------------------------------ where they appear


class FourQuestions:
    """Their answers are 5."""

    name = "four"

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        return [Question(f"Q{i}", "5", id=f"q{i}") for i in range(4)][:n]

    def grade(self, question: Question, answer: str | None) -> bool:
        return grade(question, answer)


def test_evaluation_runs_what_is_asked_for(tmp_path: Path) -> None:
    """Every method has a field of its name; the new ones are left out unless asked for, and then solve the first few."""
    assert set(METHODS) <= set(EvaluateSettings.model_fields)
    assert [m.name for m in EvaluateSettings().methods()] == ["chain_of_thought", "self_consistency", "cat"]
    asked = EvaluateSettings.model_validate(
        {"self_consistency_questions": 3} | {name: {} for name in (*BASELINES, "cat_paper")}
    )
    assert [m.name for m in asked.methods()] == list(METHODS)
    evaluate_methods(FourQuestions(), lambda: ScriptedEngine(lambda text: ends((FIVE, 2), (SIX, 1))), asked, 0, tmp_path)
    solved = {name: len(read_outcomes(tmp_path, name)[0]) for name in METHODS}
    assert solved == {name: 4 if name in ("chain_of_thought", "cat") else 3 for name in METHODS}


def test_the_command_line_lists_all_methods() -> None:
    told = CliRunner().invoke(app, ["solve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert [name for name in METHODS if name not in told] == []


def test_the_report_knows_all_methods() -> None:
    """A readable name, and a marker of its own that the legend can draw."""
    assert set(METHODS) == set(METHOD_NAMES)
    assert len(set(SYMBOLS)) == len(SYMBOLS) >= len(METHODS)
    assert set(SYMBOLS) <= set(SHAPES)
