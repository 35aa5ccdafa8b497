"""Where steps end: the same places however the text comes, nothing lost, and units of reasoning as people mark them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from caspo.core.errors import ConfigError
from caspo.steps import Characters, Reading, StepReader, rule_name, split_steps, split_tokens, text_of
from caspo.steps.rules import rule_of
from caspo.steps.segmenter import Segmenter, sentence_ends

RULES = [
    "reasoning", "line", "paragraph", "sentence",
    "delimiter:;", "delimiter:\n\n", "delimiter:ки", "delimiter:<", "delimiter:k>\n",
]  # fmt: skip

LINES = [
    "", " ", "\t", "---", "Tom has 3 pens.", "3 + 4 = 7", "So the total is:", "so it goes on", "1. First", "2. Second",
    "- a", "  - b", "   indented", "\\[", "\\]", "x = 1", "$$", "\\begin{align}", "\\end{align}", "```python", "```",
    "| a | b |", "### Part", "**Part**", "Step 2:", "Step 3: Count", "<think>", "</think>", "a <think> b </think> c",
    "¡Sí! Dr. No said. Yes.", "½ of 日本 is ⅓.", "A. 1", "שלום", "![](x.png)", "word " * 50, "x" * 1100,
    "One sentence here. " * 60, "1", "1.", "St", "#", "ки;",
    "[ x", "[", "Yes.\u2028No.\x0cOn.", "“好！！”好。（是。）走。。", "." * 1100, "a" + " ." * 2400,
    "a <" * 400, " " * 1100 + "a",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(LINES), max_size=14).map("\n".join) | st.text(
    alphabet="aB1.:;-*#|`\\[]$<> \n\r\t\u2028к√。”", max_size=80
)


def ends(rule: str, pieces: list[str], *, thinking: bool = False) -> list[tuple[int, bool]]:
    """What a segmenter tells of a text in these pieces; each piece is a feed."""
    segmenter = Segmenter(rule_of(rule), Reading().thinking, thinking=thinking)
    found = [end for piece in pieces for end in segmenter.feed(piece)]
    return [*found, *segmenter.close()]


@pytest.mark.parametrize("rule", RULES)
@given(TEXTS, st.data())
def test_any_split_of_a_text_gives_the_same_steps(rule: str, text: str, data: st.DataObject) -> None:
    """A stream, tokens under way and a finished text are cut alike, or confidence and verdicts are of different steps."""
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    whole = ends(rule, [text])
    assert ends(rule, pieces) == whole
    assert ends(rule, list(text)) == whole


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("before", ["", "We go on:\n", "We go on.\n\n", "It is 3\nIt is 4\n"])
def test_every_kind_of_line_is_cut_alike_character_by_character(rule: str, before: str) -> None:
    """Nothing is concluded from the beginning of a line that the rest of it may change."""
    for line in LINES:
        text = f"{before}{line}\nSo 7."
        assert ends(rule, list(text)) == ends(rule, [text]), line


@pytest.mark.parametrize("rule", RULES)
@given(TEXTS)
def test_nothing_is_lost(rule: str, text: str) -> None:
    """Joined, the steps are the text; each has something to judge."""
    steps = split_steps(text, rule)
    assert "".join(steps) == (text if text.strip() else "")
    needed = str.isalnum if rule in ("reasoning", "sentence") else lambda character: not character.isspace()
    assert all(any(map(needed, step)) for step in steps) or len(steps) == 1


@pytest.mark.parametrize("rule", RULES)
@given(TEXTS, st.data())
def test_tokens_are_cut_where_their_text_is(rule: str, text: str, data: st.DataObject) -> None:
    """Tokens may split characters; a step is the tokens that begin before its end, and they cover all."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=30)))
    pieces = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
    spans = split_tokens(pieces, rule)
    if not text.strip():
        assert spans == []
        return
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
    assert spans[-1][1] == len(pieces)
    starts = [len(raw[:cut].decode(errors="ignore")) for cut in [0, *cuts]]
    wanted = [next((i for i, start in enumerate(starts) if start >= end), len(pieces)) for end, _ in ends(rule, [text])]
    assert [b for _, b in spans[:-1]] == [end for end in dict.fromkeys(wanted) if end < len(pieces)][: len(spans) - 1]


