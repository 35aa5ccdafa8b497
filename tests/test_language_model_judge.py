"""The language-model judge against a fake server on loopback: every fault a real one has, and what comes of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from caspo.core.errors import ConfigError
from caspo.judges.base import Chain, Judge
from caspo.judges.endpoint import ChatEndpoint, EndpointSettings, ModelAnswer
from caspo.judges.language_model import INSTRUCTION, LanguageModelJudge, LanguageModelSettings, ask_engine, prompt_of
from caspo.records import Question
from caspo.testing.scripted import Scripted
from test_rollouts import Engine

QUESTION = Question("Ann has 2 nuts and finds 3. How many has she?", "5", id="q")
STEPS = ("2 + 3 = 6.\n", "So she has 6.\n", "The answer is 6.")
CHAIN = Chain(QUESTION, STEPS, True)
SETTINGS = LanguageModelSettings(model="m")

Handler = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def reply(first: object, reason: str = "because") -> str:
    return json.dumps({"reason": reason, "first_wrong_step": first})


def send(
    handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Sequence[tuple[str, str]] = (), length: int = 0
) -> None:
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(length or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(text: object) -> Handler:
    body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    return lambda handler, request: send(handler, 200, body)


def status(code: int, *headers: tuple[str, str], body: bytes = b"no") -> Handler:
    return lambda handler, request: send(handler, code, body, headers)


def half_a_body(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    send(handler, 200, b'{"choices": [{"mess', length=500)


def half_a_reply(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    send(handler, 200, b'{"choices": [{"mess')


def no_body(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    send(handler, 200, b"")


def hangs_up(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    handler.close_connection = True


def too_slow(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    time.sleep(1.0)


class Server(ThreadingHTTPServer):
    """Plays its handlers one after the other, the last one for ever; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Play)
        self.script: list[Handler] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Play(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            handler = server.script[min(len(server.asked), len(server.script) - 1)]
            server.asked.append({**request, "path": self.path})
            server.keys.append(self.headers["Authorization"])
        handler(self, request)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def judge_at(server: Server, settings: LanguageModelSettings = SETTINGS, **more: float) -> LanguageModelJudge:
    quick: dict[str, Any] = {"timeout": 5, "retries": 2, "first_wait": 0.001, **more}
    endpoint = EndpointSettings(url=server.url, **quick)
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    return LanguageModelJudge(ChatEndpoint(endpoint, settings.model, INSTRUCTION, sampling), settings)


def told(judge: Judge, chain: Chain = CHAIN) -> list[str]:
    (verdicts,) = judge.judge([chain])
    return [verdict.label for verdict in verdicts]


def reason(judge: Judge, chain: Chain = CHAIN) -> str:
    return judge.judge([chain])[0][-1].reason


@pytest.mark.parametrize(
    ("first", "labels"),
    [(0, ["wrong"]), (1, ["right", "wrong"]), (2, ["right", "right", "wrong"]), (-1, ["right", "right", "right"])],
)
def test_the_first_wrong_step_makes_the_verdicts(server: Server, first: int, labels: list[str]) -> None:
    server.script = [says(reply(first, "two and three are five"))]
    judge = judge_at(server)
    assert told(judge) == labels
    assert reason(judge) == "two and three are five"
    assert server.asked[0]["path"] == "/v1/chat/completions"
    assert server.asked[0]["model"] == "m"


def test_json_is_found_among_what_a_model_says_around_it(server: Server) -> None:
    """Thoughts before it, and a fence around it; of several objects the last counts."""
    thoughts = f"<think>{reply(0)} hmm {{no}}</think>"
    for text in (f"```json\n{reply(1)}\n```", f"{thoughts} Then {reply(1)}.", f'{{"a": {{"b": 1}}}}\n{reply(1)}'):
        server.script, server.asked = [says(text)], []
        assert told(judge_at(server)) == ["right", "wrong"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Step 1 is wrong, I think.", "no JSON object"),
        ("Der erste Schritt ist falsch: 2 + 3 = 5.", "no JSON object"),
        ('{"first_wrong_step": 1', "no JSON object"),
        ("{" * 5000, "no JSON object"),
        (json.dumps({"reason": "x"}), "no JSON object"),
        (reply("1"), "not what was asked for"),
        (reply(1.5), "not what was asked for"),
        (reply(None), "not what was asked for"),
        (reply(True), "not what was asked for"),
        (reply(3), "names step 3, of 0 to 2"),
        (reply(-2), "names step -2"),
    ],
)
def test_prose_and_nonsense_are_unknown_with_the_reason(server: Server, text: str, why: str) -> None:
    """A judge that does not answer the question has not called the step wrong."""
    server.script = [says(text)]
    judge = judge_at(server)
    assert told(judge) == ["unknown"] * 3
    assert why in reason(judge)
    assert not judge.judge([CHAIN])[0][0].failed
    assert len(server.asked) == 3, "asked once each: the same prompt gives the same prose"


