"""`caspo run RECIPE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from caspo.cli.options import SkipBad
from caspo.core.errors import ConfigError

__all__ = ["Overrides", "run", "run_into"]

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change.")]


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file, for example recipes/demo/recipe.yaml.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<folder of the recipe> by default.")] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Run a recipe from beginning to end. Killed at any moment, the same command goes on."""
    run_into(out or Path("runs") / recipe.resolve().parent.name, recipe, overrides or [], skip_bad=skip_bad)


def run_into(target: Path, recipe: Path, overrides: Sequence[str], *, skip_bad: bool, joined: Sequence[Path] = ()) -> None:
    """Run a recipe in a folder and print what came of it; ``joined`` are folders of shards that were solved already."""
    from caspo.cli.show import bars, metrics_table, output, signals_tables, tell_left_out
    from caspo.core.config import load_recipe

    if _kind(recipe) == "supervised":
        if skip_bad:
            raise ConfigError("--skip-bad is for files of questions, and a supervised recipe reads none. Leave it out.")
        from caspo.loop.warm_start import SupervisedRecipe, run_supervised

        with bars() as show:
            result = run_supervised(
                load_recipe(SupervisedRecipe, recipe, overrides),
                target,
                lambda step, total, metrics: show.stage("train", step, total),
            )
        output.print(f"The model is in {result}")
        return
    from caspo.loop.recipe import CaspoRecipe
    from caspo.loop.run import run_recipe

    loaded = load_recipe(CaspoRecipe, recipe, [*overrides, *(["task.skip_bad=true"] if skip_bad else [])])
    tell_left_out(loaded.task, ("test", "train") if loaded.rounds or loaded.validation.questions else ("test",))
    with bars() as show:
        metrics = run_recipe(loaded, target, show.stage, joined)
    output.print(metrics_table(metrics), *signals_tables(metrics), sep="\n")
    output.print(f"Report: {target / 'report.html'}   figures: {target / 'metrics.json'}")


def _kind(recipe: Path) -> str:
    import yaml

    from caspo.core.config import parse_yaml

    try:
        data = parse_yaml(recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return "caspo"  # loading it as a recipe will say what is wrong
    kind = data.get("kind", "caspo") if isinstance(data, dict) else "caspo"
    if kind not in ("caspo", "supervised"):
        raise ConfigError(f"{recipe} has kind {kind!r}; it must be 'caspo' or 'supervised'.")
    return str(kind)
