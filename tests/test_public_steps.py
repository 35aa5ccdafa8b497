"""Files of labelled steps as they are published: rows like those of the public files, with what is odd in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caspo.core.errors import DataError
from caspo.core.rows import BadRows
from caspo.data.pairs import PairSettings, build_pairs
from caspo.formats import LabelledSolution, pairs_as_step_dpo, read_labelled, solutions_of, trees_as, trees_of, write_rows
from caspo.records import Label, Question, Tree
from tiny import tokenizer, trace

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
LOOSE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, *rows: dict[str, Any]) -> list[LabelledSolution]:
    write_rows(path, rows)
    return read_labelled(path)


def text_of(solution: LabelledSolution) -> str:
    return "".join(solution.steps)


def texts(tree: Tree) -> set[tuple[str, ...]]:
    """Every path of a tree."""
    return {solution.steps for solution in solutions_of(tree)}


# --- Step-DPO ---

BEFORE = "Let's think step by step.\nStep 1: There are 3 bags of 4 apples.\n\\[ 3 \\times 4 = 12 \\]\n\nThat is 12 apples.\n"
STEP_DPO = {
    "dataset": "MATH_Rephrased",
    "prompt": "Three bags hold 4 apples each. Two apples are eaten. How many are left?",
    "initial_reason_steps": f"{BEFORE}Step 2:",
    "chosen": " To find what is left,\n\nsubtract: 12 - 2 = 10.",
    "rejected": " To find what is left, add: 12 + 2 = 14.",
    "full_chosen": " To find what is left,\n\nsubtract: 12 - 2 = 10.\nStep 3: The answer is: 10",
    "full_rejected": " To find what is left, add: 12 + 2 = 14.\nStep 3: The answer is: 14",
    "answer": "10",
}
FIRST = {
    **STEP_DPO,
    "initial_reason_steps": "Let's think step by step.\nStep 1:",
    "chosen": " There are 3 bags of 4 apples.\n\\[ 3 \\times 4 = 12 \\]\n\nThat is 12 apples.",
    "rejected": " There are 3 apples.",
}
THIRD = {
    **STEP_DPO,
    "initial_reason_steps": f"{BEFORE}Step 2:{STEP_DPO['chosen']}\nStep 3:",
    "chosen": " The answer is: 10",
    "rejected": " The answer is: 2",
    "full_chosen": " The answer is: 10",
    "full_rejected": " The answer is: 2",
}


def test_step_dpo_headers_belong_to_their_step(tmp_path: Path) -> None:
    """The header at the end of a beginning is of the step to come; steps span paragraphs and are cut at headers."""
    chosen, rejected = read(tmp_path / "x.jsonl", STEP_DPO)
    assert text_of(chosen) == f"{BEFORE}Step 2:{STEP_DPO['chosen']}"
    assert [step.split()[:2] for step in chosen.steps] == [["Let's", "think"], ["Step", "1:"], ["Step", "2:"]]
    assert chosen.labels == ("right",) * 3
    assert rejected.steps == (*chosen.steps[:-1], "Step 2: To find what is left, add: 12 + 2 = 14.")
    assert (rejected.first_error, chosen.ended, rejected.ended) == (2, False, False)


@pytest.mark.parametrize(
    ("before", "chosen", "steps"),
    [
        ("Let's think step by step. \nStep 1:", " Add.", ("Let's think step by step. \n", "Step 1: Add.")),
        ("Let's think step by step. Step 1:", " Add.", ("Let's think step by step. Step 1: Add.",)),
        ("Let's think. Step 1: a\n\nb\nStep 16:", " c", ("Let's think. Step 1: a\n\nb\n", "Step 16: c")),
        ("Step 1: a\n\nStep 2: ", "c", ("Step 1: a\n\n", "Step 2: c")),
        ("Step 1: a\nStep 2:", "c", ("Step 1: a\n", "Step 2: c")),
        ("### Step 1: a\n**Step 2:**\nb\n", " c", ("### Step 1: a\n", "**Step 2:**\nb\n", "c")),
        ("We saw it in Step 1: so\n", "c", ("We saw it in Step 1: so\n", "c")),
        ("a\nb\n", " c", ("a\n", "b\n", "c")),
        ("", " c", ("c",)),
        (None, "c", ("c",)),
    ],
)
def test_beginnings_of_step_dpo(tmp_path: Path, before: str | None, chosen: str, steps: tuple[str, ...]) -> None:
    """With a header at the end or without, words before the first one, a wrong number, one space too few."""
    row = {**STEP_DPO, "initial_reason_steps": before, "chosen": chosen}
    assert read(tmp_path / "x.jsonl", row)[0].steps == steps


def test_step_dpo_goes_both_ways(tmp_path: Path) -> None:
    """Rows of one question are one tree, whose equal beginnings are one path; its pairs are the rows again."""
    rows = [STEP_DPO, FIRST, THIRD]
    solutions = read(tmp_path / "x.jsonl", *rows)
    assert [s.ended for s in solutions] == [False] * 4 + [True] * 2
    (tree,) = trees_of(solutions, tokenizer())
    assert len(tree.nodes) == 1 + 2 + 2 + 2
    nodes = tuple(replace(n, step=replace(n.step, trace=trace(len(n.step.token_ids)))) for n in tree.nodes)
    scored = [Tree(tree.question, tree.prompt_ids, nodes)]
    pairs, _ = build_pairs(scored, PairSettings(confident_from=0, unsure_to=1))
    again = pairs_as_step_dpo(pairs, scored, "MATH_Rephrased")
    assert sorted(again, key=str) == sorted(
        ({k: v for k, v in row.items() if not k.startswith("full")} for row in rows), key=str
    )


# --- Math-Shepherd ---

BODY = "Step 1: He sold 3 * 4 = <<3*4=12>>12. ки\nStep 2: So 12 + 2 = 14. ки\nStep 3: The answer is: 14 ки"
STEPS = ("Step 1: He sold 3 * 4 = <<3*4=12>>12.\n", "Step 2: So 12 + 2 = 14.\n", "Step 3: The answer is: 14")


def shepherd(text: str, signs: str) -> dict[str, Any]:
    """A row of which ``label`` is ``input`` with the signs in the place of the tags."""
    *parts, rest = text.split("ки")
    return {"input": text, "label": "".join(f"{p}{s}" for p, s in zip(parts, signs, strict=True)) + rest, "task": "GSM8K"}


@pytest.mark.parametrize(
    ("text", "signs", "question", "steps", "labels"),
    [
        (f"How many? {BODY}", "+--", "How many?", STEPS, "+--"),
        (f"How many?{BODY}", "+--", "How many?", STEPS, "+--"),
        (f"How many? {BODY.replace('S', 's')}", "+--", "How many?", tuple(s.replace("S", "s") for s in STEPS), "+--"),
        (f"As in Step 1: how many? {BODY}", "+--", "As in Step 1: how many?", STEPS, "+--"),
        (f"How many? {BODY.removesuffix(' ки')}", "+-", "How many?", STEPS, "+-?"),
        ("How many? Is it 3? He has 3. ки\nSo 3 ки", "+-", "How many? Is it 3?", ("He has 3.\n", "So 3"), "+-"),
        (f"How many? ки\n{BODY}", "-+++", "How many?", STEPS, "+++"),
        (f"Find the number. ки\n{BODY}", "-+++", "Find the number.", STEPS, "+++"),
        ("Find the sum of 1 and 3. ки\nStep 2: It is 4. ки", "++", "Find the sum of 1 and 3.", ("Step 2: It is 4.",), "+"),
    ],
)
def test_math_shepherd_variants(
    tmp_path: Path, text: str, signs: str, question: str, steps: tuple[str, ...], labels: str
) -> None:
    """A small "step 1:", no mark at all, no tag behind the last step, a tag behind the question."""
    (solution,) = read(tmp_path / "x.jsonl", shepherd(text, signs))
    assert (solution.question.text, solution.steps) == (question, steps)
    assert "".join({"right": "+", "wrong": "-", "unknown": "?"}[label] for label in solution.labels) == labels


def test_math_shepherd_without_tag_but_with_sign(tmp_path: Path) -> None:
    """The last step's label is in ``label`` then."""
    row = shepherd(f"How many? {BODY}", "+--")
    (solution,) = read(tmp_path / "x.jsonl", {**row, "input": row["input"].removesuffix(" ки")})
    assert solution.labels == ("right", "wrong", "wrong")


