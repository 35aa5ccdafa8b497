"""Out to the formats of the field and back: what they can hold survives, what they cannot is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caspo.data.pairs import PairSettings, build_pairs
from caspo.engines.prompts import INSTRUCTION
from caspo.formats import (
    LabelledSolution,
    pairs_as_step_dpo,
    read_labelled,
    read_solutions,
    solutions_of,
    trees_as,
    trees_of,
    write_rows,
)
from caspo.formats.math_shepherd import with_headers
from caspo.formats.parquet import read_trees, write_trees
from caspo.records import Label, Question, Tree
from small_tokenizers import CHATML, made
from tiny import build, tokenizer

# A step is a line of visible text; the marks of Math-Shepherd are tested apart.
WORDS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="ки"), min_size=1, max_size=6)
STEP = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)


@st.composite
def solutions(draw: st.DrawFn, *, whole: bool) -> list[LabelledSolution]:
    """Solutions of a few questions; ``whole``: each is known up to its end or to its first error, and ended."""
    found = []
    for q in range(draw(st.integers(1, 3))):
        question = Question(f"{draw(STEP)} number {q}?", draw(WORDS), id=f"q{q}")
        for number in range(draw(st.integers(1, 3))):
            # Texts that differ in the step's number and the solution's: no two merge with other labels.
            steps = tuple(f"{draw(STEP)} {number}{place}" for place in range(draw(st.integers(1, 4))))
            first = draw(st.none() | st.integers(0, len(steps) - 1))
            labels: list[Label] = ["right"] * len(steps)
            if first is not None:
                labels[first:] = ["wrong", *["unknown"] * (len(steps) - first - 1)]  # type: ignore[list-item]
            ended = whole or draw(st.booleans())
            found.append(LabelledSolution(f"q{q}/{number}", question, steps, tuple(labels), "all", ended))
    return found


def known(solution: LabelledSolution, name: str = "") -> tuple[object, ...]:
    """What every format of whole solutions holds; Math-Shepherd's steps have headers."""
    steps = [step.strip() for step in solution.steps]
    steps = with_headers(steps) if name == "math_shepherd" else steps
    return (solution.question.text, tuple(steps), solution.first_error)


