"""Shards of the questions: which machine has which, that all of them together are the undivided run, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import ConfigError, DataError
from caspo.core.shards import Shard, check_alike, check_all_there
from caspo.core.storage import read_json, write_text
from caspo.data.annotate import AnnotateSettings
from caspo.evaluate import judge_run, run
from caspo.evaluate.judge_run import join_verdicts, judge_solutions, of_shard
from caspo.evaluate.metrics import round_metrics
from caspo.evaluate.run import EvaluateSettings, evaluate_methods, join_evaluations
from caspo.formats import LabelledSolution, read_solutions
from caspo.formats.parquet import read_trees, write_trees
from caspo.formats.shards import Piece, read_all_trees, read_piece, write_piece
from caspo.judges.arithmetic import ArithmeticJudge
from caspo.judges.base import StepJudge
from caspo.judges.cache import join_caches
from caspo.loop import stages
from caspo.records import Question, Tree, Verdict
from caspo.tasks.base import grade
from caspo.testing.scripted import Scripted, ScriptedEngine
from stories_run import pair_rows, timeless, write_recipe
from tiny import bushy_tree, same_tree

Command = Callable[..., tuple[int, str, str]]

DIVISIONS = st.tuples(st.integers(0, 11), st.integers(1, 5))
"""Questions, and shards."""


def shards(of: int) -> list[Shard]:
    return [Shard(number, of) for number in range(1, of + 1)]


@given(DIVISIONS)
def test_every_question_is_in_one_shard(division: tuple[int, int]) -> None:
    """Whichever first questions are looked at, the sizes differ by one at most."""
    number, of = division
    parts = [shard.take(range(number)) for shard in shards(of)]
    assert sorted(place for part in parts for place in part) == list(range(number))
    assert all(shard.holds(place) for shard, part in zip(shards(of), parts, strict=True) for place in part)
    for first in range(number + 1):
        sizes = [sum(place < first for place in part) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert [len(shard.take(range(first))) for shard in shards(of)] == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0/4", r"counted from 1, so the first is 1/4\. For a SLURM array.*\$\(\(SLURM_ARRAY_TASK_ID \+ 1\)\)"),
        ("5/4", "there are 4 shards, so K is from 1 to 4"),
        ("1/0", "at least one shard"),
        ("/", r"'/' is not K/N, for example 2/4\. .*SLURM_ARRAY_TASK_COUNT"),
        *((text, "is not K/N") for text in ("", "2", "a/b", "-1/4", "1/4/2", "1.0/2", " 1/2", "1/2\n", "١/٢")),
    ],
)
def test_what_is_no_shard(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shard.parse(text)


def test_a_shard_as_it_is_written() -> None:
    assert Shard.parse("2/4") == Shard(2, 4)
    assert str(Shard.parse("02/004")) == "2/4", "SLURM scripts pad with zeros"


def test_what_does_not_belong_together() -> None:
    """Each is named, with what to do."""
    check_all_there([("b", Shard(2, 2)), ("a", Shard(1, 2))])
    with pytest.raises(ConfigError, match=r"a and c are both shard 1/2"):
        check_all_there([("a", Shard(1, 2)), ("b", Shard(2, 2)), ("c", Shard(1, 2))])
    with pytest.raises(ConfigError, match=r"Of 5 shards 2 are missing: 2/5, 4/5\."):
        check_all_there([(str(k), Shard(k, 5)) for k in (3, 1, 5)])
    with pytest.raises(ConfigError, match=r"a is shard 1/2 and b is shard 2/3: they are of different divisions"):
        check_all_there([("a", Shard(1, 2)), ("b", Shard(2, 3))])
    check_alike("a", {"x": 1}, "b", {"x": 1})
    with pytest.raises(
        ConfigError, match=r"a \(there\) and b \(here\).*\n  x: 1 there, 2 here\n  y: \(absent\) there, 3 here\n"
    ):
        check_alike("a", {"x": 1, "z": 0}, "b", {"x": 2, "y": 3, "z": 0})


def script(text: str) -> list[Scripted]:
    """Steps and answers by the number of the question; of every fifth nothing at all comes."""
    asked, _, told = text.partition("\n")
    if int(asked[1:]) % 5 == 4:
        return [Scripted("", eos=True)]
    if not told:
        return [Scripted(f"{asked[1:]} + 1 = {int(asked[1:]) + 1}\n", 0.6), Scripted(f"{asked[1:]} + 1 = 3\n", 0.4)]
    return [Scripted(f"The answer is {int(asked[1:]) + ('= 3' in told)}.", eos=True)]


def questions(number: int) -> list[Question]:
    return [Question(f"Q{i}", str(i), id=f"q{i}") for i in range(number)]


def grown(folder: Path, asked: Sequence[Question], piece: Piece | None = None) -> list[Tree]:
    return stages.annotate_stage(
        asked,
        lambda: ScriptedEngine(script),
        ArithmeticJudge(),
        AnnotateSettings(samples=4, max_depth=3),
        7,
        folder,
        lambda done, total: None,
        piece,
    )


@settings(max_examples=15)
@given(DIVISIONS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_annotated_shards_are_the_undivided_trees(
    tmp_path_factory: pytest.TempPathFactory, division: tuple[int, int], chunk: int, rng: Any
) -> None:
    """In the order of the questions, whatever order the shards are given in, in folders of their own or gathered in one;
    questions that left no tree, and shards without a question, among them."""
    number, of = division
    tmp_path, asked = tmp_path_factory.mktemp("trees"), questions(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_CHUNK", chunk)
        whole = grown(tmp_path / "whole", asked)
        folders = []
        for shard in shards(of):
            folders.append(tmp_path / str(shard.number))
            part = grown(folders[-1], asked, Piece(shard, {"seed": 7}, len(asked), {}))
            assert {tree.question.id for tree in part} <= {question.id for question in shard.take(asked)}
    rng.shuffle(folders)
    (tmp_path / "all").mkdir()
    for folder in folders:
        for file in folder.glob("*.parquet"):
            shutil.copy(file, tmp_path / "all" / file.name)
    for given_as in (folders, [tmp_path / "all"], sorted((tmp_path / "all").iterdir(), reverse=True)):
        joined = read_all_trees(given_as)
        assert [tree.question.id for tree in joined] == [tree.question.id for tree in whole]
        assert all(same_tree(a, b) for a, b in zip(joined, whole, strict=True))


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """The three shards of seven trees, two files each."""
    trees = [bushy_tree(f"q{i}", i) for i in range(7)]
    for shard in shards(3):
        places = shard.take(range(7))
        for name, here in (("a", places[:1]), ("b", places[1:])):
            piece = Piece(shard, {"model.name": "m", "seed": 0}, 7, {f"q{place}": place for place in here})
            write_piece(tmp_path / str(shard.number) / piece.file(f"{name}.parquet"), [trees[i] for i in here], piece)
    return [tmp_path / str(number) for number in (1, 2, 3)]


def test_shards_of_trees_that_are_no_run(three: list[Path], tmp_path: Path) -> None:
    """One is missing, not finished, given twice, of another run or another division, or stands beside trees of none."""
    one, two, last = three
    assert [tree.question.id for tree in read_all_trees([last, one, two])] == [f"q{i}" for i in range(7)]
    for path in (one, one / "shard-1-of-3-a.parquet"):
        with pytest.raises(ConfigError, match=r"Of 3 shards 2 are missing: 2/3, 3/3"):
            read_all_trees([path])
    with pytest.raises(ConfigError, match=r"Of 3 shards 1 is missing: 2/3"):
        read_all_trees([one, last])
    with pytest.raises(ConfigError, match=r"1 is given twice"):
        read_all_trees([one, two, last, tmp_path / "2" / ".." / "1"])
    shutil.copytree(one, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"hold the same questions of shard 1/3"):
        read_all_trees([one, two, last, tmp_path / "copy"])
    with pytest.raises(
        ConfigError, match=r"Shard 2/3 is not finished: 1 of its 2 questions are missing\. Run its command again"
    ):
        read_all_trees([one, two / "shard-2-of-3-a.parquet", last])
    write_trees(tmp_path / "whole" / "part-0000.parquet", [bushy_tree("other")])
    with pytest.raises(ConfigError, match=r"is of shard 1/3, and .*whole/part-0000\.parquet is of none"):
        read_all_trees([tmp_path / "whole", *three])
    for made, total, of, named in (
        ({"model.name": "n", "seed": 0}, 7, 3, "model.name: m there, n here"),
        ({"model.name": "m"}, 7, 3, r"seed: 0 there, \(absent\) here"),
        ({"model.name": "m", "seed": 0}, 8, 3, "questions: 7 there, 8 here"),
        ({"model.name": "m", "seed": 0}, 7, 4, "shards: 3 there, 4 here"),
    ):
        other = tmp_path / "other.parquet"
        write_piece(other, [bushy_tree("q2", 2)], Piece(Shard(3, of), made, total, {"q2": 2}))
        with pytest.raises(ConfigError, match=f"not made alike(.|\n)*{named}\n"):
            read_all_trees([one, two, other])


def test_trees_of_no_shard_in_several_folders(tmp_path: Path) -> None:
    """They are read one after another; a question that is in two of them is refused."""
    for name in "ab":
        write_trees(tmp_path / name / "part-0000.parquet", [bushy_tree(name)])
    assert [tree.question.id for tree in read_all_trees([tmp_path / "b", tmp_path / "a"])] == ["b", "a"]
    write_trees(tmp_path / "c.parquet", [bushy_tree("a")])
    with pytest.raises(DataError, match="both hold trees of question a"):
        read_all_trees([tmp_path / "a", tmp_path / "c.parquet"])


def test_a_file_whose_shard_cannot_be_read(three: list[Path]) -> None:
    """It is not taken for one of no shard."""
    file = three[0] / "shard-1-of-3-a.parquet"
    table = pq.read_table(file)
    for told in (b"{", b"[]", b'{"shard": "4/3"}', b'{"shard": "1/3"}'):
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"caspo_shard": told}), file)
        with pytest.raises(DataError, match="is of a shard, and what it says of it is damaged"):
            read_all_trees(three)


class Told(StepJudge):
    """Reads the verdict in the step."""

    name = "told"

    def judge_step(self, question: Question, prefix: Sequence[str], step: str, *, final: bool) -> Verdict:
        return Verdict("wrong" if "= 3" in step else "right", "", self.name)


class Numbers:
    """Questions whose number is their answer."""

    name = "numbers"

    def questions(self, split: str, n: int, seed: int) -> list[Question]:
        return questions(20)[:n]

    def grade(self, question: Question, answer: str | None) -> bool:
        return grade(question, answer)


@settings(max_examples=10)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 12))
def test_shards_of_an_evaluation_are_the_undivided_one(
    tmp_path_factory: pytest.TempPathFactory, number: int, fewer: int, of: int, rows: int
) -> None:
    """Its files, bit for bit but for the seconds; methods that solve fewer questions too."""
    tmp_path = tmp_path_factory.mktemp("evaluation")
    asked = EvaluateSettings.model_validate(
        {"questions": number, "self_consistency_questions": fewer, "self_consistency": {"samples": 3}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_CHUNK_ROWS", rows)
        evaluate_methods(Numbers(), lambda: ScriptedEngine(script), asked, 3, tmp_path / "whole")
        homes = {shard: tmp_path / str(shard.number) for shard in shards(of)}
        for shard, home in homes.items():
            evaluate_methods(Numbers(), lambda: ScriptedEngine(script), asked, 3, home, shard=shard)
        join_evaluations(Numbers(), asked, 3, homes, tmp_path / "joined")
    whole, joined = (
        {str(file.relative_to(tmp_path / name)): file for file in (tmp_path / name).rglob("part-*")}
        for name in ("whole", "joined")
    )
    assert whole.keys() == joined.keys()
    for name, file in whole.items():
        if file.suffix == ".parquet":
            assert file.read_bytes() == joined[name].read_bytes()
        else:
            assert timeless(read_json(file)) == timeless(read_json(joined[name]))


def test_figures_of_joined_shards(tmp_path: Path) -> None:
    """Bit for bit those of the undivided evaluation, but for the seconds."""
    asked = EvaluateSettings.model_validate(
        {"questions": 9, "self_consistency_questions": 4, "self_consistency": {"samples": 3}}
    )
    evaluate_methods(Numbers(), lambda: ScriptedEngine(script), asked, 3, tmp_path / "whole")
    homes = {shard: tmp_path / str(shard.number) for shard in shards(5)}
    for shard, home in homes.items():
        evaluate_methods(Numbers(), lambda: ScriptedEngine(script), asked, 3, home, shard=shard)
    join_evaluations(Numbers(), asked, 3, homes, tmp_path / "joined")
    entries = [round_metrics(tmp_path / name, Told(), asked) for name in ("whole", "joined")]
    first, second = (timeless([entry, drawn]) for entry, drawn, _ in entries)
    assert repr(first) == repr(second)


def test_an_evaluation_that_is_not_finished(tmp_path: Path) -> None:
    """Says which shard lacks what."""
    asked = EvaluateSettings.model_validate({"questions": 5, "cat": None, "self_consistency": None})
    homes = {shard: tmp_path / str(shard.number) for shard in shards(2)}
    evaluate_methods(Numbers(), lambda: ScriptedEngine(script), asked, 3, homes[Shard(1, 2)], shard=Shard(1, 2))
    with pytest.raises(
        ConfigError, match=r"2 is not finished: of chain_of_thought it holds 0 of the 2 questions of shard 2/2"
    ):
        join_evaluations(Numbers(), asked, 3, homes, tmp_path / "joined")


@settings(max_examples=15)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 6))
def test_judged_shards_are_the_undivided_verdicts(
    tmp_path_factory: pytest.TempPathFactory, about: list[int], of: int, chunk: int
) -> None:
    """All solutions of a question are in one shard, however they are mixed in the file, and be there others of their ids."""
    tmp_path = tmp_path_factory.mktemp("judged")
    solutions = [
        LabelledSolution(
            f"s{i % 3}", Question(f"Q{q}", "3"), (f"{i} + 1 = {i + 1}", f"{i} + 1 = 3"), ("right", "right"), "all"
        )
        for i, q in enumerate(about)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_run, "_CHUNK", chunk)
        whole = judge_solutions(solutions, ArithmeticJudge(), tmp_path / "whole")
        homes = {}
        of_question: dict[str, set[Shard]] = {}
        for shard in shards(of):
            homes[shard] = tmp_path / str(shard.number)
            mine = of_shard(solutions, shard)
            judge_solutions(mine, ArithmeticJudge(), homes[shard])
            for solution in mine:
                of_question.setdefault(solution.question.text, set()).add(shard)
        assert all(len(found) == 1 for found in of_question.values())
        join_verdicts(solutions, homes, tmp_path / "joined")
        for file in (tmp_path / "whole").iterdir():
            assert (tmp_path / "joined" / file.name).read_bytes() == file.read_bytes()
        assert judge_solutions(solutions, ArithmeticJudge(), tmp_path / "joined") == whole
        full = next(shard for shard in homes if of_shard(solutions, shard))
        shutil.rmtree(homes[full])
        with pytest.raises(ConfigError, match=f"is not finished: it holds 0 of the .* solutions of shard {full}"):
            join_verdicts(solutions, homes, tmp_path / "again")


def test_caches_are_joined_once(tmp_path: Path) -> None:
    """A line that a kill cut off does not spoil the next file's; what was added to the joined file stays."""
    for name, text in (("a", "1\n2"), ("b", "3\n")):
        write_text(tmp_path / name, text)
    for _ in range(2):
        join_caches([tmp_path / name for name in ("a", "none", "b")], tmp_path / "all")
        assert (tmp_path / "all").read_text() == "1\n2\n3\n"
    join_caches([tmp_path / "none"], tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# With a real model, as a user does it.


@pytest.fixture
def said(caspo: Command) -> Callable[..., str]:
    """Runs ``caspo`` in this process: what it printed, or the message of its error, in one line."""

    def told(*args: object) -> str:
        code, out, err = caspo(*args)
        assert "Traceback" not in err
        return " ".join((out + err if not code else f"Error: {err}").split())

    return told


def test_trees_of_several_machines(said: Callable[..., str], tmp_path: Path) -> None:
    """Sampled in shards, one of them empty: pairs, training and exports read them as the run of a single machine."""
    recipe = write_recipe(tmp_path / "recipe.yaml", annotate={"questions": 3, "samples": 4})
    assert "3 trees" in said("annotate", recipe, "--out", tmp_path / "whole")
    homes = [tmp_path / str(number) for number in range(1, 5)]
    for number, home in enumerate(homes, start=1):
        command = ("annotate", recipe, "--out", home, "model.max_rows=9", f"threads={number % 2 + 1}")
        divided = ("--shard", f"{number}/4")
        assert f"{int(number < 4)} trees" in said(*command, *divided)
        assert "Error" not in said(*command, *divided)
        told = said(*command, "--shard", f"{number % 4 + 1}/4")
        assert f"--shard: {number}/4 there, {number % 4 + 1}/4 now" in told
        assert f"--shard: {number}/4 there, (none) now" in said(*command)
    assert read_trees(homes[-1] / "tree") == []
    joined, whole = read_all_trees([home / "tree" for home in homes]), read_trees(tmp_path / "whole" / "tree")
    assert [tree.question for tree in joined] == [tree.question for tree in whole]
    for a, b in zip(joined, whole, strict=True):  # what else is in a batch moves figures in their last bits
        for x, y in zip(a.nodes, b.nodes, strict=True):
            assert (x.step.token_ids, x.verdict, x.count) == (y.step.token_ids, y.verdict, y.count)
            assert x.step.trace.entropy == pytest.approx(y.step.trace.entropy, abs=1e-4)

    given = [word for home in homes for word in ("--trees", home / "tree")]
    one = ("--trees", tmp_path / "one")
    write_trees(tmp_path / "one" / "part-0000.parquet", joined)
    said("pairs", recipe, *one, "--out", tmp_path / "pairs-of-one")
    for words in (given, reversed_pairs(given)):  # in any order
        assert '"confident_wrong"' in said("pairs", recipe, *words, "--out", tmp_path / "pairs")
    assert pair_rows(tmp_path / "pairs" / "pairs.parquet") == pair_rows(tmp_path / "pairs-of-one" / "pairs.parquet")
    made = read_json(tmp_path / "pairs" / "made_from.json")["pairs"]
    assert {name: Path(told["path"]).parts[-3] for name, told in made.items()} == {
        f"--trees (shard {number}/4)": str(number) for number in range(1, 5)
    }, "where they came from is kept"
    for out, trees in ((tmp_path / "m", given), (tmp_path / "n", one)):
        assert '"loss_first"' in said("train", recipe, *trees, "--pairs", tmp_path / "pairs" / "pairs.parquet", "--out", out)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "mn"]
    assert weights[0] == weights[1]

    folders, name = [home / "tree" for home in homes], "trees.jsonl"
    for out, sources in (("e", folders), ("f", [tmp_path / "one"])):
        assert "records in" in said("export", *sources, "--format", "steps", "--out", tmp_path / out / name)
        assert "steps in" in said("export", *sources, "--format", "dataset", "--out", tmp_path / out / "d.parquet")
    for file in (name, "d.parquet"):
        assert (tmp_path / "e" / file).read_bytes() == (tmp_path / "f" / file).read_bytes()
    assert "3 are missing" in said("pairs", recipe, *given[:2], "--out", tmp_path / "part")
    assert "is given twice" in said("pairs", recipe, *given, *given[:2], "--out", tmp_path / "part")
    assert "3 are missing" in said("export", folders[0], "--format", "steps", "--out", tmp_path / "part.jsonl")
    other = tmp_path / "other"
    said("annotate", recipe, "--shard", "2/4", "--out", other, "annotate.samples=3")
    mixed = [homes[0] / "tree", other / "tree", *folders[2:]]
    told = said("pairs", recipe, *(word for folder in mixed for word in ("--trees", folder)), "--out", tmp_path / "mixed")
    assert "annotate.samples: 4 there, 3 here" in told