def test_math_shepherd_goes_both_ways(tmp_path: Path) -> None:
    """Headers are not doubled; a row without a task is read; rows whose tags and labels differ in number are named."""
    row = shepherd(f"How many? {BODY}", "+--")
    solutions = read(tmp_path / "x.jsonl", {k: v for k, v in row.items() if k != "task"})
    assert trees_as("math_shepherd", trees_of(solutions)).rows == [{**row, "task": "all"}]
    short = {**row, "label": row["label"].removesuffix("\nStep 3: The answer is: 14 -")}
    write_rows(tmp_path / "y.jsonl", [row, short])
    with pytest.raises(DataError, match="line 2: 'label' does not end step 3"):
        read_labelled(tmp_path / "y.jsonl")
    bad = BadRows()
    assert len(read_labelled(tmp_path / "y.jsonl", bad)) == 1
    assert len(bad.found) == 1


# --- PRM800K ---


def prm800k(steps: object, reason: str = "give_up", **more: object) -> dict[str, Any]:
    question = {"problem": "How many?", "ground_truth_answer": "5", "pre_generated_steps": None}
    return {
        "labeler": "x",
        "generation": 3,
        "question": question,
        "label": {"steps": steps, "finish_reason": reason, **more},
    }


def completions(*rated: tuple[str, int | None], **more: object) -> dict[str, Any]:
    given = [{"text": text, "rating": rating, "flagged": None} for text, rating in rated]
    return {"completions": given or None, "human_completion": None, "chosen_completion": None, **more}


