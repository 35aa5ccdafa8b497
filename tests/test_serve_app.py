"""The application of `caspo serve`: bad input, hang-ups, shutdown, and its OpenAPI document under fire."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from caspo.search import METHODS
from caspo.serve.app import create_app
from caspo.serve.errors import ApiError
from caspo.serve.request_schema import ChatRequest, CompletionRequest, parse
from caspo.serve.response_schema import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from caspo.serve.scheduler import Scheduler
from caspo.serve.settings import ServeSettings
from caspo.testing.scripted import Scripted, ScriptedEngine
from serving import CONTENT, MODEL, QUESTION, Client, application, server

JSON = {"content-type": "application/json"}
GOOD = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with application() as (app, _):
        yield Client(app)


def refused(answer: httpx.Response, status: int = 400) -> Any:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"temperature": NaN}',
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_what_is_no_json_is_a_bad_request(client: Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        refused(client.request("POST", path, content=body, headers=JSON))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "content": "5"}]}, "messages"),
        ({"messages": [{"role": "wizard", "content": "5"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
         "messages.0.content.0.type"),
        ({"model": 7}, "model"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"caspo": []}, "caspo"),
        ({"caspo": {"method": "magic"}}, "caspo.method"),
        ({"caspo": {"seconds": 1e9}}, "caspo.seconds"),
        ({"caspo": {"seconds": -1}}, "caspo.seconds"),
        ({"caspo": {"paths": "4"}}, "caspo.paths"),
        ({"caspo": {"paths": 10**9}}, "paths"),
        ({"caspo": {"budget": 0}}, "caspo.budget"),
        ({"caspo": {"budget": 10**12}}, "caspo.budget"),
        ({"caspo": {"max_tokens": 5}, "max_tokens": 5}, "caspo.max_tokens"),
        ({"caspo": {"method": "self_consistency", "samples": 65}}, "samples"),
        ({"caspo": {"method": "deepconf_online", "top_k": 65}}, "top_k"),
        ({"caspo": {"method": "deepconf_online", "window": 4097}}, "window"),
        ({"caspo": {"method": "self_consistency"}, "temperature": 0}, "temperature"),
        ({"caspo": {"method": "self_consistency", "samples": 60, "max_tokens": 4000}}, "max_tokens"),
        ({"caspo": {"method": "beam", "beam_width": 20, "children": 20}}, "caspo"),
    ],
    ids=str,
)  # fmt: skip
def test_what_makes_no_sense_is_a_bad_request_that_names_the_field(client: Client, fields: Any, param: str) -> None:
    assert refused(client.chat(**fields))["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": [50, 0x110001]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": ["a"] * 9}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 5}, "logprobs"),
    ],
    ids=str,
)
def test_completions_refuse_by_name(client: Client, fields: Any, param: str) -> None:
    assert refused(client.complete(**fields))["param"] == param


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatRequest, {"messages": [1] * 100_000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 100_000}]}),
        (CompletionRequest, {"prompt": ["a", *[1] * 100_000]}),
        (CompletionRequest, {"prompt": [[]] * 100_000}),
    ],
)
def test_a_body_full_of_mistakes_is_read_up_to_the_first(model: Any, fields: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse(model, json.dumps({"model": MODEL, **fields}).encode())
    found = caught.value.__cause__
    assert isinstance(found, ValidationError)
    assert found.error_count() < 10


def test_fields_at_the_values_that_ask_for_nothing_are_accepted(client: Client) -> None:
    answer = client.chat(
        frequency_penalty=0, presence_penalty=0.0, logit_bias={}, tools=[], tool_choice="none", n=1, temperature=1,
        top_p=1, stream=False, stop=None, user="me", metadata={"a": "b"}, store=False, service_tier="auto",
        parallel_tool_calls=True, response_format={"type": "text"}, logprobs=False, modalities=["text"],
    )  # fmt: skip
    assert answer.status_code == 200


def test_an_answer_may_be_sent_back_as_it_came(client: Client) -> None:
    message = client.chat().json()["choices"][0]["message"]
    talk = [{"role": "developer", "content": "Add."}, *GOOD["messages"], message, {"role": "user", "content": "Sure?"}]
    assert client.chat(messages=talk).status_code == 200


def test_parts_of_text_are_joined(client: Client) -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    assert client.chat(messages=[{"role": "user", "content": parts}]).json()["choices"][0]["message"]["content"] == CONTENT


def test_answers_are_what_the_document_says(client: Client) -> None:
    fields: Any = {"logprobs": True, "caspo": {"tree": True}}
    TypeAdapter(ChatCompletion).validate_json(client.chat(**fields).content)
    TypeAdapter(Completion).validate_json(client.complete(logprobs=0, caspo={"tree": True}).content)
    usage: Any = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in chunks(client.chat(**usage, **{**fields, "caspo": {"tree": True, "events": True}})):
        TypeAdapter(ChatCompletionChunk).validate_python(chunk)
    for chunk in chunks(client.complete(logprobs=0, caspo={"events": True}, **usage)):
        TypeAdapter(CompletionChunk).validate_python(chunk)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_and_streams_the_same(client: Client, method: str) -> None:
    fields: Any = {"seed": 7, "caspo": {"method": method}}
    whole = TypeAdapter(ChatCompletion).validate_json(client.chat(**fields).content)["choices"][0]
    assert whole["caspo"]["method"] == method
    assert whole["caspo"]["answer"] is not None
    assert whole["caspo"]["answer"] in whole["message"]["content"]
    streamed = chunks(client.chat(stream=True, **fields))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == whole["message"]["content"]
    assert streamed[-1]["choices"][0]["caspo"]["confidence"] == whole["caspo"]["confidence"]


def chunks(answer: httpx.Response) -> list[Any]:
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_a_body_over_the_limit_is_refused_whether_it_says_so_or_not(client: Client) -> None:
    prompt = json.dumps({**GOOD, "user": "x" * 10_000_000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(prompt), 65536):
            yield prompt[start : start + 65536]

    refused(client.request("POST", "/v1/chat/completions", content=prompt, headers=JSON), 413)
    refused(client.request("POST", "/v1/chat/completions", content=pieces(), headers=JSON), 413)


def test_a_prompt_longer_than_is_allowed_is_told_how_long_it_is() -> None:
    with application(max_prompt=20) as (app, _):
        error = refused(Client(app).chat(messages=[{"role": "user", "content": "x" * 30}]))
    assert error["code"] == "context_length_exceeded"
    assert "31 tokens" in error["message"]


def test_the_context_bounds_the_answer_and_a_request_that_asks_for_more_is_refused() -> None:
    class Short(ScriptedEngine):
        @property
        def context_length(self) -> int:
            return 30

    engine = Short({f"{QUESTION}\n": [Scripted("3" * 100, eos=True)]}, MODEL)
    scheduler = Scheduler(engine)
    client = Client(create_app(scheduler, engine, ServeSettings(model=MODEL, instruction="")))
    scheduler.start()
    try:
        cut = client.chat(caspo={"paths": 1}).json()
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["total_tokens"] == 30
        assert refused(client.chat(max_tokens=25))["code"] == "context_length_exceeded"
    finally:
        scheduler.stop(0)


def test_a_limit_under_the_method_s_default_bounds_it() -> None:
    with application(max_tokens=12) as (app, _):
        assert Client(app).chat().json()["choices"][0]["finish_reason"] == "length"


def test_an_engine_that_fails_is_a_500_and_in_a_stream_its_last_event() -> None:
    with application({"known\n": [Scripted("The answer is 1.", eos=True)]}) as (app, _):
        client = Client(app)
        assert refused(client.chat(), 500)["type"] == "server_error"
        events = client.chat(stream=True).text.strip().split("\n\n")
        assert "error" in json.loads(events[-1].removeprefix("data: "))
        known = client.chat(messages=[{"role": "user", "content": "known"}])
        assert known.status_code == 200  # nobody else is touched


def test_a_deadline_is_a_504_that_is_not_to_be_sent_again() -> None:
    with application(Endless()) as (app, _):
        answer = Client(app).chat(caspo={**BEAM, "seconds": 0.1})
    assert refused(answer, 504)["code"] == "deadline_exceeded"
    assert answer.headers["x-should-retry"] == "false"


def test_no_two_of_many_requests_at_once_are_mixed_up() -> None:
    def echo(text: str) -> list[Scripted]:
        number = text.split(maxsplit=1)[0]
        if text.count("\n") == 1:
            return [Scripted(f"It is {number}.\n", 0.7), Scripted("No.\n", 0.3)]
        return [Scripted(f"The answer is {number}.", eos=True)]

    with application(echo) as (app, _):

        async def ask(number: int) -> bool:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                body = {"model": MODEL, "messages": [{"role": "user", "content": str(number)}], "stream": number % 2 == 1}
                text = (await http.post("/v1/chat/completions", json=body)).text
                return f'"answer": "{number}"' in text.replace('":"', '": "')

        async def everyone() -> list[bool]:
            return await asyncio.gather(*map(ask, range(100)))

        assert all(asyncio.run(everyone()))


# Clients that leave


def raw(address: str, **fields: Any) -> socket.socket:
    """A request on a socket of its own, its answer unread."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({**GOOD, **fields}).encode()
    sock = socket.create_connection((host, int(port)), 5)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return sock