@given(TEXTS, st.integers(0, 200))
def test_a_copy_goes_on_as_the_original_would(text: str, at: int) -> None:
    """A search continues one prefix in several ways; each has to be cut as a solution of its own."""
    reader = Reading().reader()
    pieces = [character.encode() for character in text]
    before = [taken for piece in pieces[:at] for taken in reader.take(piece)]
    other = reader.copy()
    assert [*reader.copy().close()] == [*other.copy().close()]
    after = [taken for piece in pieces[at:] for taken in other.take(piece)]
    straight = Reading().reader()
    assert [*before, *after, *other.close()] == [
        *(taken for piece in pieces for taken in straight.take(piece)), *straight.close()
    ]  # fmt: skip
    assert reader.tokens == len(pieces[:at])


@given(st.binary(max_size=60), st.integers(1, 4))
@example("½ of ✅ 日本".encode(), 1)
def test_characters_come_out_whole(data: bytes, size: int) -> None:
    """Characters made of several tokens are neither lost nor told in halves."""
    characters = Characters()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    text = "".join(map(characters.take, pieces))
    whole = text_of(pieces)
    assert whole.startswith(text)
    assert set(whole[len(text) :]) <= {"\ufffd"}


# What people write, by the rule `reasoning`: each list is one solution, its items are the steps.

UNITS = {
    "terse lines": ["Tom has 3 + 4 = 7 pens.\n", "He buys 2 * 7 = 14 more.\n", "The answer is 21."],
    "GSM8K's own style": ["Natalia sold 48/2 = 24 clips in May\n", "She sold 48+24 = 72 in both\n", "#### 72"],
    "a stray blank line among terse lines": [
        "He has 3.\n",
        "Buys 4.\n",
        "3 + 4 = 7\n",
        "So 7.\n\n",
        "Sells 2\n",
        "7 - 2 = 5",
    ],
    "paragraphs": ["First we add. It is 7.\n\n", "Then we subtract\nand get 5\n\n", "The answer is 5"],
    "a plan": [
        "To do so, we need these steps:\n\n1. Count the eggs\n2. Multiply\n\n",
        "There are 3 eggs.\n\n",
        "3 * 2 = 6.",
    ],
    "a list that was announced": [
        "First, the eggs she eats:\n- She eats 3 eggs.\n- Therefore, the total is:\n  \\[\n  3 + 4 = 7\n  \\]\n\n",
        "So 7.",
    ],
    "parts with a heading each": [
        "Let's do it step by step:\n\n### Step 1: Count\n\nThere are 3.\n\n",
        "### Step 2: Double\n\nThat is 6.\n\n",
        "The answer is 6.",
    ],
    "numbered parts": [
        "1. **Count:**\n   - 3 eggs\n\n   So 3.\n\n",
        "2. **Double:**\n   \\[ 3 \\cdot 2 = 6 \\]\n\n",
        "Thus 6.",
    ],
    "numbered sentences": ["1. She has 3.\n", "2. She buys 4.\n", "3. So 3 + 4 = 7.\n\n", "The answer is 7."],
    "Step k:": ["Step 1: She has 3.\n", "Step 2:\nShe buys 4.\n", "Step 3: 3 + 4 = 7\n", "Step 4: The answer is 7."],
    "displayed maths": ["The sum is\n\\[\n3 + 4\n= 7\n\\]\n\n", "Hence it is 7."],
    "displayed maths without backslashes": ["The sum is\n\n[\n3 + 4 = 7\n]\n\n", "Hence it is 7."],
    "maths after a blank line": ["The sum is\n\n$$\n3 + 4 = 7\n$$\n\n", "Hence it is 7."],
    "fenced code": ["Here is the code:\n\n```python\nx = 3\n\nprint(x + 4)\n```\n\n", "It prints 7."],
    "code and its output": ["```python\nprint(7)\n```\n```output\n7\n```\n", "The answer is 7."],
    "a table": ["The prices:\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n", "The sum is 10."],
    "choices": ["A. 3\nB. 4\nC. 7\n", "The answer is C."],
    "a rule between parts": ["There are 3.\n\n---\n\n", "Double it: 6."],
    "a line in bold": ["We begin.\n\n", "**Counting**\n\nThere are 3.\n\n", "**Doubling**\nIt is 6."],
    "a sentence that goes on": ["We have,\nof course, 3.\n", "So 3."],
    "CRLF": ["Tom has 3.\r\n", "He buys 4.\r\n", "So 7."],
    "right to left": ["יש לו 3.\n", "הוא קונה 4.\n", "7"],
    "an image": ["See:\n\n![](x.png)\n\n", "So 7."],
    "nested lists": ["The parts are:\n- one\n  - a = 1\n    - b = 2\n- two\n\n", "That is all."],
    "code without a fence": ["def f(x):\n    y = x\n    return y\n", "print(f(1))"],
}