def test_prm800k_rows_without_steps(tmp_path: Path) -> None:
    """They are no fault: they are counted. A file of nothing else has nothing to read."""
    none = [prm800k([]), prm800k(None, "bad_problem"), prm800k([completions()]), prm800k([completions()], total_time=3)]
    file, empty = tmp_path / "x.jsonl", list[str]()
    write_rows(file, [none[0], prm800k([completions(("a", 1), chosen_completion=0)], "solution"), *none[1:]])
    assert [s.steps for s in read_labelled(file, empty=empty)] == [("a",)]
    assert [where.rpartition(", ")[2] for where in empty] == ["line 1", "line 3", "line 4", "line 5"]
    write_rows(file, none)
    for bad in (None, BadRows()):
        with pytest.raises(DataError, match="holds no labelled solution"):
            read_labelled(file, bad)


def test_prm800k_completions(tmp_path: Path) -> None:
    """The labeller's step as text or object; ratings of null; nothing chosen, of one completion or of several."""
    steps = [
        completions(("w", -1), human_completion="h"),
        completions(("x", -1), human_completion={"text": "i", "rating": None, "source": "human", "flagged": False}),
        completions(("n", None), human_completion={"text": ""}),
        completions(("a", 1), ("b", -1)),
        completions(("never reached", 1)),
    ]
    main, *others = read(tmp_path / "x.jsonl", prm800k(steps))
    assert (main.steps, main.labels) == (("h\n", "i\n", "n\n", "a"), ("right", "right", "unknown", "right"))
    assert [o.steps for o in others] == [("w",), ("h\n", "x"), ("h\n", "i\n", "n\n", "b")]


def test_the_command_counts_rows_without_steps(caspo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """On stderr, with the first place; they are no bad rows, so nothing has to be skipped."""
    write_rows(tmp_path / "x.jsonl", [prm800k([completions(("a", 1))]), prm800k([]), prm800k(None)])
    code, _, told = caspo("export", tmp_path / "x.jsonl", "--format", "trl_stepwise", "--out", tmp_path / "y.jsonl")
    assert code == 0
    assert "2 rows had no steps" in told
    assert "line 2" in told


# --- TRL ---

TRL = {
    "prompt": "Which number is larger, 9.8 or 9.11?",
    "completions": ["The fractional part of 9.8 is 0.8.", "That of 9.11 is 0.11.", "0.11 is greater.", "So 9.11 > 9.8."],
    "labels": [True, True, False, False],
}


def test_trl_stepwise(tmp_path: Path) -> None:
    """Every completion has its label; a solution that states no answer did not end; a row without steps is none."""
    right = {**TRL, "completions": ["9.8 > 9.11", "# Answer\n\n9.8"], "labels": [1, 1]}
    wrong, ended = read(tmp_path / "x.jsonl", TRL, right, {**TRL, "completions": [], "labels": []})
    assert (wrong.question.text, wrong.first_error, wrong.ended) == (TRL["prompt"], 2, False)
    assert wrong.labels == ("right", "right", "wrong", "wrong")
    assert (ended.steps, ended.ended) == (("9.8 > 9.11\n", "# Answer\n\n9.8"), True)
    for labels in ([True], [True, False, None, True], "yes"):
        with pytest.raises(DataError, match="true or false for each of the 4 completions"):
            read(tmp_path / "y.jsonl", {**TRL, "labels": labels})
    with pytest.raises(DataError, match="'prompt' is of type list"):
        read(tmp_path / "y.jsonl", {**TRL, "prompt": [{"role": "user", "content": "?"}]})


def test_trees_as_trl_stepwise(tmp_path: Path) -> None:
    """A path is written up to its first wrong step or before its first unknown one; no record is another's beginning."""
    question = Question("Q?", "5", id="q")
    labelled: list[tuple[tuple[str, ...], tuple[Label, ...]]] = [
        (("a\n\n", "b\n", "c"), ("right", "right", "right")),
        (("a\n\n", "x\n", "y"), ("right", "wrong", "unknown")),
        (("a\n\n", "x\n", "z"), ("right", "wrong", "unknown")),
        (("a\n\n", "u\n", "v"), ("right", "unknown", "right")),
        (("n",), ("unknown",)),
    ]
    found = [LabelledSolution(f"{i}", question, steps, labels, "all") for i, (steps, labels) in enumerate(labelled)]
    exported = trees_as("trl_stepwise", trees_of(found))
    assert exported.dropped == {"no step of it is known": 1}
    assert exported.rows == [
        {"prompt": "Q?", "completions": ["a", "b", "c"], "labels": [True, True, True]},
        {"prompt": "Q?", "completions": ["a", "x"], "labels": [True, False]},
    ]
    again = trees_of(read(tmp_path / "x.jsonl", *exported.rows))
    assert trees_as("trl_stepwise", again).rows == exported.rows


def test_one_known_step_before_an_unknown_one_is_written() -> None:
    """What follows is not known to be right, but the step is."""
    found = [LabelledSolution("a", Question("Q?", "5", id="q"), ("a", "u", "v"), ("right", "unknown", "right"), "all")]
    assert [row["completions"] for row in trees_as("trl_stepwise", trees_of(found)).rows] == [["a"]]


# --- what stands between steps ---


def test_what_stood_between_steps_is_kept(tmp_path: Path) -> None:
    """Blank lines in ProcessBench, line breaks in PRM800K and TRL; where nothing says it, as the steps look."""
    steps, labels = ["one", "two", "three\n\nmore"], [True] * 3
    rows: dict[str, dict[str, Any]] = {
        "\n\n": {"id": "gsm8k-1", "problem": "Q?", "steps": ["one\r\n", "\ntwo\n\n\n", steps[2]], "label": -1},
        "\n": {"prompt": "Q?", "completions": steps, "labels": labels},
    }
    for between, row in rows.items():
        (solution,) = read(tmp_path / "x.jsonl", row)
        assert text_of(solution) == between.join(steps)
        (tree,) = trees_of([solution])
        assert texts(tree) == {solution.steps if solution.ended else (*solution.steps[:-1], f"{solution.steps[-1]}\n")}
    plain = {"question": "Q?", "first_error": -1}
    for written, text in (
        (["a", "b", "c"], "a\nb\nc"),
        (["We add:\n- 2\n- 3", "So 5.", "Done."], "We add:\n- 2\n- 3\n\nSo 5.\n\nDone."),
        (["a\n\n", "b"], "a\n\nb"),
        (["a\n\n", "  b", "c"], "a\n\n  b\nc"),
        (["One. ", "Two.\r", "Three."], "One.\nTwo.\nThree."),
    ):
        assert text_of(read(tmp_path / "x.jsonl", {**plain, "steps": written})[0]) == text


BLANK = st.sampled_from(["\n", "\n\n", " ", "\n \n", "\r\n"])
LINE = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=5)
STEP = st.builds("{}{}".format, st.sampled_from(["", "  "]), st.lists(LINE, min_size=1, max_size=3).map("\n".join))


