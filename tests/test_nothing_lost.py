"""The stages as a user meets them: inputs are not overwritten, results not mixed, and a full disk costs no training."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from caspo.cli.main import main
from caspo.core.errors import CaspoError, StorageError
from caspo.core.folders import claimed
from caspo.core.storage import read_json
from caspo.engines.models import load
from caspo.formats.parquet import read_trees, write_trees
from caspo.loop import stages, warm_start, weights
from caspo.loop.recipe import CaspoRecipe, training_questions
from caspo.loop.run import run_recipe
from caspo.loop.warm_start import SupervisedRecipe, run_supervised
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask
from caspo.train import trainer
from stories_run import RECIPE, pair_rows, write_recipe

Command = Callable[..., str]


@pytest.fixture
def caspo(caspo: Callable[..., tuple[int, str, str]]) -> Command:
    """Runs ``caspo`` in this process: what it printed, or the message of its error."""

    def run(*args: object) -> str:
        code, out, err = caspo(*args)
        assert "Traceback" not in err
        return out + err if not code else f"Error: {err}"

    return run


def write_questions(path: Path, number: int, first: int = 0) -> Path:
    """Questions that `stories-tiny` was made for."""
    questions = StoriesTask([1]).questions("train", first + number)[first:]
    path.write_text("".join(json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in questions))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small sets of trees and their pairs, and a model: ``a/tree``, ``a/pairs.parquet``, ``b/...``, ``base``."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("a", 1), ("b", 3)):
        file = write_recipe(folder / f"{name}.yaml", seed=seed, annotate={"questions": 6, "samples": 4})
        for command in (("annotate",), ("pairs", "--trees", str(folder / name / "tree"))):
            sys.argv = ["caspo", command[0], str(file), *command[1:], "--out", str(folder / name)]
            with pytest.raises(SystemExit) as left:
                main()
            assert not left.value.code
    model, tokenizer = load("stories-tiny")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_train_into_the_folder_of_its_inputs(caspo: Command, made: Path, tmp_path: Path) -> None:
    """Trees and pairs below OUT/train, the model below OUT/model: refused, and all of it is still there."""
    out = tmp_path / "w"
    shutil.copytree(made / "a" / "tree", out / "train" / "tree")
    shutil.copy(made / "a" / "pairs.parquet", out / "train" / "pairs.parquet")
    shutil.copytree(made / "base", out / "model")
    before = contents(out)
    recipe = write_recipe(tmp_path / "r.yaml")
    pairs = ("--pairs", made / "a" / "pairs.parquet", "--out", out)
    for command in (
        ("train", recipe, "--trees", out / "train" / "tree", "--pairs", out / "train" / "pairs.parquet", "--out", out),
        ("train", recipe, f"model.name={out}/model", "--trees", made / "a" / "tree", *pairs),
        ("train", recipe, "--reference", out / "model", "--trees", made / "a" / "tree", *pairs),
        ("annotate", recipe, "--rescore", out / "train" / "tree", "--out", out / "train"),
    ):
        assert "would be overwritten" in caspo(*command)
        assert contents(out) == before
    told = caspo("train", recipe, "--trees", made / "a" / "tree", *pairs)
    assert "holds model, train, which `caspo train` writes" in told
    assert contents(out) == before


def test_a_supervised_run_over_its_own_model(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model to adapt stands where the result would: by any path."""
    shutil.copytree(made / "base", tmp_path / "w" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "w" / "model")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for name in (str(tmp_path / "w" / "model"), "w/model", "./w/../w/model", "link"):
        recipe = SupervisedRecipe.model_validate(
            {"kind": "supervised", "model": name, "lora": {"rank": 2}, "train": {"learning_rate": 1e-4}}
        )
        with pytest.raises(CaspoError, match=r"model: .* would be overwritten"):
            run_supervised(recipe, Path("w"))
    assert contents(tmp_path) == before