@pytest.mark.parametrize("name", UNITS)
def test_a_step_is_a_unit_of_reasoning(name: str) -> None:
    """Cut as a reader would: announcements keep what they announce, blocks stay whole, terse lines are steps."""
    assert split_steps("".join(UNITS[name])) == UNITS[name]


def test_a_long_paragraph_is_cut_at_sentences() -> None:
    """Not at "Mr." or "e.g.", and into pieces of at most a thousand characters."""
    text = "Mr. Li has 3.5 pens, e.g. Two blue ones. " * 100
    steps = split_steps(text)
    assert len(steps) > 3
    assert all(len(step) <= 1000 and step.startswith("Mr. Li") and step.rstrip().endswith("ones.") for step in steps)
    words = split_steps("word " * 4000)
    assert max(map(len, words)) <= 4 * 1000 + 64, "no sentence ever ends: cut between words"
    assert all(step.startswith("word ") for step in words)
    assert max(map(len, split_steps("x" * 40_000))) <= 4 * 1000 + 64, "not even words"


def test_blocks_that_are_never_closed_do_not_swallow_the_rest() -> None:
    """An unclosed display ends with its paragraph; an unclosed fence after a limit."""
    assert split_steps("So\n\\[ x = 3\n\nThen it is 3.\n\nThe answer is 3.")[1:] == ["Then it is 3.\n\n", "The answer is 3."]
    steps = split_steps("```python\n" + "x = 1\n" * 10_000)
    assert max(map(len, steps)) < 17_000
    assert len(split_steps("| a | b |\n" * 200)) == 1, "a table of 200 rows stays whole"
    assert split_steps("a.\n" + "\n" * 10_000 + "b.") == ["a.\n" + "\n" * 10_000, "b."]


def test_blank_lines_belong_to_the_step_before_or_at_the_start_to_the_one_after() -> None:
    """A blank line is never a step of its own: judges and confidence would have nothing to say about it."""
    assert split_steps("\n \nA\n\n  \nB\n") == ["\n \nA\n\n  \n", "B\n"]
    assert split_steps(" \n\n") == []


def test_tokens_are_never_cut() -> None:
    """What follows a line break inside a token stays with the step that the break ends; EOS with the last one."""
    assert split_tokens([b"A", b".\nB", b"c", b".\n", b"D", b""]) == [(0, 2), (2, 4), (4, 6)]
    assert split_tokens([b"A", b"\n", b""]) == [(0, 3)]


def test_other_rules() -> None:
    """By name, as settings give them."""
    text = "Eight. Two!\nThree\n\nFour; five"
    assert split_steps(text, "line") == ["Eight. Two!\n", "Three\n\n", "Four; five"]
    assert split_steps(text, "paragraph") == ["Eight. Two!\nThree\n\n", "Four; five"]
    assert split_steps(text, "sentence") == ["Eight. ", "Two!\n", "Three\n\n", "Four; five"]
    assert split_steps(text, rule_name({"delimiter": ";"})) == ["Eight. Two!\nThree\n\nFour;", " five"]
    assert split_steps("a\n\nb\n\nc", rule_name({"delimiter": "\n\n"})) == ["a\n\n", "b\n\n", "c"]
    for wrong in (
        "lines",
        {"delimiter": ""},
        {"delimiter": "a", "b": 1},
        {"delimiter": None},
        {"delimiter": ["a"]},
        3,
        "delimiter:",
    ):
        with pytest.raises(ConfigError, match="rule for steps"):
            rule_name(wrong)


# Thinking.


def marked(text: str, *, thinking: bool = False, reading: Reading | None = None) -> list[tuple[str, bool]]:
    """The steps of a text, and whether each is thinking."""
    reader: StepReader = (reading or Reading()).reader("<think>\n" if thinking else "")
    taken = [one for character in text for one in reader.take(character.encode())]
    taken += reader.close()
    starts = [0, *(one.end for one in taken)]
    return [(text[a:b], one.thinking) for a, b, one in zip(starts, starts[1:], taken, strict=False)]


