"""The methods that CaT is compared with, on a scripted model: what each chooses, and what it pays."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pydantic import ValidationError
from typer.testing import CliRunner

from caspo.answers import extract_answer
from caspo.cli.main import app
from caspo.config import settings_from
from caspo.engines.base import Completion, OnDone, Request
from caspo.engines.scripted import Script, Scripted, ScriptedEngine
from caspo.errors import ConfigError, DataError, EngineError
from caspo.evaluate.run import EvaluateSettings, evaluate_methods, read_outcomes
from caspo.report.method_charts import METHOD_SYMBOLS, SHAPES
from caspo.report.run_data import METHOD_NAMES
from caspo.search import (
    METHODS,
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
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.search.beam import _Search as BeamSearch
from caspo.search.deepconf import MEASURES, group_confidences
from caspo.search.dipt import PERSPECTIVES, last_answer
from caspo.search.vote import agreement
from caspo.tasks.base import grade
from caspo.trees import seed_of
from caspo.types import ROOT, Question, Solution

Q = Question("q", "Q", "5")
FIVE, SIX, SEVEN = "The answer is 5.", "The answer is 6.", "The answer is 7."
BASELINES = ("best_of_n", "beam", "deepconf_offline", "deepconf_online", "dipt")
SAMPLED = (*BASELINES[:-1], "self_consistency")


class Recording(ScriptedEngine):
    """Keeps what it was asked and what it decoded, and may work in any order."""

    def __init__(self, script: Script, order: int | None = None) -> None:
        super().__init__(script)
        self.requests: list[Request] = []
        self.completions: list[Completion] = []
        self.order = order

    @property
    def tokens(self) -> int:
        return sum(len(completion.token_ids) for completion in self.completions)

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """In order, or in an order drawn at random."""
        rng = None if self.order is None else random.Random(self.order)
        asked, done = list(requests), dict[int, Completion]()
        waiting = list(range(len(asked)))
        while waiting:
            place = waiting.pop(0 if rng is None else rng.randrange(len(waiting)))
            done[place] = self._play(asked[place])
            more = on_done(place, done[place]) if on_done is not None else []
            waiting += range(len(asked), len(asked) + len(more))
            asked += more
        self.requests += asked
        self.completions += [done[place] for place in range(len(asked))]
        return [done[place] for place in range(len(asked))]


def solve(method: Any, script: Script, seed: int = 0) -> Solution:
    solutions: list[Solution] = method.solve([Q], ScriptedEngine(script), seed)
    (solution,) = solutions
    return solution


def plain(solution: Solution) -> Any:
    """A solution as something that can be compared."""
    nodes = [
        (n.parent, n.step.text, n.step.token_ids, n.step.trace.entropy.tolist(), n.count, n.final, n.decision)
        for n in solution.tree.nodes
    ]
    return (solution.question_id, solution.answer, solution.confidence, solution.generated_tokens, nodes)


def ends(*options: tuple[str, float], **more: Any) -> list[Scripted]:
    """Whole solutions with their probabilities."""
    return [Scripted(text, weight, eos=True, **more) for text, weight in options]


def counts(solution: Solution) -> Counter[str]:
    """How often each first step was sampled."""
    return Counter({n.step.text: n.count for n in solution.tree.children(ROOT)})


def decisions(solution: Solution) -> dict[str, str]:
    tree = solution.tree
    return {"".join(n.step.text for n in tree.path(node.id)): node.decision for node in tree.nodes}


def wild(seed: int) -> Script:
    """A random but fixed model that ends within some lines, with an answer or without."""

    def script(text: str) -> list[Scripted]:
        rng = random.Random(f"{seed} {text}")
        lines = text.count("\n")
        options = []
        for i in range(rng.randint(1, 4)):
            end = lines > 4 or rng.random() < 0.3
            line = (
                f"The answer is {rng.randint(1, 3)}." if end and rng.random() < 0.8 else f"{i} + {lines} = {i + lines}"
            )
            options.append(Scripted(line if end else f"{line}\n", rng.randint(1, 9), eos=end))
        return options

    return script


# --------------------------------------------------------------------------------------------------- what all have to do


@given(seed=strategies.integers(0, 10**6), order=strategies.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", BASELINES)
def test_a_solution_depends_on_its_question_alone(name: str, seed: int, order: int) -> None:
    """Not on the other questions, nor on the order in which a batch happens to end; every decoded token is paid for."""
    method = METHODS[name]()
    questions = [Question(n, f"{n}?", "1") for n in "abcd"]
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
    questions = [Question(n, f"{n}?", "1") for n in "abcd"]
    once, again, other = (
        [plain(s) for s in METHODS[name]().solve(questions, Recording(wild(3)), k)] for k in (1, 1, 2)
    )
    assert once == again
    assert once != other


@pytest.mark.parametrize("name", BASELINES)
def test_progress_counts_questions(name: str) -> None:
    """One for each, when it is solved."""
    questions = [Question(n, f"{n}?", "1") for n in "abcd"]
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
    by = {
        name: solve(BestOfN(BestOfNSettings(signal=name)), script) for name in ("perplexity", "logprob_sum", "entropy")
    }
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
    assert solution.generated_tokens == engine.tokens == 60 * len(steps[0].text) + 120 * (len(FIVE) + 1)
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
        patch.setattr(BeamSearch, "_beaten", lambda self, path: False)
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


# -------------------------------------------------------------------------------------------------------------- DeepConf


def test_group_and_trace_confidence_by_hand() -> None:
    """Groups overlap, one ends at every token from the window's length on."""
    confidences = [4.0, 2.0, 6.0, 8.0, 1.0]
    assert group_confidences(confidences, 2) == [3.0, 4.0, 7.0, 4.5]
    assert {name: measure(confidences, 2) for name, measure in MEASURES.items()} == {
        "lowest": 3.0, "bottom": 3.0, "tail": 4.5, "mean": 4.2,
    }  # fmt: skip
    assert MEASURES["bottom"]([float(i) for i in range(20, 0, -1)], 1) == 1.5, "of 20 groups the lowest two"
    assert MEASURES["bottom"]([float(i) for i in range(19, 0, -1)], 1) == 1.0, "of fewer, the lowest one"
    assert group_confidences(confidences, 5) == group_confidences(confidences, 6) == [4.2], "shorter: one group"
    assert {measure(confidences, 9) for measure in MEASURES.values()} == {4.2}


