"""The single stages of a recipe: `annotate`, `pairs`, `train`, `evaluate`, `report`.

They read the same recipe as `caspo run` and write the same files, so a stage can run on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caspo.cli.options import ShardOption, SkipBad
from caspo.cli.run import Overrides

if TYPE_CHECKING:
    from caspo.loop.recipe import CaspoRecipe

__all__ = ["annotate", "evaluate", "load", "pairs", "report", "train"]

Recipe = Annotated[Path, typer.Argument(help="YAML file with the settings of the stage.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]


def load(recipe: Path, overrides: list[str] | None, *, skip_bad: bool = False) -> CaspoRecipe:
    """The recipe of a file, with what is overridden."""
    from caspo.core.config import load_recipe
    from caspo.loop.recipe import CaspoRecipe

    return load_recipe(CaspoRecipe, recipe, [*(overrides or ()), *(["task.skip_bad=true"] if skip_bad else [])])


def annotate(
    recipe: Recipe,
    out: Out,
    rescore: Annotated[
        Path | None, typer.Option(help="Trees of any engine, to be given this model's exact entropies instead.")
    ] = None,
    shard: ShardOption = None,
    skip_bad: SkipBad = False,
    overrides: Overrides = None,
) -> None:
    """Sample step trees on the training questions and judge every step: OUT/tree/*.parquet."""
    from functools import cache

    from caspo.cli.show import bars, output, tell_left_out
    from caspo.core.folders import claimed
    from caspo.core.threads import use_threads
    from caspo.engines.opening import open_engine
    from caspo.formats.parquet import tree_files
    from caspo.formats.shards import Piece
    from caspo.loop.recipe import recipe_inputs, training_questions
    from caspo.loop.settled import settled
    from caspo.loop.stages import ANNOTATE_WRITES, annotate_stage, rescore_stage
    from caspo.loop.task import open_examples, open_judge

    settings = load(recipe, overrides, skip_bad=skip_bad)
    inputs = recipe_inputs(settings, ["train"] if rescore is None else [])
    if rescore is not None:
        inputs["--rescore"] = tree_files(rescore)
    with claimed(out, settings, "annotate", ANNOTATE_WRITES, inputs, shard) as made:
        if rescore is not None:
            use_threads(settings.threads or settings.model.threads)
            trees = rescore_stage(settings.model, settings.training, rescore, out / "tree", shard, made)
        else:
            tell_left_out(settings.task, ["train"])
            questions = training_questions(settings, 1)
            model = settled(settings.model, out, settings.threads)
            engine = cache(lambda: open_engine(model, examples=open_examples(settings.task)))
            # Shards may have been made on machines that choose otherwise.
            alike = {**made, "model.dtype": model.dtype}
            with bars() as show:
                trees = annotate_stage(
                    questions,
                    engine,
                    open_judge(settings.task, model, out / "verdicts.jsonl"),
                    settings.annotate,
                    settings.seed,
                    out / "tree",
                    lambda done, total: show.stage("sample and judge", done, total),
                    None if shard is None else Piece(shard, alike, len(questions), {}),
                )
    steps = sum(len(tree.nodes) for tree in trees)
    output.print(f"{len(trees)} trees with {steps} distinct steps in {out / 'tree'}")


def pairs(
    recipe: Recipe,
    trees: Annotated[list[Path], typer.Option(help="Folder (or file) of annotated trees; of shards once for every shard.")],
    out: Out,
    overrides: Overrides = None,
) -> None:
    """Build preference pairs from annotated trees: OUT/pairs.parquet (loads in TRL as it is) and OUT/report.json."""
    from caspo.cli.show import output
    from caspo.core.errors import ConfigError
    from caspo.core.folders import claimed
    from caspo.core.storage import read_json
    from caspo.engines.models import read_tokenizer, resolve
    from caspo.formats.shards import read_all_trees, tree_inputs
    from caspo.loop.stages import PAIRS_WRITES, pairs_stage

    settings = load(recipe, overrides)
    if any(folder.is_dir() and folder.resolve() == out.resolve() for folder in trees):
        raise ConfigError(f"{out} is the folder of the trees, and pairs in it would be read as trees. Choose another --out.")
    with claimed(out, settings, "pairs", PAIRS_WRITES, tree_inputs("--trees", trees)):
        asked = settings.model
        name = asked.tokenizer or asked.name
        tokenizer = read_tokenizer(resolve(name, base=asked.base_of(name)))
        pairs_stage(read_all_trees(trees), settings.pairs, tokenizer, out)
    output.print_json(data=read_json(out / "report.json"))


def train(
    recipe: Recipe,
    trees: Annotated[
        list[Path], typer.Option(help="Folder (or file) of annotated trees; once for every round, or shard of a round.")
    ],
    pairs: Annotated[list[Path], typer.Option(help="File of the pairs built from them; once for every round.")],
    out: Out,
    reference: Annotated[str | None, typer.Option(help="Model that DPO compares with; the trained one itself.")] = None,
    overrides: Overrides = None,
) -> None:
    """Step-wise DPO on pairs and their trees: OUT/model, OUT/log.jsonl, OUT/training.json.

    For several devices: accelerate launch --config_file FILE -m caspo.cli.main train ...
    """
    import os
    from contextlib import nullcontext

    from accelerate import PartialState

    from caspo.cli.show import bars, output
    from caspo.core.folders import claimed
    from caspo.core.threads import use_threads
    from caspo.engines.models import model_inputs
    from caspo.engines.models.placement import chosen_device
    from caspo.formats.shards import tree_inputs
    from caspo.loop.recipe import recipe_inputs
    from caspo.loop.stages import TRAIN_WRITES, by_round, read_rounds, train_stage

    settings = load(recipe, overrides)
    inputs = recipe_inputs(settings, []) | model_inputs({"--reference": reference})
    for number, (folders, file) in enumerate(by_round(trees, pairs), start=1):
        which = f" ({number} of {len(pairs)})" if len(pairs) > 1 else ""
        inputs |= tree_inputs(f"--trees{which}", folders) | {f"--pairs{which}": [file]}
    first = int(os.environ.get("RANK", "0")) == 0
    # Of several processes the first has the folder; the others meet it when they read it.
    with claimed(out, settings, "train", TRAIN_WRITES, inputs) if first else nullcontext():
        data = read_rounds(trees, pairs)
        use_threads(settings.threads or settings.model.threads)
        on_cpu = chosen_device("float32", settings.model.device).type == "cpu"
        PartialState(cpu=on_cpu)  # under a launcher: meet the others, take this process's device
        with bars() as show:
            result = train_stage(
                settings.model.name,
                settings.model,
                data,
                settings.training,
                settings.seed,
                out,
                lambda step, total: show.stage("train", step, total) if first else None,
                reference,
            )
    if first:
        output.print_json(data=result)


def evaluate(
    out: Out,
    recipe: Annotated[Path | None, typer.Argument(help="YAML file with the settings of the stage.")] = None,
    overrides: Overrides = None,
    shard: ShardOption = None,
    join: Annotated[
        list[Path] | None, typer.Option(help="Folder of a shard, once for every shard: what they solved is measured in OUT.")
    ] = None,
    skip_bad: SkipBad = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Two finished runs instead of a recipe: RUN or RUN/round-K, or one with :METHOD."),
    ] = None,
) -> None:
    """Measure the recipe's model as `caspo run` does, without training: OUT/metrics.json and OUT/report.html.

    With --shard K/N a part of the questions is solved and judged, and nothing measured; the same command with --join
    instead, once for the folder of every shard, measures all of them.

    With --compare A B nothing is run: how B differs from A on the same questions, OUT/comparison.json. For example
    --compare runs/a runs/b, --compare runs/a/round-0 runs/a/round-1, --compare runs/a:cat runs/a:self_consistency.
    """
    from caspo.cli.run import run_into
    from caspo.cli.show import bars, comparison_tables, output, tell_left_out
    from caspo.core.errors import ConfigError
    from caspo.core.storage import write_json
    from caspo.evaluate.compare import compare as compare_runs

    if (recipe is None) == (compare is None):
        raise ConfigError("Give either a RECIPE to evaluate, or --compare A B with two finished runs.")
    if (shard is not None) + bool(join) + (compare is not None) > 1:
        raise ConfigError("--shard, --join and --compare each do another thing: give one of them.")
    if recipe is not None and shard is not None:
        from caspo.loop.run import run_shard

        settings = load(recipe, [*(overrides or []), "rounds=0"], skip_bad=skip_bad)
        tell_left_out(settings.task, ("test", "train") if settings.validation.questions else ("test",))
        with bars() as show:
            solved = run_shard(settings, out, shard, show.stage)
        output.print(
            f"{solved} questions of shard {shard} in {out}. When all are there, join their folders: --join {out} ..."
        )
        return
    if recipe is not None:
        run_into(out, recipe, [*(overrides or []), "rounds=0"], skip_bad=skip_bad, joined=join or [])
        return
    assert compare is not None
    found = compare_runs(*compare)
    write_json(out / "comparison.json", found)
    output.print(*comparison_tables(found), sep="\n")
    output.print(f"All questions that flipped: {out / 'comparison.json'}")


def report(run: Annotated[Path, typer.Argument(help="Folder of a run, with its metrics.json.")]) -> None:
    """Write the page RUN/report.html again."""
    from caspo.cli.show import output
    from caspo.report.page import write_report

    output.print(f"Report: {write_report(run)}")
