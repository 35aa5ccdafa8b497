"""`caspo serve` as the clients of others see it: the official one, LangChain and LiteLLM, over a real socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it asks the network for prices at import

from serving import CONTENT, MODEL, QUESTION, Slow, server

openai = pytest.importorskip("openai", reason="pip install 'caspo-llm[dev]'")

ASK: Any = [{"role": "user", "content": QUESTION}]
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server(keys=(KEY,)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=10)


def test_an_answer_carries_its_confidence(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK)
    choice = answer.choices[0]
    assert choice.message.content == CONTENT
    assert choice.finish_reason == "stop"
    assert choice.caspo["answer"] == "5"
    assert 0 < choice.caspo["confidence"] <= 1
    assert "".join(step["text"] for step in choice.caspo["steps"]) == CONTENT
    assert answer.usage.completion_tokens == choice.caspo["generated_tokens"]


def test_a_stream_is_the_answer_in_steps(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}, extra_body={"caspo": {}}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == CONTENT
    steps = [c.choices[0].caspo["step"]["index"] for c in chunks if c.choices and "step" in (_caspo(c) or {})]
    assert steps == [0, 1, 2]
    last = chunks[-2].choices[0]
    assert last.finish_reason == "stop"
    assert last.caspo["answer"] == "5"
    assert chunks[-1].usage.total_tokens > 0


def _caspo(chunk: Any) -> Any:
    return getattr(chunk.choices[0], "caspo", None)


def test_the_tree_is_told_if_asked_for(client: Any) -> None:
    body = {"seed": 0, "caspo": {"tree": True, "events": True}}
    whole = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=body)
    nodes = whole.choices[0].caspo["tree"]["nodes"]
    assert {node["decision"] for node in nodes} <= {"", "expanded", "finished", "pruned", "dropped", "cut"}
    stream = client.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body=body)
    grown: dict[int, Any] = {}
    for chunk in stream:
        for node in (_caspo(chunk) or {}).get("nodes", []):
            grown[node["id"]] = node
    assert list(grown.values()) == nodes


def test_the_async_client_streams(address: str) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
            stream = await client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == CONTENT


def test_the_client_s_own_helper_for_streams_puts_the_answer_together(client: Any) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == CONTENT


def test_choices_are_drawn_by_the_seed(client: Any) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, n=4, temperature=1, seed=seed, extra_body={"caspo": {"method": "chain_of_thought"}}
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        return [choice.message.content for choice in answer.choices]

    assert ask(3) == ask(3)
    assert len({tuple(ask(seed)) for seed in range(6)}) > 1


def test_choices_are_streamed_side_by_side(client: Any) -> None:
    fields: Any = {"model": MODEL, "messages": ASK, "n": 3, "temperature": 1, "seed": 5}
    fields["extra_body"] = {"caspo": {"method": "chain_of_thought"}}
    whole = client.chat.completions.create(**fields)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**fields, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stop_string_ends_the_text(client: Any) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, stop=["answer is"], extra_body={"caspo": {"method": "chain_of_thought"}}
    )
    assert answer.choices[0].message.content == "2 + 3 = 5\nSo it is 5.\nThe "
    assert answer.choices[0].finish_reason == "stop"


def test_a_limit_of_tokens_is_a_finish_reason(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=12)
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].message.content) <= 12


def test_logprobs_are_those_of_the_content(client: Any) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == CONTENT
    assert all(token.logprob <= 0 for token in tokens)


def test_an_abstention_is_a_refusal_with_figures(client: Any) -> None:
    body = {"seed": 0, "caspo": {"abstain_below": 0.99}}
    answer = client.chat.completions.create(model=MODEL, messages=ASK, extra_body=body).choices[0]
    assert answer.message.content == ""
    assert "0.99" in answer.message.refusal
    assert answer.caspo["abstained"]
    assert answer.caspo["answer"] is None
    chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True, extra_body=body))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].choices[0].delta.refusal == answer.message.refusal


def test_completions_continue_texts_and_tokens(client: Any) -> None:
    text = f"{QUESTION}\n"
    answer = client.completions.create(model=MODEL, prompt=[text, "Other\n"], logprobs=0)
    assert [choice.text for choice in answer.choices] == [CONTENT, "The answer is 1."]
    assert "".join(answer.choices[0].logprobs.tokens) == CONTENT
    tokens = client.completions.create(model=MODEL, prompt=list(map(ord, text)))
    assert tokens.choices[0].text == CONTENT
    stream = client.completions.create(model=MODEL, prompt=text, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == CONTENT


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 0.7, "extra_body": {"caspo": {"method": "cat_paper"}}}, "temperature"),
        ({"n": 2, "extra_body": {"caspo": {"method": "cat_paper"}}}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"extra_body": {"caspo": {"pahts": 3}}}, "caspo.pahts"),
        ({"extra_body": {"caspo": {"budget": -1}}}, "caspo.budget"),
    ],
)
def test_what_cannot_be_done_is_a_bad_request_that_names_the_field(client: Any, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK, **fields})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_another_model_and_a_wrong_key_are_told(client: Any, address: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="not-the-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_too_many_at_once_are_told_when_to_come_again() -> None:
    slow = Slow()
    with server(slow, active=1, waiting=0) as (address, _):
        first = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        wait: Any = [{"role": "user", "content": "slow"}]

        async def two() -> Any:
            under_way = asyncio.ensure_future(first.chat.completions.create(model=MODEL, messages=wait))
            await asyncio.to_thread(slow.begun.wait, 5)
            with pytest.raises(openai.RateLimitError) as caught:
                await first.chat.completions.create(model=MODEL, messages=ASK)
            slow.go.set()
            await under_way
            return caught.value

        error = asyncio.run(two())
        assert int(error.response.headers["retry-after"]) >= 1


def test_langchain_asks_and_streams(address: str) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="pip install 'caspo-llm[dev]'")
    chat = langchain.ChatOpenAI(model=MODEL, base_url=f"{address}/v1", api_key=KEY, max_retries=0)
    assert chat.invoke(QUESTION).content == CONTENT
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == CONTENT
    steady = langchain.ChatOpenAI(model=MODEL, base_url=f"{address}/v1", api_key=KEY, max_retries=0, temperature=0)
    assert steady.invoke(QUESTION).content == CONTENT
    sampled = langchain.ChatOpenAI(
        model=MODEL,
        base_url=f"{address}/v1",
        api_key=KEY,
        temperature=0.7,
        extra_body={"caspo": {"method": "self_consistency", "samples": 3}},
    )
    assert "The answer is" in sampled.invoke(QUESTION).content


@pytest.mark.slow  # importing it takes ten seconds
@pytest.mark.filterwarnings("ignore")
def test_litellm_asks_and_streams(address: str) -> None:
    litellm = pytest.importorskip("litellm", reason="pip install 'caspo-llm[dev]'")
    fields: Any = {"model": f"openai/{MODEL}", "api_base": f"{address}/v1", "api_key": KEY, "messages": ASK}
    answer = litellm.completion(**fields, extra_body={"caspo": {"tree": True}})
    assert answer.choices[0].message.content == CONTENT
    chunks = litellm.completion(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == CONTENT
