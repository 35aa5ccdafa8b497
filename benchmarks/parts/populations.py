"""Populations whose figures are known, and how often intervals from samples of them hold the truth.

A population draws questions, each with one or several rows: a confidence, and the probability that the row is right. So the
truth needs no labels: every row stands once as right and once as wrong, each with its probability as weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, expit, ndtr, ndtri

from caspo.confidence.calibration import ece
from caspo.evaluate.estimates import Interval, auroc, mean_interval, paired_difference, pairs_won, sibling_pairs, wilson
from caspo.evaluate.intervals import change, estimate_aurc, estimate_auroc, estimate_ece, estimate_mean
from caspo.evaluate.judge_scores import Judged, judge_scores
from caspo.evaluate.resampling import Draws, draw_questions, resampled_aurc
from caspo.evaluate.samples import pass_at_k
from caspo.formats import LabelledSolution
from caspo.records import Question

__all__ = ["CASES", "Case", "Coverage", "simulate"]

Floats = NDArray[np.float64]
RNG = np.random.Generator


class Coverage(NamedTuple):
    """What came of the samples of a population."""

    truth: float
    held: int
    """Intervals that hold the truth."""
    intervals: int
    """Samples that gave an interval at all."""
    width: float
    """Mean width of the intervals."""


@dataclass(frozen=True)
class Case:
    """A figure of a population: its truth, and the interval from a sample of so many questions."""

    truth: Callable[[], float]
    interval: Callable[[RNG, int, Callable[[int], Draws]], Interval | None]
    cheap: bool = False
    """It resamples nothing, so that many samples cost little."""


def simulate(case: Case, questions: int, trials: int, resamples: int = 400, seed: int = 0) -> Coverage:
    """Samples of so many questions, each with its interval."""
    rng, truth = np.random.default_rng(seed), case.truth()
    held, widths = 0, []
    for trial in range(trials):
        found = case.interval(rng, questions, partial(draw_questions, seed=trial, n_boot=resamples))
        if found is not None:
            held += found.low - 1e-9 <= truth <= found.high + 1e-9
            widths.append(found.high - found.low)
    return Coverage(truth, held, len(widths), float(np.mean(widths)) if widths else 0.0)


class Rows(NamedTuple):
    """Columns of n rows."""

    confidence: Floats
    chance: Floats
    """Of being right."""
    question: NDArray[np.intp]


@dataclass(frozen=True)
class Population:
    """Rows of questions; ``bend`` makes the chance of being right from the confidence."""

    quantile: Callable[[Floats], Floats]
    """The confidence at each share of the rows."""
    bend: Callable[[Floats], Floats]
    rows: int = 1
    """Of a question."""
    alike: float = 0.0
    """Share of the variance that the rows of a question have in common, of confidence and of being right."""

    def draw(self, rng: RNG, questions: int, effects: Floats | None = None) -> Rows:
        """Rows of so many questions. ``effects``, (2, questions), normal: those of another population on them."""
        question = np.repeat(np.arange(questions), self.rows)
        of_confidence, of_right = rng.normal(size=(2, questions)) if effects is None else effects
        own = np.sqrt(1 - self.alike)
        level = np.sqrt(self.alike) * of_confidence[question] + own * rng.normal(size=len(question))
        confidence = self.quantile(ndtr(level))
        threshold = ndtri(np.clip(self.bend(confidence), 1e-12, 1 - 1e-12))
        chance = (
            ndtr((threshold - np.sqrt(self.alike) * of_right[question]) / own) if own else threshold > of_right[question]
        )
        return Rows(confidence, np.asarray(chance, dtype=np.float64), question)

    def whole(self) -> tuple[Floats, NDArray[np.bool_], Floats]:
        """Confidence, right and weight of all of it, nearly; (n,) each."""
        confidence = self.quantile((np.arange(200_000) + 0.5) / 200_000)
        chance = np.clip(self.bend(confidence), 0, 1)
        right = np.repeat([True, False], len(confidence))
        return np.tile(confidence, 2), right, np.concatenate([chance, 1 - chance])


def _labelled(rng: RNG, rows: Rows) -> NDArray[np.bool_]:
    return np.asarray(rng.random(len(rows.chance)) < rows.chance)


def _estimate(figure: str, rows: Rows, right: NDArray[np.bool_], draws: Draws):  # type: ignore[no-untyped-def]
    ones = np.ones(len(right))
    if figure == "brier":
        return estimate_mean((rows.confidence - right) ** 2, ones, rows.question, draws)
    if figure == "share":
        return estimate_mean(right.astype(np.float64), ones, rows.question, draws)
    if figure == "aurc":
        return estimate_aurc(rows.confidence, right, rows.question, draws)
    if figure == "siblings":
        starts = np.flatnonzero(np.diff(rows.question)) + 1
        pairs = sibling_pairs(right, np.split(np.arange(len(right)), starts))
        return estimate_mean(pairs_won(rows.confidence, pairs), np.ones(len(pairs)), rows.question[pairs[:, 0]], draws)
    estimate = estimate_auroc if figure == "auroc" else estimate_ece
    return estimate(rows.confidence, right, ones, rows.question, draws)


def _truth(figure: str, population: Population) -> float:
    confidence, right, weights = population.whole()
    if figure == "ece":
        return ece(confidence, right, weights=weights)
    if figure == "auroc":
        return auroc(confidence, right, weights) or 0.0
    if figure == "brier":
        return float(np.average((confidence - right) ** 2, weights=weights))
    if figure == "share":
        return float(np.average(right, weights=weights))
    rng = np.random.default_rng(1)  # the others know no weights: from large samples
    n = 40_000 // population.rows
    found = []
    for _ in range(10):
        rows = population.draw(rng, n)
        once = np.ones((1, n), dtype=np.uint8)
        right = _labelled(rng, rows)
        if figure == "aurc":
            found.append(float(resampled_aurc(rows.confidence, right, rows.question, once)[0]))
        else:
            found.append(_estimate(figure, rows, right, once[:0]).value)
    return float(np.mean(found))


def _of(figure: str, population: Population) -> Case:
    """The interval of a figure."""

    def interval(rng: RNG, questions: int, draws: Callable[[int], Draws]) -> Interval | None:
        rows = population.draw(rng, questions)
        found = _estimate(figure, rows, _labelled(rng, rows), draws(questions))
        return found.interval  # type: ignore[no-any-return]

    return Case(partial(_truth, figure, population), interval)


def _changed(figure: str, a: Population, b: Population) -> Case:
    """The interval of the difference of two populations that share their questions."""

    def interval(rng: RNG, questions: int, draws: Callable[[int], Draws]) -> Interval | None:
        effects, same = rng.normal(size=(2, questions)), draws(questions)
        sides = []
        for side in (a, b):
            rows = side.draw(rng, questions, effects)
            sides.append(_estimate(figure, rows, _labelled(rng, rows), same))
        return change(*sides)[1]

    return Case(lambda: _truth(figure, b) - _truth(figure, a), interval)


def _accuracy(p: float) -> Case:
    return Case(lambda: p, lambda rng, n, draws: wilson(int(rng.binomial(n, p)), n), cheap=True)


def _paired(only_a: float, only_b: float) -> Case:
    def interval(rng: RNG, n: int, draws: Callable[[int], Draws]) -> Interval:
        u = rng.random(n)
        found = paired_difference(u < only_a, (u >= only_a) & (u < only_a + only_b))
        return Interval(found.low, found.high)

    return Case(lambda: only_b - only_a, interval, cheap=True)


def _passed(p: float, samples: int, k: int) -> Case:
    """pass@k where the chance of a question's samples is Beta(p, 1 - p) times a half: some questions easy, some hard."""
    table = np.array([pass_at_k(samples, right, k) for right in range(samples + 1)])

    def values(rng: RNG, n: int) -> Floats:
        return np.asarray(table[rng.binomial(samples, rng.beta(p / 2, (1 - p) / 2, n))], dtype=np.float64)

    def interval(rng: RNG, n: int, draws: Callable[[int], Draws]) -> Interval | None:
        of_question = values(rng, n)
        if set(of_question) <= {0.0, 1.0}:
            return wilson(round(of_question.sum()), n)
        return estimate_mean(of_question, np.ones(n), np.arange(n), draws(n)).interval

    return Case(lambda: float(values(np.random.default_rng(1), 10**6).mean()), interval)


