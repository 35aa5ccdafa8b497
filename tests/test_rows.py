"""One reader for users' files, packed or not, JSON lines or Parquet; bad rows are named, and left out only if asked."""

from __future__ import annotations

import datetime
import gzip
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caspo.core.errors import DataError
from caspo.core.rows import BadRows, lone_surrogate, looks_like_rows, read_rows
from caspo.core.storage import read_json, write_json
from caspo.formats import read_labelled, read_solutions, write_trees
from caspo.tasks.benchmarks import open_benchmark
from caspo.tasks.jsonl import JsonlTask
from tiny import bushy_tree

ROWS = [
    {"question": f"{i} + 1?", "answer": str(i + 1), "solution": f"{i} + 1 = {i + 1}", "meta": {"level": i}} for i in range(5)
]
LABELLED = [{"id": f"s-{i}", "question": "1 + 1?", "steps": ["1 + 1 = 2", "So 2."], "first_error": i - 1} for i in range(3)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path: Path, rows: list[Any]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


FORMS: dict[str, Callable[[Path, list[Any]], object]] = {
    "jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "json": lambda path, rows: path.write_bytes(lines(rows)),
    "parquet": parquet,
    "JSONL": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),  # told by its first bytes
}


@pytest.mark.parametrize("ending", FORMS)
def test_every_form_reads_the_same(tmp_path: Path, ending: str) -> None:
    """Questions, labelled solutions and benchmarks, ids included."""
    (tmp_path / "a").mkdir()
    FORMS["jsonl"](tmp_path / "a" / "q.jsonl", ROWS)
    file = tmp_path / f"q.{ending}"
    FORMS[ending](file, ROWS)
    assert JsonlTask(file).questions("test") == JsonlTask(tmp_path / "a" / "q.jsonl").questions("test")
    assert JsonlTask(file).name == "q"
    FORMS[ending](file, LABELLED)
    FORMS["jsonl"](tmp_path / "a" / "q.jsonl", LABELLED)
    assert read_solutions(file) == read_labelled(tmp_path / "a" / "q.jsonl")
    if ending in ("jsonl", "jsonl.gz", "parquet"):
        FORMS[ending](tmp_path / f"gsm8k_test.{ending}", ROWS)
        assert len(open_benchmark("gsm8k", data=tmp_path)) == len(ROWS)


def test_trees_and_rows_of_parquet_are_told_apart(tmp_path: Path) -> None:
    """Both may be called *.parquet."""
    write_trees(tmp_path / "trees.parquet", [bushy_tree()])
    parquet(tmp_path / "labelled.parquet", LABELLED)
    assert len(read_solutions(tmp_path / "trees.parquet")) == sum(
        not bushy_tree().children(n.id) for n in bushy_tree().nodes
    )
    assert len(read_solutions(tmp_path / "labelled.parquet")) == len(LABELLED)


def test_what_json_has_no_value_for(tmp_path: Path) -> None:
    """Dates of Parquet become texts, so that the question can be written again; missing values are null."""
    parquet(tmp_path / "q.parquet", [{"question": "q", "answer": 1, "day": datetime.date(2020, 1, 2), "id": None}])
    (question,) = JsonlTask(tmp_path / "q.parquet").questions("test")
    assert (dict(question.meta), question.id, question.answer) == ({"day": "2020-01-02"}, "q-1", "1")


