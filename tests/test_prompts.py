"""Prompts: BOS once, the end of a turn, the date, tokens of written solutions, examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

from caspo.core.errors import DataError
from caspo.engines.base import Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load, read_tokenizer, resolve
from caspo.engines.prompts import (
    INSTRUCTION,
    PLAIN_TEMPLATE,
    begin_ids,
    beginning,
    chat_ids,
    end_of_turn,
    prompt_ids,
    solution_ids,
    step_ids,
    turn_ends,
)
from small_tokenizers import CHATML, GEMMA, HARMONY, LLAMA, made
from tiny import build, tokenizer


def name(tokenizer: Any, token: int | None) -> str | None:
    return None if token is None else str(tokenizer.convert_ids_to_tokens(token))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"), (GEMMA, "<|im_end|>"), (LLAMA, "</s>"), (HARMONY, "<|return|>"), (None, None),
        (PLAIN_TEMPLATE, None), ("{{ messages[0]['content'] }}", None), ("{{ raise_exception('no') }}", None),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n### {% endfor %}", None),
    ],
)  # fmt: skip
def test_the_end_of_a_turn_is_the_templates(template: str | None, end: str | None) -> None:
    """What stands right behind an answer, where that is a special token; EOS in any case."""
    given = made("bytes", template)
    assert name(given, end_of_turn(given)) == end
    assert turn_ends(given) == {given.convert_tokens_to_ids(token) for token in {"</s>", end or "</s>"}}
    assert name(given, solution_ids(given, "It is 5.\n")[-1]) == (end or "</s>")


def test_an_end_of_turn_that_is_added_and_not_special() -> None:
    given = made("bytes", CHATML.replace("im_end", "eot"))
    assert end_of_turn(given) is None
    given.add_tokens([AddedToken("<|eot|>", special=False)])
    assert name(given, end_of_turn(given)) == "<|eot|>"


def test_a_base_model_stops_where_its_template_ends_a_turn() -> None:
    """Its EOS ends texts, and generation_config names a third token: each ends a continuation."""
    given = made("bytes", CHATML, eos="<|endoftext|>")
    model = build("llama", vocab_size=len(given))
    model.generation_config.eos_token_id = [given.convert_tokens_to_ids("</s>"), 40]
    engine = HFEngine(model, given)
    assert {name(given, token) for token in engine.eos_ids - {40}} == {"<|endoftext|>", "<|im_end|>", "</s>"}
    end = given.convert_tokens_to_ids("<|im_end|>")
    prompt = engine.prompt("How?")
    order = model(input_ids=torch.tensor([prompt])).logits[0, -1].argsort(descending=True).tolist()
    (found,) = engine.generate([Request(prompt, 0, 5, temperature=0, rank=order.index(end) + 1)])
    assert (found.finish, found.token_ids, found.text) == ("eos", (end,), "")


@pytest.mark.parametrize("style", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE, CHATML, GEMMA, LLAMA])
@pytest.mark.parametrize("adds", [True, False])
def test_bos_is_there_once(style: str, template: str | None, adds: bool) -> None:
    """Where the template writes it or the tokenizer adds it; nowhere else."""
    given = made(style, template, bos=adds)
    bos = given.bos_token_id
    writes = template in (GEMMA, LLAMA)
    assert beginning(given) == ((bos,) if adds else ())
    ids = prompt_ids(given, "How many?", "Be brief.")
    assert ids.count(bos) == (1 if writes or adds else 0)
    assert (ids[0] == bos) == (writes or adds)
    for text in ("Hi", "<s>Hi", "", "<s>"):
        plain = begin_ids(given, text)
        assert plain.count(bos) == (1 if adds or "<s>" in text else 0)
        assert not adds or plain[0] == bos


def test_the_bundled_models_are_asked_as_they_were_trained() -> None:
    """The shipped data and figures stand on these tokens."""
    _, given = load("stories-tiny")
    text = "Tom has 3 bags with 4 pens in each. How many pens has he?"
    expected = given(f"Question: {text}\nAnswer:\n", add_special_tokens=False)["input_ids"]
    assert list(prompt_ids(given, text)) == expected
    assert prompt_ids(given, text) == (
        308, 27, 502, 272, 222, 20, 675, 451, 222, 21, 776, 391, 366, 15, 304, 294, 776, 272, 758, 32, 200, 305, 27, 200
    )  # fmt: skip
    assert solution_ids(given, "3 * 4 = 12\n")[-1] == given.eos_token_id
    assert turn_ends(given) == {given.eos_token_id}
    adapted = read_tokenizer(resolve("smollm2-135m-stories"))
    assert prompt_ids(adapted, text) == (
        17872, 42, 8581, 553, 216, 35, 10720, 351, 216, 36, 24193, 281, 971, 30, 1073, 800, 24193, 553, 384, 47, 198, 21350,
        42, 198,
    )  # fmt: skip
    assert turn_ends(adapted) == {adapted.eos_token_id}


@pytest.mark.parametrize(
    "template",
    [
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
        "Today Date: {{ date_string }}\n{{ messages[0]['content'] }}",
        "{%- if strftime_now is defined %}{%- set date_string = strftime_now( \"%d %b %Y\" ) %}"
        "{%- endif %}Today Date: {{ date_string }}\n{{ messages[0]['content'] }}",
        "Today Date: {{ strftime_now('%d %b %Y') }}\n{{ messages[0]['content'] }}",
    ],
)  # fmt: skip
def test_the_date_is_the_same_every_day(template: str) -> None:
    given = made("bytes", template)
    assert given.decode(chat_ids(given, [{"role": "user", "content": "?"}])) == "Today Date: 26 Jul 2024\n?"


def test_of_several_templates_the_one_without_tools() -> None:
    given = made("bytes")
    given.chat_template = {"default": CHATML, "tool_use": "{{ messages[0]['content'] }}"}
    assert name(given, end_of_turn(given)) == "<|im_end|>"


LINES = st.lists(st.text("ab 3.\n(é☃", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=5)


@given(LINES, st.sampled_from(["bytes", "sentencepiece"]), st.booleans())
def test_tokens_of_steps_are_those_of_the_text(lines: list[str], style: str, ended: bool) -> None:
    """All together, and each step's tokens give its own text."""
    given_ = _CACHE[style]
    steps = [f"{line}\n" for line in lines]
    steps[-1] = steps[-1].strip() if ended else steps[-1]
    found = step_ids(given_, steps, ended=ended)
    whole = tuple(given_("".join(steps), add_special_tokens=False)["input_ids"])
    assert sum(found, ()) == whole + ((given_.eos_token_id,) if ended else ())
    assert given_.decode(found[0], skip_special_tokens=True) == steps[0]
    assert all(found)


