"""Step-wise preference training: trees in, loss out."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.train.attention import TreeAttention
    from caspo.train.lora import LoraSettings
    from caspo.train.losses import anchor_loss, confidence_loss, pair_weights, preference_loss
    from caspo.train.reference import rescore, score_trees
    from caspo.train.step_dpo import StepDPOSettings, TrainingResult, train_step_dpo
    from caspo.train.supervised import SupervisedSettings
    from caspo.train.tree_packing import pack

__all__ = [
    "LoraSettings", "StepDPOSettings", "SupervisedSettings", "TrainingResult", "TreeAttention", "anchor_loss",
    "confidence_loss", "pack", "pair_weights", "preference_loss", "rescore", "score_trees", "train_step_dpo",
]  # fmt: skip

export(__name__)