def test_damaged_files(tmp_path: Path) -> None:
    """Cut off, or not what they are called: said with the file's name, and never as a traceback."""
    packed = gzip.compress(lines(ROWS))
    parquet(tmp_path / "whole.parquet", ROWS)
    whole = (tmp_path / "whole.parquet").read_bytes()
    for name, data, message in (
        ("a.jsonl.gz", packed[:-12], "packed file is damaged or cut off"),
        ("b.jsonl.gz", packed[:20] + b"xxxx" + packed[24:], "packed file is damaged or cut off"),
        ("c.parquet", whole[: len(whole) // 2], "not a readable Parquet file"),
        ("d.parquet", lines(ROWS), "not a readable Parquet file"),
        ("e.jsonl.gz", gzip.compress(b'{"question": "q"'), "line 1: the last line is cut off"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.*{message}"):
            JsonlTask(tmp_path / name)


GOOD = {"question": "q", "answer": "a"}
BAD: dict[str, tuple[bytes, str]] = {
    "lone surrogate": (rb'{"question": "q \ud83d", "answer": "a"}', r"\\ud83d is half of a character"),
    "in a key of meta": (rb'{"question": "q", "answer": "a", "meta": {"\ude00": 1}}', r"\\ude00 is half of a character"),
    "key twice": (b'{"question": "q", "answer": "1", "answer": "2"}', "the key 'answer' is written twice"),
    "5000 digits": (b'{"question": "q", "answer": ' + b"7" * 5000 + b"}", "a number of 5000 digits is too long"),
    "infinite": (b'{"question": "q", "answer": 1e400}', "the answer is Infinity"),
    "not JSON": (b"question: q", "not JSON"),
    "not UTF-8": (b'{"question": "caf\xe9", "answer": 1}', "byte 18 of the line is not UTF-8"),
    "no answer": (b'{"question": "q"}', "no 'answer'"),
    "not an object": (b"[1]", "a value of type list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, case: str) -> None:
    """By its line and the reason; left out only for who takes the reasons."""
    row, message = BAD[case]
    file = tmp_path / "q.jsonl"
    file.write_bytes(lines([GOOD]) + row + b"\n" + lines([GOOD]))
    with pytest.raises(DataError, match=f"line 2: {message}"):
        JsonlTask(file)
    bad = BadRows()
    assert [q.id for q in JsonlTask(file, bad=bad).questions("test")] == ["q-1", "q-3"], "ids count all lines"
    assert bad.rows == 3
    ((where, why),) = bad.found
    assert where == f"{file}, line 2"
    assert why.startswith(f"{where}: ")
    assert str(bad).startswith(f"Left out 1 of 3 rows:\n  {file}, line 2: ")


def test_an_answer_of_400_digits(tmp_path: Path) -> None:
    """As a number and as a text: longer than any float, and an answer all the same."""
    digits = "7" * 400
    file = tmp_path / "q.jsonl"
    file.write_text(f'{{"question": "q", "answer": {digits}}}\n{{"question": "q", "answer": "{digits}"}}\n')
    task = JsonlTask(file)
    for question in task.questions("test"):
        assert question.answer == digits
        assert task.grade(question, digits)
        assert not task.grade(question, digits[:-1] + "8")


def test_surrogates_that_belong_together() -> None:
    """JSON writes what is beyond 16 bits as two halves; only one of them alone is none."""
    assert lone_surrogate(json.loads(r'"\ud83d\ude00"')) is None
    assert lone_surrogate({"a": ["b", {"c": "\udc80"}]}) == r"\udc80"
    assert lone_surrogate([1, None, "ok", ("x",)]) is None


def test_all_that_is_left_out_is_told(tmp_path: Path) -> None:
    """The first with the reason, every one with its place; ids that stand twice and unknown formats are bad rows too."""
    rows: list[Any] = [{"id": 1, **GOOD}, {"id": 1, **GOOD}, *({"question": "q"} for _ in range(15)), GOOD]
    file = tmp_path / "q.jsonl"
    FORMS["jsonl"](file, rows)
    bad = BadRows()
    assert len(JsonlTask(file, bad=bad)) == 2
    told = str(bad).splitlines()
    assert told[0] == "Left out 16 of 18 rows:"
    assert "line 2: the id '1' is that of line 1 too" in told[1]
    assert len(told) == 12
    assert told[-1] == f"  and {file}, line 12, line 13, line 14, line 15, line 16, line 17"
    FORMS["jsonl"](file, [{"x": 1}, LABELLED[0], {**LABELLED[1], "steps": []}, LABELLED[0], LABELLED[2]])
    bad = BadRows()
    assert [s.id for s in read_labelled(file, bad)] == ["s-0", "s-2"]
    assert [where.rpartition(" ")[2] for where, _ in bad.found] == ["1", "3", "4"]
    assert str(BadRows()) == ""


def test_nothing_that_can_be_used(tmp_path: Path) -> None:
    """Then there is nothing to go on with, whoever asked to leave rows out."""
    FORMS["jsonl"](tmp_path / "q.jsonl", [{"a": 1}, {"b": 2}])
    with pytest.raises(DataError, match=r"None of the 2 rows of .*q\.jsonl can be used. The last: .*line 2: no 'question'"):
        JsonlTask(tmp_path / "q.jsonl", bad=BadRows())


def test_a_row_of_a_benchmark_that_cannot_be_asked(tmp_path: Path) -> None:
    """A choice that is none of the choices is found after reading: it is left out all the same."""
    rows = [{"question": "q", "answer": a, "choices": ["x", "y"]} for a in "ABZ"]
    FORMS["jsonl.gz"](tmp_path / "race_test.jsonl.gz", rows)
    with pytest.raises(DataError, match="'Z' is none of"):
        open_benchmark("race", data=tmp_path)
    bad = BadRows()
    assert len(open_benchmark("race", data=tmp_path, bad=bad)) == 2
    assert (len(bad.found), bad.rows) == (1, 3)


def test_names_of_files_and_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is missing is no question to a model."""
    for name in ("x.jsonl", "x.jsonl.gz", "a/b.parquet", "X.JSONL", "x.json", "x.ndjson", "x.jsonl.zst", "x.csv",
                 "./my questions.jsonl", "/data/my q.parquet", "./x.txt", "../x", "~/x", "/data/x"):  # fmt: skip
        assert looks_like_rows(name)
    for text in ("What is in x.jsonl?", "2+2", "Is a.parquet b?", "", "x" * 10000, "a\0b", "/2", "1/2", "a / b"):
        assert not looks_like_rows(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my questions").write_text("{}")
    (tmp_path / "folder").mkdir()
    assert looks_like_rows("my questions")
    assert looks_like_rows("folder")


def test_reading_is_in_order(tmp_path: Path) -> None:
    """A row may give several things, or none."""
    FORMS["parquet"](tmp_path / "q.parquet", [{"n": n} for n in range(4)])
    found = read_rows(tmp_path / "q.parquet", "n", lambda row, where, name: [(row["n"], name)] * (row["n"] % 3))
    assert found == [(1, "q-2"), (2, "q-3"), (2, "q-3")]


def test_texts_of_parquet(tmp_path: Path) -> None:
    """Some writers note text as bytes; a column that is there twice is as bad as a key twice."""
    file = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["é?".encode()], "answer": [b"3"]}), file)
    question = JsonlTask(file).questions("test")[0]
    assert (question.text, question.answer) == ("é?", "3")
    pq.write_table(pa.table({"question": [b"\xff?"], "answer": [b"3"]}), file)
    with pytest.raises(DataError, match=r"row 1: .*half of a character"):
        JsonlTask(file)
    columns = {"question": "a?", "answer": "3"}
    twice = pa.Table.from_arrays([pa.array([v]) for v in (*columns.values(), "4")], [*columns, "answer"])
    pq.write_table(twice, file)
    with pytest.raises(DataError, match="the column 'answer' is there twice"):
        JsonlTask(file)


@pytest.mark.parametrize("module", ["bz2", "lzma"])
def test_packed_otherwise(tmp_path: Path, module: str) -> None:
    file = tmp_path / "q.jsonl.packed"
    file.write_bytes(import_module(module).compress(b'{"question": "a?", "answer": "3"}'))
    with pytest.raises(DataError, match="gzip is what is read"):
        JsonlTask(file)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Names of files are bytes; ids are texts."""
    file = tmp_path / os.fsdecode(b"\xff.jsonl")
    FORMS["jsonl"](file, [{"question": "a?", "answer": "3"}])
    assert JsonlTask(file).questions("test")[0].id == "?-1"
    write_json(tmp_path / "x.json", str(file))
    assert read_json(tmp_path / "x.json") == str(file)