def reversed_pairs(words: Sequence[Any]) -> list[Any]:
    return [word for i in range(len(words) - 2, -1, -2) for word in words[i : i + 2]]


def test_exact_traces_of_shards(said: Callable[..., str], tmp_path: Path) -> None:
    """A shard that is rescored stays one; whole trees are rescored in shards; a shard is not divided again."""
    recipe = write_recipe(tmp_path / "recipe.yaml", annotate={"questions": 3, "samples": 3})
    said("annotate", recipe, "--out", tmp_path / "whole")
    said("annotate", recipe, "--rescore", tmp_path / "whole" / "tree", "--out", tmp_path / "exact")
    wanted = read_trees(tmp_path / "exact" / "tree")
    for name in ("sampled", "scored"):
        for shard in shards(2):
            home, again = tmp_path / name / str(shard.number), tmp_path / name / f"exact-{shard.number}"
            divided = ("--shard", str(shard))
            if name == "sampled":
                said("annotate", recipe, *divided, "--out", home)
                assert "is shard" in said("annotate", recipe, "--rescore", home / "tree", *divided, "--out", again)
                shutil.rmtree(again)
                for _ in range(2):
                    assert "trees with" in said("annotate", recipe, "--rescore", home / "tree", "--out", again)
            else:
                whole = ("--rescore", tmp_path / "whole" / "tree")
                for _ in range(2):
                    assert "trees with" in said("annotate", recipe, *whole, *divided, "--out", again)
        found = read_all_trees([tmp_path / name / f"exact-{number}" / "tree" for number in (2, 1)])
        assert [tree.question for tree in found] == [tree.question for tree in wanted]
        for a, b in zip(found, wanted, strict=True):
            assert [node.step.token_ids for node in a.nodes] == [node.step.token_ids for node in b.nodes]
            for x, y in zip(a.nodes, b.nodes, strict=True):
                assert x.step.trace.entropy == pytest.approx(y.step.trace.entropy, abs=1e-4)
    with pytest.raises(ConfigError, match="not made alike"):
        read_all_trees([tmp_path / "sampled" / "exact-1" / "tree", tmp_path / "sampled" / "2" / "tree"])
    piece = read_piece(next((tmp_path / "sampled" / "exact-1" / "tree").glob("*.parquet")))
    assert piece is not None
    assert piece.made["--rescore annotate.samples"] == 3, "what the trees were sampled by is kept"


