"""The judge that a recipe asks for: the settings of all kinds, and how each is opened."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caspo.core.config import Config
from caspo.formats import read_labelled
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import Judge, TextEngine
from caspo.judges.cache import CachedJudge
from caspo.judges.labels import LabelsJudge
from caspo.judges.language_model import INSTRUCTION, LanguageModelJudge, LanguageModelSettings, ask_engine
from caspo.judges.reference import ReferenceJudge
from caspo.judges.reward_model import RewardModelJudge, RewardModelSettings, load_reward_model
from caspo.judges.rollouts import RolloutJudge, RolloutSettings

__all__ = ["AnyJudgeSettings", "ArithmeticSettings", "JudgeSettings", "LabelsSettings", "ReferenceSettings", "make_judge"]


class ReferenceSettings(Config):
    """Known intermediate values; nothing to set."""

    kind: Literal["reference"] = "reference"


class ArithmeticSettings(Config):
    """Equations and their operands; nothing to set."""

    kind: Literal["arithmetic"] = "arithmetic"


class LabelsSettings(Config):
    """Labels of files."""

    kind: Literal["labels"] = "labels"
    files: tuple[Path, ...] = Field(min_length=1)
    """Labelled solutions, in any format of `caspo.formats`."""


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnyJudgeSettings = (
    ReferenceSettings | ArithmeticSettings | LabelsSettings | RolloutSettings | LanguageModelSettings | RewardModelSettings
)

JudgeSettings = Annotated[AnyJudgeSettings, Field(discriminator="kind"), BeforeValidator(_named)]
"""The section ``judge`` of a recipe. A name alone stands for that kind with its defaults."""


def make_judge(
    settings: AnyJudgeSettings, engine: Callable[[str | None, str | None], TextEngine], model: str, cache: Path | None = None
) -> Judge:
    """The judge of these settings. Models are loaded when it is first asked.

    ``engine`` opens an engine, given a model's name and its instruction (None: those of the recipe, whose model is
    ``model``). Verdicts of judges that are not instant are kept in ``cache``.
    """
    judge: Judge
    match settings:
        case ReferenceSettings():
            return ReferenceJudge()
        case ArithmeticSettings():
            return ArithmeticJudge()
        case LabelsSettings():
            return LabelsJudge(solution for file in settings.files for solution in read_labelled(file))
        case RolloutSettings():
            judge = RolloutJudge(functools.cache(lambda: engine(None, None)), settings, model)
        case LanguageModelSettings(endpoint=None):
            opened = functools.cache(lambda: engine(settings.model, INSTRUCTION))
            judge = LanguageModelJudge(ask_engine(opened, settings), settings)
        case LanguageModelSettings(endpoint=endpoint) if endpoint is not None:
            from caspo.judges.endpoint import ChatEndpoint  # the HTTP client is for those alone who ask over HTTP

            sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
            judge = LanguageModelJudge(ChatEndpoint(endpoint, settings.model, INSTRUCTION, sampling), settings)
        case RewardModelSettings():
            judge = RewardModelJudge(lambda: load_reward_model(settings), settings)
    return judge if cache is None else CachedJudge(judge, cache)