LOOSE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", ["processbench", "math_shepherd", "steps"])
@LOOSE
@given(data=st.data())
def test_whole_solutions_come_back(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Labelled solutions to trees, to the format, and back: question, steps and first error are the same."""
    found = data.draw(solutions(whole=True))
    exported = trees_as(name, trees_of(found))
    assert not exported.dropped
    write_rows(tmp_path / "x.jsonl", exported.rows)
    again = read_labelled(tmp_path / "x.jsonl")
    assert sorted(map(known, again), key=repr) == sorted({known(s, name) for s in found}, key=repr)
    if name != "math_shepherd":
        assert {s.subset for s in again} == {"all"}


@LOOSE
@given(solutions(whole=False))
def test_prm800k_comes_back(tmp_path: Path, found: list[LabelledSolution]) -> None:
    """A tree's siblings stay its siblings, each with its verdict; what follows a wrong step stays unrated."""
    trees = trees_of(found)
    write_rows(tmp_path / "x.jsonl", trees_as("prm800k", trees).rows)
    again = trees_of(read_labelled(tmp_path / "x.jsonl"))
    for tree, other in zip(sorted(trees, key=_text), sorted(again, key=_text), strict=True):
        assert verdicts(tree) == verdicts(other)


def _text(tree: Tree) -> str:
    return tree.question.text


def verdicts(tree: Tree) -> dict[tuple[str, ...], str]:
    """Every path that is judged, with the verdict on its last step."""
    return {
        tuple(n.step.text.strip() for n in tree.path(node.id)): node.verdict.label
        for node in tree.nodes
        if node.verdict is not None
    }


@LOOSE
@given(solutions(whole=False))
def test_trees_keep_their_solutions(tmp_path: Path, found: list[LabelledSolution]) -> None:
    """Imported with a tokenizer: every step's tokens give its text, EOS ends what ended, and the file is read back."""
    trees = trees_of(found, tokenizer())
    write_trees(tmp_path / "x.parquet", trees)
    for tree, again in zip(trees, read_trees(tmp_path / "x.parquet"), strict=True):
        assert (tree.prompt_ids, verdicts(tree)) == (again.prompt_ids, verdicts(again))
        for node in again.nodes:
            assert tokenizer().decode(node.step.token_ids, skip_special_tokens=True) == node.step.text
            assert node.final == (node.step.token_ids[-1] == tokenizer().eos_token_id)
            assert node.step.trace.kind == "none"
    assert sorted(map(known, read_solutions(tmp_path / "x.parquet"))) == sorted(
        {known(s) for s in found if not _inner(s, found)}
    )


def _inner(one: LabelledSolution, found: list[LabelledSolution]) -> bool:
    """Whether it is the beginning of another one of the same question."""
    return any(
        one.question == o.question and len(o.steps) > len(one.steps) and o.steps[: len(one.steps)] == one.steps
        for o in found
    )


def test_what_a_format_cannot_hold_is_counted() -> None:
    """An unknown step, and a right path that did not end; the plain format keeps the latter and says so."""
    question = Question("Q?", "5", id="q")
    paths = [
        LabelledSolution("a", question, ("x", "y"), ("right", "unknown"), "all"),
        LabelledSolution("b", question, ("x", "z"), ("right", "right"), "all", False),
        LabelledSolution("c", question, ("x", "w"), ("right", "wrong"), "all", False),
    ]
    trees = trees_of(paths)
    for name in ("processbench", "math_shepherd"):
        exported = trees_as(name, trees)
        assert exported.dropped == {"a step is unknown": 1, "right so far, but not at its end": 1}
        assert len(exported.rows) == 1
    exported = trees_as("steps", trees)
    assert exported.dropped == {"a step is unknown": 1}
    assert [row["meta"]["ended"] for row in exported.rows] == [False, False]


def test_texts_with_marks_of_math_shepherd_are_counted() -> None:
    """Such a record could not be read back; a word that merely ends in the tag's letters is fine."""
    question = Question("Q?", "5", id="q")
    texts = ("a ки b", "as in Step 1: 5", "Step 1: 5, and step 1: 6", "щенки")
    found = [LabelledSolution(text, question, (text,), ("right",), "all") for text in texts]
    exported = trees_as("math_shepherd", trees_of(found))
    assert exported.dropped == {"a text holds a mark of the format": 3}
    assert [row["input"] for row in exported.rows] == ["Q? Step 1: щенки ки"]


def test_labels_that_disagree_become_unknown() -> None:
    """In a tree as in the judge."""
    question = Question("Q?", "5", id="q")
    labels: list[Label] = ["right", "wrong"]
    paths = [LabelledSolution(label, question, ("x",), (label,), "all") for label in labels]
    (tree,) = trees_of(paths)
    assert [node.verdict.label for node in tree.nodes if node.verdict] == ["unknown"]
    assert tree.nodes[0].count == 2


def test_pairs_as_step_dpo_come_back(tmp_path: Path) -> None:
    """Prefix, chosen and rejected step of every pair; read as labelled beginnings and made into trees, they pair again."""
    question = Question("How many?", "5", id="q")
    paths = [
        LabelledSolution("a", question, ("one", "two", "five"), ("right",) * 3, "all"),
        LabelledSolution("b", question, ("one", "two", "six"), ("right", "right", "wrong"), "all"),
        LabelledSolution("c", question, ("one", "bad"), ("right", "wrong"), "all"),
    ]
    trees = [_scored(tree) for tree in trees_of(paths, tokenizer())]
    pairs, _ = build_pairs(trees, PairSettings(confident_from=0, unsure_to=1))
    rows = pairs_as_step_dpo(pairs, trees)
    assert {(r["initial_reason_steps"], r["chosen"], r["rejected"]) for r in rows} == {
        ("one\n", "two", "bad"),
        ("one\ntwo\n", "five", "six"),
    }
    assert {(r["prompt"], r["answer"]) for r in rows} == {("How many?", "5")}
    write_rows(tmp_path / "x.jsonl", rows)
    again = trees_of(read_labelled(tmp_path / "x.jsonl"))
    assert verdicts(again[0]) == verdicts(trees[0])


def _scored(tree: Tree) -> Tree:
    """With made-up entropies, as `caspo annotate --rescore` would give."""
    from dataclasses import replace

    from tiny import trace

    nodes = tuple(replace(n, step=replace(n.step, trace=trace(len(n.step.token_ids)))) for n in tree.nodes)
    return Tree(tree.question, tree.prompt_ids, nodes)


def test_line_separators_stay_inside_their_record(tmp_path: Path) -> None:
    """U+2028 and its like are escaped, so that `splitlines` counts records."""
    write_rows(tmp_path / "x.jsonl", [{"a": "x\u2028y\x85z"}])
    assert len((tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_solutions_of_an_annotated_tree() -> None:
    """Every path to a node that nothing follows; what follows a wrong step is unknown."""
    question = Question("Q?", "5", id="q", meta={"level": 2})
    paths = [
        LabelledSolution("a", question, ("x", "y"), ("wrong", "unknown"), "all"),
        LabelledSolution("b", question, ("z",), ("right",), "all"),
    ]
    (tree,) = trees_of(paths)
    found = solutions_of(tree)
    assert [(s.first_error, s.labels, s.subset) for s in found] == [
        (0, ("wrong", "unknown"), "level 2"),
        (None, ("right",), "level 2"),
    ]


@pytest.mark.parametrize(
    ("steps", "thinking"),
    [
        (("<think>\n2 + 3 = 5.\n\n", "So 5.\n</think>\n\n", "The answer is 5."), [True, True, False]),
        (("2 + 3 = 5.\n\n", "So 5.\n</think>\n\n", "The answer is 5."), [True, True, False]),
        (("Well.\n\n", "[THINK]2 + 3 = 5.\n", "The answer is 5."), [False, True, True]),
        (("2 + 3 = 5.\n", "The answer is 5."), [False, False]),
        (
            (
                "<|channel|>analysis<|message|>2 + 3.\n",
                "<|end|><|start|>assistant<|channel|>final<|message|>The answer is 5.",
            ),
            [True, False],
        ),
    ],
)
def test_imported_steps_in_thinking_are_marked(steps: tuple[str, ...], thinking: list[bool]) -> None:
    labels: tuple[Label, ...] = ("right",) * len(steps)
    (tree,) = trees_of([LabelledSolution("s", Question("2 + 3?", "5"), steps, labels, "all", True)])
    assert [node.step.thinking for node in tree.nodes] == thinking


def test_imported_steps_are_written_as_the_model_would_write_them() -> None:
    """A space before the first step and before no other one; the end of a turn as the template has it; the instruction."""
    given_ = made("sentencepiece", CHATML, eos="<|endoftext|>")
    found = LabelledSolution("a", Question("Q?", "5", id="q"), ("2 + 3 = 5", "It is 5."), ("right", "right"), "all")
    (tree,) = trees_of([found], given_, "Be brief.")
    first, second = (given_.convert_ids_to_tokens(list(node.step.token_ids)) for node in tree.nodes)
    assert first[0].startswith("▁")
    assert not second[0].startswith("▁")
    assert second[-1] == "<|im_end|>"
    assert "Be brief." in given_.decode(tree.prompt_ids)


def test_import_takes_the_instruction_of_the_recipe(tmp_path: Path, caspo: Callable[..., tuple[int, str, str]]) -> None:
    row = {"id": "a", "question": "Q?", "steps": ["2 + 3 = 5", "It is 5."], "first_error": -1}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    model = tmp_path / "model"
    tokenizer().save_pretrained(model)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    build("llama").save_pretrained(model)
    for given_, wanted in (((), INSTRUCTION), (("--instruction", "Be brief."), "Be brief."), (("--instruction", ""), "")):
        out = tmp_path / "trees.parquet"
        code, _, err = caspo("import", tmp_path / "a.jsonl", "--model", model, "--out", out, *given_)
        assert code == 0, err
        (tree,) = read_trees(out)
        assert tokenizer().decode(tree.prompt_ids) == (f"{wanted}\nQ?\n" if wanted else "Q?\n")