def no_model(*args: object) -> None:
    raise AssertionError("what was solved and judged is there: no model is loaded")


def close(a: Any, b: Any) -> bool:
    """Equality of JSON, numbers to rounding: what else is in a batch moves a model's figures in their last bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return bool(a == pytest.approx(b, rel=1e-4, abs=1e-5) if isinstance(a, float) else a == b)


def test_an_evaluation_on_three_machines(said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined it is `metrics.json` and the report of the undivided one; the shards have none of their own."""
    asked = {"questions": 4, "self_consistency_questions": 2}
    methods = {
        "chain_of_thought": {"max_tokens": 64}, "self_consistency": {"max_tokens": 64, "samples": 2},
        "cat": {"max_tokens": 64, "paths": 2},
    }  # fmt: skip
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        rounds=2,
        validation={"questions": 2},
        evaluate={**asked, **methods},
        task={"name": "stories", "levels": [1], "judge": {"kind": "rollouts", "max_tokens": 32}},
    )
    said("evaluate", recipe, "--out", tmp_path / "whole")
    homes = [tmp_path / str(number) for number in (1, 2, 3)]
    for number, home in enumerate(homes, start=1):
        command = ("evaluate", recipe, "--shard", f"{number}/3", "--out", home)
        assert f"{2 if number == 1 else 1} questions of shard {number}/3" in said(*command)
        before = {file: file.stat().st_mtime_ns for file in home.rglob("part-*")}
        assert "Error" not in said(*command)
        assert before == {file: file.stat().st_mtime_ns for file in home.rglob("part-*")}
        assert not (home / "metrics.json").exists()
        assert "--shard: " in said("evaluate", recipe, "--shard", "1/2", "--out", home)
        assert "Error" in said("evaluate", recipe, "--out", home)
        assert "Error" in said("report", home)
    given = [word for home in homes for word in ("--join", home)]
    joined = tmp_path / "joined"
    with monkeypatch.context() as patch:
        for name in ("caspo.loop.run.open_engine", "caspo.loop.task.open_local"):
            patch.setattr(name, no_model)
        for _ in range(2):
            assert "Report: " in said("evaluate", recipe, *given, "--out", joined)
    for name in ("metrics.json", "report_data.json"):
        assert close(timeless(read_json(joined / name)), timeless(read_json(tmp_path / "whole" / name)))
    assert (joined / "report.html").exists()
    clocks = [read_json(home / "clock.json")["seconds"] for home in homes]
    assert read_json(joined / "metrics.json")["seconds_total"] >= sum(clocks)
    assert "right in A only: 0" in said("evaluate", "--compare", joined, tmp_path / "whole", "--out", tmp_path / "compared")

    for words, message in (
        ((*given[:4],), "Of 3 shards 1 is missing: 3/3"),
        ((*given, *given[:2]), "are both shard 1/3"),
        ((*given, "evaluate.questions=3"), "evaluate.questions: 4 there, 3 here"),
        ((*given, "seed=2"), "seed: 1 there, 2 here"),
        (("--join", tmp_path / "whole"), "is no shard of `caspo evaluate`: no such command"),
        (("--join", tmp_path / "none"), "is no shard of `caspo evaluate`"),
        ((*given, "--shard", "1/3"), "give one of them"),
    ):
        assert message in said("evaluate", recipe, *words, "--out", tmp_path / "refused")
    assert not (tmp_path / "refused").exists(), "the corrected command finds nothing of a refused one"
    (homes[2] / "round-0" / "evaluate" / "cat" / "part-000.json").unlink()
    told = said("evaluate", recipe, *given, "--out", tmp_path / "unfinished")
    assert "is not finished: of cat it holds 0 of the 1 questions of shard 3/3" in told


