"""Pairs: which siblings become which kind, what the report says of the rest, and that TRL takes the file as it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caspo.core.errors import DataError
from caspo.data.pairs import PairSettings, build_pairs, check_pairs, read_pairs, write_pairs
from caspo.records import ROOT, Question, StepPair, Tree
from tiny import build, bushy_tree, node, same_tree, tokenizer

EVERYTHING = PairSettings(confident_from=0, unsure_to=1, per_group=99)


def group(*children: tuple[str | None, float, float], name: str = "q") -> Tree:
    """First steps with the given verdicts, entropies and log-probabilities."""
    nodes = [
        node(i, ROOT, 1, (10 + i,), label, entropy=entropy, logprob=logprob)
        for i, (label, entropy, logprob) in enumerate(children)
    ]
    return Tree(Question("?", "1", id=name), (2, 3), tuple(nodes))


def brief(pairs: list[StepPair]) -> list[tuple[str, int, int]]:
    return [(p.kind, p.chosen, p.rejected) for p in pairs]


def test_both_kinds() -> None:
    """Of siblings equally near, a confident wrong step loses to the likeliest right one, an unsure right one wins over the
    most confident wrong one."""
    tree = group(
        ("right", 0.2, -0.3), ("right", 1.5, -2.0), ("wrong", 0.1, -0.5), ("wrong", 2.0, -3.0), ("unknown", 0.1, -0.1)
    )
    pairs, report = build_pairs([tree], PairSettings())
    assert brief(pairs) == [("confident_wrong", 0, 2), ("uncertain_right", 1, 2)]
    assert pairs[0].chosen_confidence == pytest.approx(2.718281828**-0.2)
    assert pairs[0].rejected_confidence == pytest.approx(2.718281828**-0.1)
    assert report.pairs == {"confident_wrong": 1, "uncertain_right": 1}
    assert report.dropped == {
        "right step: not unsure": 1, "step: verdict unknown": 1, "wrong step: not confident": 1,
    }  # fmt: skip
    assert report.unsure_to < pairs[0].chosen_confidence
    assert report.confident_from > 2.718281828**-2


def test_thresholds_and_limits() -> None:
    """0 and 1 take all; `per_group` takes the clearest; no pair stands twice."""
    tree = group(*[("right", 0.1 * i, -0.1) for i in range(4)], *[("wrong", 0.1 * i, -0.1) for i in range(3)])
    pairs, report = build_pairs([tree], EVERYTHING)
    assert Counter(kind for kind, *_ in brief(pairs)) == {"confident_wrong": 3, "uncertain_right": 3}
    assert report.dropped == {"right step: already paired with every wrong sibling": 1}
    assert len({(p.chosen, p.rejected) for p in pairs}) == len(pairs)
    assert [p.rejected for p in pairs[:3]] == [4, 5, 6], "the most confident wrong step first"
    assert [p.chosen for p in pairs[3:6]] == [3, 2, 1], "the least confident right step first"
    pairs, report = build_pairs([tree], PairSettings(confident_from=0, unsure_to=1, per_group=1))
    assert brief(pairs) == [("confident_wrong", 0, 4), ("uncertain_right", 3, 4)]
    assert report.dropped["wrong step: enough from this group"] == 2
    assert report.dropped["right step: enough from this group"] == 3


def test_nearest_partner() -> None:
    """A step is paired with the sibling that shares the most tokens with it: what differs is the error, not the wording."""
    ids = {"right": [(1, 2, 3, 4), (1, 7, 8, 9), (5, 2, 3, 4)], "wrong": [(1, 2, 6, 4), (5, 2, 3, 8)]}
    nodes = [node(i, ROOT, 1, t, label) for i, (label, t) in enumerate((k, t) for k, ts in ids.items() for t in ts)]
    pairs, _ = build_pairs(
        [Tree(Question("?", "1", id="q"), (2, 3), tuple(nodes))], PairSettings(confident_from=0, unsure_to=1, per_group=99)
    )
    assert {(p.chosen, p.rejected) for p in pairs if p.kind == "confident_wrong"} == {(0, 3), (2, 4)}
    unsure = {(p.chosen, p.rejected) for p in pairs if p.kind == "uncertain_right"}
    assert unsure == {(0, 4), (1, 3), (2, 3)}, "the nearest that is not paired with it yet"


def test_reasoning_faults_only() -> None:
    """A wrong step whose equation is false is a slip of the sums; it is left out when asked, and counted."""
    texts = [("right", "2 + 3 = 5\n"), ("wrong", "2 * 3 = 6\n"), ("wrong", "2 + 3 = 6\n"), ("wrong", "The answer is 9.\n")]
    nodes = [node(i, ROOT, 1, (10 + i,), label) for i, (label, _) in enumerate(texts)]
    nodes = [replace(n, step=replace(n.step, text=text)) for n, (_, text) in zip(nodes, texts, strict=True)]
    settings = PairSettings(confident_from=0, unsure_to=1, per_group=99, faults="reasoning")
    pairs, report = build_pairs([Tree(Question("?", "1", id="q"), (2, 3), tuple(nodes))], settings)
    assert {p.rejected for p in pairs} == {1, 3}
    assert report.dropped["wrong step: its equation is false"] == 1


def test_groups_without_a_pair() -> None:
    """Nothing to compare with, or nothing judged: said so, and thresholds stay numbers."""
    trees = [
        group(("right", 0.1, -1), ("right", 0.2, -1), name="a"),
        group(("wrong", 0.1, -1), ("unknown", 0.2, -1), name="b"),
        group(("unknown", 0.1, -1), (None, 0.2, -1), name="c"),
    ]
    pairs, report = build_pairs(trees, EVERYTHING)
    assert pairs == []
    assert report.dropped == {"group: no right step": 2, "group: no wrong step": 1, "step: verdict unknown": 3}
    assert 0 <= report.unsure_to <= report.confident_from <= 1
    assert build_pairs([], EVERYTHING)[0] == []


def refused(*trees: Tree) -> str:
    pairs, report = build_pairs(trees, EVERYTHING)
    with pytest.raises(DataError) as caught:
        check_pairs(pairs, trees, report)
    return str(caught.value)


def test_no_pairs_names_the_judge_and_what_it_could_tell() -> None:
    """A judge that tells little is the reason, and another one the remedy; otherwise it is the problems or the sampling."""
    little = refused(group(("wrong", 0.1, -1), ("unknown", 0.2, -1), ("unknown", 0.2, -1), ("unknown", 0.2, -1)))
    assert "The judge test could tell 1 of 4 steps (25%). Choose a judge that can tell" in little
    assert "step: verdict unknown: 3" in little
    much = refused(group(("right", 0.1, -1), ("right", 0.2, -1)))
    assert "The judge test could tell 2 of 2 steps (100%). Sample more, raise the temperature" in much
    assert "group: no wrong step: 1" in much
    assert "hold no judged steps" in refused()
    trees = [group(("right", 0.1, -1), ("wrong", 0.2, -1))]
    pairs, report = build_pairs(trees, EVERYTHING)
    check_pairs(pairs, trees, report)


def test_nothing_below_a_wrong_step() -> None:
    """What follows a wrong or unjudged step is no training signal, whatever its own verdict says."""
    for label in ("wrong", "unknown", None):
        nodes = (
            node(0, ROOT, 1, (5,), label), node(1, 0, 2, (6,), "right"), node(2, 0, 2, (7,), "wrong"),
            node(3, 1, 3, (8,), "right"), node(4, 1, 3, (9,), "wrong"),
            node(5, 3, 4, (8,), "right"), node(6, 3, 4, (9,), "wrong"),
        )  # fmt: skip
        assert build_pairs([Tree(Question("?", "1", id="q"), (2, 3), nodes)], EVERYTHING)[0] == []


def test_the_report_adds_up() -> None:
    """Every step of a mixed group is in a pair of its kind or dropped for one reason."""
    trees = [bushy_tree(f"q{i}", i) for i in range(5)] + [
        group(*[("right", 0.3 * i, -i) for i in range(5)], *[("wrong", 0.2 * i, -i) for i in range(6)], name="wide")
    ]
    for settings in (EVERYTHING, PairSettings(), PairSettings(confident_from=0.8, unsure_to=0.1, per_group=1)):
        pairs, report = build_pairs(trees, settings)
        kinds = Counter(pair.kind for pair in pairs)
        assert report.pairs == {kind: kinds[kind] for kind in ("confident_wrong", "uncertain_right")}  # type: ignore[index]
        for label, kind in (("wrong", "confident_wrong"), ("right", "uncertain_right")):
            steps = sum(1 for t in trees for n in t.nodes if n.verdict and n.verdict.label == label)
            dropped = sum(n for reason, n in report.dropped.items() if reason.startswith(f"{label} step"))
            assert kinds[kind] + dropped == steps  # type: ignore[index]
        assert all(n > 0 for n in report.dropped.values())


def test_pure() -> None:
    """The same trees and settings give the same pairs and leave the trees alone."""
    trees = [bushy_tree(f"q{i}", i) for i in range(3)]
    assert build_pairs(trees, PairSettings()) == build_pairs(trees, PairSettings())
    assert all(same_tree(a, bushy_tree(f"q{i}", i)) for i, a in enumerate(trees))


def written(tmp_path: Path) -> tuple[Path, list[Tree], list[StepPair]]:
    trees = [bushy_tree(f"q{i}", i) for i in range(3)]
    pairs, _ = build_pairs(trees, EVERYTHING)
    write_pairs(tmp_path / "pairs.parquet", pairs, trees, tokenizer().decode)
    return tmp_path / "pairs.parquet", trees, pairs


def test_round_trip(tmp_path: Path) -> None:
    """Pairs are read back as they were (confidences in single precision), and only against their own trees."""
    file, trees, pairs = written(tmp_path)
    again = read_pairs(file, trees)
    assert brief(again) == brief(pairs)
    for a, b in zip(again, pairs, strict=True):
        assert (a.question_id, a.parent, a.weight) == (b.question_id, b.parent, b.weight)
        assert a.chosen_confidence == pytest.approx(b.chosen_confidence)
    with pytest.raises(DataError, match="not in the trees"):
        read_pairs(file, trees[:2])
    with pytest.raises(DataError, match="not in the trees"):
        read_pairs(file, [*trees[:2], group(("right", 0.1, -1), name="q2")])


def test_loads_in_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` reads the file; prompt, chosen and rejected are the texts of the tokens."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    file, trees, pairs = written(tmp_path)
    rows = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(pairs)
    by_id = {tree.question.id: tree for tree in trees}
    for row, pair in zip(rows, pairs, strict=True):
        tree = by_id[pair.question_id]
        assert row["prompt"] == tokenizer().decode(tree.prefix_ids(pair.parent))
        assert row["chosen"] == tokenizer().decode(tree.nodes[pair.chosen].step.token_ids)
        assert row["rejected"] == tokenizer().decode(tree.nodes[pair.rejected].step.token_ids)
        assert (row["kind"], row["judge"]) == (pair.kind, "test")


def test_trl_trains_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's DPOTrainer takes the loaded file without a change and makes a step."""
    trl: Any = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "1")
    file, _, pairs = written(tmp_path)
    rows = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, max_steps=1, save_strategy="no",
        per_device_train_batch_size=4, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.DPOTrainer(build("llama"), build("llama"), args=config, train_dataset=rows, processing_class=tokenizer())
    assert len(trainer.train_dataset) == len(pairs)
    assert trainer.train().global_step == 1
