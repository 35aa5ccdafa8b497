"""The published dataset: it loads everywhere, is what its card says, and its figures follow from its traces."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from caspo.confidence import SIGNALS, signals, step_score
from caspo.core.errors import DataError
from caspo.data.annotate import judge_trees
from caspo.data.dataset import DATASET_SCHEMA, write_dataset
from caspo.data.pairs import PairSettings, build_pairs
from caspo.formats.parquet import read_trees
from caspo.judges.reference import ReferenceJudge
from caspo.records import Tree
from tiny import bushy_tree

DATA = Path(__file__).resolve().parent.parent / "data"
FILES = sorted(DATA.glob("*.parquet"))
CARD = (DATA / "README.md").read_text(encoding="utf-8")
HEADER = yaml.safe_load(CARD.split("---")[1])


@pytest.fixture(scope="module", params=FILES, ids=lambda file: file.stem)
def file(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="module")
def rows(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return found


@pytest.fixture(scope="module")
def trees(file: Path) -> list[Tree]:
    return read_trees(file)


def test_size_and_number_of_steps() -> None:
    """At most 10 MB, at least 20,000 steps; every file is a configuration of the card and the other way round."""
    assert sum(file.stat().st_size for file in FILES) <= 10_000_000
    assert sum(pq.read_metadata(file).num_rows for file in FILES) >= 20_000
    assert {config["data_files"][0]["path"] for config in HEADER["configs"]} == {file.name for file in FILES}
    assert HEADER["license"] == "apache-2.0"


def test_the_card_states_what_the_file_holds(file: Path, rows: list[dict[str, Any]]) -> None:
    """Its statistics are recomputed, its columns are those of the schema."""
    assert card_table(rows) in CARD
    assert {row["model"] for row in rows} == {file.stem}
    told = set(re.findall(r"`([a-z_*]+)`", "".join(re.findall(r"^\| (`.*?) \| ", CARD, flags=re.M))))
    columns = {name for name in DATASET_SCHEMA.names if not name.startswith("signal_")} | {"signal_*"}
    assert told - {"count"} == columns - {"count"}
    assert all(f"`{name}`" in CARD for name in SIGNALS)


def card_table(rows: Sequence[dict[str, Any]]) -> str:
    """The statistics of a file of the dataset, as the dataset's card states them (Markdown)."""
    labels = Counter(row["verdict"] for row in rows)
    groups: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        groups.setdefault((row["question_id"], row["parent"]), set()).add(row["verdict"])
    mixed = sum({"right", "wrong"} <= found for found in groups.values())
    tokens = sum(len(row["token_ids"]) for row in rows)
    lines = [
        ("steps (rows)", f"{len(rows):,}"),
        ("questions", f"{len({row['question_id'] for row in rows}):,}"),
        ("samples (sum of `count`)", f"{sum(row['count'] for row in rows):,}"),
        ("right, wrong, unknown", ", ".join(f"{labels[name]:,}" for name in ("right", "wrong", "unknown"))),
        ("prefixes, of which with a right and a wrong continuation", f"{len(groups):,}, {mixed:,}"),
        ("steps that end a solution", f"{sum(row['final'] for row in rows):,}"),
        ("greatest depth", f"{max(row['depth'] for row in rows)}"),
        ("tokens", f"{tokens:,}"),
    ]
    for name in ("right", "wrong"):
        chosen = [row for row in rows if row["verdict"] == name]
        if chosen:
            entropy = np.mean([-row["signal_entropy"] for row in chosen])
            confidence = np.mean([row["confidence"] for row in chosen])
            lines.append((f"{name} steps: mean entropy (nats), mean confidence", f"{entropy:.3f}, {confidence:.3f}"))
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in lines)])


def test_loads_in_datasets(file: Path, tmp_path: Path) -> None:
    """By the folder and the name of the configuration, as the card says."""
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(DATA), file.stem, split="train", cache_dir=str(tmp_path))
    assert len(found) == pq.read_metadata(file).num_rows
    assert set(found.column_names) == set(DATASET_SCHEMA.names)
    assert len(found[0]["entropy"]) == len(found[0]["token_ids"])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_loads_in_frames(file: Path, library: str) -> None:
    """As it is."""
    frame = pytest.importorskip(library).read_parquet(file)
    assert frame.shape == (pq.read_metadata(file).num_rows, len(DATASET_SCHEMA.names))
    assert set(frame["verdict"]) == {"right", "wrong", "unknown"}


def test_ranges(trees: list[Tree]) -> None:
    """Entropies, log-probabilities, margins and variances lie where they can; every step has tokens and a full trace."""
    for tree in trees:
        for node in tree.nodes:
            trace = node.step.trace
            assert len(trace) == len(node.step.token_ids) > 0
            assert trace.kind == "full"
            assert (trace.entropy >= 0).all()
            assert (trace.logprob <= trace.max_logprob * (1 - 3e-4) + 1e-6).all()
            assert ((trace.margin >= 0) & (trace.margin <= 1)).all()
            assert (trace.varentropy >= 0).all()


def test_both_branches(trees: list[Tree]) -> None:
    """Right steps are gone on with, others are not; pairs of right and wrong siblings can be built."""
    for tree in trees:
        for parent, _ in tree.groups():
            assert parent == -1 or tree.nodes[parent].right
    pairs, _ = build_pairs(trees, PairSettings())
    assert len(pairs) > len(trees)


def test_verdicts_are_the_judges(trees: list[Tree]) -> None:
    """Today's judge says what the file says (a cut step apart, which it cannot know of)."""
    some = trees[:200]
    for tree, again in zip(some, judge_trees(some, ReferenceJudge()), strict=True):
        for node, other in zip(tree.nodes, again.nodes, strict=True):
            assert node.verdict is not None
            assert node.verdict == other.verdict or node.verdict.reason == "cut at the token limit"


def test_signals_follow_from_the_traces(trees: list[Tree], rows: list[dict[str, Any]]) -> None:
    """To the precision that the card names."""
    nodes = [node for tree in trees for node in tree.nodes]
    for node, row in list(zip(nodes, rows, strict=True))[::7]:
        assert row["confidence"] == pytest.approx(step_score(node.step.trace), rel=1e-3)
        for name, value in signals(node.step.trace).items():
            assert row[f"signal_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_write_and_read(tmp_path: Path) -> None:
    """Equal trees, equal bytes; what is read back differs by the rounding only."""
    made = [bushy_tree(f"q{i}", i) for i in range(3)]
    for name in ("a", "b"):
        write_dataset(tmp_path / f"{name}.parquet", made, "m")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    for tree, again in zip(made, read_trees(tmp_path / "a.parquet"), strict=True):
        for node, other in zip(tree.nodes, again.nodes, strict=True):
            assert (node.step.text, node.step.token_ids, node.verdict) == (
                other.step.text,
                other.step.token_ids,
                other.verdict,
            )
            np.testing.assert_allclose(other.step.trace.logprob, node.step.trace.logprob, rtol=1.3e-4)


def test_nothing_to_publish(tmp_path: Path) -> None:
    """No steps, or steps that no model has scored."""
    with pytest.raises(DataError, match="hold no steps"):
        write_dataset(tmp_path / "x.parquet", [], "m")
    tree = bushy_tree("q", 0)
    bare = [replace(n, step=replace(n.step, trace=replace(n.step.trace, kind="none"))) for n in tree.nodes]
    with pytest.raises(DataError, match="--rescore"):
        write_dataset(tmp_path / "x.parquet", [replace(tree, nodes=tuple(bare))], "m")