def test_an_evaluation_with_an_empty_shard(said: Callable[..., str], tmp_path: Path) -> None:
    """More machines than questions: the last has nothing to do, says so, and is joined."""
    evaluate = {"questions": 1, "self_consistency": None, "cat": None, "chain_of_thought": {"max_tokens": 32}}
    recipe = write_recipe(tmp_path / "recipe.yaml", evaluate=evaluate)
    for number in (1, 2):
        assert f"{2 - number} questions of shard" in said(
            "evaluate", recipe, "--shard", f"{number}/2", "--out", tmp_path / str(number)
        )
    assert "--shard: 2/2 there, 1/2 now" in said("evaluate", recipe, "--shard", "1/2", "--out", tmp_path / "2")
    joins = ("--join", tmp_path / "2", "--join", tmp_path / "1")
    assert "n = 1" in said("evaluate", recipe, *joins, "--out", tmp_path / "joined")


def test_a_judging_on_several_machines(said: Callable[..., str], tmp_path: Path) -> None:
    """Verdicts and scores of the undivided one; trees of shards are a source as trees of one folder are."""
    recipe = write_recipe(tmp_path / "recipe.yaml", annotate={"questions": 2, "samples": 3})
    folders = []
    for shard in shards(2):
        folders.append(tmp_path / f"trees-{shard.number}" / "tree")
        said("annotate", recipe, "--shard", shard, "--out", folders[-1].parent)
    assert len(read_solutions(folders)) > 2
    judge = ("--judge", "rollouts", "--model", "stories-tiny", "max_tokens=32")
    scores = ("--score-against", "labels")
    said("judge", *folders, *judge, *scores, "--out", tmp_path / "whole")
    homes = [tmp_path / f"judged-{number}" for number in range(1, 4)]
    for number, home in enumerate(homes, start=1):
        assert "solutions, steps:" in said("judge", *folders, *judge, "--shard", f"{number}/3", "--out", home)
        assert "--shard: " in said("judge", *folders, *judge, "--shard", f"{number % 3 + 1}/3", "--out", home)
    joins = [word for home in homes for word in ("--join", home)]
    for _ in range(2):
        assert "Scores: " in said("judge", *folders, *judge, *scores, *joins, "--out", tmp_path / "joined")
    for name in ("scores.json", "part-0000.json"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for words, message in (
        ((*judge, *joins[2:]), "Of 3 shards 1 is missing: 1/3"),
        ((*judge[:-1], "max_tokens=16", *joins), "judge.max_tokens: 32 there, 16 here"),
        ((*judge, "--limit", 1, *joins), "solutions: "),
        ((*judge, "--shard", "1/2", *scores), "A shard has neither --join nor scores"),
        ((*judge, "--shard", "0/2"), "counted from 1"),
    ):
        assert message in said("judge", *folders, *words, "--out", tmp_path / "refused")
    assert "1 is missing" in said("judge", folders[0], *judge, "--out", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    write_text(tmp_path / "labelled.jsonl", '{"question": "q", "steps": ["1 + 1 = 2"], "first_error": -1}\n')
    told = said("judge", tmp_path / "labelled.jsonl", folders[0], "--out", tmp_path / "refused")
    assert "labelled.jsonl holds no trees, and only trees are read from several places" in told