@LOOSE
@given(st.lists(st.tuples(STEP, BLANK), min_size=1, max_size=5), STEP)
def test_plain_steps_keep_every_character(tmp_path: Path, first: list[tuple[str, str]], last: str) -> None:
    """Trees to the project's own format and back: the text is the same, whatever stands between its steps."""
    steps = (*(step + between for step, between in first), last)
    found = [LabelledSolution("a", Question("Q?", "5", id="q"), steps, ("right",) * len(steps), "all")]
    (again,) = read(tmp_path / "x.jsonl", *trees_as("steps", trees_of(found)).rows)
    assert again.steps == steps


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    """Files from Windows: a mark at the beginning, CRLF behind the rows and within a text of steps."""
    row = {"question": "Q?", "model_output_steps": "a\r\n\r\n  b\r\nc", "model_output_solution_first_error_step": 2}
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n")
    (solution,) = read_labelled(tmp_path / "x.jsonl")
    assert [step.strip() for step in solution.steps] == ["a", "b", "c"]
    assert solution.steps[1].startswith("  b"), "indentation is code's"
    assert solution.first_error == 1


@pytest.mark.skipif(not SHARED.exists(), reason="needs the public files")
def test_processbench_goes_both_ways(tmp_path: Path) -> None:
    """Real rows come back, and their text is that of paragraphs."""
    rows = [json.loads(line) for line in (SHARED / "processbench_steps.jsonl").read_text(encoding="utf-8").splitlines()][
        :300
    ]
    public = [{"id": f"{r['id']}", "problem": r["question"], "steps": r["steps"], "label": r["first_error"]} for r in rows]
    found = read(tmp_path / "x.jsonl", *public)
    assert [text_of(s) for s in found] == ["\n\n".join(s.strip() for s in r["steps"]) for r in rows]
    exported = trees_as("processbench", trees_of(found))

    def said(rows: list[dict[str, Any]]) -> set[tuple[str, str, int]]:
        """Up to white space: equal questions and steps are one node of a tree."""
        return {(" ".join(r["problem"].split()), " ".join(" | ".join(r["steps"]).split()), r["label"]) for r in rows}

    assert not exported.dropped
    assert said(exported.rows) == said(public)
