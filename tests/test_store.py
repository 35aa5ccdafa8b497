"""Trees on disk: what is written is read back, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caspo.core.errors import DataError
from caspo.formats.parquet import read_trees, write_trees
from caspo.records import ROOT, Node, Question, Step, TokenTrace, Tree, Verdict
from tiny import bushy_tree, same_tree

TEXT = st.text(max_size=20)
IDS = st.lists(st.integers(0, 300_000), min_size=1, max_size=5).map(tuple)
FLOATS = st.floats(0, 100, width=32)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    nodes = []
    for i in range(draw(st.integers(1, 5))):
        parent = draw(st.integers(ROOT, i - 1))
        ids = draw(IDS)
        values = [np.array(draw(st.lists(FLOATS, min_size=len(ids), max_size=len(ids))), dtype=np.float32) for _ in "12345"]
        top = draw(st.booleans())
        trace = TokenTrace(*values, "top_k", 5, values[0] + 1) if top else TokenTrace(*values)
        verdict = draw(st.none() | st.builds(Verdict, st.sampled_from(["right", "wrong", "unknown"]), TEXT, TEXT))
        depth = 1 if parent == ROOT else nodes[parent].depth + 1
        step = Step(draw(TEXT), ids, trace)
        nodes.append(Node(i, parent, depth, step, draw(st.integers(1, 9)), draw(st.booleans()), verdict, draw(TEXT)))
    meta = draw(st.dictionaries(TEXT, st.none() | st.integers(-5, 5) | st.lists(TEXT, max_size=2), max_size=3))
    question = Question(draw(TEXT), draw(TEXT), id=draw(TEXT), solution=draw(st.none() | TEXT), meta=meta)
    return Tree(question, draw(IDS), tuple(nodes))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(trees(), max_size=3))
def test_round_trip(tmp_path: Path, found: list[Tree]) -> None:
    """Every field of every record survives, whatever text and numbers it holds, in order."""
    file = tmp_path / "x.parquet"
    write_trees(file, found)
    again = read_trees(file)
    assert len(again) == len(found)
    assert all(same_tree(a, b) for a, b in zip(again, found, strict=True))


def test_folders_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    """A folder of files is one list of trees; a name with `=` is a name and no column."""
    folder = tmp_path / "judge=x" / "seed=1"
    write_trees(folder / "b.parquet", [bushy_tree("3")])
    write_trees(folder / "a.parquet", [bushy_tree("1"), bushy_tree("2")])
    assert [tree.question.id for tree in read_trees(folder)] == ["1", "2", "3"]
    assert same_tree(read_trees(folder / "b.parquet")[0], bushy_tree("3"))


def test_rows_stand_for_themselves(tmp_path: Path) -> None:
    """One row per node, with its question; other programs read it."""
    write_trees(tmp_path / "x.parquet", [bushy_tree("a"), bushy_tree("b")])
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.num_rows == 18
    assert table["question_id"].to_pylist() == ["a"] * 9 + ["b"] * 9
    np.testing.assert_allclose(table["confidence"].to_numpy(), np.exp(-0.5), rtol=1e-6)


def test_damaged_files(tmp_path: Path) -> None:
    """Missing, truncated, empty, and not Parquet at all."""
    file = tmp_path / "x.parquet"
    with pytest.raises(DataError, match="does not exist"):
        read_trees(file)
    write_trees(file, [bushy_tree()])
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:100] + b"\0" * 100 + whole[200:], b"", b"hello"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not a readable Parquet file"):
            read_trees(file)


def test_other_schemas(tmp_path: Path) -> None:
    """A file of another version, or of another kind, says so."""
    file = tmp_path / "x.parquet"
    write_trees(file, [bushy_tree()])
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"caspo_schema": "99"}), file)
    with pytest.raises(DataError, match="has schema 99"):
        read_trees(file)
    pq.write_table(table.drop_columns(["entropy"]), file)
    with pytest.raises(DataError, match="lacks entropy"):
        read_trees(file)


def test_rows_that_are_no_whole_trees(tmp_path: Path) -> None:
    """Rows that were filtered or reordered are refused, not misread."""
    file = tmp_path / "x.parquet"
    write_trees(file, [bushy_tree("a"), bushy_tree("b")])
    table = pq.read_table(file)
    for rows in ([0, 2, 3], [1, 0, 2], [1, 2], [0, 1, 10]):
        pq.write_table(table.take(rows), file)
        with pytest.raises(DataError, match="does not hold whole trees"):
            read_trees(file)
