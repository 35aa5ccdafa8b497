"""Who may call `caspo serve`, what it tells, and how it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from caspo.cli import serve as command
from caspo.cli.main import main
from caspo.core.errors import ConfigError
from caspo.serve.server import listening
from serving import CONTENT, MODEL, QUESTION, Client, application, server, settings

KEYS = ("first-key-0001", "second-key-002")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_listening_to_others_without_keys_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="no API key"):
        settings(host=host)
    settings(host=host, keys=KEYS)


def test_everything_but_health_and_the_page_needs_a_key() -> None:
    with application(keys=KEYS) as (app, _):
        stranger = Client(app)
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/metrics", "/openapi.json", "/v1/nothing", "/.env"):
            answer = stranger.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
        assert stranger.chat().status_code == 401
        assert stranger.get("/healthz").json() == {"status": "ok"}
        assert stranger.get("/").status_code == 200
        for key in KEYS:
            assert Client(app, bearer(key)).chat().status_code == 200
        for wrong in ("", "first-key", "FIRST-KEY-0001", "first-key-0001,second-key-002", "\u00e9"):
            headers = [(b"Authorization", f"Bearer {wrong}".encode())]
            assert stranger.get("/v1/models", headers=headers).status_code == 401, wrong
        assert stranger.get("/v1/models", headers={"Authorization": KEYS[0]}).status_code == 401


def test_without_keys_only_this_machine_s_names_are_answered() -> None:
    with application() as (app, _):
        client = Client(app)
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8000", "[::1", ""):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 403, host
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "127.9.9.9"):
            assert client.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_pages_of_other_origins_are_refused_unless_they_were_named() -> None:
    origin = {"Origin": "https://page.example", "Content-Type": "application/json"}
    with application() as (app, _):
        refused = Client(app).get("/v1/models", headers=origin)
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
        own = {"Origin": "http://127.0.0.1"}
        assert Client(app).get("/v1/models", headers=own).status_code == 200
    with application(cors=("https://page.example",)) as (app, _):
        allowed = Client(app).get("/v1/models", headers=origin)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert Client(app).get("/v1/models", headers={"Origin": "https://other.example"}).status_code == 403


def test_a_form_of_a_web_page_cannot_post() -> None:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]})
    with application() as (app, _):
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            answer = Client(app).request("POST", "/v1/chat/completions", content=body, headers={"content-type": kind})
            assert answer.status_code == 415


def test_nothing_of_a_request_is_a_path_to_a_file() -> None:
    with application() as (app, _):
        client = Client(app)
        for path in (
            "/../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/page/../app.py",
            "/app.py",
            "/page",
            "//etc/passwd",
        ):
            assert client.get(path).status_code == 404, path
        assert client.get("/v1/models/..%2f..%2fetc%2fpasswd").status_code == 404


def test_answers_carry_headers_that_browsers_heed() -> None:
    with application() as (app, _):
        for path in ("/v1/models", "/nothing", "/healthz"):
            headers = Client(app).get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["cache-control"] == "no-store"


def test_no_key_and_no_prompt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    secret = "the prompt that nobody may read"
    with application(keys=KEYS) as (app, _):
        client = Client(app, bearer(KEYS[0]))
        client.chat(messages=[{"role": "user", "content": secret}])
        client.get(f"/v1/models?key={KEYS[0]}")
        client.chat(messages=secret)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("caspo", "uvicorn"))]
    assert any("/v1/chat/completions 200" in line for line in ours)
    assert not [line for line in ours if secret in line or KEYS[0] in line]


def test_keys_do_not_show_in_settings() -> None:
    configured = settings(keys=KEYS)
    assert KEYS[0] not in repr(configured)
    assert KEYS[0] not in configured.model_dump_json()
    with pytest.raises(ConfigError) as caught:
        command._settings(keys=("short",))
    assert "short" not in str(caught.value)


def test_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CASPO_API_KEYS", "one-of-them, two-of-them,")
    assert command._keys(None) == ("one-of-them", "two-of-them")
    file = tmp_path / "keys"
    file.write_text("# ours\nthree-of-them\n\n")
    file.chmod(0o600)
    assert command._keys(file) == ("three-of-them",)
    assert not capsys.readouterr().err
    file.chmod(0o644)
    command._keys(file)
    assert "chmod 600" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        command._keys(tmp_path / "none")


def test_an_address_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="another --port"):
            listening(settings(port=taken.getsockname()[1]))


def test_the_server_says_nothing_of_itself() -> None:
    with server() as (address, _):
        assert "server" not in httpx.get(f"{address}/healthz").headers


_SCRIPT = """
import sys, time
from caspo.cli.serve import _listen
from caspo.serve.scheduler import Scheduler
from serving import *
def slow(text):
    time.sleep(0.05)
    return [Scripted("On.\\n", 0.6), Scripted("And on.\\n", 0.4)] if text.count("\\n") < 20 else script(text)