def _tokens(draw: Callable[[RNG, int], Floats]) -> Case:
    return Case(
        lambda: float(draw(np.random.default_rng(1), 10**6).mean()),
        lambda rng, n, draws: mean_interval(draw(rng, n)),
        cheap=True,
    )


def _judge(found: float, told: float, figure: str) -> Case:
    """A judge that finds an error with one chance and says of a right solution that it is right with another."""

    def interval(rng: RNG, n: int, draws: Callable[[int], Draws]) -> Interval | None:
        judged = []
        for number, (erroneous, lucky) in enumerate(zip(rng.random(n) < 0.5, rng.random(n), strict=True)):
            solution = LabelledSolution(
                f"q{number}", Question(f"q{number}"), ("a",), ("wrong" if erroneous else "right",), ""
            )
            met = lucky < (found if erroneous else told)
            judged.append(Judged(solution, ("wrong",) if met == erroneous else ("right",)))
        entry = judge_scores(judged)["all"][figure]
        return None if entry["low"] is None else Interval(entry["low"], entry["high"])

    return Case(lambda: 2 * found * told / (found + told), interval)


def _beta(a: float, b: float) -> Callable[[Floats], Floats]:
    return lambda share: np.asarray(betaincinv(a, b, share), dtype=np.float64)


def _votes(share: Floats) -> Floats:
    """Shares of ten votes."""
    return np.round(10 * betaincinv(2, 1, share)) / 10