def test_a_run_over_its_own_model(made: Path, tmp_path: Path) -> None:
    """A round's folder holds the model that the run would start from."""
    shutil.copytree(made / "base", tmp_path / "round-1" / "model")
    recipe = CaspoRecipe.model_validate({**RECIPE, "model": {"name": str(tmp_path / "round-1" / "model")}})
    with pytest.raises(CaspoError, match=r"model\.name: .* would be overwritten"):
        run_recipe(recipe, tmp_path)
    assert (tmp_path / "round-1" / "model" / "config.json").exists()


def test_train_again_with_other_inputs(caspo: Command, made: Path, tmp_path: Path) -> None:
    """A finished folder gives its result for its inputs and no others; a changed model is another one too."""
    recipe, out = write_recipe(tmp_path / "r.yaml", model={"name": str(tmp_path / "base")}), tmp_path / "out"
    shutil.copytree(made / "base", tmp_path / "base")
    a = ("train", recipe, "--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet", "--out", out)
    first = caspo(*a)
    assert '"loss_first"' in first
    assert first.startswith(caspo(*a)), "nothing was trained anew: the seconds are the same"
    b = ("train", recipe, "--trees", made / "b" / "tree", "--pairs", made / "b" / "pairs.parquet", "--out", out)
    told = caspo(*b)
    assert "made from other inputs" in told
    for option in ("--trees", "--pairs"):
        assert f"{option}: {made}/a/" in told
    settings = tmp_path / "base" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_length": 77}))
    told = caspo(*a)
    assert "model.name: " in told
    assert "--pairs" not in told


class Killed(BaseException):
    pass


