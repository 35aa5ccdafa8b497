"""Runs a Python program that nobody has read, in a process that may compute, read files and print, and little else.

Each run is a new process in a session of its own, with an empty environment, no inherited files but its pipes, no
capabilities (root's powers), and an empty temporary folder to stand in, removed afterwards. Before the program starts, the
process gives up its rights for good by a filter of system calls (Linux seccomp, which needs no privilege and binds root
too). What the program may do is a list of calls; everything else fails with "Operation not permitted": sockets, new
processes (threads are allowed), other programs, creating, changing or removing files, signals, changing limits. Processor
time, wall time, memory and output are limited; what exceeds them is killed.

Where the kernel has Landlock (Linux 5.13; not switched off), the program reads Python's own folders, the system's programs
and libraries, and nothing else; no other process can be looked into. Where it has not, the program reads every file that
you may read, and of your other processes what the system shows of them; this process makes its own memory, environment and
open files unreadable while a program runs. `held_back` says which of the two this machine is.

Tests (`run_tests`) run in a second process of that kind, which calls the program's and gets plain values back: the program
never sees what is expected of it, and has no say in the comparison.

What is not covered:

- Bugs in the kernel, and what other programs can learn through timing. Run code of an enemy in a virtual machine.
- Threads: there may be as many as memory holds.
- Systems other than Linux on x86-64 and aarch64: there every run is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from caspo.core.errors import ConfigError
from caspo.tasks import sandbox_lock

__all__ = ["Limits", "Ran", "held_back", "run_python", "run_tests"]

_RESULT = 4096
"""Bytes that a process may say of its result."""


@dataclass(frozen=True)
class Limits:
    """What a program may use up."""

    seconds: float = 10.0
    """Wall time, the start of Python included; processor time is limited to the same, rounded up."""
    memory: int = 1 << 30
    """Bytes of address space."""
    output: int = 8 << 20
    """Bytes that it may print."""


@dataclass(frozen=True)
class Ran:
    """What became of a program."""

    finished: bool
    """It ran to its last line: no exception, no exit, not killed before that."""
    output: str
    """What it printed, up to the limit; bytes that are no UTF-8 are replaced."""
    reason: str
    """Why it did not finish: "error: ...", "exit: ...", "killed: ...", "time limit", "output limit", and of one that is
    tested "not loaded: ...". Empty where it did and then ended: a thread, an exit handler or the output may go on past a
    limit."""


def run_python(
    source: str | Sequence[str], stdin: str = "", limits: Limits | None = None, *, module: str = "__main__"
) -> Ran:
    """Run a program with this standard input, as the module of this name.

    Several sources run one after the other, as one module; each may begin with ``from __future__``.

    Raises:
        ConfigError: this machine cannot hold a program back.
    """
    sources = [source] if isinstance(source, str) else list(source)
    with _Run(limits or Limits()) as run:
        run.start({"role": "script", "sources": sources, "module": module}, stdin.encode(errors="surrogatepass"))
        return run.outcome()


def run_tests(program: Sequence[str], entry: str, tests: Sequence[str], limits: Limits | None = None) -> Ran:
    """Run tests of what a program defines, which they know as ``candidate``; it finishes if they run to their last line.

    Program and tests stand in a process each, with these limits each; what they print is dropped. `sandbox_exchange` says
    which values go from one to the other. Tests whose arguments are not plain end with "error: Unplain: ...".

    Args:
        program: sources, run one after the other as one module that is not ``__main__``.
        entry: a Python expression in it, the value that is tested.
        tests: sources, run one after the other.
        limits: of each process.

    Raises:
        ConfigError: this machine cannot hold a program back.
    """
    with _Run(limits or Limits()) as run:
        (asked, ask), (told, tell) = os.pipe(), os.pipe()
        run.start({"role": "program", "sources": list(program), "module": "program", "entry": entry}, None, asked, tell)
        run.start({"role": "tests", "sources": list(tests), "module": "tests"}, None, told, ask)
        return run.outcome()


def held_back() -> str:
    """What this machine keeps from a program, in words: all but Python's and the system's files, or less.

    Raises:
        ConfigError: nothing can be run here.
    """
    if _landlock():
        return "A program reads Python's own files and the system's, no others, and cannot look into other processes."
    return (
        "This kernel has no Landlock (Linux 5.13 or newer; a container's profile may forbid it): a program reads every file "
        "that you can read and, of your processes other than this one, what the system shows."
    )


def _landlock() -> bool:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ConfigError(
            f"Code can be run on Linux (x86-64, aarch64) only; this is {sys.platform} on {platform.machine()}. Grade "
            "code on such a machine, or in a container with Linux."
        )
    return sandbox_lock.landlock()


@cache
def _warn_once() -> None:
    logging.getLogger(__name__).warning(held_back())


class _Run:
    """Processes that end together, with their pipes and their folder; the last one started tells what became of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._landlock = limits, _landlock()
        self._mark = f"finished {secrets.token_hex(16)}"
        self._left = contextlib.ExitStack()

    def __enter__(self) -> _Run:
        if not self._landlock:
            _warn_once()
            self._left.enter_context(_unreadable())
        self._folder = self._left.enter_context(tempfile.TemporaryDirectory(prefix="caspo-run-"))
        return self

    def __exit__(self, *_: object) -> None:
        self._left.close()

    def start(self, request: dict[str, Any], stdin: bytes | None, *pipes: int) -> None:
        """Start a process; without ``stdin`` it reads nothing, and what it prints is dropped. It takes the pipes over."""
        (asked, ask), (self._result, result) = os.pipe(), os.pipe()
        self._left.callback(os.close, self._result)
        request |= {
            "mark": self._mark, "pipes": pipes, "folder": self._folder, "landlock": self._landlock,
            "limits": {"seconds": int(-(-self._limits.seconds // 1)), "bytes": self._limits.memory},
        }  # fmt: skip
        piped = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        try:
            self._process = process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("sandbox_child.py")), str(asked), str(result)],
                stdin=piped,
                stdout=piped,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(asked, result, *pipes),
                start_new_session=True,
            )
        except BaseException:
            os.close(ask)
            raise
        finally:
            for end in (asked, result, *pipes):
                os.close(end)
        feeder = threading.Thread(target=_feed, args=(ask, json.dumps(request).encode(), process, stdin), daemon=True)
        feeder.start()
        self._left.callback(feeder.join)
        self._left.callback(_end, process)

    def outcome(self) -> Ran:
        """Wait for the last process, no longer than its time."""
        process, limits = self._process, self._limits
        found = {self._result: bytearray()}
        room = {self._result: _RESULT}
        if process.stdout is not None:
            found[process.stdout.fileno()], room[process.stdout.fileno()] = bytearray(), limits.output
        reached = _read(found, room, limits.seconds)
        _end(process, 0.0 if reached else 1.0)
        said = found.pop(self._result).decode(errors="replace")
        if said.startswith("refused: "):  # said before the program starts; it cannot take "locked" back
            raise ConfigError(
                f"Code cannot be run here: {said.removeprefix('refused: ')}. Nothing was run. Use a kernel (or a container) "
                "that allows seccomp filters."
            )
        said = said.removeprefix("locked: ")
        output = b"".join(found.values())[: limits.output].decode(errors="replace")
        code = process.returncode
        died = f"killed: {signal.Signals(-code).name}" if code < 0 else f"exit: {code}"
        if said == self._mark:
            return Ran(True, output, reached or ("" if code == 0 else died))
        return Ran(False, output, reached or said or died)


