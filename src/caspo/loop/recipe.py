"""The recipe of a run: what it says, and the questions that it trains and decides on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from caspo.core.config import Config
from caspo.core.errors import ConfigError, DataError
from caspo.data.annotate import AnnotateSettings
from caspo.data.pairs import PairSettings
from caspo.engines.models import model_inputs
from caspo.engines.opening import ModelSettings
from caspo.evaluate.run import EvaluateSettings
from caspo.loop.task import TaskSettings, open_task, task_files
from caspo.records import Question
from caspo.tasks.base import QuestionSet
from caspo.train.step_dpo import StepDPOSettings

__all__ = [
    "AnnotateStage", "CaspoRecipe", "ValidationStage", "check_rounds", "recipe_inputs", "training_questions",
    "validation_questions",
]  # fmt: skip


class AnnotateStage(AnnotateSettings):
    """Sampling of the trees that pairs are made from."""

    questions: int = Field(200, ge=1)
    """Training questions in each round; every round takes new ones. Where a file ends, the last round takes the rest."""


class ValidationStage(Config):
    """Questions that decide whether a round is built upon; taken from the training split, never sampled for trees."""

    questions: int = Field(0, ge=0)
    """Questions solved greedily after every round; the share of right answers must not fall. 0: no such check."""


class CaspoRecipe(Config):
    """A recipe with ``kind: caspo``."""

    kind: Literal["caspo"] = "caspo"
    name: str = "caspo"
    """What the report calls the run."""
    model: ModelSettings
    task: TaskSettings = TaskSettings()
    seed: int = 0
    """All that is drawn follows from it, the order of training included."""
    threads: int | None = None
    """CPU threads of all that is computed here; `model.threads` by default."""
    rounds: int = Field(1, ge=0)
    """Rounds of sampling, judging, pairing and training; 0 measures the model as it is."""
    reference: Literal["previous", "first"] = "previous"
    """What a round is held to by DPO: the model it starts from, or the model before all training."""
    accumulate: bool = False
    """Train each round on the pairs of all rounds so far, instead of its own."""
    accelerate: Path | None = None
    """File of `accelerate config`: training then runs as its processes (`recipes/accelerate/` has some)."""
    annotate: AnnotateStage = AnnotateStage()
    pairs: PairSettings = PairSettings()
    train: StepDPOSettings | None = None
    """How a round is trained; a recipe without rounds needs none."""
    validation: ValidationStage = ValidationStage()
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def training(self) -> StepDPOSettings:
        """The settings of training.

        Raises:
            ConfigError: the recipe has none.
        """
        if self.train is None:
            raise ConfigError(
                "The recipe says nothing of training. Add a section `train` with at least its learning_rate, or set rounds "
                "to 0 to measure the model as it is."
            )
        return self.train


def validation_questions(recipe: CaspoRecipe) -> list[Question]:
    """The questions of `ValidationStage`, the same in every round."""
    return open_task(recipe.task, "train").questions("train", recipe.validation.questions, recipe.seed - 1)


def training_questions(recipe: CaspoRecipe, index: int) -> list[Question]:
    """What round ``index`` (from 1) samples its trees on: questions that no other round and no validation has.

    A file has so many and no more: its rounds are slices of one order, in which a question that stands twice is once.
    The last of them may be short, and those after it are empty.
    """
    held = {question.text for question in validation_questions(recipe)} if recipe.validation.questions else set()
    number = recipe.annotate.questions
    task = open_task(recipe.task, "train")
    if isinstance(task, QuestionSet):
        rows = task.questions("train")
        if number + len(held) < len(rows):  # a file that is used whole comes in its own order
            random.Random(recipe.seed + 1000).shuffle(rows)
        once = {question.text: question for question in rows if question.text not in held}
        return list(once.values())[(index - 1) * number : index * number]
    found: list[Question] = []
    for earlier in range(1, index + 1):  # problems that are made, without an end; now and then one is made twice
        held |= {question.text for question in found}
        drawn = task.questions("train", number + len(held), recipe.seed + 1000 * earlier)
        found = [question for question in drawn if question.text not in held][:number]
    return found


def check_rounds(recipe: CaspoRecipe) -> None:
    """Refuse more rounds than there are questions for, before the first one is begun.

    Raises:
        DataError: a round would have no question.
    """
    for index in range(1, recipe.rounds + 1):
        if not training_questions(recipe, index):
            held = f" beside the {recipe.validation.questions} of validation" if recipe.validation.questions else ""
            raise DataError(
                f"Round {index} of {recipe.rounds} has no training question left: every round takes "
                f"{recipe.annotate.questions} new ones (annotate.questions), and those before it take all there are{held}. "
                "Give a file with more questions, set annotate.questions lower, or run fewer rounds."
            )


def recipe_inputs(recipe: CaspoRecipe, splits: Sequence[Literal["train", "test"]]) -> dict[str, list[Path]]:
    """What a recipe names that lies on this machine: files of the questions of ``splits``, and folders of models.

    Without a split nothing is asked and nothing judged.

    Raises:
        DataError: a file of questions is not there.
    """
    models = {
        "model.name": recipe.model.name, "model.base": recipe.model.base, "model.tokenizer": recipe.model.tokenizer,
    }  # fmt: skip
    if splits:
        models["task.judge.model"] = getattr(recipe.task.judge, "model", None)
    found = task_files(recipe.task, splits) if splits else {}
    for key, path in ((key, path) for key, paths in found.items() for path in paths):
        if not path.is_file():
            raise DataError(f"{key}: {path}: no such file. Check the path.")
    return {**found, **model_inputs(models)}
