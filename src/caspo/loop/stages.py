"""The single stages of a run: annotate, rescore, pairs, train. Joined by files, each skips what is there.

`caspo.loop.run` runs them in a loop, the command line one by one, so that a stage can run on another machine.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from caspo.confidence import SIGNALS, fit
from caspo.core.errors import ConfigError, DataError
from caspo.core.folders import refuse_overwriting, was_claimed
from caspo.core.shards import Made, Shard
from caspo.core.storage import read_json, write_json, write_text
from caspo.data.annotate import AnnotateSettings, annotate
from caspo.data.pairs import PairSettings, build_pairs, check_pairs, read_pairs, write_pairs
from caspo.engines.base import Engine
from caspo.engines.models import cache_dir, load, model_inputs
from caspo.engines.opening import ModelSettings, check_local
from caspo.formats.parquet import read_trees, tree_files, write_trees
from caspo.formats.shards import Piece, read_all_trees, read_piece, write_piece
from caspo.judges.base import Judge
from caspo.loop.weights import ADAPTER, open_for_training, save_trained
from caspo.records import GIVEN, Question, StepPair, Tree
from caspo.train.checks import check_tokens
from caspo.train.lora import Adapters, without_adapters
from caspo.train.reference import rescore, score_trees
from caspo.train.scoring import Scorer, check_packing
from caspo.train.step_dpo import StepDPOSettings, reference_of, train_step_dpo
from caspo.train.trainer import has_ended, remove_checkpoints
from caspo.train.units import judged_nodes
from caspo.trees import check_rules

__all__ = [
    "ANNOTATE_WRITES", "PAIRS_WRITES", "TRAIN_WRITES", "TrainingData", "annotate_stage", "by_round", "pairs_stage",
    "read_rounds", "rescore_stage", "train_stage", "trees_and_pairs",
]  # fmt: skip

ANNOTATE_WRITES = ("tree", "verdicts.jsonl")
PAIRS_WRITES = ("pairs.parquet", "report.json")
TRAIN_WRITES = ("model", ADAPTER, "train", "log.jsonl", "training.json")
"""What the stages write into their folders."""

_CHUNK = 40
"""Questions annotated between two files."""


def annotate_stage(
    questions: Sequence[Question],
    engine: Callable[[], Engine],
    judge: Judge,
    settings: AnnotateSettings,
    seed: int,
    folder: Path,
    on_chunk: Callable[[int, int], None],
    piece: Piece | None = None,
) -> list[Tree]:
    """Annotated trees of the questions in ``folder``, chunk by chunk; chunks that are there already are read.

    Of a shard those of its questions: ``piece`` says which, and what it is made of. Without a question it has an empty file.
    """
    trees: list[Tree] = []
    mine = list(enumerate(questions)) if piece is None else piece.shard.take(list(enumerate(questions)))
    for part, start in enumerate(range(0, len(mine), _CHUNK) or range(0 if piece is None else 1)):
        name = f"part-{part:04d}.parquet"
        file = folder / (name if piece is None else piece.file(name))
        chunk = mine[start : start + _CHUNK]
        if not file.exists():
            grown = annotate([question for _, question in chunk], engine(), judge, settings, seed) if chunk else []
            if piece is None:
                write_trees(file, grown)
            else:
                write_piece(file, grown, replace(piece, places={question.id: place for place, question in chunk}))
        trees += read_trees(file)
        on_chunk(start + len(chunk), len(mine))
    return trees


def pairs_stage(trees: Sequence[Tree], settings: PairSettings, tokenizer: Any, folder: Path) -> None:
    """Build the pairs of the trees into ``folder``: ``pairs.parquet``, and ``report.json`` with what was dropped."""
    if not trees:
        raise DataError(
            "There are no trees to build pairs from: the files hold none with a step. Either no question was sampled, or "
            "the model wrote nothing on any; `caspo solve` with this model shows what it writes."
        )
    pairs, report = build_pairs(trees, settings)
    check_pairs(pairs, trees, report)
    write_pairs(folder / "pairs.parquet", pairs, trees, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    write_json(folder / "report.json", asdict(report))


def rescore_stage(
    model: ModelSettings,
    settings: StepDPOSettings,
    trees: Path,
    folder: Path,
    shard: Shard | None = None,
    made: Made = MappingProxyType({}),
) -> list[Tree]:
    """Trees of any engine with the exact traces of this model, file by file as they came; files that are there are kept.

    Trees of a shard stay a shard's; of trees that are whole a ``shard`` is scored. ``made`` is what this scoring is made of.

    Raises:
        ConfigError: a shard of a shard is asked for.
        DataError: no trees, trees of another tokenizer, or paths longer than the model's context.
    """
    work = [(file, folder / name, piece) for file, name, piece in _to_rescore(trees, made, shard)]
    missing = [(file, target, piece) for file, target, piece in work if not target.exists()]
    if missing:
        check_local(model, "Rescoring")
        loaded, tokenizer = _load(model, model.name)
        scorer = Scorer(loaded, packed=settings.layout == "packed")
    checked = settings.layout != "packed"
    for file, target, piece in missing:
        found = [tree for tree in read_trees(file) if tree.nodes and (piece is None or tree.question.id in piece.places)]
        check_tokens(found, loaded, tokenizer)
        if found and not checked:
            last = len(found[0].nodes) - 1
            check_packing(loaded, found[0], {0, last // 2, last})
            checked = True
        wanted = [(tree, frozenset(range(len(tree.nodes)))) for tree in found]
        bf16 = settings.precision == "bf16"
        scores = score_trees(loaded, scorer, wanted, settings.micro_tokens, _reference_cache(), bf16=bf16)
        if piece is None:
            write_trees(target, rescore(found, scores))
        else:
            write_piece(target, rescore(found, scores), piece)
    return [tree for _, target, _ in work for tree in read_trees(target)]


def _to_rescore(trees: Path, made: Made, shard: Shard | None) -> list[tuple[Path, str, Piece | None]]:
    """The files to score, the name of what is made of each, and what that is a piece of."""
    files = tree_files(trees)
    before = [(file, piece) for file in files if (piece := read_piece(file)) is not None]
    if before:
        if shard is not None:
            raise ConfigError(
                f"{trees} is shard {before[0][1].shard} already. Leave --shard out: what is made of it stays that shard."
            )
        mine = {key: value for key, value in made.items() if key != "--rescore"}
        again = {
            file: replace(piece, made=mine | {f"--rescore {key}": value for key, value in piece.made.items()})
            for file, piece in before
        }
        return [(file, file.name, again.get(file)) for file in files]
    if shard is None:
        return [(file, file.name, None) for file in files]
    ids = [[tree.question.id for tree in read_trees(file)] for file in files]
    places = {question: place for place, question in enumerate(question for of_file in ids for question in of_file)}
    found: list[tuple[Path, str, Piece | None]] = []
    for file, of_file in zip(files, ids, strict=True):
        here = {question: places[question] for question in of_file if shard.holds(places[question])}
        piece = Piece(shard, made, len(places), here)
        found.append((file, piece.file(file.name), piece))
    return found


TrainingData = tuple[Sequence[Tree], Path]
"""Trees, and the file of the pairs that were built from them."""


def read_rounds(trees: Sequence[Path], pairs: Sequence[Path]) -> list[TrainingData]:
    """Folders (or files) of trees and the files of their pairs, one of each for every round.

    Raises:
        ConfigError: not as many of the one as of the other.
    """
    return [(read_all_trees(paths), file) for paths, file in by_round(trees, pairs)]


def by_round(trees: Sequence[Path], pairs: Sequence[Path]) -> list[tuple[Sequence[Path], Path]]:
    """For every round where its trees are, and the file of its pairs. Of a single round the trees may be in several places.

    Raises:
        ConfigError: not as many of the one as of the other.
    """
    if len(pairs) == 1 and trees:
        return [(trees, pairs[0])]
    if len(trees) != len(pairs):
        raise ConfigError(
            f"--trees was given {len(trees)} times and --pairs {len(pairs)} times; each needs the other. (Shards of several "
            "rounds: gather the files of each round in a folder of its own.)"
        )
    return [([folder], file) for folder, file in zip(trees, pairs, strict=True)]


def trees_and_pairs(data: Sequence[TrainingData]) -> tuple[list[Tree], list[StepPair]]:
    """The trees of all rounds, of two of one question the newer one, and the pairs that point into them.

    Raises:
        ConfigError: their steps were cut by different rules; trees that came cut from elsewhere go with any.
    """
    check_rules((tree for trees, _ in data for tree in trees if tree.steps != GIVEN), "training")
    newest = {tree.question.id: (number, tree) for number, (trees, _) in enumerate(data) for tree in trees}
    pairs = [
        pair
        for number, (trees, pairs_file) in enumerate(data)
        for pair in read_pairs(pairs_file, trees)
        if newest[pair.question_id][0] == number
    ]
    return [tree for _, tree in newest.values()], pairs


def train_stage(
    source: str,
    model: ModelSettings,
    data: Sequence[TrainingData],
    settings: StepDPOSettings,
    seed: int,
    out: Path,
    on_step: Callable[[int, int], None],
    reference: str | None = None,
) -> dict[str, Any]:
    """Train ``source`` on the pairs; ``out/model``, ``out/log.jsonl`` and ``out/training.json``, which is returned; with
    ``save: both`` also ``out/adapter``.

    ``data`` holds one entry a round; of two trees of one question the newer one counts. ``reference`` is the model whose
    log-probabilities DPO compares with, ``source`` itself by default. Under `accelerate launch` the first process writes.
    """
    file = out / "training.json"
    if file.exists():
        remove_checkpoints(out / "train")  # left where a kill came between the two
        return dict(read_json(file))
    check_local(model, "Training")
    read = {"source": source, "reference": reference, "model.base": model.base_of(source)}
    refuse_overwriting(out, TRAIN_WRITES, {**model_inputs(read), "pairs": [pairs_file for _, pairs_file in data]})
    if (out / "model").exists() and not has_ended(out / "train") and not (was_claimed(out) or was_claimed(out.parent)):
        raise ConfigError(
            f"{out / 'model'} is there, and this training did not write it: its own would be lost. Choose another --out."
        )
    trees, pairs = trees_and_pairs(data)
    scores = None
    if reference is not None and reference != source:
        other, tokenizer = open_for_training(reference, model, settings)
        check_tokens(trees, other, tokenizer)
        scores = reference_of(without_adapters(other), trees, pairs, settings, seed, _reference_cache())
        del other
    loaded, tokenizer = open_for_training(source, model, settings)
    trained, result = train_step_dpo(
        loaded,
        trees,
        pairs,
        settings,
        seed,
        out / "train",
        lambda step, total, metrics: on_step(step, total),
        tokenizer=tokenizer,
        reference=scores,
        calibration=_calibration(trees) if settings.confidence else None,
        cache=_reference_cache(),
        merge=False,
    )
    del loaded
    if trained is None or int(os.environ.get("RANK", "0")) > 0:
        return result.as_json()
    if settings.lora is not None:
        trained = Adapters.of(trained)
        gc.collect()  # the base is read again to be merged with them
    save_trained(trained, tokenizer, source, model, settings, out)
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in result.log))
    write_json(file, result.as_json())
    remove_checkpoints(out / "train")
    return result.as_json()


def _load(model: ModelSettings, name: str) -> tuple[Any, Any]:
    """The model ``name``, in float32, and its tokenizer."""
    base = model.base_of(name)
    return load(name, device=model.device, base=base, trust_remote_code=model.trust_remote_code)


def _reference_cache() -> Path:
    return cache_dir() / "reference-scores"


def _calibration(trees: Sequence[Tree]) -> tuple[float, float]:
    """Slope and intercept from a step's confidence signal to its chance of being right, before training."""
    judged = [node for tree in trees for node in judged_nodes(tree)]
    right = [node.right for node in judged]
    found = fit([SIGNALS["entropy"](node.step.trace) for node in judged], np.asarray(right, dtype=float), kind="platt")
    return found.x[0], found.x[1]