def _lowered(by: float) -> Callable[[Floats], Floats]:
    return lambda confidence: np.clip(confidence - by, 0, 1)


def _mostly_one(share: Floats) -> Floats:
    return np.where(share < 0.15, share / 0.15, 1.0)


def _logit(centre: float, slope: float) -> Callable[[Floats], Floats]:
    """Chances around ``centre`` (logits) that follow the confidence with a slope."""

    def bend(confidence: Floats) -> Floats:
        at = np.clip(confidence, 1e-6, 1 - 1e-6)
        return np.asarray(expit(centre + slope * (np.log(at / (1 - at)) - 1)))

    return bend


_GUESS, _SURE = _beta(3, 1.2), _beta(8, 0.8)

_ECE = {
    "calibrated": Population(_GUESS, _lowered(0.0)),
    "over_05": Population(_GUESS, _lowered(0.05)),
    "over_10": Population(_GUESS, _lowered(0.10)),
    "over_20": Population(_GUESS, _lowered(0.20)),
    "waves": Population(_GUESS, lambda c: np.clip(c + 0.1 * np.where((c * 10).astype(int) % 2, 1, -1), 0, 1)),
    "top_bin": Population(_GUESS, lambda c: np.where(c >= 0.9, c - 0.2, c)),
    "votes_over_10": Population(_votes, _lowered(0.10)),
    "sure_over_05": Population(_SURE, _lowered(0.05)),
    "always_1_of_98": Population(np.ones_like, _lowered(0.02)),
    "always_1_of_80": Population(np.ones_like, _lowered(0.20)),
    "mostly_1": Population(_mostly_one, _lowered(0.02)),
    "steps_calibrated": Population(_GUESS, _lowered(0.0), 5, 0.3),
    "steps_over_05": Population(_GUESS, _lowered(0.05), 5, 0.3),
    "steps_over_20": Population(_GUESS, _lowered(0.20), 5, 0.3),
}
_RANKED = {
    "half_right": Population(_GUESS, _logit(0.0, 0.8)),
    "90_right": Population(_GUESS, _logit(2.5, 0.8)),
    "90_right_sharp": Population(_GUESS, _logit(4.5, 3.0)),
    "98_right": Population(_GUESS, _logit(4.2, 0.8)),
    "2_right": Population(_GUESS, _logit(-4.2, 0.8)),
}
_STEPS = {name: Population(p.quantile, p.bend, 5, 0.3) for name, p in _RANKED.items()}

CASES: Mapping[str, Case] = {
    **{f"accuracy_{p}": _accuracy(p / 100) for p in (2, 10, 50, 90, 98)},
    **{f"pass_at_{k}_{p}": _passed(p / 100, 10, k) for k in (1, 4) for p in (2, 10, 50, 90, 98)},
    **{f"accuracy_change_{a}_{b}": _paired(a / 100, b / 100) for a, b in ((1, 1), (1, 4), (5, 10), (5, 30))},
    "tokens_change_skewed": _tokens(lambda rng, n: 100 * (rng.lognormal(0, 0.6, n) - 0.5 * rng.lognormal(0, 0.6, n))),
    "tokens_change_limit": _tokens(lambda rng, n: np.where(rng.random(n) < 0.05, 256, 40) - rng.normal(60, 20, n)),
    **{f"ece_{name}": _of("ece", population) for name, population in _ECE.items()},
    **{
        f"ece_change_{a}_to_{b}": _changed("ece", _ECE[a], _ECE[b])
        for a, b in (
            ("calibrated", "calibrated"), ("over_10", "calibrated"), ("over_05", "over_10"), ("over_10", "waves"),
            ("votes_over_10", "over_20"), ("steps_calibrated", "steps_calibrated"), ("steps_over_20", "steps_over_05"),
            ("steps_over_05", "steps_calibrated"),
        )
    },
    **{
        f"{figure}_{name}": _of(figure, population)
        for figure in ("brier", "auroc", "aurc")
        for name, population in _RANKED.items()
    },
    **{
        f"{figure}_change_{a}_to_{b}": _changed(figure, _RANKED[a], _RANKED[b])
        for figure in ("brier", "auroc", "aurc")
        for a, b in (("half_right", "90_right"), ("90_right", "98_right"), ("90_right", "90_right_sharp"))
    },
    **{
        f"steps_{figure}_{name}": _of(figure, population)
        for figure in ("share", "brier", "auroc", "siblings")
        for name, population in _STEPS.items()
    },
    **{
        f"steps_{figure}_change_{a}_to_{b}": _changed(figure, _STEPS[a], _STEPS[b])
        for figure in ("share", "auroc", "siblings")
        for a, b in (("half_right", "90_right"), ("90_right", "90_right_sharp"))
    },
    **{f"judge_f1_{f}_{t}": _judge(f / 100, t / 100, "processbench_f1") for f, t in ((5, 98), (50, 50), (85, 95))},
}  # fmt: skip
"""By name: which figure, of which population."""
