"""A recipe's judge: every kind with its settings, opened late, with errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError
from caspo.data.annotate import AnnotateSettings
from caspo.engines.opening import ModelSettings, open_engine
from caspo.judges.base import Chain
from caspo.judges.cache import CachedJudge
from caspo.judges.choose import ArithmeticSettings, ReferenceSettings
from caspo.judges.language_model import LanguageModelJudge, LanguageModelSettings
from caspo.judges.reward_model import RewardModelJudge
from caspo.judges.rollouts import RolloutJudge, RolloutSettings
from caspo.loop.stages import annotate_stage
from caspo.loop.task import TaskSettings, open_judge
from caspo.records import Question
from caspo.tasks.stories import StoriesTask

MODEL = ModelSettings(name="no/such-model")


def test_a_name_alone_is_a_kind_with_its_defaults() -> None:
    """Recipes that were written before kinds had settings go on working."""
    assert settings_from(TaskSettings, ["judge=reference"]).judge == ReferenceSettings()
    assert settings_from(TaskSettings, ["judge=arithmetic"]).judge == ArithmeticSettings()
    assert settings_from(TaskSettings, ["judge=rollouts"]).judge == RolloutSettings()
    assert settings_from(TaskSettings, []).judge is None
    assert open_judge(TaskSettings()).name == "reference"
    assert open_judge(TaskSettings(name="jsonl", train=Path("x"))).name == "arithmetic"


def test_settings_survive_being_written_to_recipe_yaml() -> None:
    """A run folder is resumed by what its recipe.yaml says."""
    asked = settings_from(TaskSettings, ["judge.kind=rollouts", "judge.samples=20"])
    assert TaskSettings.model_validate(asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judge.sampels=20", "judge.rollouts.sampels: unknown key; did you mean 'samples'"),
        ("judge.lost=0.5", r"lost \(0.5\) must be below reached"),
        ("judge.kind=oracle", "'reference', 'arithmetic', 'labels', 'rollouts', 'language_model', 'reward_model'"),
        ("judge.kind=reward_model", "judge.reward_model.layout: Field required"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(TaskSettings, ["judge.kind=rollouts", override])


def test_models_are_loaded_when_they_are_first_needed(tmp_path: Path) -> None:
    """Opening a judge costs nothing, so that a resumed stage may not need its model at all."""
    for settings, kind in (
        (RolloutSettings(), RolloutJudge),
        (LanguageModelSettings(model="no/such"), LanguageModelJudge),
        ({"kind": "language_model", "model": "x", "endpoint": {"url": "http://127.0.0.1:9"}}, LanguageModelJudge),
        ({"kind": "reward_model", "model": "no/such", "layout": "qwen"}, RewardModelJudge),
    ):
        task = TaskSettings.model_validate({"judge": settings})
        assert isinstance(open_judge(task, MODEL), kind)
        judge = open_judge(task, MODEL, tmp_path / "verdicts.jsonl")
        assert isinstance(judge, CachedJudge)
        assert judge.judge([]) == []


def test_a_judge_that_samples_needs_a_recipes_model() -> None:
    """Outside a recipe there is none to ask."""
    chain = Chain(Question("?", "1", id="q"), ("a",), False)
    with pytest.raises(ConfigError, match="'rollouts' samples from the model of a recipe"):
        open_judge(TaskSettings(judge=RolloutSettings())).judge([chain])


def test_an_annotation_with_rollouts_resumes_without_asking_again(tmp_path: Path) -> None:
    """The trees are the same, and no completion is sampled twice."""
    model = ModelSettings(name="stories-tiny", max_rows=8)
    questions = StoriesTask((1,)).questions("train", 2, 0)
    task = TaskSettings(judge=RolloutSettings(max_tokens=64))

    def annotated(out: Path, cache: Path) -> list[tuple[str, str | None]]:
        judge = open_judge(task, model, cache)
        trees = annotate_stage(
            questions, lambda: open_engine(model), judge, AnnotateSettings(samples=3), 0, out, lambda done, total: None
        )
        assert isinstance(judge, CachedJudge)
        asked.append(judge.judge_asked.counts.completions)  # type: ignore[attr-defined]
        return [(n.step.text, n.verdict.label if n.verdict else None) for tree in trees for n in tree.nodes]

    asked: list[int] = []
    first = annotated(tmp_path / "a", tmp_path / "verdicts.jsonl")
    assert first == annotated(tmp_path / "b", tmp_path / "verdicts.jsonl")
    assert asked[0] > 0
    assert asked[1] == 0
    assert {"right", "unknown"} & {label for _, label in first}