def _read(found: dict[int, bytearray], room: dict[int, int], seconds: float) -> str:
    """Read pipes to their ends, no more of each than there is room for; the limit that was reached, if one was."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for pipe in found:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0 or not (ready := selector.select(left)):
                return "time limit"
            for pipe in (key.fd for key, _ in ready):
                data = os.read(pipe, min(1 << 16, room[pipe] + 1 - len(found[pipe])))
                found[pipe] += data
                if not data:
                    selector.unregister(pipe)
                if len(found[pipe]) > room[pipe]:
                    return "output limit"
    return ""


def _feed(ask: int, request: bytes, process: subprocess.Popen[bytes], stdin: bytes | None) -> None:
    """Write the request and the input; a program that does not read it is no error."""
    with contextlib.suppress(OSError), os.fdopen(ask, "wb") as file:
        file.write(request)
    if stdin is not None and process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.write(stdin)
            process.stdin.close()


def _end(process: subprocess.Popen[bytes], grace: float = 0.0) -> None:
    """Wait ``grace`` seconds for the process, then end its whole session; close what is left of its pipes."""
    if process.returncode is None:
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # input that was not read
            if pipe is not None:
                pipe.close()


_hidden, _hidden_lock = [0], threading.Lock()


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """While a program runs, no other process of this user may look into this one; several may run at a time."""
    with _hidden_lock:
        mine = _hidden[0] > 0 or sandbox_lock.hide(True)  # not if it is hidden anyway
        _hidden[0] += mine
    try:
        yield
    finally:
        with _hidden_lock:
            _hidden[0] -= mine
            if mine and not _hidden[0]:
                sandbox_lock.hide(False)