configured = settings(grace=float(sys.argv[1]))
engine = ScriptedEngine(slow, MODEL)
_listen(configured, engine, Scheduler(engine, active=8, waiting=8), listening(configured), 16)
"""


@pytest.mark.parametrize("grace", [20.0, 0.2])
def test_at_sigterm_what_is_under_way_is_finished_within_the_grace(grace: float) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "src")])
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(grace)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split()[2]
        while True:
            try:
                httpx.get(f"{url}/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "caspo": {"method": "beam", "beam_width": 1, "children": 1, "temperature": 1},
        }
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/chat/completions", json=body, timeout=20))
        )
        asking.start()
        while "caspo_jobs_active 1.0" not in httpx.get(f"{url}/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        asking.join(20)
        assert process.wait(20) == 0
        assert answers[0].status_code == (200 if grace > 1 else 503)
        if grace > 1:
            assert "The answer is" in answers[0].json()["choices"][0]["message"]["content"]
    finally:
        process.kill()
        process.stdout.close()


def test_the_command_tells_a_mistake_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CASPO_API_KEYS", raising=False)
    for arguments, message in (
        (["--host", "0.0.0.0"], "no API key"),
        (["--method", "magic"], "no method 'magic'"),
        (["pahts=3"], "did you mean 'paths'"),
        (["--max-body", "5"], "max_body"),
        (["--cors", "*"], "name the origins"),
    ):
        monkeypatch.setattr(sys, "argv", ["caspo", "serve", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        error = capsys.readouterr().err
        assert left.value.code == 1
        assert error.startswith("Error: ")
        assert message in error


def test_when_closing_requests_are_refused_and_health_says_so() -> None:
    with application() as (app, _):
        app.close()
        answer = Client(app).chat()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert Client(app).get("/healthz").status_code == 503


def test_calibrated_settings_cannot_be_changed() -> None:
    with application(fixed=True, settings={"abstain_below": 0.2, "temperature": 0.01}) as (app, _):
        client = Client(app)
        for fields in ({}, {"temperature": 0}, {"temperature": 0.01}):
            assert client.chat(**fields).json()["choices"][0]["message"]["content"] == CONTENT
        refused = ({"caspo": {"method": "beam"}}, {"caspo": {"paths": 5}}, {"max_tokens": 9}, {"top_p": 0.5})
        for fields in (*refused, {"temperature": 0.5}):
            assert client.chat(**fields).status_code == 400


def test_a_conversation_without_system_message_gets_the_server_s() -> None:
    seen: list[str] = []

    def read(text: str) -> Any:
        from caspo.testing.scripted import Scripted

        seen.append(text)
        return [Scripted("The answer is 1.", eos=True)]

    with application(read, instruction="Be brief.") as (app, _):
        Client(app).chat()
        Client(app).chat(messages=[{"role": "system", "content": "Mine."}, {"role": "user", "content": QUESTION}])
    assert seen[0].startswith("Be brief.\n")
    assert "Be brief." not in seen[-1]


def test_metrics_count_what_happened() -> None:
    with application(keys=KEYS, settings={"paths": 1}) as (app, _):
        client = Client(app, bearer(KEYS[0]))
        client.chat()
        client.chat(caspo={"abstain_below": 1})
        client.chat(nonsense=1)
        text = client.get("/metrics").text
    assert 'caspo_requests_total{endpoint="/v1/chat/completions",status="200"} 2.0' in text
    assert 'caspo_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0' in text
    assert "caspo_abstained_total 1.0" in text
    assert "caspo_first_step_seconds_count 2.0" in text
    assert "caspo_generated_tokens_total 78.0" in text