def test_killed_training_does_not_go_on_with_other_pairs(
    caspo: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is of the first ones."""
    recipe, out = write_recipe(tmp_path / "r.yaml"), tmp_path / "out"
    trees = ("train", recipe, "--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet", "--out", out)

    def killed(*args: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_directory", killed)
        patch.setattr(sys, "argv", ["caspo", *map(str, trees)])
        with pytest.raises(Killed):
            main()
    kept = contents(out)
    assert any("checkpoint-" in name for name in kept)
    b = ("train", recipe, "--trees", made / "b" / "tree", "--pairs", made / "b" / "pairs.parquet", "--out", out)
    assert "made from other inputs" in caspo(*b)
    assert contents(out) == kept


def test_rescore_other_trees(caspo: Command, made: Path, tmp_path: Path) -> None:
    """A's trees are not returned for B's."""
    recipe, out = write_recipe(tmp_path / "r.yaml"), tmp_path / "out"
    assert "6 trees" in caspo("annotate", recipe, "--rescore", made / "a" / "tree", "--out", out)
    asked = [tree.question.text for tree in read_trees(out / "tree")]
    assert f"--rescore: {made}/a/tree" in caspo("annotate", recipe, "--rescore", made / "b" / "tree", "--out", out)
    assert "--rescore: " in caspo("annotate", recipe, "--out", out)
    assert "6 trees" in caspo("annotate", recipe, "--rescore", made / "a" / "tree", "--out", out)
    assert [tree.question.text for tree in read_trees(out / "tree")] == asked


def test_an_edited_question_file(caspo: Command, tmp_path: Path) -> None:
    """Trees of the old questions are not returned for the new ones; the same questions packed are the same."""
    file, out = write_questions(tmp_path / "q.jsonl", 4), tmp_path / "out"
    recipe = write_recipe(tmp_path / "r.yaml", task={"name": "jsonl", "train": str(file), "test": str(file)}, rounds=0)
    assert "4 trees" in caspo("annotate", recipe, "--out", out)
    write_questions(file, 5)
    told = caspo("annotate", recipe, "--out", out)
    assert f"task.train: {file} was changed" in told
    assert "delete tree" in told
    shutil.rmtree(out / "tree")
    (out / "verdicts.jsonl").unlink(missing_ok=True)
    assert "5 trees" in caspo("annotate", recipe, "--out", out), "as the message says"


def test_two_trainings_in_one_folder(caspo: Command, made: Path, tmp_path: Path) -> None:
    """The second is told who is there."""
    recipe = write_recipe(tmp_path / "r.yaml")
    pairs = ("--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet")
    loaded = CaspoRecipe.model_validate(RECIPE)
    with claimed(tmp_path / "out", loaded, "pairs", [], {}):
        for command in (("train", recipe, *pairs), ("annotate", recipe), ("pairs", recipe, "--trees", made / "a" / "tree")):
            assert "is in use by process" in caspo(*command, "--out", tmp_path / "out")


class SafetensorError(Exception):
    """As the library of that name reports a full disk."""


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever is named in the list cannot save its result."""
    full: list[str] = []

    def refusing(save: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: Any, folder: Any, *args: Any, **more: Any) -> Any:
            if full and ".caspo-partial.model" in str(folder):
                raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
            return save(self, folder, *args, **more)

        return wrapped

    from peft import PeftModel
    from transformers import PreTrainedModel

    for kind in (PreTrainedModel, PeftModel):
        monkeypatch.setattr(kind, "save_pretrained", refusing(kind.save_pretrained))
    return full


def test_a_full_disk_at_the_end_of_training(
    caspo: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[str]
) -> None:
    """With checkpoints far apart: the training is kept, the same command only saves, and the result is the same."""
    train = {**RECIPE["train"], "checkpoint_seconds": 1e6}
    recipe = write_recipe(tmp_path / "r.yaml", train=train)
    pairs = ("--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet")
    assert '"loss_first"' in caspo("train", recipe, *pairs, "--out", tmp_path / "whole")
    full_disk.append("train")
    out = tmp_path / "out"
    told = caspo("train", recipe, *pairs, "--out", out)
    assert f"Could not write {out}/model: " in told
    assert "No space left" in told
    assert not (out / "model").exists()
    full_disk.clear()
    steps: list[Any] = []
    monkeypatch.setattr(trainer._PlanTrainer, "training_step", lambda *args: steps.append(args))
    assert '"loss_first"' in caspo("train", recipe, *pairs, "--out", out)
    assert not steps, "nothing is trained again"
    for name in ("model/model.safetensors", "model/tokenizer.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    a, b = (read_json(folder / "training.json") for folder in (out, tmp_path / "whole"))
    assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert a["seconds"] > 0
    assert not (out / "train").exists()


def test_a_full_disk_at_the_end_of_a_supervised_run(tmp_path: Path, full_disk: list[str]) -> None:
    """As above; and what somebody keeps in the folder of the checkpoints stays."""
    recipe = SupervisedRecipe.model_validate(
        {
            "kind": "supervised", "problems": 32, "levels": [1], "threads": 1,
            "architecture": {"vocabulary": 320, "hidden": 16, "layers": 1, "heads": 2, "feed_forward": 16},
            "train": {"learning_rate": 1e-3, "checkpoint_seconds": 1e6},
        }
    )  # fmt: skip
    run_supervised(recipe, tmp_path / "whole")
    out = tmp_path / "out"
    full_disk.append("supervised")
    with pytest.raises(StorageError, match="No space left"):
        run_supervised(recipe, out)
    full_disk.clear()
    (out / "train" / ".notes").write_text("mine")
    (out / "train" / "checkpoint-mine").mkdir()
    steps: list[int] = []
    run_supervised(recipe, out, lambda step, total, metrics: steps.append(step))
    assert not steps
    saved = [(folder / "model" / "model.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    assert saved[0] == saved[1]
    assert {p.name for p in (out / "train").iterdir()} == {".notes", "checkpoint-mine"}
    assert warm_start.run_supervised(recipe, out) == out / "model"


def test_a_disk_with_room_for_the_result_alone(
    caspo: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is for safety: where it cannot be written the result is all the same."""
    recipe = write_recipe(tmp_path / "r.yaml", train={**RECIPE["train"], "checkpoint_seconds": 1e6})

    def refuse(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "save_model", refuse)
    pairs = ("--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet")
    assert '"loss_first"' in caspo("train", recipe, *pairs, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "out" / "train").exists()
    often = write_recipe(tmp_path / "often.yaml", train={**RECIPE["train"], "batch_pairs": 2})
    assert "Could not write a checkpoint" in caspo("train", often, *pairs, "--out", tmp_path / "out2")


def test_a_full_disk_while_the_reference_is_scored(
    caspo: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores lie in the cache, which the message names."""
    from caspo.train import reference

    def refuse(*args: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(reference, "save_file", refuse)
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "cache"))
    pairs = ("--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet")
    told = caspo("train", write_recipe(tmp_path / "r.yaml"), *pairs, "--reference", made / "base", "--out", tmp_path / "out")
    assert "No space left" in told
    assert "CASPO_CACHE" in told


def test_the_stage_itself_keeps_what_is_there(made: Path, tmp_path: Path) -> None:
    """Called from Python, where nobody has claimed the folder."""
    recipe = CaspoRecipe.model_validate(RECIPE)
    data = [(read_trees(made / "a" / "tree"), made / "a" / "pairs.parquet")]
    shutil.copytree(made / "base", tmp_path / "model")
    for source, message in (("stories-tiny", "did not write it"), (str(tmp_path / "model"), "would be overwritten")):
        with pytest.raises(CaspoError, match=message):
            stages.train_stage(source, recipe.model, data, recipe.training, 0, tmp_path, lambda step, total: None)


def test_stopped_early_and_saved_later(
    caspo: Command, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: list[str]
) -> None:
    """Early stopping, then a full disk: the rerun does not train on, and takes the best weights."""
    train = {
        **RECIPE["train"], "learning_rate": 1e-2, "epochs": 30, "batch_pairs": 4, "checkpoint_seconds": 1e6,
        "validation": 0.4, "evaluate_every": 1, "patience": 2,
    }  # fmt: skip
    recipe = write_recipe(tmp_path / "r.yaml", train=train)
    pairs = ("--trees", made / "a" / "tree", "--pairs", made / "a" / "pairs.parquet")
    assert '"loss_first"' in caspo("train", recipe, *pairs, "--out", tmp_path / "whole")
    full_disk.append("train")
    assert "Could not write" in caspo("train", recipe, *pairs, "--out", tmp_path / "out")
    full_disk.clear()
    steps: list[Any] = []
    monkeypatch.setattr(trainer._PlanTrainer, "training_step", lambda *args: steps.append(args))
    assert '"loss_first"' in caspo("train", recipe, *pairs, "--out", tmp_path / "out")
    assert not steps
    for name in ("model/model.safetensors", "log.jsonl"):
        there, here = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "out"))
        if name != "log.jsonl":
            assert there == here
        else:
            assert len(there.splitlines()) == len(here.splitlines()) < 30


def own(file: Path, number: int, **more: Any) -> CaspoRecipe:
    task = {"name": "jsonl", "train": str(file), "test": str(file)}
    return CaspoRecipe.model_validate({**RECIPE, "annotate": {"questions": number}, "task": task, **more})


@pytest.mark.parametrize("held", [0, 10])
def test_rounds_share_no_question(tmp_path: Path, held: int) -> None:
    """Of 100 questions in a file, rounds of 30 take 30, 30, 30 and the rest, and never one that another round had."""
    recipe = own(write_questions(tmp_path / "q.jsonl", 100), 30, validation={"questions": held})
    rounds = [[q.text for q in training_questions(recipe, k)] for k in range(1, 6)]
    assert [len(texts) for texts in rounds] == [30, 30, 30, 10 - held, 0]
    drawn = [text for texts in rounds for text in texts]
    assert len(set(drawn)) == len(drawn) == 100 - held
    assert rounds[0] != sorted(rounds[0], key=[q.text for q in JsonlTask(tmp_path / "q.jsonl").questions("test")].index)
    assert rounds[0] != [q.text for q in training_questions(recipe.model_copy(update={"seed": 7}), 1)]


def test_stories_that_come_out_twice(tmp_path: Path) -> None:
    """Made problems have no end, and of the short ones some are made again: a later round leaves those out."""
    recipe = CaspoRecipe.model_validate({**RECIPE, "task": {"levels": [1]}, "annotate": {"questions": 150}})
    first, second, third = ({q.text for q in training_questions(recipe, k)} for k in (1, 2, 3))
    assert not first & second
    assert not (first | second) & third
    assert len(training_questions(recipe, 3)) == 150


def test_rounds_without_questions_are_refused_at_once(tmp_path: Path) -> None:
    """Before the first round is sampled; a short last round is none."""
    file = write_questions(tmp_path / "q.jsonl", 10)
    with pytest.raises(CaspoError, match=r"Round 3 of 3 has no training question left.*annotate\.questions"):
        run_recipe(own(file, 6, rounds=3), tmp_path / "out")
    with pytest.raises(CaspoError, match="beside the 10 of validation"):
        run_recipe(own(file, 6, rounds=1, validation={"questions": 10}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_questions_and_bad_rows(caspo: Command, tmp_path: Path) -> None:
    """`solve` and `annotate` read what is packed, refuse a bad row by its line, and say what --skip-bad leaves out."""
    lines = write_questions(tmp_path / "q.jsonl", 3).read_bytes() + b'{"question": "no answer"}\n'
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(gzip.compress(lines))
    solve = ("solve", packed, "max_tokens=8", "--method", "chain_of_thought", "--model", "stories-tiny")
    assert "line 4: no 'answer'" in caspo(*solve)
    told = caspo(*solve, "--skip-bad")
    assert f"Left out 1 of 4 rows:\n  {packed}, line 4: no 'answer'" in told
    assert "of 3 right" in told
    assert "would be overwritten" in caspo(*solve, "--skip-bad", "--out", packed)
    assert "no such file" in caspo("solve", "nowhere.jsonl.gz", "--model", "stories-tiny")
    recipe = write_recipe(tmp_path / "r.yaml", task={"name": "jsonl", "train": str(packed)})
    assert "line 4: no 'answer'" in caspo("annotate", recipe, "--out", tmp_path / "out")
    told = caspo("annotate", recipe, "--skip-bad", "--out", tmp_path / "out2")
    assert "line 4: no 'answer'" in told
    assert "3 trees" in told


def test_labelled_files_packed_and_with_bad_rows(caspo: Command, tmp_path: Path) -> None:
    """`judge`, `import` and `export`."""
    row = {"question": "1 + 1?", "steps": ["1 + 1 = 2", "So 2."], "first_error": -1}
    file = tmp_path / "l.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in (row, {**row, "steps": []}))))
    for command in (
        ("judge", file, "--out", tmp_path / "judged"),
        ("import", file, "--model", "stories-tiny", "--out", tmp_path / "t.parquet"),
        ("export", file, "--format", "processbench", "--out", tmp_path / "e.jsonl"),
    ):
        assert "line 2: 'steps' must be a list" in caspo(*command)
        told = caspo(*command, "--skip-bad")
        assert "Left out 1 of 2 rows" in told
        assert "Error" not in told
    for command in (
        ("import", file, "--model", "stories-tiny", "--out", file),
        ("export", file, "--format", "steps", "--out", file),
    ):
        assert "SOURCE: " in caspo(*command, "--skip-bad")


def test_judging_another_file_is_refused(caspo: Command, tmp_path: Path) -> None:
    """What is judged is named, with its digest; labels that were corrected are told to no judge, and change nothing."""
    row = {"question": "1 + 1?", "steps": ["1 + 1 = 2", "So 2."], "first_error": -1}
    file = tmp_path / "l.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert "1 solutions" in caspo("judge", file, "--out", tmp_path / "out")
    file.write_text(json.dumps({**row, "first_error": 1}) + "\n")
    assert "1 solutions" in caspo("judge", file, "--out", tmp_path / "out")
    file.write_text(json.dumps({**row, "question": "2 - 1?"}) + "\n")
    assert "solutions: l, 1 with digest" in caspo("judge", file, "--out", tmp_path / "out")


def test_hidden_files_are_no_trees(made: Path, tmp_path: Path) -> None:
    """Some systems put a dotfile beside every file that they copy."""
    shutil.copytree(made / "a" / "tree", tmp_path / "tree")
    (tmp_path / "tree" / "._part-0000.parquet").write_bytes(b"Mac OS X")
    assert len(read_trees(tmp_path / "tree")) == len(read_trees(made / "a" / "tree"))


def test_trees_of_two_runs_in_one_folder(caspo: Command, made: Path, tmp_path: Path) -> None:
    """Nobody could tell which tree a pair is of. `export` does not bring it about."""
    shutil.copytree(made / "a" / "tree", tmp_path / "tree")
    export = ("export", tmp_path / "tree", "--format", "dataset", "--out")
    assert "would be read as one of them" in caspo(*export, tmp_path / "tree" / "more.parquet")
    caspo(*export, tmp_path / "more.parquet")
    shutil.copy(tmp_path / "tree" / "part-0000.parquet", tmp_path / "tree" / "part-0001.parquet")
    with pytest.raises(CaspoError, match="of different runs"):
        read_trees(tmp_path / "tree")
    shutil.copy(made / "a" / "pairs.parquet", tmp_path / "tree" / "part-0001.parquet")
    with pytest.raises(CaspoError, match="holds something else"):
        read_trees(tmp_path / "tree")


def test_a_damaged_config_is_the_models(caspo: Command, made: Path, tmp_path: Path) -> None:
    """Nobody is told to delete a file of a model."""
    shutil.copytree(made / "base", tmp_path / "base")
    recipe = write_recipe(tmp_path / "r.yaml", model={"name": str(tmp_path / "base")})
    for content in ("[]", '{"model_type":'):
        (tmp_path / "base" / "config.json").write_text(content)
        told = caspo("pairs", recipe, "--trees", made / "a" / "tree", "--out", tmp_path / "out")
        assert "config.json is damaged" in told
        assert "Delete" not in told


def test_what_solve_and_import_write_over(caspo: Command, made: Path, tmp_path: Path) -> None:
    """The model and the thresholds are read too; a place that cannot be written is refused before anything is solved."""
    shutil.copytree(made / "base", tmp_path / "base")
    file, before = write_questions(tmp_path / "q[1].jsonl", 1), contents(tmp_path)
    model = ("--model", tmp_path / "base")
    for command in (
        ("solve", file, *model, "--out", file),
        ("solve", file, *model, "--out", tmp_path / "base" / "config.json"),
        ("import", file, *model, "--out", tmp_path / "base" / "tokenizer.json"),
        ("solve", file, *model, "--out", tmp_path / "base"),
    ):
        told = caspo(*command)
        assert "would be overwritten" in told or "is a folder" in told
        assert "right" not in told
        assert contents(tmp_path) == before


def test_no_trees_give_no_pairs(caspo: Command, tmp_path: Path) -> None:
    """An empty folder, and files without a step."""
    (tmp_path / "tree").mkdir()
    recipe = write_recipe(tmp_path / "r.yaml")
    assert "holds no *.parquet files of trees" in caspo(
        "pairs", recipe, "--trees", tmp_path / "tree", "--out", tmp_path / "o"
    )

    write_trees(tmp_path / "tree" / "part-0000.parquet", [])
    told = caspo("pairs", recipe, "--trees", tmp_path / "tree", "--out", tmp_path / "o")
    assert "no trees to build pairs from" in told
    assert "({})" not in told


def test_half_a_character_in_a_question(caspo: Command) -> None:
    """On the command line it is a byte that is not UTF-8."""
    assert "half of a character" in caspo("solve", "What is \udcff?", "--model", "stories-tiny")


def test_pairs_are_of_these_trees(made: Path) -> None:
    assert pair_rows(made / "a" / "pairs.parquet") != pair_rows(made / "b" / "pairs.parquet")
