"""The loop: recipes, their stages, the run that joins them, thresholds and the supervised start."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.loop.recipe import CaspoRecipe, training_questions
    from caspo.loop.run import run_recipe
    from caspo.loop.stages import annotate_stage, pairs_stage, read_rounds, rescore_stage, train_stage
    from caspo.loop.task import TaskSettings, open_judge, open_task
    from caspo.loop.thresholds import CalibrateSettings, calibrate_stage
    from caspo.loop.warm_start import SupervisedRecipe, run_supervised

__all__ = [
    "CalibrateSettings", "CaspoRecipe", "SupervisedRecipe", "TaskSettings", "annotate_stage", "calibrate_stage",
    "open_judge", "open_task", "pairs_stage", "read_rounds", "rescore_stage", "run_recipe", "run_supervised",
    "train_stage", "training_questions",
]  # fmt: skip

export(__name__)
