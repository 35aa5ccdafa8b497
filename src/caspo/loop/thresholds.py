"""Stage `calibrate`: evidence and thresholds of CaT, the calibrator of the step confidence, on questions held out for that.

The questions are of the training split, and none that rounds or validation use. The first third fits what the confidence of
paths is worth: all paths of each question are drawn whole. With that the second third chooses where to prune: CaT is run on
it at every threshold of `PRUNE_GRID`, by one engine that remembers, so paths are decoded once. The last third is answered
with what was chosen and shows where to abstain: what is tested there must be the search as it will be used, and that search,
as well as the thresholds that are tried, must have been chosen without these answers. A recipe that sets the evidence itself
keeps it, and its questions are cut in halves.

In ``out``: ``thresholds.json`` and ``calibrator.json``. In ``out/calibration`` what each question came to, in parts; killed
and run again, the stage goes on after the last whole part.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, computed_field

from caspo.answers import stated_answer
from caspo.confidence.calibration import Calibrator
from caspo.core.config import Config, settings_from
from caspo.core.errors import ConfigError, DataError
from caspo.core.folders import claimed, refuse_overwriting
from caspo.core.storage import read_json, write_json
from caspo.data.annotate import judge_trees
from caspo.engines.base import Engine
from caspo.engines.memo import MemoEngine
from caspo.engines.opening import ModelSettings, weights_of
from caspo.engines.prompts import Example
from caspo.evaluate.step_figures import step_calibrator, step_rows
from caspo.formats.parquet import read_trees, write_trees
from caspo.loop.recipe import CaspoRecipe, recipe_inputs, training_questions, validation_questions
from caspo.loop.settled import settled
from caspo.loop.task import open_examples, open_judge, open_task
from caspo.records import Question, Solution, Tree
from caspo.search import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence
from caspo.search.threshold import (
    AbstentionTest,
    PruningRisk,
    Thresholds,
    abstention_grid,
    answers_needed,
    choose_abstention,
    choose_pruning,
    questions_needed,
)
from caspo.tasks.base import Task
from caspo.tasks.examples import fingerprint

__all__ = ["PRUNE_GRID", "CalibrateSettings", "Calibration", "calibrate_stage", "calibration_questions", "right_path"]

PRUNE_GRID = (0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Thresholds of a path's worst step that are tried; settled before any question is looked at."""

_CHUNK = 100
"""Questions between two files."""

OnDone = Callable[[str, int, int], None]