def until(true: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(true())


class Endless:
    """A script without an end: each step is a short moment."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, text: str) -> list[Scripted]:
        self.steps += 1
        time.sleep(0.005)
        return [Scripted(f"Step {self.steps}.\n", 0.6), Scripted("Or so.\n", 0.4)]


BEAM: Any = {"method": "beam", "max_tokens": 3000}
"""With `Endless`: a search of a quarter of a minute, which can be given up every few milliseconds."""


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_branches(stream: bool) -> None:
    endless = Endless()
    with server(endless) as (address, scheduler):
        sock = raw(address, stream=stream, caspo=BEAM)
        assert until(lambda: endless.steps > 10)
        assert scheduler.load().active == 1
        sock.close()
        assert until(lambda: scheduler.load().active == 0), "its job goes on"
        assert until(lambda: "caspo_hung_up_total 1.0" in httpx.get(f"{address}/metrics").text)


def test_a_client_that_takes_nothing_in_is_given_up() -> None:
    body = json.dumps({**GOOD, "stream": True, "caspo": {**BEAM, "events": True}}).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope: Any = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b"",
    }  # fmt: skip
    told = 0
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return bodies.pop() if bodies else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal told
        told += 1
        if told > 3:  # the buffers are full
            await asyncio.Event().wait()

    async def ask(app: Any, scheduler: Scheduler) -> bool:
        await asyncio.wait_for(app(scope, receive, send), 10)
        return await asyncio.to_thread(until, lambda: scheduler.load().active == 0)

    with application(Endless(), send_seconds=0.2) as (app, scheduler):
        assert asyncio.run(ask(app, scheduler)), "its job goes on"


def test_a_stream_that_is_never_read_ends_all_the_same() -> None:
    with server() as (address, scheduler):
        socks = [raw(address, stream=True, caspo={"events": True}) for _ in range(20)]
        assert until(lambda: scheduler.load().generated_tokens >= 20 * 30)
        assert until(lambda: scheduler.load().active == 0)
        for sock in socks:
            sock.close()


# The document


def test_the_document_names_every_field_and_error(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/healthz", "/metrics",
    }  # fmt: skip
    schemas = document["components"]["schemas"]
    assert set(schemas["ChatRequest"]["properties"]) == set(ChatRequest.model_fields)
    assert {"method", "tree", "children", "samples", "beam_width", "evidence"} <= set(schemas["CaspoFields"]["properties"])
    responses = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(responses)
    assert "422" not in responses
    text = json.dumps(document)
    for reference in text.split('"$ref": "')[1:]:
        place, _, name = reference.split('"')[0].rpartition("/")
        assert place == "#/components/schemas"
        assert name in schemas


def fuzz(examples: int) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="pip install 'caspo-llm[dev]'")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    with application(keys=()) as (app, _):
        schema = schemathesis.openapi.from_dict(Client(app).get("/openapi.json").json())
        schema.location = "http://127.0.0.1/openapi.json"
        for found in schema.get_all_operations():
            operation = found.ok()

            @given(case=operation.as_strategy())
            @hypothesis_settings(
                max_examples=examples,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            def check(case: Any) -> None:
                if isinstance(case.body, dict):
                    case.body["stream"] = False  # the schema of events is held by tests of their own
                    case.body["model"] = MODEL  # else nearly every answer is that there is no such model
                    if isinstance(case.body.get("messages"), list):
                        case.body["messages"].append({"role": "user", "content": QUESTION})
                response = Client(app).request(case.method, case.formatted_path, **_sent(case))
                case.validate_response(response, checks=checks)

            check()


def _sent(case: Any) -> dict[str, Any]:
    sent: dict[str, Any] = {"headers": {k: v for k, v in (case.headers or {}).items() if v.isascii()}}
    if isinstance(case.body, dict | list | str | int | float | bool) or case.body is None:
        sent["content"] = json.dumps(case.body).encode("utf-8", "surrogatepass")
        sent["headers"]["content-type"] = "application/json"
    return sent


def test_the_document_holds_under_fuzzing() -> None:
    fuzz(25)


@pytest.mark.slow
def test_the_document_holds_under_much_fuzzing() -> None:
    fuzz(400)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields})


@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4), st.booleans())
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_whatever_is_a_server_error(client: Client, fields: Any, chat: bool) -> None:
    body = {**(GOOD if chat else {"model": MODEL, "prompt": "x"}), **fields}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    answer = client.request("POST", path, content=json.dumps(body).encode("utf-8", "surrogatepass"), headers=JSON)
    assert answer.status_code < 500


def test_temperature_0_asks_cat_for_the_same_answer_each_time_not_for_one_path() -> None:
    """Of a client that always sends it the search is not taken away: later paths are drawn as the server has it."""
    with application(settings={"level": 1.0, "paths": 6, "temperature": 1.0}) as (app, _):
        client = Client(app)

        def told(**fields: Any) -> str:
            return json.dumps(client.chat(caspo={"tree": True}, **fields).json()["choices"][0]["caspo"])

        assert told(temperature=0) == told(temperature=0) == told(temperature=0, seed=0) == told(temperature=1, seed=0)
        assert len({told() for _ in range(9)}) > 1
        assert len({told(temperature=0, seed=seed) for seed in range(9)}) > 1


@given(st.lists(st.text("235+=SoitsThe an\n", min_size=1, max_size=4), max_size=4))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_stream_is_the_whole_answer_and_holds_no_stop_string(client: Client, stops: list[str]) -> None:
    whole = client.chat(stop=stops, seed=0).json()["choices"][0]
    content = whole["message"]["content"]
    assert not any(stop in content for stop in stops)
    assert "".join(step["text"] for step in whole["caspo"]["steps"]) == content
    streamed = chunks(client.chat(stop=stops, seed=0, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == content
    assert streamed[-1]["choices"][0]["caspo"] == whole["caspo"]
