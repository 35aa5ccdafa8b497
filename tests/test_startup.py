"""What needs no local model loads no torch: every such command is run, and what Python imported for it is looked at."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fake_server import serving
from report_run import make_run

LABELLED = {
    "id": "gsm8k-0", "generator": "nobody", "problem": "What is 1 + 2?", "steps": ["1 + 2 = 3", "The answer is 3."],
    "final_answer_correct": True, "label": -1,
}  # fmt: skip
REPLY = {"choices": [{"message": {"role": "assistant", "content": '{"reason": "fine", "first_wrong_step": -1}'}}]}


def started(*arguments: object, until_told: bool = False) -> set[str]:
    """The packages that a command imported; with ``until_told`` it is ended after the first line that it prints."""
    command = [sys.executable, "-X", "importtime", "-m", "caspo.cli.main", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if until_told:
            told: list[str] = []
            reader = threading.Thread(target=lambda: told.append(process.stderr.read()))  # type: ignore[union-attr]
            reader.start()  # a pipe holds only so much
            assert "http://" in process.stdout.readline()
            process.terminate()
            reader.join()
            errors = told[0]
        else:
            _, errors = process.communicate()
    said = "\n".join(line for line in errors.splitlines() if not line.startswith("import time"))
    assert process.returncode in ((0, -signal.SIGTERM) if until_told else (0,)), said
    return set(re.findall(r"\| +(\w+)$", errors, flags=re.M))


def loads_no_torch(*arguments: object, until_told: bool = False) -> None:
    imported = started(*arguments, until_told=until_told)
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "datasets", "peft", "accelerate"}


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps(LABELLED) + "\n", encoding="utf-8")
    return file


@contextmanager
def chat() -> Iterator[str]:
    """An endpoint that calls every solution right."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(REPLY).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("arguments", [("--help",), ("solve", "--help"), ("run", "--help")])
def test_help(arguments: tuple[str, ...]) -> None:
    imported = started(*arguments)
    assert not imported & {"torch", "transformers"}
    assert "numpy" not in imported or arguments == ("solve", "--help")  # which names the methods


def test_solve_on_a_server() -> None:
    with serving("llama.cpp") as server:
        loads_no_torch("solve", "How many?", "--model", "fake", "--url", server.url, "paths=2", "max_tokens=24")
        assert server.bodies


def test_serve_in_front_of_a_server() -> None:
    with serving("llama.cpp") as server:
        loads_no_torch("serve", "--model", "fake", "--url", server.url, "--port", 0, until_told=True)


def test_judge_with_an_endpoint(labelled: Path, tmp_path: Path) -> None:
    with chat() as url:
        settings = ("model=m", f"endpoint.url={url}")
        loads_no_torch("judge", labelled, "--judge", "language_model", "--out", tmp_path / "out", *settings)
    assert "right" in (tmp_path / "out" / "verdicts.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize(("judge", "settings"), [("arithmetic", ()), ("labels", ("files=[{}]",))])
def test_judge_without_a_model(labelled: Path, tmp_path: Path, judge: str, settings: tuple[str, ...]) -> None:
    changed = [setting.format(labelled) for setting in settings]
    loads_no_torch("judge", labelled, "--judge", judge, "--out", tmp_path / "out", *changed)


def test_report(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    loads_no_torch("report", tmp_path / "run")


def test_export(labelled: Path, tmp_path: Path) -> None:
    loads_no_torch("export", labelled, "--out", tmp_path / "out.jsonl", "--format", "prm800k")


def test_import(labelled: Path, tmp_path: Path) -> None:
    """Which needs a tokenizer, and no more of transformers than that."""
    imported = started("import", labelled, "--model", "stories-tiny", "--out", tmp_path / "trees.parquet")
    assert "transformers" in imported
    assert "torch" not in imported
