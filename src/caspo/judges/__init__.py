"""Judges say whether a step is right, wrong or unknown, given a right prefix."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.judges.arithmetic import ArithmeticJudge
    from caspo.judges.base import Chain, Judge, StepJudge
    from caspo.judges.cache import CachedJudge
    from caspo.judges.choose import JudgeSettings, make_judge
    from caspo.judges.endpoint import ChatEndpoint, EndpointSettings
    from caspo.judges.labels import LabelsJudge
    from caspo.judges.language_model import LanguageModelJudge, LanguageModelSettings
    from caspo.judges.reference import ReferenceJudge
    from caspo.judges.reward_model import RewardModelJudge, RewardModelSettings
    from caspo.judges.rollouts import RolloutJudge, RolloutSettings
    from caspo.judges.solution import SolutionJudge

__all__ = [
    "ArithmeticJudge", "CachedJudge", "Chain", "ChatEndpoint", "EndpointSettings", "Judge", "JudgeSettings",
    "LabelsJudge", "LanguageModelJudge", "LanguageModelSettings", "ReferenceJudge", "RewardModelJudge",
    "RewardModelSettings", "RolloutJudge", "RolloutSettings", "SolutionJudge", "StepJudge", "make_judge",
]  # fmt: skip

export(__name__)