_CACHE = {style: made(style) for style in ("bytes", "sentencepiece")}


def test_no_space_token_before_every_step() -> None:
    """Alone, a step would begin with one."""
    given_ = made("sentencepiece")
    alone = given_("b", add_special_tokens=False)["input_ids"]
    _, second = step_ids(given_, ["a\n", "b"], ended=True)
    assert given_.convert_ids_to_tokens(alone) == ["▁", "b"]
    assert given_.convert_ids_to_tokens(list(second)) == ["b", "</s>"]


def test_a_token_across_two_steps_is_not_taken() -> None:
    """Two solutions that part behind a line share the step before: its tokens must say that step and no more."""
    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2, "\n": 3, "\nb": 4, "</s>": 5}, [("\n", "b")]))
    given_ = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", clean_up_tokenization_spaces=False)
    assert given_("a\nb")["input_ids"] == [0, 4]
    assert step_ids(given_, ["a\n", "b"], ended=True) == [(0, 3), (1, 5)]
    assert step_ids(given_, ["a\n", "c"], ended=False) == [(0, 3), (2,)]


EXAMPLES = (("1 + 1?", "1 + 1 = 2\nThe answer is 2."), ("2 + 2?", "The answer is 4."), ("3 + 3?", "The answer is 6."))


def test_examples_stand_before_the_question() -> None:
    """As blocks in the plain template, as turns in another; all but the last one."""
    plain, chat = made("bytes"), made("bytes", CHATML)
    assert plain.decode(prompt_ids(plain, "5?", "", EXAMPLES)) == (
        "Question: 1 + 1?\nAnswer:\n1 + 1 = 2\nThe answer is 2.\n\n"
        "Question: 2 + 2?\nAnswer:\nThe answer is 4.\n\nQuestion: 5?\nAnswer:\n"
    )
    shown = chat.decode(prompt_ids(chat, "5?", "Think.", EXAMPLES))
    assert shown.startswith(
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant"
    )
    assert shown.endswith("The answer is 4.<|im_end|>\n<|im_start|>user\n5?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt_ids(plain, "5?") == prompt_ids(plain, "5?", INSTRUCTION, ())


@pytest.mark.parametrize("after", ["", "\n\nThink of others too."])
def test_no_question_is_shown_with_its_own_solution(after: str) -> None:
    """The spare one takes its place, also where a method asks for more after the question."""
    given_ = made("bytes")
    shown = given_.decode(prompt_ids(given_, f"1 + 1?{after}", "", EXAMPLES))
    assert shown.count("1 + 1?") == 1
    assert "2 + 2?" in shown
    assert "3 + 3?" in shown


def test_a_template_that_shows_no_answers_takes_no_examples() -> None:
    given_ = made("bytes", "{{ messages[-1]['content'] }}")
    with pytest.raises(DataError, match=r"does not show what was answered.*task.examples"):
        prompt_ids(given_, "5?", "", EXAMPLES)


def test_what_prompts_share_is_computed_once() -> None:
    """Eight prompts with the same examples: their beginning passes through the model once."""
    model, given_ = build("llama", max_position_embeddings=1024), tokenizer()
    engine = HFEngine(model, given_, examples=[(f"{i} + {i}?", f"The answer is {2 * i}.") for i in range(10, 16)])
    prompts = [engine.prompt(f"{i} + 7?") for i in range(2, 10)]
    shared = next(i for i, ids in enumerate(zip(*prompts, strict=False)) if len(set(ids)) > 1)
    assert shared > 100
    passed = 0

    def count(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        nonlocal passed
        passed += named["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    engine.generate([Request(ids, i, 1, temperature=0) for i, ids in enumerate(prompts)])
    rest = max(len(ids) - shared for ids in prompts)
    assert passed <= shared + len(prompts) * (rest + 1)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_a_prompt_of_one_token(kind: str) -> None:
    """Alone in an engine that knows nothing, and beside longer ones: what the model says after it."""
    model = build(kind)
    engine = HFEngine(model, tokenizer())
    ids: list[int] = [40]
    for _ in range(6):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    one = Request((40,), 0, 6, temperature=0)
    assert list(engine.generate([one])[0].token_ids) == ids[1:7][: ids.index(0) if 0 in ids else 6]
    engine.forget()
    both = engine.generate([Request(tuple(range(30, 60)), 0, 6, temperature=0), one, one])
    assert both[1].token_ids == both[2].token_ids == engine.generate([one])[0].token_ids
