"""Runs a Python program that nobody has read, in a process that may compute, read files and print, and little else.

Each run is a new process in a session of its own, with an empty environment, no inherited files but its three pipes, and
an empty temporary folder to stand in, removed afterwards. Before the program starts, the process gives up its rights for
good by a filter of system calls (Linux seccomp, which needs no privilege and binds root too). What the program may do is a
list of calls; everything else fails with "Operation not permitted": sockets, new processes (threads are allowed), other
programs, creating, changing or removing files, signals, changing limits. Processor time, wall time, memory and output are
limited; what exceeds them is killed.

What is not covered:

- Reading. The program sees every file that you may read. It cannot send it anywhere, but what it prints comes back.
- A program that sets out to fake its result. Tests that run in its own process (HumanEval's) are within its reach: it can
  change what they compare, or read the mark that says they passed. It takes intent; leaving early, by whatever exit, does
  not pass.
- Bugs in the kernel, and what other programs can learn through timing. Run code of an enemy in a virtual machine.
- Systems other than Linux on x86-64 and aarch64: there every run is refused.
"""

from __future__ import annotations

import contextlib
import json
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
from dataclasses import dataclass
from pathlib import Path

from caspo.core.errors import ConfigError

__all__ = ["Limits", "Ran", "run_python"]


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
    """It ran to its last line: no exception, no exit, not killed."""
    output: str
    """What it printed, up to the limit; bytes that are no UTF-8 are replaced."""
    reason: str
    """Why it did not finish: "error: ...", "exit: ...", "killed: ...", "time limit", "output limit"; empty where it did."""


def run_python(source: str, stdin: str = "", limits: Limits | None = None) -> Ran:
    """Run a program with this standard input.

    Raises:
        ConfigError: this machine cannot hold a program back.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ConfigError(
            f"Code can be run on Linux (x86-64, aarch64) only; this is {sys.platform} on {platform.machine()}. Grade "
            "code on such a machine, or in a container with Linux."
        )
    limits = limits or Limits()
    mark = f"finished {secrets.token_hex(16)}"
    request = {"source": source, "mark": mark, "limits": {"seconds": int(-(-limits.seconds // 1)), "bytes": limits.memory}}
    with tempfile.TemporaryDirectory(prefix="caspo-run-") as folder:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        result, result_end = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(Path(__file__).with_name("sandbox_child.py")), str(file), str(result_end)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(result_end,),
                start_new_session=True,
            )
        finally:
            os.close(result_end)
        try:
            output, said, limit = _communicate(process, result, stdin.encode(), limits)
        finally:
            _end(process)
            os.close(result)
    if said.startswith("refused: "):
        raise ConfigError(
            f"Code cannot be run here: {said.removeprefix('refused: ')}. Nothing was run. Use a kernel (or a container) "
            "that allows seccomp filters."
        )
    if said == mark and not limit:
        return Ran(True, output, "")
    code = process.returncode
    died = f"killed: {signal.Signals(-code).name}" if code < 0 else f"exit: {code}"
    return Ran(False, output, limit or (said if said != mark else "") or died)


def _communicate(process: subprocess.Popen[bytes], result: int, stdin: bytes, limits: Limits) -> tuple[str, str, str]:
    """What the program printed, what the child said of it, and the limit that was reached, if one was."""
    assert process.stdin is not None
    assert process.stdout is not None
    feeder = threading.Thread(target=_feed, args=(process, stdin), daemon=True)
    feeder.start()
    found: dict[int, bytearray] = {process.stdout.fileno(): bytearray(), result: bytearray()}
    output = found[process.stdout.fileno()]
    deadline = time.monotonic() + limits.seconds
    reached = ""
    with selectors.DefaultSelector() as selector:
        for pipe in found:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map() and not reached:
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready and deadline <= time.monotonic():
                reached = "time limit"
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                found[key.fd] += data
                if not data:
                    selector.unregister(key.fd)
            if len(output) > limits.output:
                reached = "output limit"
    _end(process, 0.0 if reached else 1.0)
    feeder.join()
    return (bytes(output[: limits.output]).decode(errors="replace"), found[result][:2000].decode(errors="replace"), reached)


def _feed(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    """Write the input; a program that does not read it is no error."""
    assert process.stdin is not None
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
            pipe.close()  # type: ignore[union-attr]
