"""What a busy neighbour costs: decoding while another process computes without pause on one of our cores.

Two sides, each a process of its own that keeps its model: `chosen`, as `caspo` opens it (one thread for each core, and
threads that wait sleep), and `plain`, as torch is by itself (one thread for each CPU, and threads that wait spin). Sides and
states (alone, with the neighbour) take turns. The neighbour is held to the last of the CPUs that we may use.

`neighbour_slowdown` is the time with it over the time alone. It cannot be 1 where all cores are ours: of n cores a fair
scheduler leaves us n - 1/2, so n / (n - 1/2) is our share (1.33 of two cores), by which `neighbour_slowdown_beyond_share` is
divided. `neighbour_speedup_vs_plain` and `alone_speedup_vs_plain` are times of the plain side over ours, in the two states.
On a machine that others use as well "alone" is not alone: look at the load that is printed.

Figures: `neighbour_slowdown`, `neighbour_slowdown_beyond_share`, `neighbour_slowdown_plain`, `neighbour_speedup_vs_plain`,
`alone_speedup_vs_plain`
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from parts.measure import difference, options, ratio, report

from caspo.engines.base import Request
from caspo.engines.opening import ModelSettings, open_local
from caspo.tasks.stories import StoriesTask

SIDES = ("chosen", "plain")
_OPENMP = ("OMP_", "GOMP_", "KMP_", "MKL_NUM_THREADS")


def work(side: str, model: str, dtype: str, rows: int, new: int) -> None:
    """Decode once for every line that comes in; tell the threads first, then the seconds of each time."""
    if side == "plain":
        import torch  # before `open_local` can have a say in how threads wait

        threads = torch.get_num_threads()
    engine = open_local(ModelSettings.model_validate({"name": model, "dtype": dtype, "device": "cpu"}))
    import torch

    if side == "plain":
        torch.set_num_threads(threads)
    questions = StoriesTask((1, 2, 3)).questions("test", rows, 0)
    prompts = [engine.prompt(question.text) for question in questions]

    def decode(tokens: int) -> float:
        start = time.perf_counter()
        engine.generate([Request(prompt, 0, max_new_tokens=tokens, temperature=0.0) for prompt in prompts])
        return time.perf_counter() - start

    decode(new)  # the first time, memory is new; prompts are kept
    print(torch.get_num_threads(), flush=True)
    for _ in sys.stdin:
        print(decode(new), flush=True)


class Side:
    """A process that decodes when it is asked."""

    def __init__(self, args: Any, side: str) -> None:
        command = [sys.executable, __file__, "--side", side, "--model", args.model, "--dtype", args.dtype]
        command += ["--rows", str(args.rows), "--new-tokens", str(args.new_tokens)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={key: value for key, value in os.environ.items() if not key.startswith(_OPENMP)},
        )  # fmt: skip
        self.threads = int(self._line())

    def seconds(self) -> float:
        """Of decoding once."""
        stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
        stdin.write("\n")
        stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        stdout: IO[str] = self.process.stdout  # type: ignore[assignment]
        line = stdout.readline()
        if not line:
            raise SystemExit("A side has ended; its message is above.")
        return line


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes without pause, on the last CPU of ours."""
    last = max(os.sched_getaffinity(0))
    script = f"import os\nos.sched_setaffinity(0, {{{last}}})\nprint(flush=True)\nwhile os.getppid() == {os.getpid()}: pass"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Run everything and print a table."""
    parser = options(__doc__, "the smallest model, two turns")
    parser.add_argument("--model", default="smollm2-135m-stories", help="a name or folder of a model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="of both sides")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32, help="of a row, at most")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--side", choices=SIDES, help="(what this script starts for each side)")
    args = parser.parse_args()
    if args.quick:
        args.model, args.turns, args.rows = "stories-tiny", 2, 4
    if args.side:
        work(args.side, args.model, args.dtype, args.rows, args.new_tokens)
        return
    load = os.getloadavg()[0]
    alone: dict[str, list[float]] = {side: [] for side in SIDES}
    busy: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        sides = {name: Side(args, name) for name in SIDES}
        for side in sides.values():
            stack.callback(side.close)
        threads = {name: side.threads for name, side in sides.items()}
        for turn in range(args.turns):
            for name in SIDES if turn % 2 == 0 else SIDES[::-1]:
                alone[name].append(sides[name].seconds())
                with neighbour():
                    busy[name].append(sides[name].seconds())
    cpus = len(os.sched_getaffinity(0))
    n = threads["chosen"]
    share = n / (n - 0.5) if n >= cpus else 1.0
    note = f"{args.rows} rows of {args.model}, {n} threads on {cpus} CPUs, load {load:.1f} before"
    slower = ratio(busy["chosen"], alone["chosen"], note)
    figures = {
        "neighbour_slowdown": slower,
        "neighbour_slowdown_beyond_share": difference(
            slower["value"] / share, slower["low"] / share, slower["high"] / share, f"ours is {share:.2f}", "x", args.turns
        ),
        "neighbour_slowdown_plain": ratio(busy["plain"], alone["plain"], f"{threads['plain']} threads that spin"),
        "neighbour_speedup_vs_plain": ratio(busy["plain"], busy["chosen"], "with the neighbour"),
        "alone_speedup_vs_plain": ratio(alone["plain"], alone["chosen"], "without it"),
    }  # fmt: skip
    report(figures, args, seconds={"alone": alone, "busy": busy})


if __name__ == "__main__":
    main()
