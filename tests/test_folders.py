"""Output folders: whose they are, what they were made from, one process at a time, and nothing else is touched."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from caspo.core.config import Config, load_recipe
from caspo.core.errors import CaspoError, ConfigError, ResumeError, StorageError
from caspo.core.folders import check_output_file, claimed, refuse_overwriting
from caspo.core.storage import PARTIAL, read_json, write_text

WRITES = ("model", "round-[0-9]*", "log.jsonl")


class Adapter(Config):
    rank: int = 16


class Recipe(Config):
    name: str = "x"
    levels: tuple[int, ...] = (1, 2)
    rate: float = Field(1e-4, gt=0)
    lora: Adapter | None = None


def claim(
    out: Path, recipe: Config | None = None, inputs: Mapping[str, Sequence[Path]] | None = None, command: str = "train"
) -> None:
    """Claim, write a result, and go."""
    with claimed(out, recipe or Recipe(), command, WRITES, inputs or {}):
        write_text(out / "log.jsonl", "made\n")


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, with the contents of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def foreign(out: Path) -> dict[str, bytes | None]:
    """What a user may keep in a folder: dotfiles, dot folders, and names that look like temporary ones."""
    for name in (".pre-commit-config.yaml", ".env.local", ".old.backup/deep/x", "notes.txt", ".model.abc/x", "round-table/x",
                 ".log.jsonl.1", ".caspo/x", "data/.train.jsonl.swp"):  # fmt: skip
        write_text(out / name, name)
    return tree(out)


def test_the_same_again(tmp_path: Path) -> None:
    """The recipe is written with its defaults filled in; the same recipe and inputs go on."""
    data = tmp_path / "q.jsonl"
    write_text(data, "1")
    asked = Recipe(rate=1e-5, lora=Adapter())
    out = tmp_path / "run"
    claim(out, asked, {"task.train": [data]})
    written = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    assert (written["rate"], written["lora"]) == (1e-5, {"rank": 16})
    claim(out, asked, {"task.train": [data]})
    assert load_recipe(Recipe, out / "recipe.yaml") == asked
    moved = data.rename(tmp_path / "moved.jsonl")
    claim(out, asked, {"task.train": [moved]})


def test_another_recipe(tmp_path: Path) -> None:
    """Each differing key is named with both values, and nothing is touched."""
    claim(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(ResumeError) as error:
        claim(tmp_path, Recipe(name="y", levels=(1,), lora=Adapter(rank=4)))
    message = str(error.value)
    assert "name: x there, y now" in message
    assert "levels: [1, 2] there, [1] now" in message
    assert "lora.rank: (absent) there, 4 now" in message
    assert "rate" not in message
    assert "delete log.jsonl, recipe.yaml, made_from.json" in message, "never the whole folder, which may be a project"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"name: [", b"- 1", b"\xff\xfe\x00\x01", b"\x00", b"name: x\nname: x\n"])
@pytest.mark.parametrize("name", ["recipe.yaml", "made_from.json"])
def test_a_damaged_record(tmp_path: Path, name: str, content: bytes) -> None:
    """What cannot be read back stops the run instead of being mistaken for another or overwritten."""
    claim(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ResumeError, match="is damaged"):
        claim(tmp_path)


def test_other_inputs_are_named(tmp_path: Path) -> None:
    """Changed, exchanged, left out or added; with what to do."""
    a, b, out = tmp_path / "a", tmp_path / "b", tmp_path / "out"
    write_text(a, "1")
    write_text(b, "2")
    claim(out, inputs={"--pairs": [a], "--trees": [a]})
    made = tree(out)
    for now, message in (
        ({"--pairs": [b], "--trees": [a]}, f"--pairs: {a} there, {b} now\nChoose another --out, or delete log.jsonl in"),
        ({"--pairs": [a]}, rf"--trees: {a} there, \(none\) now"),
        ({"--pairs": [a], "--trees": [a], "--reference": [b]}, rf"--reference: \(none\) there, {b} now"),
        ({"--pairs": [a], "--trees": [a, b]}, "--trees: "),
    ):
        with pytest.raises(ResumeError, match=message):
            claim(out, inputs=now)
    write_text(a, "changed")
    with pytest.raises(ResumeError, match=f"--pairs: {a} was changed\n  --trees: {a} was changed"):
        claim(out, inputs={"--pairs": [a], "--trees": [a]})
    assert tree(out) == made
    (out / "log.jsonl").unlink()
    claim(out, inputs={"--pairs": [b]})  # as the message says: nothing is there that could be mixed
    assert read_json(out / "made_from.json")["train"].keys() == {"--pairs"}


def test_several_commands_in_one_folder(tmp_path: Path) -> None:
    """Each has its own inputs."""
    a = tmp_path / "a"
    write_text(a, "1")
    for command, writes, inputs in (("annotate", ["tree"], {"task.train": [a]}), ("train", ["model"], {"--pairs": [a]})):
        for _ in range(2):
            with claimed(tmp_path / "out", Recipe(), command, writes, inputs):
                write_text(tmp_path / "out" / writes[0] / "x", "")
    assert read_json(tmp_path / "out" / "made_from.json").keys() == {"annotate", "train"}


def test_dotfiles_where_results_will_be(tmp_path: Path) -> None:
    """They are in nobody's way, and stay."""
    write_text(tmp_path / "round-1" / ".keep", "mine")
    write_text(tmp_path / "round-1" / ".deep" / "x", "mine")
    before = tree(tmp_path)
    claim(tmp_path)
    assert {name: tree(tmp_path).get(name, b"gone") for name in before} == before