def test_thinking_is_cut_by_the_same_rule_and_marked() -> None:
    """Its marks end steps; what follows is the answer."""
    text = "<think>\nLet me see. 3 + 4 = 7.\n\nWait, is it? Yes.\n</think>\n\nThe answer is 7."
    assert marked(text) == [
        ("<think>\nLet me see. 3 + 4 = 7.\n\n", True), ("Wait, is it? Yes.\n</think>\n\n", True), ("The answer is 7.", False)
    ]  # fmt: skip
    assert marked("Hm.\n\nOk.</think>So 7.", thinking=True) == [("Hm.\n\n", True), ("Ok.</think>", True), ("So 7.", False)]
    assert marked("<think>\n\n</think>\n\nThe answer is 7.") == [("<think>\n\n</think>\n\nThe answer is 7.", False)]
    assert marked("<think>Hm. So") == [("<think>Hm. So", True)]
    assert marked("First.\n<think>Hm.</think>So 7.") == [("First.\n", False), ("<think>Hm.</think>", True), ("So 7.", False)]
    assert marked("```python\n<think>\nHm.\n</think>\nSo 7.") == [
        ("```python\n", False), ("<think>\nHm.\n</think>\n", True), ("So 7.", False)
    ]  # fmt: skip


def test_the_answer_is_read_after_the_thinking_only() -> None:
    """A number inside of it is no answer, and unfinished thinking states nothing."""
    reading = Reading()
    assert reading.answer_text("<think>The answer is 3.</think>It is 4.") == "It is 4."
    assert reading.answer_text("<think>The answer is 3.") == ""
    assert reading.answer_text("The answer is 3.", thinking=True) == ""
    assert reading.answer_text("The answer is 3.</think>It is 4.", thinking=True) == "It is 4."
    assert reading.answer_text("It is 4.") == "It is 4."
    assert reading.answer_text("It is 4. <think>Or 5?") == "It is 4. "


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("<think>", "</think>"), ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"), ("[THINK]", "[/THINK]")],
)
def test_long_traces_cost_linear_time_and_have_bounded_steps(opening: str, closing: str) -> None:
    """8,000 tokens and more in the shapes of Qwen3, DeepSeek-R1's distills and gpt-oss, token by token: looks at characters
    are counted, not seconds."""
    thought = "Okay, so we need 3 + 4. That is 7, I think. Wait, let me check that again: 3 + 4 = 7. "
    for paragraph in (thought * 3 + "\n\n", thought, thought * 2 + "\n"):
        seen = []
        for size in (8_000, 32_000):
            body = paragraph * (size // len(paragraph))
            text = f"{opening}{body}{closing}The answer is 7."
            looked = _looked_at(text, Reading(thinking=((opening, closing),)))
            steps = marked(text, reading=Reading(thinking=((opening, closing),)))
            assert max(len(step) for step, _ in steps) <= 1_100
            assert [thinking for _, thinking in steps] == [True] * (len(steps) - 1) + [False]
            assert "".join(step for step, _ in steps) == text
            seen.append(looked)
        assert seen[1] <= 5 * seen[0]


@pytest.mark.parametrize("rule", ["reasoning", "sentence"])
@pytest.mark.parametrize("line", [".", "!? ", " ", "-", "<", ". " * 1500 + "a. ", "a" + " ." * 1500, "Mr. ", "a <"])
def test_lines_that_never_end_cost_linear_time_too(rule: str, line: str) -> None:
    """What a model writes that repeats itself for ever: most of it has neither a sentence's end nor a word."""
    seen = [_looked_at((line * size)[:size], Reading(rule)) for size in (16_000, 64_000)]
    assert seen[1] <= 6 * seen[0]


def test_a_run_of_points_is_read_once() -> None:
    """It was read from each of its points to its end."""
    assert list(sentence_ends("a" + "." * 300_000)) == []


def _looked_at(text: str, reading: Reading) -> int:
    """Characters that the rule is shown while a text comes in pieces of four."""

    rule = rule_of(reading.steps)
    count = 0

    class Watched:
        def __getattr__(self, name: str) -> object:
            value = getattr(rule, name)
            if not callable(value):
                return value

            def call(line: str = "", *args: object, **kwargs: object) -> object:
                nonlocal count
                count += len(line)
                return value(line, *args, **kwargs) if name not in ("blank", "reset") else value()

            return call

    segmenter = Segmenter(Watched(), reading.thinking)  # type: ignore[arg-type]
    for i in range(0, len(text), 4):
        segmenter.feed(text[i : i + 4])
    return count
