"""The recipe of a run: what it says, and the questions that it trains and decides on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from caspo.core.config import Config
from caspo.core.errors import ConfigError
from caspo.data.annotate import AnnotateSettings
from caspo.data.pairs import PairSettings
from caspo.engines.opening import ModelSettings
from caspo.evaluate.run import EvaluateSettings
from caspo.loop.task import TaskSettings, open_task
from caspo.records import Question
from caspo.train.step_dpo import StepDPOSettings

__all__ = ["AnnotateStage", "CaspoRecipe", "ValidationStage", "training_questions", "validation_questions"]


class AnnotateStage(AnnotateSettings):
    """Sampling of the trees that pairs are made from."""

    questions: int = Field(200, ge=1)
    """Training questions in each round; every round takes new ones."""


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
    """CPU threads; all by default."""
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
    """What round ``index`` (from 1) samples its trees on."""
    held = {question.id for question in validation_questions(recipe)} if recipe.validation.questions else set()
    number = recipe.annotate.questions
    drawn = open_task(recipe.task, "train").questions("train", number + len(held), recipe.seed + 1000 * index)
    return [question for question in drawn if question.id not in held][:number]
