"""The reference judge reads what a step says: who, what and how many. Steps are what the bundled models wrote."""

from __future__ import annotations

import re
from functools import cache

import pytest

from caspo.judges.base import Chain
from caspo.judges.reference import ReferenceJudge
from caspo.records import Question
from caspo.steps import equations, split_steps
from caspo.tasks.stories import StoriesTask
from caspo.tasks.stories_scenes import NAMES

JUDGE = ReferenceJudge()


@cache
def problem(levels: tuple[int, ...], at: int) -> Question:
    return StoriesTask(levels).questions("train", at + 1, seed=1000)[at]


def told(question: Question, *steps: str) -> str:
    (verdicts,) = JUDGE.judge([Chain(question, steps, False, len(steps) - 1)])
    return verdicts[0].label


TINY, SMOL = (1, 2, 3), (1, 2)

# Written by the models, labelled by reading the problem. Unknown: what it says may be so, but is not plain.
READ: list[tuple[tuple[int, ...], int, tuple[str, ...], str, str]] = [
    # toys for 12 dollars: what is bought, what it costs
    (TINY, 286, (), "The toys cost 3 * 4 = 12 dollars.", "right"),
    (TINY, 119, ("The toys cost 2 * 12 = 24 dollars.", "With the hat it is 24 + 4 = 28 dollars."),
     "After the coupon it is 28 - 8 = 20 dollars.", "right"),
    (TINY, 29, ("After planting there are 9 + 18 = 27 roses.", "The goats eat 5 * 3 = 15 roses."),
     "The goats leave 27 - 15 = 12 roses.", "right"),
    (TINY, 29, ("After planting there are 9 + 18 = 27 roses.",), "The garden has 2 * 9 = 18 roses.", "unknown"),
    (TINY, 215, (), "Nina keeps 14 / 2 = 7 cookies.", "right"),
    (TINY, 251, (), "Sam has 8 + 11 = 19 marbles.", "right"),
    (TINY, 251, (), "Nina has 8 + 11 = 19 marbles.", "wrong"),
    (TINY, 177, (), "After the storm there are 18 - 8 = 10 bushes.", "right"),
    (TINY, 50, ("The notebooks cost 3 * 9 = 27 dollars.", "After the coupon it is 27 - 25 = 2 dollars."),
     "The pens cost 4 * 5 = 20 dollars.", "right"),
    (TINY, 82, (), "The workshop makes 4 * 3 = 12 chairs.", "right"),
    (TINY, 52, ("After the storm there are 20 - 8 = 12 tulips.", "Doubled, that is 2 * 12 = 24 tulips."),
     "Each bed has 24 / 4 = 6 tulips.", "right"),
    (TINY, 102, ("The workshop makes 7 * 3 = 21 toys.",), "There are 21 - 4 = 17 good toys.", "right"),
    (TINY, 115, (), "Kofi has 6 * 4 = 24 coins.", "wrong"),
    (TINY, 273, (), "Eva keeps 10 / 2 = 5 nuts.", "wrong"),
    (TINY, 247, (), "After giving some away, Rosa has 24 - 8 = 16 pears.", "wrong"),
    (TINY, 111, (), "Lily makes 3 * 6 = 18 kites.", "wrong"),
    (TINY, 274, (), "The bags hold 2 * 3 = 6 apples.", "wrong"),
    (TINY, 66, (), "Ben has 5 * 6 = 30 cards.", "wrong"),
    (TINY, 85, (), "After giving some away, Ana has 25 - 8 = 19 candies.", "wrong"),
    (TINY, 139, ("After the storm there are 20 - 15 = 5 roses.", "The new rows have 3 * 6 = 18 roses."),
     "In all there are 7 + 15 = 22 roses.", "wrong"),
    (TINY, 293, (), " keeps 18 / 2 = 9 pencils.", "unknown"),
    (TINY, 187, (), " pays 10 / 2 = 5 beads.", "unknown"),
    (TINY, 242, (), " stand has 9 - 5 = 4 cards.", "unknown"),
    (TINY, 142, ("The friends get 2 * 6 = 12 nuts.",), "Carl change is 22 - 12 = 10 nuts.", "unknown"),
    (TINY, 297, ("The toys cost 7 * 3 = 21 dollars.",), "After the balloons.", "unknown"),
    # SmolLM2 words things in its own way
    (SMOL, 195, (), "Dina has 2 * 4 = 8 marbles.", "right"),
    (SMOL, 195, (), "Diana has 2 * 4 = 8 marbles.", "wrong"),
    (SMOL, 244, ("Ben has 23 - 7 = 16 pencils.",), "The piles hold 16 / 8 = 2 pencils each.", "right"),
    (SMOL, 75, (), "Ben has 18 + 9 = 27 marbles.", "right"),
    (SMOL, 287, ("After the loss Kofi has 29 - 12 = 17 cookies.", "With the ones Kofi has, it is 17 + 9 = 26 cookies."),
     "Kofi has 26 - 10 = 16 cookies.", "right"),
    (SMOL, 287, (), "The lost cookies are 29 - 12 = 17 cookies.", "unknown"),
    (SMOL, 189, (), "Ben makes 6 * 3 = 18 candles.", "right"),
    (SMOL, 82, (), "Charlie makes 6 * 3 = 18 mugs.", "wrong"),
    (SMOL, 273, ("The notebooks cost 3 * 5 = 15 dollars.",), "After the coupon it is 15 - 4 = 11 dollars.", "right"),
    (SMOL, 191, (), "Ella keeps 9 + 3 = 12 pencils.", "wrong"),
    (SMOL, 202, ("Nina has 3 * 4 = 12 buttons.",), "Linus has 12 - 4 = 8 more buttons than Rosa.", "wrong"),
    (SMOL, 202, ("Nina has 3 * 4 = 12 buttons.",), "Nina has 12 - 4 = 8 more buttons than Rosa.", "right"),
    (SMOL, 202, ("Nina has 3 * 4 = 12 buttons.",), "Rosa has 12 - 4 = 8 fewer buttons than Nina.", "right"),
    (SMOL, 202, ("Nina has 3 * 4 = 12 buttons.",), "Rosa has 12 - 4 = 8 more buttons than Nina.", "wrong"),
    (SMOL, 202, ("Nina has 3 * 4 = 12 buttons.",), "Nina has 12 - 4 = 8 buttons.", "wrong"),
    (SMOL, 81, ("Eva has 4 * 5 = 20 coins.",), "Eva has 20 - 5 = 15 coins.", "unknown"),
    (SMOL, 204, (), "Carl buys 2 * 12 = 24 notebooks.", "wrong"),
    (SMOL, 204, (), "The notebooks cost 2 * 12 = 24 dollars.", "right"),
    (SMOL, 204, (), "The notebooks cost 2 * 12 = $24.", "right"),
    (SMOL, 80, (), "Sam buys 5 * 6 = 30 notebooks.", "wrong"),
    (SMOL, 92, ("The workshop makes 3 * 4 = 12 toys.",), "One of those toys breaks.", "unknown"),
    (SMOL, 108, ("Paul makes 2 * 3 = 6 lamps.",), "After the gift there are 6 + 14 = 20 lamps.", "unknown"),
    (SMOL, 288, (), "There are 23 + 15 = 38 good candies.", "right"),
    (SMOL, 158, (), "Out of those found, 3 * 4 = 12 feet.", "wrong"),
    (SMOL, 262, (), "Carl's pears bring down 16 / 2 = 8 pears.", "unknown"),
    (SMOL, 302, (), "With the ones, Eva has 3 * 10 = 30 apples.", "unknown"),
    (SMOL, 230, (), "After the coupon 3 * 9 = 27 dollars.", "unknown"),
    (SMOL, 96, (), "The number of bushes is 10 + 10 = 20.", "right"),
    (SMOL, 213, (), "Elella has 30 / 2 = 15 beads.", "wrong"),
    (SMOL, 194, (), "The garden contains 29 * 2 = 58 tulips.", "unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("levels", "at", "prefix", "step", "label"), READ, ids=lambda value: str(value)[:40])
def test_steps_that_models_wrote(levels: tuple[int, ...], at: int, prefix: tuple[str, ...], step: str, label: str) -> None:
    """As somebody who has the problem before them would say."""
    question = problem(levels, at)
    assert told(question, *prefix, step) == label, question.text


SAMPLE = [q for split in ("train", "test_out") for q in StoriesTask(range(1, 6)).questions(split, 60, seed=21)]


def test_nobody_and_nothing_that_is_not_in_the_problem() -> None:
    """Another name, another thing, the two in a comparison turned round: wrong at every step of every solution."""
    for question in SAMPLE:
        lines = [line.strip() for line in split_steps(question.solution or "")][:-1]
        for at, line in enumerate(lines):
            (equation,) = equations(line)
            end = equation.span[1]
            names = [name for name in NAMES if re.search(rf"\b{name}\b", line)]
            absent = next(name for name in NAMES if name not in question.text)
            changed = [re.sub(rf"\b{name}\b", other, line) for name in names for other in ("Napoleon", absent)]
            others = [name for name in NAMES if re.search(rf"\b{name}\b", question.text) and name not in names]
            changed += [re.sub(rf"\b{name}\b", other, line) for name in names for other in others]
            if len(names) == 2 and "than" in line:
                first, second = names
                changed.append(re.sub(rf"{first}|{second}", lambda m, a=first, b=second: b if m[0] == a else a, line))  # type: ignore[misc]
            if thing := re.match(r" (?:good |more )?([a-z]+)", line[end:]):
                others = [t for t in ("bananas", "elephants", "hens", "minutes", "stamps") if t != thing[1]]
                changed += [line[:end] + line[end:].replace(thing[1], other, 1) for other in others if thing[1] != "from"]
            for wrong in changed:
                assert told(question, *lines[:at], wrong) == "wrong", (question.text, wrong)


@pytest.mark.parametrize("form", ["So {}", "Then {}", "First, {}", "Therefore, {}", "We see that {}", "- {}", "Step 2: {}"])
def test_other_words_for_the_same(form: str) -> None:
    for question in SAMPLE[::3]:
        lines = [line.strip() for line in split_steps(question.solution or "")][:-1]
        for at, line in enumerate(lines):
            small = line if line.split()[0] in question.text.split() else line[0].lower() + line[1:]
            assert told(question, *lines[:at], form.format(small)) == "right", (question.text, form.format(small))
            (equation,) = equations(line)
            assert told(question, *lines[:at], f"That is {line[slice(*equation.span)]}.") == "right"


def test_two_events_in_another_order() -> None:
    """Told as the solution tells them: what is found before what is lost. And two steps in one."""
    seen = 0
    for question in StoriesTask((2, 3, 4)).questions("train", 150, seed=77):
        lines = [line.strip() for line in split_steps(question.solution or "")][:-1]
        if question.meta["scene"] == "collection":
            continue
        for at in range(len(lines) - 1):
            (a,), (b,) = equations(lines[at]), equations(lines[at + 1])
            changed = lines.copy()
            if b.numbers[0] == a.result:
                first, second, rest = *a.numbers, b.numbers[1]
                whole = f"({first} {a.expression[0]} {second}) {b.expression[0]} {rest} = {b.result}"
                joined = lines[at + 1][: b.span[0]] + whole + lines[at + 1][b.span[1] :]
                assert told(question, *lines[:at], joined) == "right", (question.text, joined)
            given = {q["value"] for q in question.meta["quantities"] if q["kind"] == "given"}
            both = a.numbers[1] in given and b.numbers[1] in given and b.numbers[0] == a.result
            if not both or {a.expression[0], b.expression[0]} - {"+", "-"}:
                continue
            middle = a.numbers[0] + (b.numbers[1] if b.expression[0] == "+" else -b.numbers[1])
            if middle <= 0:
                continue
            new = [f"{a.numbers[0]} {b.expression[0]} {b.numbers[1]} = {middle}",
                   f"{middle} {a.expression[0]} {a.numbers[1]} = {b.result}"]  # fmt: skip
            changed[at] = lines[at + 1][: b.span[0]] + new[0] + lines[at + 1][b.span[1] :]
            changed[at + 1] = lines[at][: a.span[0]] + new[1] + lines[at][a.span[1] :]
            (verdicts,) = JUDGE.judge([Chain(question, tuple(changed), False)])
            assert [v.label for v in verdicts] == ["right"] * len(lines), (question.text, changed, verdicts)
            seen += 1
    assert seen > 25


def test_a_capital_alone_is_no_name() -> None:
    """Headings, days and beginnings of sentences; a name stands in mid-sentence or does something."""
    question, cost = problem(SMOL, 204), "2 * 12 = 24 dollars"
    for step in (f"Total Cost = {cost}.", f"On Monday the notebooks cost {cost}.", f"Cost of the notebooks: {cost}"):
        assert told(question, step) != "wrong", step
    for step in (f"Napoleon pays {cost}.", f"So Napoleon pays {cost}.", f"Napoleon still has {cost}.", f"Napoleon's {cost}"):
        assert told(question, step) in ("wrong", "unknown"), step
    assert told(question, f"So Napoleon pays {cost}.") == told(question, f"Napoleon pays {cost}.") == "wrong"


def test_what_is_left_out_of_account() -> None:
    """A share of one part only may be another way or a step forgotten: unknown. Said of the whole it is wrong or unknown."""
    text = "Ana has 20 pears. Then Ana finds 8 pears. Ana puts the rest into 4 equal piles. How many pears are in each pile?"
    quantities = [
        {"value": 20, "kind": "given"}, {"value": 8, "kind": "given"},
        {"value": 28, "kind": "derived", "formula": "#0 + #1"},
        {"value": 4, "kind": "given"}, {"value": 7, "kind": "derived", "formula": "#2 / #3"},
    ]  # fmt: skip
    solution = "With the ones found, Ana has 20 + 8 = 28 pears.\nEach pile has 28 / 4 = 7 pears.\nThe answer is 7."
    question = Question(text, "7", id="piles", solution=solution, meta={"quantities": quantities})
    assert told(question, "That is 20 / 4 = 5.") == "unknown"
    assert told(question, "Each pile has 20 / 4 = 5 pears.") == "unknown"
    assert told(question, "(20 + 8) / 4 = 7") == "right"
    assert told(question, "20 / 4 + 8 / 4 = 7") == "right"
    assert told(question, "Each pile has (20 + 8) / 4 = 7 plums.") == "wrong"
    assert told(question, "20 - 8 = 12") == "wrong"
    assert told(question, "The answer is 7 pears.") == "right"
    assert told(question, "The answer is 7 bananas.") == "wrong"
