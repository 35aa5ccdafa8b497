"""`caspo judge`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caspo.cli.options import BaseOption, DeviceOption, DtypeOption, ShardOption, SkipBad, ThreadsOption
from caspo.core.errors import ConfigError

if TYPE_CHECKING:
    from caspo.core.shards import Shard
    from caspo.engines.opening import ModelSettings
    from caspo.formats import LabelledSolution
    from caspo.judges.choose import AnyJudgeSettings

__all__ = ["judge"]

_WRITES = ("part-[0-9]*.json", "scores.json", "verdicts.jsonl")


def judge(
    source: Annotated[
        Path,
        typer.Argument(
            help="Labelled solutions (a public format or steps; docs/judges.md), or annotated trees; of shards all of them."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the verdicts and scores.json.")],
    name: Annotated[
        str, typer.Option("--judge", help="reference, arithmetic, labels, rollouts, language_model or reward_model.")
    ] = "arithmetic",
    model: Annotated[str | None, typer.Option(help="Model that completes the steps, for the judge rollouts.")] = None,
    base: BaseOption = None,
    score_against: Annotated[
        str | None, typer.Option(help="labels: how good the judge is, the labels (or verdicts) of the file being the truth.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Solutions to judge, the first of the file.")] = None,
    shard: ShardOption = None,
    join: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a shard, once for every shard: their verdicts are put together in OUT."),
    ] = None,
    skip_bad: SkipBad = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the judge, for example samples=8.")
    ] = None,
) -> None:
    """Judge the steps of finished solutions: OUT/part-*.json, and with --score-against OUT/scores.json and a table.

    Killed, the same command goes on.
    """
    from caspo.cli.show import bars, judge_table, output, tell
    from caspo.core.config import settings_from
    from caspo.core.folders import claimed, refuse_overwriting, shards_in
    from caspo.core.rows import BadRows, stem_of
    from caspo.engines.models import model_inputs
    from caspo.evaluate.judge_run import JudgeRun, digest, judge_solutions, of_shard, score_judge
    from caspo.formats import read_solutions
    from caspo.loop.settled import settled
    from caspo.loop.task import TaskSettings, open_judge, task_files

    if score_against not in (None, "labels"):
        raise ConfigError(f"--score-against is {score_against!r}; the only truth there is are the labels of the file.")
    if shard is not None and (join or score_against):
        raise ConfigError("A shard has neither --join nor scores: give these once, when all shards are put together.")
    sources = [source, *(Path(word) for word in overrides or () if "=" not in word)]
    keys = [f"judge.{override}" for override in overrides or () if "=" in override]
    task = settings_from(TaskSettings, [f"judge.kind={name}", *keys])
    assert task.judge is not None
    if name == "rollouts" and model is None:
        raise ConfigError("The judge rollouts has a model complete the steps: name it with --model.")
    asked = _sampled(task.judge, model, base=base, device=device, dtype=dtype, threads=threads)
    shards = shards_in(join, "judge") if join else {}
    joined = {f"--join (shard {one})": sorted(folder.glob("part-[0-9]*.json")) for one, (folder, _) in shards.items()}
    refuse_overwriting(out, _WRITES, {"SOURCE": sources, **joined})
    bad = BadRows() if skip_bad else None
    empty: list[str] = []
    solutions = read_solutions(sources, bad, empty)[:limit]
    tell(bad, empty)
    # Of the source a digest of what the judge is told stands among the settings: labels may be corrected.
    told = f"{stem_of(source)}, {len(solutions)} with digest {digest(solutions)}"
    run = JudgeRun(judge=task.judge.model_dump(mode="json"), model=model, base=base, solutions=told)
    models = model_inputs({"--model": model, "--base": base, "model": getattr(task.judge, "model", None)})
    inputs = task_files(task, []) | models | joined
    with claimed(out, run, "judge", _WRITES, inputs, shard, shards):
        if shards:
            _join(solutions, {one: folder for one, (folder, _) in shards.items()}, out)
        chosen = open_judge(task, None if asked is None else settled(asked, out), out / "verdicts.jsonl")
        mine = solutions if shard is None else of_shard(solutions, shard)
        with bars() as show:
            judged = judge_solutions(mine, chosen, out, lambda done, total: show.stage("judge", done, total))
        scores = None if score_against is None else score_judge(name, judged, out)
    if scores is None:
        counts = Counter(label for one in judged for label in one.verdicts)
        shares = ", ".join(f"{counts[label]} {label}" for label in ("right", "wrong", "unknown"))
        output.print(f"{len(judged)} solutions, steps: {shares}; verdicts in {out}")
        return
    output.print(judge_table(scores))
    output.print(f"Scores: {out / 'scores.json'}")


def _sampled(judge: AnyJudgeSettings, model: str | None, **told: Any) -> ModelSettings | None:
    """The model that the judge samples from here: its own, or ``model``. ``told``: where and how (None, auto: not told)."""
    from caspo.engines.opening import model_settings
    from caspo.judges.language_model import LanguageModelSettings

    if isinstance(judge, LanguageModelSettings) and judge.endpoint is None:
        model = judge.model
    chosen = {key: value for key, value in told.items() if value not in (None, "auto")}
    if model is not None:
        return model_settings(model, engine="hf", **chosen)
    if chosen:
        raise ConfigError(
            f"The judge {judge.kind} samples from no model here, so {', '.join(f'--{key}' for key in chosen)} has no "
            "meaning. Leave that out; a reward_model has settings of its own (device=cuda, dtype=bfloat16)."
        )
    return None


def _join(solutions: Sequence[LabelledSolution], folders: Mapping[Shard, Path], out: Path) -> None:
    """Write into ``out`` what shards were judged to be, as if it had been judged there."""
    from caspo.evaluate.judge_run import join_verdicts
    from caspo.judges.cache import join_caches
    from caspo.loop.settled import join_placements

    join_placements(list(folders.values()), out)
    join_verdicts(solutions, folders, out)
    join_caches([folder / "verdicts.jsonl" for folder in folders.values()], out / "verdicts.jsonl")
