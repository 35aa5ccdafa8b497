"""What starting a command costs, in seconds of CPU (user and system) of its process, where no model is loaded here.

`caspo solve --url` and `caspo judge` with an endpoint are ended when their first request arrives, `caspo serve --url` when
it says where it listens (in front of a server of the tests, whose model is a formula); `caspo --help` and `caspo report` end
by themselves. Each is a process of its own, and all are started in turns. On a busy machine CPU time grows too: processes
share caches and memory.

Figures: `startup_cpu_seconds_remote`, `startup_cpu_seconds_serve`, `startup_cpu_seconds_judge`, `startup_cpu_seconds_help`,
`startup_cpu_seconds_report`
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from parts.measure import Figure, difference, options, report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from fake_server import serving
from report_run import make_run

CASPO = (sys.executable, "-m", "caspo.cli.main")
SOLUTION = {"problem": "What is 1 + 2?", "steps": ["1 + 2 = 3", "The answer is 3."], "label": -1}
NOTES = {
    "remote": "`caspo solve --url`, until its first request arrives",
    "serve": "`caspo serve --url`, until it listens",
    "judge": "`caspo judge` with an endpoint, until its first request arrives",
    "report": "`caspo report`, to its end",
    "help": "`caspo --help`, to its end",
}


class Listener:
    """A server that answers nothing; ``asked`` is set when the first request arrives."""

    def __init__(self) -> None:
        asked = self.asked = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.set()

            do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Listener:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def cpu(command: Sequence[str], until: Callable[[subprocess.Popen[str]], object] | None = None) -> float:
    """Seconds of CPU of a process, ended when ``until`` returns; without it, to its own end."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE if until else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        if until is not None:
            until(process)
            os.kill(process.pid, signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
    if code != (0 if until is None else -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command)} ended with {code}: {said}")
    return used.ru_utime + used.ru_stime


def asked(arguments: Callable[[str], Sequence[str]]) -> float:
    """CPU until the first request; ``arguments`` are given the URL."""
    with Listener() as listener:
        return cpu([*CASPO, *arguments(listener.url)], lambda _: listener.asked.wait(60))


def listens(process: subprocess.Popen[str]) -> None:
    """Wait for the line that tells where the server listens."""
    assert process.stdout is not None
    process.stdout.readline()


@contextmanager
def commands() -> Iterator[Mapping[str, Callable[[], float]]]:
    """Each figure's command, run once."""
    with tempfile.TemporaryDirectory() as name, serving("llama.cpp") as upstream:
        folder = Path(name)
        solutions, run = folder / "solutions.jsonl", folder / "run"
        solutions.write_text(json.dumps({"id": "one", "generator": "nobody", **SOLUTION}) + "\n", encoding="utf-8")
        make_run(run)

        def judge(url: str) -> Sequence[str]:
            out = tempfile.mkdtemp(dir=folder)
            return ["judge", str(solutions), "--judge", "language_model", "--out", out, "model=m", f"endpoint.url={url}"]

        served = (*CASPO, "serve", "--model", "fake", "--url", upstream.url, "--port", "0")
        yield {
            "remote": lambda: asked(lambda url: ["solve", "How many?", "--model", "m", "--url", url]),
            "serve": lambda: cpu(served, listens),
            "judge": lambda: asked(judge),
            "report": lambda: cpu([*CASPO, "report", str(run)]),
            "help": lambda: cpu([*CASPO, "--help"]),
        }


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "two runs of each command")
    parser.add_argument("--runs", type=int, default=9, help="of each command")
    args = parser.parse_args()
    if args.quick:
        args.runs = 2
    seconds: dict[str, list[float]] = {name: [] for name in NOTES}
    with commands() as known:
        for command in known.values():
            command()  # files that are read for the first time
        for _ in range(args.runs):
            for name, command in known.items():
                seconds[name].append(command())
    figures: dict[str, Figure] = {
        f"startup_cpu_seconds_{name}": difference(
            statistics.median(found), min(found), max(found), f"{NOTES[name]}; median and range", "s", len(found)
        )
        for name, found in seconds.items()
    }
    report(figures, args, seconds=seconds)


if __name__ == "__main__":
    main()