class CalibrateSettings(Config):
    """A recipe, and the guarantee asked for."""

    recipe: CaspoRecipe
    alpha: float = 0.1
    """Risk: of pruning the last right path, and of a wrong answer given that there is one."""
    delta: float = 0.1
    """Probability that the risk of a wrong answer is higher all the same."""
    questions: int = Field(400, ge=2)
    """Held-out questions; fewer where the task has fewer."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fits_evidence(self) -> bool:
        """Whether the evidence is fitted; otherwise the recipe sets it. It is kept with the settings: values that are set
        may be those of the defaults, and then the questions are cut in other parts all the same."""
        cat = self.recipe.evaluate.of(ConfidenceTree)
        return cat is not None and "evidence" not in cat.model_fields_set


@dataclass(frozen=True)
class Calibration:
    """What the stage found, with what it was chosen from."""

    thresholds: Thresholds
    evidence: EvidenceModel
    """Fitted on ``thresholds.n_evidence`` questions, or as the recipe sets it."""
    risks: tuple[PruningRisk, ...]
    tokens: tuple[float, ...]
    """Generated for a question, at each threshold of `PRUNE_GRID`."""
    tests: tuple[AbstentionTest, ...]
    calibrator: Calibrator | None
    """None where all judged steps were right, or all wrong."""


def calibration_questions(recipe: CaspoRecipe, number: int) -> list[Question]:
    """Questions of the training split that neither a round nor validation uses, in random order; fewer if it has fewer."""
    used = [question for index in range(1, recipe.rounds + 1) for question in training_questions(recipe, index)]
    if recipe.validation.questions:
        used += validation_questions(recipe)
    texts = {question.text for question in used}
    seed = recipe.seed + 500  # rounds draw with seed + 1000 k, validation with seed - 1
    drawn = open_task(recipe.task, "train").questions("train", number + len(used), seed)
    random.Random(seed).shuffle(drawn)  # a file that is used whole comes in its own order
    return [question for question in drawn if question.text not in texts][:number]


def calibrate_stage(
    settings: CalibrateSettings, opened: Callable[[ModelSettings], Engine], out: Path, on_done: OnDone
) -> Calibration:
    """Fit the evidence, choose the thresholds, fit the calibrator; ``out/thresholds.json`` and ``out/calibrator.json``.

    ``opened`` gives the engine of a model, and is called when there is something to decode. ``on_done`` is told a name, how
    much is done, and of how much.

    Raises:
        DataError: too few questions, or answers, for this alpha and delta; it says how many are needed. Or the paths that
            evidence is fitted to are all right, or all wrong.
        ConfigError: the recipe does not evaluate CaT; alpha or delta is no probability.
        ResumeError: ``out/calibration`` was made with other settings, other questions or another model.
    """
    recipe, alpha, delta = settings.recipe, settings.alpha, settings.delta
    cat = recipe.evaluate.of(ConfidenceTree)
    if cat is None:
        raise ConfigError("The recipe sets evaluate.cat to null, and thresholds are of that search. Give it its settings.")
    questions = calibration_questions(recipe, settings.questions)
    parts = 3 if settings.fits_evidence else 2
    needed = parts * max(questions_needed(alpha), answers_needed(alpha, delta))
    if len(questions) < needed:
        used_up = len(questions) < settings.questions
        left = " (all that rounds and validation leave of the training questions)" if used_up else ""
        more = "Give a task.train with more questions" if used_up else "Ask for more (--questions)"
        raise DataError(
            f"{len(questions)} questions{left} are too few for alpha {alpha:g} and delta {delta:g}: at least {needed} are "
            f"needed, as they are cut in {parts} parts, and some more for those that get no answer. {more}, or ask for a "
            "higher alpha."
        )
    work = out / "calibration"
    inputs = recipe_inputs(recipe, ["train"])
    refuse_overwriting(out, ("thresholds.json", "calibrator.json"), inputs)
    for name, kind in (("thresholds.json", Thresholds), ("calibrator.json", Calibrator)):
        if (out / name).exists():
            _refuse_foreign(out / name, kind.load)
    with claimed(work, settings, "calibrate", ("evidence", "pruning", "abstention"), inputs):
        model = settled(recipe.model, work, recipe.threads)
        settings = settings.model_copy(update={"recipe": recipe.model_copy(update={"model": model})})
        ends = [len(questions) * part // parts for part in range(parts + 1)]
        cut = [questions[start:end] for start, end in pairwise(ends)]
        return _calibrate(settings, cat, cut, cache(lambda: opened(model)), out, on_done)


def _refuse_foreign(file: Path, load: Callable[[Path], object]) -> None:
    """The results replace those that are there, of an earlier calibration or of a run, and nothing else."""
    try:
        load(file)
    except DataError as error:
        raise ConfigError(
            f"{file} is there, and it is no result of this version: it would be lost. Move it, or choose another --out."
        ) from error


def _calibrate(
    settings: CalibrateSettings,
    cat: ConfidenceTreeSettings,
    parts: Sequence[Sequence[Question]],
    engine: Callable[[], Engine],
    out: Path,
    on_done: OnDone,
) -> Calibration:
    """`calibrate_stage` in a folder that is claimed, on enough questions in each of its parts."""
    recipe, alpha, delta, work = settings.recipe, settings.alpha, settings.delta, out / "calibration"
    task, asked = open_task(recipe.task, "train"), asked_as(recipe.model, open_examples(recipe.task))
    *for_evidence, for_pruning, for_abstention = parts

    if for_evidence:
        fitted = _fitted(task, for_evidence[0], cat, engine, work / "evidence", on_done)
        cat = cat.model_copy(update={"evidence": fitted})
    searched = _search_grid(task, for_pruning, cat, engine, work / "pruning", on_done)
    found = [[step["found"] for step in row] for row in searched]
    to_lose = [row for row in found if row[0]]  # the others would only make the risk look smaller
    if len(to_lose) < questions_needed(alpha):
        raise DataError(
            f"Of the {len(searched)} questions for pruning {len(to_lose)} have a right path that could be lost; alpha "
            f"{alpha:g} needs {questions_needed(alpha)} of these. Ask for more (--questions), or for a higher alpha."
        )
    largest, risks = choose_pruning(PRUNE_GRID, to_lose, alpha)
    tokens = np.mean([[step["tokens"] for step in row] for row in searched], axis=0)
    # The cheapest of those that are allowed: a lower threshold loses no more (`choose_pruning`), and one that ends paths for
    # which others have to make up saves nothing.
    at = int(tokens[: PRUNE_GRID.index(largest) + 1].argmin())
    prune_below = PRUNE_GRID[at]
    grid = abstention_grid(*_answered([row[at] for row in searched]), alpha)

    chosen = ConfidenceTree(cat.model_copy(update={"prune_below": prune_below, "abstain_below": 0.0}))

    def answer(chunk: Sequence[Question], file: Path, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        solutions = chosen.solve(chunk, engine(), on_done=advance)
        return [_outcome(task, q, s) for q, s in zip(chunk, solutions, strict=True)]

    answers = _in_parts("answer other questions", 1, for_abstention, work / "abstention", answer, on_done)
    confidence, right = _answered(answers)
    abstain_below, tests = choose_abstention(grid, confidence, right, alpha, delta)
    passed = next((test for test in tests if test.below == abstain_below), None)

    thresholds = Thresholds(
        model=asked,
        settings=cat.model_dump(mode="json", exclude={"prune_below", "abstain_below"}),
        prune_below=prune_below,
        abstain_below=abstain_below,
        alpha=alpha,
        delta=delta,
        n_evidence=sum(map(len, for_evidence)),
        n_pruning=len(to_lose),
        n_abstention=len(right),
        lost=risks[at].lost / len(to_lose),
        kept=None if passed is None else passed.kept / len(right),
        wrong=None if passed is None else passed.wrong / passed.kept,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    judged = judge_trees(read_trees(work / "pruning"), open_judge(recipe.task, recipe.model))
    calibrator = step_calibrator(step_rows(judged, [question.id for question in for_pruning]))
    if calibrator is not None:
        calibrator.save(out / "calibrator.json", date=thresholds.date, model=asked)
    thresholds.save(out / "thresholds.json")
    return Calibration(thresholds, cat.evidence, tuple(risks), tuple(tokens.tolist()), tuple(tests), calibrator)


def asked_as(model: ModelSettings, examples: Sequence[Example]) -> dict[str, str]:
    """What decides which texts a model writes, as it stands in ``thresholds.json``."""
    asked = {name: getattr(model, name) for name in ("name", "engine", "dtype", "instruction", "steps")}
    asked |= {"base": model.base} if model.base else {}
    weights = weights_of(model)
    asked |= {"weights": weights} if weights is not None else {}
    return {**asked, "examples": fingerprint(examples)} if examples else asked


def _fitted(
    task: Task,
    questions: Sequence[Question],
    cat: ConfidenceTreeSettings,
    engine: Callable[[], Engine],
    folder: Path,
    on_done: OnDone,
) -> EvidenceModel:
    """What the confidence of paths to these questions is worth."""

    def draw(chunk: Sequence[Question], file: Path, advance: Callable[[int], None]) -> list[dict[str, Any]]:
        return [_plain(told) for told in ConfidenceTree(cat).told(chunk, engine(), task.grade, on_done=advance)]

    rows = _in_parts("draw whole paths", 1, questions, folder, draw, on_done)
    file = folder / "fitted.json"
    if not file.exists():  # kept: whatever scipy the stage goes on with, all is searched with the same numbers
        try:
            write_json(file, fit_evidence([_told(row) for row in rows], cat.evidence).model_dump(mode="json"))
        except DataError as error:
            raise DataError(
                f"evaluate.cat.evidence cannot be fitted on the first third of the questions. {error} (More: --questions.) "
                "Or set it, and it is kept: evaluate.cat.evidence={} is its defaults. Either with another --out."
            ) from error
    return settings_from(EvidenceModel, read_json(file), f"The evidence in {file}")


def _plain(told: Told) -> dict[str, Any]:
    """As JSON, which has no NaN but null."""
    signals = [[None if math.isnan(signal) else signal for signal in path] for path in told.signals.tolist()]
    return {"groups": list(told.groups), "signals": signals, "right": told.right}


def _told(row: dict[str, Any]) -> Told:
    return Told(row["groups"], np.array(row["signals"], dtype=np.float64), row["right"])


def _search_grid(
    task: Task,
    questions: Sequence[Question],
    cat: ConfidenceTreeSettings,
    engine: Callable[[], Engine],
    folder: Path,
    on_done: OnDone,
) -> list[list[dict[str, Any]]]:
    """What each question came to at each threshold of `PRUNE_GRID`; the trees without pruning are kept in ``folder``."""

    def search(chunk: Sequence[Question], file: Path, advance: Callable[[int], None]) -> list[list[dict[str, Any]]]:
        memo = MemoEngine(engine())
        columns = []
        for threshold in PRUNE_GRID:
            settings = cat.model_copy(update={"prune_below": threshold, "abstain_below": 0.0})
            solutions = ConfidenceTree(settings).solve(chunk, memo, on_done=advance)
            if threshold == 0:
                write_trees(file.with_suffix(".parquet"), [solution.tree for solution in solutions])
            columns.append(
                [
                    {**_outcome(task, q, s), "found": right_path(task, q, s.tree), "tokens": s.generated_tokens}
                    for q, s in zip(chunk, solutions, strict=True)
                ]
            )
        return [list(row) for row in zip(*columns, strict=True)]

    return _in_parts("search at every threshold", len(PRUNE_GRID), questions, folder, search, on_done)


def _in_parts(
    name: str,
    passes: int,
    questions: Sequence[Question],
    folder: Path,
    solve: Callable[[Sequence[Question], Path, Callable[[int], None]], list[Any]],
    on_done: OnDone,
) -> list[Any]:
    """One row a question, in files of `_CHUNK` questions; files that are there are read. Each is solved ``passes`` times."""
    rows: list[Any] = []
    done, total = 0, passes * len(questions)

    def advance(solved: int) -> None:
        nonlocal done
        done += solved
        on_done(name, done, total)

    for part, start in enumerate(range(0, len(questions), _CHUNK)):
        file = folder / f"part-{part:03d}.json"
        chunk = questions[start : start + _CHUNK]
        if not file.exists():
            write_json(file, solve(chunk, file, advance))
        rows += read_json(file)
        done = passes * len(rows)
        on_done(name, done, total)
    return rows


def right_path(task: Task, question: Question, tree: Tree) -> bool:
    """Whether a path was finished that states the right answer."""
    ends = (node for node in tree.nodes if node.decision == "finished")
    return any(task.grade(question, stated_answer(question, tree.answer_text(end.id))) for end in ends)


def _outcome(task: Task, question: Question, solution: Solution) -> dict[str, Any]:
    answer = solution.answer
    return {"right": task.grade(question, answer), "confidence": None if answer is None else solution.confidence}


def _answered(outcomes: Sequence[dict[str, Any]]) -> tuple[list[float], list[bool]]:
    """Confidence and rightness where there is an answer."""
    given = [outcome for outcome in outcomes if outcome["confidence"] is not None]
    return [outcome["confidence"] for outcome in given], [outcome["right"] for outcome in given]