@given(
    strategies.lists(strategies.floats(0, 30, width=32), min_size=1, max_size=60), strategies.integers(1, 70)
)  # fmt: skip
def test_groups_against_a_plain_sum(confidences: list[float], window: int) -> None:
    """The same as a convolution, and the measures in their order."""
    span = min(window, len(confidences))
    expected = np.convolve(confidences, np.ones(span) / span, "valid")
    groups = group_confidences(confidences, window)
    assert np.allclose(groups, expected)
    lowest, bottom, tail, mean = (MEASURES[name](confidences, window) for name in ("lowest", "bottom", "tail", "mean"))
    assert lowest == min(groups) <= bottom + 1e-9
    assert bottom == pytest.approx(np.mean(sorted(expected)[: max(1, len(expected) // 10)]))
    assert tail == groups[-1]
    assert mean == pytest.approx(np.mean(confidences))


SURE, UNSURE, PLENTY = "a\n", "b\n", 20


def doubt(after: Sequence[Scripted] = tuple(ends((FIVE, 1))), said: str = UNSURE) -> Script:
    """A rare start that is certain of its answer, and a frequent one with a token that could be any of 20."""
    return {
        "Q\n": [Scripted(SURE, 0.3), Scripted(said, 0.7)],
        f"Q\n{SURE}": after,
        f"Q\n{said}": ends(*[(SIX, 1)] * PLENTY),
    }


START = -(math.log(0.3) + math.log(0.7) + 18 * math.log(1e-9)) / 20
"""Confidence of the first token: two scripted ones, and 18 that the script gives 1e-9."""
LOW = math.log(PLENTY)
"""Of a token with 20 equally probable ones."""


def test_deepconf_offline_filters_and_weighs() -> None:
    """The unsure majority is outvoted by confidence, or has no vote at all; the answer is not that of the plain majority."""
    base = {"measure": "lowest", "window": 1, "samples": 12, "temperature": 1.0}
    majority = SelfConsistency(SelfConsistencySettings(samples=12, temperature=1.0))
    seed, voted = next((i, s) for i in range(20) if 1 < counts(s := solve(majority, doubt(), i))[SURE] < 6)
    sure = counts(voted)[SURE]
    assert voted.answer == "6"
    everyone = solve(DeepConfOffline(DeepConfOfflineSettings(**base, eta=100)), doubt(), seed)
    assert everyone.answer == "5"
    weights = sure * START, (12 - sure) * LOW
    assert everyone.confidence == pytest.approx(weights[0] / sum(weights), rel=1e-4)
    assert set(decisions(everyone).values()) == {"", "finished"}
    best = solve(DeepConfOffline(DeepConfOfflineSettings(**base, eta=10)), doubt(), seed)
    assert (best.answer, best.confidence) == ("5", 1.0)
    assert decisions(best)[UNSURE + SIX] == "pruned"
    assert best.generated_tokens == everyone.generated_tokens == voted.generated_tokens


def test_deepconf_offline_counts_traces_with_an_answer() -> None:
    """The most confident share is one of those that have something to say; top_k is asked for."""
    shape = DeepConfOfflineSettings(measure="lowest", window=1, eta=10, samples=12, temperature=1.0)
    silent = 0
    for seed in range(6):
        engine = Recording(doubt(after=ends(("I rest my case.", 1))))
        (solution,) = DeepConfOffline(shape).solve([Q], engine, seed)
        assert (solution.answer, solution.confidence) == ("6", 1.0)
        assert {request.top_k for request in engine.requests} == {20}
        silent = max(silent, counts(solution)[SURE])
    assert silent > 2, "more than the most confident share of all"


def online(**more: Any) -> DeepConfOnline:
    return DeepConfOnline(DeepConfOnlineSettings(window=1, temperature=1.0, **more))


def test_deepconf_online_stops_what_loses_confidence() -> None:
    """At the very token; the trace is paid for up to there and has no vote, whatever it said before."""
    said = "The answer is 6.\n"  # stated with confidence, before the doubt
    after = ends((FIVE, 0.6), (SEVEN, 0.4))
    stopped = 0
    for seed in range(6):
        engine = Recording(doubt(after, said))
        (solution,) = online(samples=16, warm_up=5, eta=10, consensus=1.0).solve([Q], engine, seed)
        first = [c for c in engine.completions[:5] if c.text.startswith(SURE)]
        if not first or len(engine.requests) == 5:
            continue  # no sure trace in the warm-up, or agreement at once
        assert all(request.watch is None for request in engine.requests[:5])
        for completion in engine.completions[5:]:
            unsure = completion.text.startswith(said)
            assert (completion.finish == "abandoned") == unsure
            if unsure:
                stopped += 1
                assert completion.text == said + "T"
        assert solution.generated_tokens == engine.tokens
        assert solution.answer in ("5", "7")
        assert decisions(solution)[said + "T"] == "pruned"
    assert stopped > 5


def test_a_stopped_trace_has_no_vote() -> None:
    """Whatever is measured of it afterwards, and though it has stated its answer."""

    class Doubting(Recording):
        def _play(self, request: Request) -> Completion:
            watch = request.watch
            if watch is not None:
                request = replace(request, watch=lambda token, m: token != ord(".") and watch(token, m))
            return super()._play(request)

    engine = Doubting({"Q\n": ends((FIVE, 1), (SIX, 1))})
    (solution,) = online(samples=12, warm_up=4, consensus=1.0).solve([Q], engine, 1)
    assert [c.finish for c in engine.completions] == ["eos"] * 4 + ["abandoned"] * 8
    assert solution.confidence in (0.5, 0.75), "a share of the warm-up"


def test_deepconf_online_agrees_early() -> None:
    """With consensus after the warm-up there is no further trace; without it there are no more than `samples`."""
    engine = Recording(lambda text: ends((FIVE, 1)))
    (solution,) = online(samples=12, warm_up=3).solve([Q], engine)
    assert len(engine.requests) == 3
    assert solution.generated_tokens == 3 * (len(FIVE) + 1)
    for wave in (1, 4, 100):
        engine = Recording({"Q\n": ends((FIVE, 1), (SIX, 1))})
        online(samples=12, warm_up=3, wave=wave, consensus=1.0).solve([Q], engine, 1)
        assert len({extract_answer(c.text) for c in engine.completions}) == 2
        assert len(engine.requests) == 12


def test_deepconf_online_whose_window_is_longer_than_its_traces() -> None:
    """No group is ever full, so nothing is stopped; a whole trace below the threshold still has no vote."""
    shape = DeepConfOnlineSettings(window=500, samples=16, warm_up=6, eta=10, consensus=1.0, temperature=1.0)
    seen = 0
    for seed in range(6):
        engine = Recording(doubt(ends((FIVE, 0.6), (SEVEN, 0.4))))
        (solution,) = DeepConfOnline(shape).solve([Q], engine, seed)
        assert all(completion.finish == "eos" for completion in engine.completions)
        if any(c.text.startswith(SURE) for c in engine.completions[:6]):
            seen += 1
            assert solution.answer != "6"
    assert seen > 2


def test_deepconf_online_of_warm_up_only_is_offline() -> None:
    """By the lowest group, where every trace has an answer."""
    for seed in range(5):
        for eta in (10, 50, 90):
            shape: dict[str, Any] = {"samples": 8, "window": 4, "eta": eta}
            one = solve(DeepConfOnline(DeepConfOnlineSettings(**shape, warm_up=8)), doubt(), seed)
            other = solve(DeepConfOffline(DeepConfOfflineSettings(**shape, measure="lowest")), doubt(), seed)
            assert plain(one) == plain(other)


@given(
    seed=strategies.integers(0, 10**6), window=strategies.integers(1, 40), eta=strategies.sampled_from([10, 50, 90, 100]),
    wave=strategies.integers(1, 4),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_deepconf_online_against_traces_that_are_never_stopped(seed: int, window: int, eta: float, wave: int) -> None:
    """Stopping saves tokens and changes no vote: the same comes out of whole traces, filtered afterwards by hand."""
    shape = DeepConfOnlineSettings(samples=9, warm_up=3, window=window, eta=eta, wave=wave, consensus=0.9)
    engine = Recording(wild(seed))
    (solution,) = DeepConfOnline(shape).solve([Q], engine, seed)
    whole = ScriptedEngine(wild(seed)).generate(
        [
            Request(engine.prompt("Q"), seed_of("self_consistency", seed, "q", i), 512, shape.temperature, top_k=20)
            for i in range(shape.samples)
        ]
    )
    assert not any(c.top_k_logprob is None for c in whole)
    confidences = [-np.asarray(c.top_k_logprob, dtype=np.float64) for c in whole]
    lowest = [float(min(np.convolve(c, np.ones(n := min(window, len(c))) / n, "valid"))) for c in confidences]
    threshold = np.percentile(lowest[:3], 100 - eta) - 0.01  # what differs by less is equal
    count = 3
    while True:
        totals: dict[str, float] = {}
        for i in range(count):
            if lowest[i] >= threshold and (answer := extract_answer(whole[i].text)) is not None:
                totals[answer] = totals.get(answer, 0.0) + lowest[i]
        share = max(totals.values(), default=0.0) / max(1e-9, sum(totals.values()))
        if share >= 0.9 or count == shape.samples:
            break
        count = min(count + wave, shape.samples)
    assert len(engine.requests) == count
    assert solution.confidence == pytest.approx(share, abs=1e-4)
    assert solution.answer is None or totals[solution.answer] == pytest.approx(max(totals.values()), rel=1e-4)
    assert engine.tokens <= sum(len(c.token_ids) for c in whole[:count])
    for completion, full in zip(engine.completions, whole, strict=False):
        assert completion.token_ids == full.token_ids[: len(completion.token_ids)]


def test_equal_traces_are_equal_up_to_rounding() -> None:
    """What a batch adds to the last digits neither stops a trace nor takes its vote."""

    class Noisy(Recording):
        def _play(self, request: Request) -> Completion:
            noise, watch = random.Random(request.seed).uniform(-1e-3, 1e-3), request.watch
            if watch is not None:
                request = replace(request, watch=lambda token, m: watch(token, [*m[:5], m[5] + noise]))
            found = super()._play(request)
            assert found.top_k_logprob is not None
            return replace(found, top_k_logprob=found.top_k_logprob + np.float32(noise))

    for seed in range(5):
        engine = Noisy({"Q\n": ends((FIVE, 1), (SIX, 1))})
        (solution,) = online(samples=12, warm_up=4, consensus=1.0).solve([Q], engine, seed)
        assert {c.finish for c in engine.completions} == {"eos"}
        assert set(decisions(solution).values()) == {"finished"}
        share = max(counts(solution).values()) / len(engine.completions)
        assert solution.confidence == pytest.approx(share, abs=1e-3)


def test_deepconf_settings() -> None:
    """What cannot be is refused; an engine that does not measure is told from one that is sure."""
    with pytest.raises(ValidationError, match="warm_up is 16, more than the 10 samples"):
        DeepConfOnlineSettings(warm_up=16)
    with pytest.raises(ValidationError):
        DeepConfOfflineSettings(top_k=1)

    class Silent(ScriptedEngine):
        def _play(self, request: Request) -> Completion:
            return replace(super()._play(replace(request, top_k=0)), top_k_logprob=None)

    for method in (DeepConfOffline(), DeepConfOnline()):
        with pytest.raises(EngineError, match="measured no top-k log-probabilities"):
            method.solve([Q], Silent(doubt()))


# ------------------------------------------------------------------------------------------------------------------ DiPT


def test_dipt_asks_for_perspectives() -> None:
    """In the prompt, greedily, once; the tree keeps the question as it was."""
    engine = Recording(
        {f"Q\n\n{PERSPECTIVES}\n": ends(("One way: \\boxed{4}. Another gives 5.\n" + FIVE, 2), (SIX, 1))}
    )
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
        DiPT().solve([Question("e", " ", "1")], ScriptedEngine({}))


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
    assert last_answer(text) == answer


# ------------------------------------------------------------------------------------------------------ where they appear


class FourQuestions:
    """Their answers are 5."""

    name = "four"

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        return [Question(f"q{i}", f"Q{i}", "5") for i in range(4)][:n]

    def grade(self, question: Question, answer: str | None) -> bool:
        return grade(question, answer)


def test_evaluation_runs_what_is_asked_for(tmp_path: Path) -> None:
    """Every method has a field of its name; the new ones are left out unless asked for, and then solve the first few."""
    assert set(METHODS) <= set(EvaluateSettings.model_fields)
    assert [m.name for m in EvaluateSettings().methods()] == ["chain_of_thought", "self_consistency", "cat"]
    asked = EvaluateSettings.model_validate({"self_consistency_questions": 3} | {name: {} for name in BASELINES})
    assert [m.name for m in asked.methods()] == list(METHODS)
    evaluate_methods(
        FourQuestions(), lambda: ScriptedEngine(lambda text: ends((FIVE, 2), (SIX, 1))), asked, 0, tmp_path
    )
    solved = {name: len(read_outcomes(tmp_path, name)[0]) for name in METHODS}
    assert solved == {name: 4 if name in ("chain_of_thought", "cat") else 3 for name in METHODS}


def test_the_command_line_lists_all_methods() -> None:
    told = CliRunner().invoke(app, ["solve", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert [name for name in METHODS if name not in told] == []


def test_the_report_knows_all_methods() -> None:
    """A readable name, and a marker of its own that the legend can draw."""
    assert set(METHODS) == set(METHOD_NAMES) == set(METHOD_SYMBOLS)
    assert len(set(METHOD_SYMBOLS.values())) == len(METHODS)
    assert set(METHOD_SYMBOLS.values()) <= set(SHAPES)