@pytest.mark.parametrize("name", ["model/weights", "model/.keep", "log.jsonl", "round-1/x"])
def test_files_of_somebody_else(tmp_path: Path, name: str) -> None:
    """A name that we would write to is taken: nothing is read, written or removed there."""
    write_text(tmp_path / name, "mine")
    before = tree(tmp_path)
    with pytest.raises(ResumeError, match=f"holds {name.partition('/')[0]}, which `caspo train` writes"):
        claim(tmp_path)
    assert tree(tmp_path) == before


def test_a_recipe_of_the_user(tmp_path: Path) -> None:
    """`caspo run recipe.yaml --out .`: the run would keep its settings under that very name."""
    write_text(tmp_path / "recipe.yaml", "name: y\n")
    before = tree(tmp_path)
    with pytest.raises(ResumeError, match="it is your own"):
        claim(tmp_path)
    assert tree(tmp_path) == before


def test_only_what_we_marked_is_swept(tmp_path: Path) -> None:
    """`--out .` in a project: half-written files of a killed run go, and nothing else does."""
    before = foreign(tmp_path)
    claim(tmp_path)
    for left in (f"{PARTIAL}log.jsonl.a", f"{PARTIAL}model.b/x", f"round-1/deep/{PARTIAL}part.c", f"{PARTIAL}round-2.d"):
        write_text(tmp_path / left, "half")
    (tmp_path / "round-1" / f"{PARTIAL}link").symlink_to(tmp_path / ".old.backup", target_is_directory=True)
    elsewhere = {f"{PARTIAL}solutions.jsonl.e", f"runs/other/{PARTIAL}model.f"}  # of other processes, perhaps at work
    for left in elsewhere:
        write_text(tmp_path / left, "theirs")
    claim(tmp_path)
    after = tree(tmp_path)
    assert {name: after.get(name, b"gone") for name in before} == before
    assert {name for name in after if Path(name).name.startswith(PARTIAL)} == elsewhere


def test_inputs_that_would_be_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a name that is written, by whatever path; refused before anything is done."""
    for name in ("out/model/weights", "out/train/tree/a.parquet", "out/round-2/x", "base/weights"):
        write_text(tmp_path / name, "mine")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model").symlink_to(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    writes = ("model", "train", "round-[0-9]*")
    for out, file in (
        ("out", tmp_path / "out" / "model" / "weights"),
        ("out", Path("out/../out/model/weights")),
        ("out", Path("link/weights")),
        ("./out", tmp_path / "out" / "train" / "tree" / "a.parquet"),
        ("other/../out", Path("out/round-2/x")),
        ("out", Path("out/model")),
        ("other", Path("base/weights")),
    ):
        with (
            pytest.raises(ConfigError, match=r"--in: .* would be overwritten"),
            claimed(Path(out), Recipe(), "train", writes, {"--in": [file]}),
        ):
            pass
    assert tree(tmp_path) == before
    for out, file in (("out", Path("out/tree.parquet")), ("new", Path("out/model/weights")), ("out", Path("base/weights"))):
        refuse_overwriting(Path(out), writes, {"--in": [file]})


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere cannot be read: No such file"):
        claim(tmp_path / "out", inputs={"--pairs": [tmp_path / "nowhere"]})
    assert not (tmp_path / "out").exists()


HOLD = """
import sys, time
from pathlib import Path
from caspo.core.config import Config
from caspo.core.folders import claimed
with claimed(Path(sys.argv[1]), Config(), "train", ["model"], {}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """The second is told by whom the folder is used, also after others were; a killed one leaves it free."""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        for _ in range(2):
            with (
                pytest.raises(ConfigError, match=f"{tmp_path} is in use by process {process.pid}"),
                claimed(tmp_path, Config(), "train", ["model"], {}),
            ):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with claimed(tmp_path, Config(), "train", ["model"], {}):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in its place."""
    write_text(tmp_path / "x", "")
    with pytest.raises(CaspoError, match="Could not write"):
        claim(tmp_path / "x" / "out")
    assert [place.name for place in tmp_path.iterdir()] == ["x"]


def test_an_input_by_another_path(tmp_path: Path) -> None:
    """A file that was moved, or is named from another folder, is the same input; the rest of the settings is compared."""
    data, moved, out = tmp_path / "q.jsonl", tmp_path / "m.jsonl", tmp_path / "run"
    write_text(data, "1")
    claim(out, Recipe(name=str(data)), {"name": [data]})
    data.rename(moved)
    claim(out, Recipe(name=str(moved)), {"name": [moved]})
    with pytest.raises(ResumeError, match=r"keys differ:\n  rate: [^\n]*\nChoose"):
        claim(out, Recipe(name=str(moved), rate=1), {"name": [moved]})
    write_text(moved, "2")
    with pytest.raises(ResumeError, match="name: "):
        claim(out, Recipe(name=str(moved)), {"name": [moved]})


@pytest.mark.parametrize("name", ["q.jsonl", "q[1].jsonl", "q*.jsonl", "[!.]?"])
def test_a_file_that_is_read_and_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called, and by whatever path."""
    write_text(tmp_path / name, "mine")
    (tmp_path / "link").symlink_to(name)
    monkeypatch.chdir(tmp_path)
    for read, written in ((name, name), (tmp_path / name, f"./{name}"), ("link", name), (name, "link")):
        with pytest.raises(ConfigError, match="would be overwritten"):
            check_output_file(Path(written), {"SOURCE": [Path(read)]})
    check_output_file(tmp_path / "new" / name, {"SOURCE": [Path(name)]})
    assert list((tmp_path / "new").iterdir()) == []


def test_a_place_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before the work."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "file", "mine")
    for place in (".", "..", str(tmp_path)):
        with pytest.raises(ConfigError, match="is a folder"):
            check_output_file(Path(place), {})
    with pytest.raises(StorageError, match="Could not write"):
        check_output_file(tmp_path / "file" / "x.jsonl", {})