@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), status(408), half_a_body, half_a_reply, no_body, hangs_up]
)
def test_a_fault_that_passes_is_lived_with(server: Server, fault: Handler) -> None:
    server.script = [fault, fault, says(reply(1))]
    assert told(judge_at(server)) == ["right", "wrong"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", [status(429), status(500), half_a_body, half_a_reply, no_body, hangs_up])
def test_a_fault_that_stays_is_unknown(server: Server, fault: Handler) -> None:
    server.script = [fault]
    judge = judge_at(server)
    assert told(judge) == ["unknown"] * 3
    assert reason(judge).startswith("failed: ")
    assert all(verdict.failed for verdict in judge.judge([CHAIN])[0])
    assert "3 tries" in reason(judge)


def test_a_time_out_is_a_fault(server: Server) -> None:
    server.script = [too_slow, says(reply(1))]
    assert told(judge_at(server, timeout=0.2)) == ["right", "wrong"]


def test_a_refusal_is_not_asked_again(server: Server) -> None:
    """Too long a context, a filter: it would be refused again. The server's own words are in the reason."""
    server.script = [status(400, body=b'{"error": "context  too long"}')]
    judge = judge_at(server)
    assert told(judge) == ["unknown"] * 3
    assert len(server.asked) == 1
    assert "400" in reason(judge)
    assert "context too long" in reason(judge)


def test_nobody_listens() -> None:
    judge = LanguageModelJudge(
        ChatEndpoint(EndpointSettings(url="http://127.0.0.1:9/v1", retries=1, first_wait=0.001), "m", "", {}), SETTINGS
    )
    assert told(judge) == ["unknown"] * 3
    assert "ConnectError" in reason(judge)


@pytest.mark.parametrize("code", [401, 404])
def test_a_wrong_key_or_model_raises(server: Server, code: int) -> None:
    """It is the user's mistake, and every other question would meet it too."""
    server.script = [status(code)]
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        judge_at(server).judge([CHAIN] * 3)


def test_the_server_says_how_long_to_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After in seconds or as a date; what would take too long is given up at once."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.script = [status(429, ("Retry-After", "7")), says(reply(1))]
    assert told(judge_at(server)) == ["right", "wrong"]
    assert waits == [7.0]
    server.script, server.asked = [status(503, ("Retry-After", formatdate(time.time() + 30, usegmt=True)))], []
    assert told(judge_at(server, retries=1)) == ["unknown"] * 3
    assert 25 < waits[1] <= 30
    server.script, server.asked = [status(429, ("Retry-After", "3600"))], []
    assert "asks to wait 3600 s" in reason(judge_at(server))
    server.script, server.asked = [status(429, ("Retry-After", "soon")), says(reply(1))], []
    assert told(judge_at(server)) == ["right", "wrong"]
    assert len(waits) == 3


def test_waits_double_and_are_jittered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    server.script = [status(500)]
    told(judge_at(server, retries=6, first_wait=1, longest_wait=8))
    assert all(0.5 * full <= wait <= 1.5 * full for wait, full in zip(waits, (1, 2, 4, 8, 8, 8), strict=True))
    assert len(set(waits)) == 6


def test_the_key_comes_from_the_environment_and_is_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a reason, not in an error, not in the log, even where the server repeats it."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    endpoint = EndpointSettings(url=server.url, key_variable="JUDGE_KEY", retries=1, first_wait=0.001)
    judge = LanguageModelJudge(ChatEndpoint(endpoint, "m", "", {}), SETTINGS)
    server.script = [status(500, body=b"bad key sk-secret")]
    assert "sk-secret" not in reason(judge)
    assert server.keys[0] == "Bearer sk-secret"
    server.script, server.asked = [status(401, body=b"bad key sk-secret")], []
    with pytest.raises(ConfigError) as error:
        told(judge)
    assert "JUDGE_KEY" in str(error.value)
    assert "sk-secret" not in f"{error.value!r} {caplog.text} {judge.fingerprint} {endpoint!r}"
    monkeypatch.delenv("JUDGE_KEY")
    server.script, server.asked, server.keys = [says(reply(1))], [], []
    told(judge)
    assert server.keys == [None]


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    now, most = 0, 0

    def slow(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        nonlocal now, most
        with server.lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with server.lock:
            now -= 1  # before the reply: once that is there, the client may ask again
        says(reply(1))(handler, request)

    server.script = [slow]
    chains = [Chain(Question("?", "1", id=str(i)), STEPS, True) for i in range(12)]
    found = judge_at(server, concurrency=3).judge(chains)
    assert [v[-1].label for v in found] == ["wrong"] * 12
    assert 2 <= most <= 3


def test_answers_stay_with_their_chains(server: Server) -> None:
    """However long each takes."""

    def numbered(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        first = int(request["messages"][1]["content"].split("number ")[1].split("?")[0])
        time.sleep(0.01 * (3 - first))
        says(reply(first))(handler, request)

    server.script = [numbered]
    chains = [Chain(Question(f"number {i}?", "1", id=str(i)), STEPS, True) for i in (2, 0, 1, 2)]
    assert [len(v) for v in judge_at(server).judge(chains)] == [3, 1, 2, 3]


def ask(*texts: str | None) -> tuple[LanguageModelJudge, list[int]]:
    """A judge of three votes that gets these answers; the seeds it asked with."""
    seen: list[int] = []

    def answers(prompts: Sequence[str], seeds: Sequence[int]) -> list[ModelAnswer]:
        seen.extend(seeds)
        return [ModelAnswer(text, "gone") for text in texts]

    return LanguageModelJudge(answers, LanguageModelSettings(model="m", votes=len(texts), temperature=0.7)), seen


def test_votes_are_a_majority_over_the_first_wrong_step() -> None:
    """Failed votes do not count; a tie is unknown."""
    judge, seeds = ask(reply(1, "a"), reply(2), reply(1, "b"))
    assert told(judge) == ["right", "wrong"]
    assert reason(judge) == "2 of 3 votes: a"
    assert len(set(seeds)) == 3
    assert told(ask(reply(-1), None, "prose")[0]) == ["right"] * 3
    assert told(ask(reply(1), reply(2))[0]) == ["unknown"] * 3
    assert "split" in reason(ask(reply(1), reply(2))[0])
    assert told(ask(None, None)[0]) == ["unknown"] * 3
    with pytest.raises(ValidationError, match="temperature"):
        LanguageModelSettings(model="m", votes=3)


def test_equal_chains_are_asked_about_once_and_empty_ones_never(server: Server) -> None:
    server.script = [says(reply(1))]
    found = judge_at(server).judge([CHAIN, Chain(QUESTION, (), True), CHAIN, Chain(QUESTION, ("a",), False, given=1)])
    assert [len(v) for v in found] == [2, 0, 2, 0]
    assert len(server.asked) == 1


def test_given_steps_are_shown_but_not_judged(server: Server) -> None:
    server.script = [says(reply(1))]
    given = Chain(QUESTION, STEPS, True, given=1)
    assert told(judge_at(server), given) == ["wrong"]
    server.script, server.asked = [says(reply(0))], []
    assert told(judge_at(server), given) == ["unknown", "unknown"], "it names a step that is known to be right"


def test_the_prompt_shows_every_step_with_its_number() -> None:
    """An empty one too, in any language; the known answer only where asked for."""
    chain = Chain(QUESTION, ("二加三等于五。\n", "", "Ответ: пять \ud800\n"), False, given=1)
    prompt = prompt_of(chain, show_answer=True)
    for part in ("[0] 二加三等于五。", "[1] (empty)", "[2] Ответ: пять", "answer is known: 5", "goes on", "from [1] on"):
        assert part in prompt
    prompt.encode()
    assert "known: 5" not in prompt_of(chain, show_answer=False)


def test_a_local_model_is_asked_through_an_engine() -> None:
    """Loaded when first asked; a prompt that leaves no room in its context is unknown."""
    opened: list[int] = []

    def open_engine() -> Engine:
        opened.append(1)
        engine = Engine(lambda text: [Scripted(reply(1), eos=True)])
        engine.context_length = 2000
        return engine

    judge = LanguageModelJudge(ask_engine(open_engine, SETTINGS), SETTINGS)
    assert judge.judge([]) == []
    assert not opened
    long = Chain(QUESTION, ("x" * 3000, "y"), True)
    found = judge.judge([CHAIN, long, CHAIN])
    assert [[v.label for v in verdicts] for verdicts in found] == [
        ["right", "wrong"],
        ["unknown", "unknown"],
        ["right", "wrong"],
    ]
    assert "no room" in found[1][0].reason
