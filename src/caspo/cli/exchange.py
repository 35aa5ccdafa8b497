"""`caspo export` and `caspo import`: annotated trees to the formats of the field, and labelled solutions to trees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caspo.cli.options import BaseOption, SkipBad
from caspo.core.errors import ConfigError

__all__ = ["export", "import_labelled"]


def export(
    source: Annotated[
        list[Path],
        typer.Argument(help="Folder (or file) of annotated trees, of shards all of them; or a file of labelled solutions."),
    ],
    out: Annotated[Path, typer.Option(help="File to write: JSONL, or Parquet for the format dataset.")],
    to: Annotated[
        str, typer.Option("--format", help="processbench, prm800k, math_shepherd, trl_stepwise, steps, step_dpo or dataset.")
    ],
    pairs: Annotated[Path | None, typer.Option(help="File of the pairs built from the trees; step_dpo needs it.")] = None,
    generator: Annotated[str, typer.Option(help="The model that wrote the steps, for the records.")] = "caspo",
    skip_bad: SkipBad = False,
) -> None:
    """Write annotated trees as ProcessBench, PRM800K, Math-Shepherd, TRL's stepwise format, steps, Step-DPO, or our dataset.

    For TRL's preference trainers nothing needs exporting: pairs.parquet of `caspo pairs` is their format.
    """
    from caspo.cli.show import output, tell
    from caspo.core.folders import check_output_file
    from caspo.core.rows import BadRows
    from caspo.data.dataset import write_dataset
    from caspo.data.pairs import read_pairs
    from caspo.formats import WRITTEN, pairs_as_step_dpo, read_labelled, trees_as, trees_of, write_rows
    from caspo.formats.parquet import holds_trees
    from caspo.formats.shards import read_all_trees, tree_inputs

    known = (*WRITTEN, "step_dpo", "dataset")
    if to not in known:
        raise ConfigError(f"There is no format {to!r}. Choose one of {', '.join(known)}.")
    if (to == "step_dpo") != (pairs is not None):
        raise ConfigError("The format step_dpo, and no other, is made of pairs: give it with --pairs, or leave both out.")
    labelled = next((file for file in source if not holds_trees(file)), None)
    if labelled is not None and len(source) > 1:
        raise ConfigError(f"{labelled} holds no trees, and only trees are read from several places. Give one file.")
    read = tree_inputs("SOURCE", source) if labelled is None else {"SOURCE": source}
    check_output_file(out, read | {"--pairs": [] if pairs is None else [pairs]})
    for folder in source:
        if folder.is_dir() and out.suffix == ".parquet" and out.resolve().parent == folder.resolve():
            raise ConfigError(
                f"{folder} is the folder of the trees, and {out.name} would be read as one of them. Choose another --out."
            )
    bad = BadRows() if skip_bad else None
    empty: list[str] = []
    trees = read_all_trees(source) if labelled is None else trees_of(read_labelled(labelled, bad, empty))
    tell(bad, empty)
    if to == "dataset":
        write_dataset(out, trees, generator)
        output.print(f"{sum(len(tree.nodes) for tree in trees)} steps in {out}")
        return
    if pairs is not None:
        rows, dropped = pairs_as_step_dpo(read_pairs(pairs, trees), trees, generator), {}
    else:
        found = trees_as(to, trees, generator)
        rows, dropped = found.rows, found.dropped
    write_rows(out, rows)
    output.print(f"{len(rows)} records in {out}")
    for reason, count in sorted(dropped.items()):
        output.print(f"  left out: {count} paths, {reason}")


def import_labelled(
    source: Annotated[
        Path,
        typer.Argument(
            help="ProcessBench, PRM800K, Math-Shepherd, Step-DPO, TRL's stepwise, MR-GSM8K or steps; JSONL, JSON, Parquet."
        ),
    ],
    model: Annotated[str, typer.Option(help="Whose tokenizer and prompt: bundled name, folder or hub name.")],
    out: Annotated[Path, typer.Option(help="File of trees to write, *.parquet.")],
    base: BaseOption = None,
    instruction: Annotated[
        str | None, typer.Option(help="System message of the prompt, as in the recipe (model.instruction).")
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Make annotated trees of labelled solutions; `caspo annotate --rescore` then gives them a model's entropies."""
    from caspo.cli.show import output, tell
    from caspo.core.folders import check_output_file
    from caspo.core.rows import BadRows
    from caspo.engines.models import model_inputs, read_tokenizer, resolve
    from caspo.engines.prompts import INSTRUCTION
    from caspo.formats import read_labelled, trees_of
    from caspo.formats.parquet import write_trees

    check_output_file(out, {"SOURCE": [source], **model_inputs({"--model": model, "--base": base})})
    bad = BadRows() if skip_bad else None
    empty: list[str] = []
    solutions = read_labelled(source, bad, empty)
    tell(bad, empty)
    trees = trees_of(
        solutions, read_tokenizer(resolve(model, base=base)), INSTRUCTION if instruction is None else instruction
    )
    write_trees(out, trees)
    steps = sum(len(tree.nodes) for tree in trees)
    output.print(f"{len(solutions)} solutions: {len(trees)} trees with {steps} distinct steps in {out}")
