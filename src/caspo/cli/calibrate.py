"""`caspo calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caspo.cli.options import SkipBad
from caspo.cli.run import Overrides
from caspo.cli.stages import load

if TYPE_CHECKING:
    from rich.table import Table

    from caspo.loop.thresholds import Calibration

__all__ = ["calibrate"]


def calibrate(
    recipe: Annotated[Path, typer.Argument(help="YAML file; its model, its task and its evaluate.cat are used.")],
    out: Annotated[
        Path, typer.Option(help="Folder for thresholds.json and calibrator.json; the model's own, if it has one.")
    ],
    alpha: Annotated[float, typer.Option(help="Risk of pruning the last right path, and of a wrong answer.")] = 0.1,
    delta: Annotated[float, typer.Option(help="Probability that more answers than that are wrong all the same.")] = 0.1,
    questions: Annotated[int, typer.Option(min=2, help="Questions held out for it, of the training split.")] = 400,
    skip_bad: SkipBad = False,
    overrides: Overrides = None,
) -> None:
    """Choose CaT's thresholds for pruning and abstention with a guarantee: OUT/thresholds.json and OUT/calibrator.json.

    What the confidence of its paths is worth (evaluate.cat.evidence) is fitted first, unless the recipe sets it.
    For the model of a run: --out RUN/round-1/model model.name=RUN/round-1/model. Killed, the same command goes on.
    """
    from caspo.cli.show import bars, output, tell_left_out
    from caspo.engines.opening import open_engine
    from caspo.loop.task import open_examples
    from caspo.loop.thresholds import CalibrateSettings, calibrate_stage

    loaded = load(recipe, overrides, skip_bad=skip_bad)
    tell_left_out(loaded.task, ["train"])
    settings = CalibrateSettings(recipe=loaded, alpha=alpha, delta=delta, questions=questions)
    with bars() as show:
        found = calibrate_stage(
            settings, lambda model: open_engine(model, examples=open_examples(loaded.task)), out, show.stage
        )
    output.print(_evidence(found), highlight=False)
    output.print(_pruning_table(found), _abstention_table(found), sep="\n")
    output.print(_told(found))
    output.print(f"Thresholds: {out / 'thresholds.json'}")
    if found.calibrator is not None:
        output.print(f"Calibrator: {out / 'calibrator.json'}, from {found.calibrator.n} steps")
    else:
        output.print("No calibrator: the judged steps were all right or all wrong, so there is nothing to calibrate on.")


def _evidence(found: Calibration) -> str:
    from caspo.core.config import flatten

    number = found.thresholds.n_evidence
    told = ", ".join(f"{name} {value:.3g}" for name, value in flatten(found.evidence.model_dump()).items())
    return f"Evidence, {f'fitted on {number} questions' if number else 'as the recipe sets it'}: {told}"


def _pruning_table(found: Calibration) -> Table:
    chosen = found.thresholds
    title = f"Pruning, on {chosen.n_pruning} questions with a right path to lose"
    table = _table(title, "prune_below", "right path lost", "bound", "tokens")
    for risk, tokens in zip(found.risks, found.tokens, strict=True):
        mark = "chosen" if risk.below == chosen.prune_below else ""
        share = risk.lost / chosen.n_pruning
        table.add_row(f"{risk.below:g}", f"{share:.1%}", f"{risk.bound:.1%}", f"{tokens:.0f}", mark)
    return table


def _abstention_table(found: Calibration) -> Table:
    chosen = found.thresholds
    table = _table(f"Abstention, on {chosen.n_abstention} other answers", "abstain_below", "kept", "wrong of them", "p")
    for test in found.tests:
        mark = "chosen" if test.below == chosen.abstain_below else "not shown" if test.p > chosen.delta else ""
        wrong = f"{test.wrong / test.kept:.1%}" if test.kept else "-"
        table.add_row(f"{test.below:.4g}", f"{test.kept}", wrong, f"{test.p:.3g}", mark)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Column, Table

    return Table(*(Column(name, justify="right") for name in (*columns, "")), title=title, title_justify="left")


def _told(found: Calibration) -> str:
    """The two guarantees in words."""
    chosen = found.thresholds
    pruning = (
        f"Pruning below {chosen.prune_below:g}: a question loses its last right path with a probability of at most "
        f"{chosen.alpha:g}."
    )
    if chosen.abstain_below is None:
        return (
            f"{pruning}\nNo threshold for abstention was shown to keep wrong answers to a share of {chosen.alpha:g}: even "
            "the most confident ones are wrong too often, or too few to tell. Train further, ask more --questions, or "
            "allow a higher --alpha."
        )
    return (
        f"{pruning}\nAnswering from a confidence of {chosen.abstain_below:.4g}: at most a share of {chosen.alpha:g} of the "
        f"answers is wrong, with a probability of at least {1 - chosen.delta:g}; {chosen.kept:.0%} of the answers are given."
    )
