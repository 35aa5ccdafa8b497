"""The recipe of a run and its single stages: annotate, rescore, pairs, train. Joined by files, each skips what is there.

`iterate` runs them in a loop, the command line one by one, so that a stage can run on another machine.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from caspo.confidence import SIGNALS
from caspo.config import Config
from caspo.data.annotate import AnnotateSettings, annotate
from caspo.data.pairs import PairSettings, build_pairs, read_pairs, write_pairs
from caspo.data.store import read_trees, write_trees
from caspo.engines.base import Engine, ServingEngine
from caspo.engines.hf import HFEngine
from caspo.engines.llama_cpp import open_llama_cpp
from caspo.engines.models import cache_dir, load
from caspo.engines.openai_compatible import OpenAICompatibleEngine, RemoteSettings
from caspo.engines.prompts import INSTRUCTION
from caspo.errors import ConfigError, DataError
from caspo.evaluate.calibration import fit
from caspo.evaluate.run import EvaluateSettings
from caspo.judges.base import Judge
from caspo.judges.choose import ArithmeticSettings, JudgeSettings, ReferenceSettings, make_judge
from caspo.storage import read_json, write_directory, write_json, write_text
from caspo.tasks.base import Task
from caspo.tasks.benchmarks import TABLE, open_benchmark
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask
from caspo.train.checks import check_tokens
from caspo.train.reference import rescore, score_trees
from caspo.train.scoring import Scorer, check_packing
from caspo.train.step_dpo import StepDPOSettings, reference_of, train_step_dpo
from caspo.train.units import judged_nodes
from caspo.types import Question, StepPair, Tree

__all__ = [
    "AnnotateStage", "CaspoRecipe", "ModelSettings", "TaskSettings", "TrainingData", "annotate_stage", "check_local",
    "open_engine", "open_judge", "open_local", "open_task", "pairs_stage", "read_rounds", "rescore_stage", "train_stage",
    "training_questions", "trees_and_pairs", "validation_questions",
]  # fmt: skip

_CHUNK = 40
"""Questions annotated between two files."""


class ModelSettings(RemoteSettings):
    """The model and where it runs. What `RemoteSettings` adds is for `openai_compatible`; the rest of this is for `hf`, but
    ``name`` and ``instruction``, which are for all."""

    engine: Literal["hf", "llama_cpp", "openai_compatible"] = "hf"
    """`hf`: in this process, and what is trained. `llama_cpp`: a GGUF file in this process. `openai_compatible`: on servers
    (docs/engines.md)."""
    name: str
    """Bundled name, folder or hub name; for `llama_cpp` a GGUF file or a bundled name, for `openai_compatible` the name that
    the server gives it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of sampling; training keeps float32 masters."""
    device: str = "cpu"
    instruction: str = INSTRUCTION
    """System message of the prompt; models trained on plain prompts ignore it."""
    trust_remote_code: bool = False
    max_rows: int = Field(256, ge=1)
    """Rows decoded at once."""

    @model_validator(mode="after")
    def _servers(self) -> ModelSettings:
        if self.engine == "openai_compatible" and not self.urls:
            raise ValueError("the engine openai_compatible needs urls, a list of its servers")
        if self.urls and self.engine != "openai_compatible":
            raise ValueError(f"urls are for the engine openai_compatible, not for {self.engine}")
        return self


class TaskSettings(Config):
    """The questions."""

    name: str = "stories"
    """`stories`, `jsonl`, or a benchmark of `caspo.tasks.BENCHMARKS`."""
    data: Path | None = None
    """Benchmarks: folder of their JSONL files; the hub by default."""
    run_code: bool = False
    """Benchmarks of code: run what the model writes, in the sandbox (`docs/benchmarks.md` says what that covers)."""
    levels: tuple[int, ...] = (1, 2, 3)
    """`stories`: difficulty levels, 1 to 7; level L has L + 1 steps."""
    train: Path | None = None
    """`jsonl`, and benchmarks that have no training split: file of the questions to annotate."""
    test: Path | None = None
    """`jsonl`: file of the questions to evaluate on."""
    judge: JudgeSettings | None = None
    """Who judges steps: a kind, or keys with ``kind`` among them. By default `reference` for stories, `arithmetic` for
    files."""

    @model_validator(mode="after")
    def _files(self) -> TaskSettings:
        if self.name not in ("stories", "jsonl", *TABLE):
            raise ValueError(f"there is no task {self.name!r}; choose one of stories, jsonl, {', '.join(TABLE)}")
        if self.name in TABLE and TABLE[self.name].answer_type == "code" and not self.run_code:
            raise ValueError(f"{self.name} is graded by running what the model writes; allow it by run_code: true")
        if self.name == "jsonl" and self.test is None and self.train is None:
            raise ValueError("a jsonl task needs test and train, the files of its questions")
        return self


class AnnotateStage(AnnotateSettings):
    """Sampling of the trees that pairs are made from."""

    questions: int = Field(200, ge=1)
    """Training questions in each round; every round takes new ones."""


class ValidationStage(Config):
    """Questions that decide whether a round is built upon; taken from the training split, never sampled for trees."""

    questions: int = Field(0, ge=0)
    """0: every round is built upon. Solved greedily by chain of thought; the share of right answers must not fall."""


class CaspoRecipe(Config):
    """A recipe with ``kind: caspo``."""

    kind: Literal["caspo"] = "caspo"
    name: str = "caspo"
    model: ModelSettings
    task: TaskSettings = TaskSettings()
    seed: int = 0
    threads: int | None = None
    """CPU threads; all by default."""
    rounds: int = Field(1, ge=0)
    reference: Literal["previous", "first"] = "previous"
    """What a round is held to by DPO: the model it starts from, or the model before all training."""
    accumulate: bool = False
    """Train each round on the pairs of all rounds so far, instead of its own."""
    accelerate: Path | None = None
    """File of `accelerate config`: training then runs as its processes (`recipes/accelerate/` has some)."""
    annotate: AnnotateStage = AnnotateStage()
    pairs: PairSettings = PairSettings()
    train: StepDPOSettings | None = None
    """Needed by what trains."""
    validation: ValidationStage = ValidationStage()
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def training(self) -> StepDPOSettings:
        """The settings of training.

        Raises:
            ConfigError: the recipe has none.
        """
        if self.train is None:
            raise ConfigError(
                "The recipe says nothing of training. Add a section `train` with at least its learning_rate, or set rounds "
                "to 0 to measure the model as it is."
            )
        return self.train


def open_task(settings: TaskSettings, split: Literal["train", "test"]) -> Task:
    """The task of a recipe; for files, the one of the split.

    Raises:
        ConfigError: there is nothing to train on: benchmarks are test sets, and most have no training split.
    """
    if settings.name == "stories":
        return StoriesTask(settings.levels)
    if settings.name in TABLE and (split == "test" or settings.train is None):
        return open_benchmark(settings.name, data=settings.data, split=split, run_code=settings.run_code)
    path = settings.train if split == "train" else settings.test
    if path is None:
        raise ConfigError(f"The task needs a file for {split}: set task.{split} to a JSONL of question and answer.")
    return JsonlTask(path, split=split)


def validation_questions(recipe: CaspoRecipe) -> list[Question]:
    """The questions of `ValidationStage`, the same in every round."""
    return open_task(recipe.task, "train").questions("train", recipe.validation.questions, recipe.seed - 1)


def training_questions(recipe: CaspoRecipe, index: int) -> list[Question]:
    """What round ``index`` (from 1) samples its trees on."""
    held = {question.id for question in validation_questions(recipe)} if recipe.validation.questions else set()
    number = recipe.annotate.questions
    drawn = open_task(recipe.task, "train").questions("train", number + len(held), recipe.seed + 1000 * index)
    return [question for question in drawn if question.id not in held][:number]


def open_judge(settings: TaskSettings, model: ModelSettings | None = None, cache: Path | None = None) -> Judge:
    """The judge of a recipe. ``model`` is the recipe's, for judges that sample from it; it stays the same in all rounds, so
    that they are measured by one yardstick. Verdicts that take time are kept in ``cache``.

    Raises:
        ConfigError: the judge needs a model, and there is none (when it is first asked).
    """
    chosen = settings.judge or (ReferenceSettings() if settings.name == "stories" else ArithmeticSettings())

    def engine(name: str | None, instruction: str | None) -> HFEngine:
        if model is None and name is None:
            raise ConfigError(f"The judge {chosen.kind!r} samples from the model of a recipe. Use it in a recipe.")
        base = model or ModelSettings(name=name or "")
        return open_local(base if instruction is None else base.model_copy(update={"instruction": instruction}), name)

    return make_judge(chosen, engine, model.name if model else "", cache)


def open_engine(settings: ModelSettings, name: str | None = None) -> ServingEngine:
    """The engine for a recipe's model, or for another model (a round's) with the same settings.

    Raises:
        ConfigError: another model than the one that the servers or the GGUF file hold.
    """
    if settings.engine == "openai_compatible" and name in (None, settings.name):
        return OpenAICompatibleEngine(settings, settings.name, settings.instruction)
    if settings.engine == "llama_cpp" and name in (None, settings.name):
        return open_llama_cpp(
            settings.name,
            instruction=settings.instruction,
            dtype=settings.dtype,
            device=settings.device,
            max_rows=settings.max_rows,
        )
    return open_local(settings, name)


def check_local(settings: ModelSettings, what: str) -> None:
    """Refuse to do ``what`` with a model that cannot be loaded here as what is trained."""
    if settings.engine != "hf":
        raise ConfigError(
            f"{what} needs the model's weights, and the engine {settings.engine} does not give them. Set model.engine=hf "
            "and model.name to the model's folder or hub name (model.urls=[])."
        )


def open_local(settings: ModelSettings, name: str | None = None) -> HFEngine:
    """The engine `hf`, for what needs the model itself.

    Raises:
        ConfigError: the recipe's model is on a server.
    """
    check_local(settings, "A judge or a round that loads a model")
    model, tokenizer = load(
        name or settings.name,
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )
    return HFEngine(model, tokenizer, name=settings.name, instruction=settings.instruction, max_rows=settings.max_rows)


def annotate_stage(
    questions: Sequence[Question],
    engine: Callable[[], Engine],
    judge: Judge,
    settings: AnnotateSettings,
    seed: int,
    folder: Path,
    on_chunk: Callable[[int, int], None],
) -> list[Tree]:
    """Annotated trees of the questions in ``folder``, chunk by chunk; chunks that are there already are read."""
    trees: list[Tree] = []
    for part, start in enumerate(range(0, len(questions), _CHUNK)):
        file = folder / f"part-{part:04d}.parquet"
        chunk = questions[start : start + _CHUNK]
        if not file.exists():
            write_trees(file, annotate(chunk, engine(), judge, settings, seed))
        trees += read_trees(file)
        on_chunk(start + len(chunk), len(questions))
    return trees


def pairs_stage(trees: Sequence[Tree], settings: PairSettings, tokenizer: Any, folder: Path) -> None:
    """Build the pairs of the trees into ``folder``: ``pairs.parquet``, and ``report.json`` with what was dropped."""
    pairs, report = build_pairs(trees, settings)
    if not pairs:
        raise DataError(
            f"The {len(trees)} trees give no pairs ({report.dropped}). Sample more, raise the temperature, or choose "
            "problems that the model solves sometimes but not always."
        )
    write_pairs(folder / "pairs.parquet", pairs, trees, lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    write_json(folder / "report.json", asdict(report))


def rescore_stage(model: ModelSettings, settings: StepDPOSettings, trees: Path, folder: Path) -> list[Tree]:
    """Trees of any engine with the exact traces of this model, file by file as they came; files that are there are kept.

    Raises:
        DataError: no trees, trees of another tokenizer, or paths longer than the model's context.
    """
    files = sorted(trees.glob("*.parquet")) if trees.is_dir() else [trees]
    if not files:
        raise DataError(f"{trees} holds no *.parquet files of trees. Check the path.")
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing:
        check_local(model, "Rescoring")
        loaded, tokenizer = load(model.name, device=model.device, trust_remote_code=model.trust_remote_code)
        scorer = Scorer(loaded, packed=settings.layout == "packed")
    for file in missing:
        found = [tree for tree in read_trees(file) if tree.nodes]
        check_tokens(found, loaded, tokenizer)
        if settings.layout == "packed" and found and file == missing[0]:
            last = len(found[0].nodes) - 1
            check_packing(loaded, found[0], {0, last // 2, last})
        wanted = [(tree, frozenset(range(len(tree.nodes)))) for tree in found]
        bf16 = settings.precision == "bf16"
        scores = score_trees(loaded, scorer, wanted, settings.micro_tokens, _reference_cache(), bf16=bf16)
        write_trees(folder / file.name, rescore(found, scores))
    return [tree for file in files for tree in read_trees(folder / file.name)]


TrainingData = tuple[Sequence[Tree], Path]
"""Trees, and the file of the pairs that were built from them."""


def read_rounds(trees: Sequence[Path], pairs: Sequence[Path]) -> list[TrainingData]:
    """Folders (or files) of trees and the files of their pairs, one of each for every round.

    Raises:
        ConfigError: not as many of the one as of the other.
    """
    if len(trees) != len(pairs):
        raise ConfigError(f"--trees was given {len(trees)} times and --pairs {len(pairs)} times; each needs the other.")
    return [(read_trees(folder), file) for folder, file in zip(trees, pairs, strict=True)]


def trees_and_pairs(data: Sequence[TrainingData]) -> tuple[list[Tree], list[StepPair]]:
    """The trees of all rounds, of two of one question the newer one, and the pairs that point into them."""
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
    """Train ``source`` on the pairs; ``out/model``, ``out/log.jsonl`` and ``out/training.json``, which is returned.

    ``data`` holds one entry a round; of two trees of one question the newer one counts. ``reference`` is the model whose
    log-probabilities DPO compares with, ``source`` itself by default. Under `accelerate launch` the first process writes.
    """
    file = out / "training.json"
    if file.exists():
        shutil.rmtree(out / "train", ignore_errors=True)  # left where a kill came between the two
        return dict(read_json(file))
    check_local(model, "Training")
    trees, pairs = trees_and_pairs(data)
    scores = None
    if reference is not None and reference != source:
        other, tokenizer = load(reference, device=model.device, trust_remote_code=model.trust_remote_code)
        check_tokens(trees, other, tokenizer)
        scores = reference_of(other, trees, pairs, settings, _reference_cache())
        del other
    loaded, tokenizer = load(source, device=model.device, trust_remote_code=model.trust_remote_code)
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
    )
    if trained is None or int(os.environ.get("RANK", "0")) > 0:
        return result.as_json()

    def save(folder: Path) -> None:
        trained.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    if not (out / "model").exists():
        write_directory(out / "model", save)
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in result.log))
    write_json(file, result.as_json())
    shutil.rmtree(out / "train", ignore_errors=True)
    return result.as_json()


def _reference_cache() -> Path:
    return cache_dir() / "reference-scores"


def _calibration(trees: Sequence[Tree]) -> tuple[float, float]:
    """Slope and intercept from a step's confidence signal to its chance of being right, before training."""
    judged = [node for tree in trees for node in judged_nodes(tree)]
    right = [node.right for node in judged]
    found = fit([SIGNALS["entropy"](node.step.trace) for node in judged], np.asarray(right, dtype=float), kind="platt")
    return found.x[0], found.x[1]
