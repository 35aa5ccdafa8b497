"""Programs that nobody has read can compute, read and print; whatever else they try fails, and they end in time."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from caspo.core.errors import ConfigError
from caspo.tasks import sandbox
from caspo.tasks.sandbox import Limits, run_python

linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the sandbox needs Linux"
)
SHORT = Limits(seconds=1.5, memory=256 << 20, output=1 << 16)


@linux
def test_a_program_runs_and_its_output_comes_back() -> None:
    """With what solutions use: the standard library, numpy, threads with a large stack, standard input, files to read."""
    program = """
import collections, decimal, fractions, functools, heapq, itertools, json, math, random, re, sys, threading
import numpy
sys.setrecursionlimit(10**6)
threading.stack_size(64 << 20)
def deep(n): return n and deep(n - 1)
def main(): print(int(input()) + deep(5000), numpy.arange(3).sum(), open("/etc/hostname").readable(), sys.argv)
thread = threading.Thread(target=main)
thread.start()
thread.join()
"""
    ran = run_python(program, "41\n")
    assert (ran.finished, ran.output, ran.reason) == (True, "41 3 True ['program.py']\n", "")


REFUSED = {
    "fork": "import os\nwhile True: os.fork()",
    "subprocess": "import subprocess; subprocess.run(['ls'])",
    "multiprocessing": "import multiprocessing as m; m.Process(target=print).start()",
    "exec": "import os; os.execv('/bin/ls', ['ls'])",
    "socket": "import socket; socket.socket()",
    "socketpair": "import socket; socket.socketpair()",
    "write": "open('x', 'w')",
    "append": "open('/tmp/caspo-x', 'a')",
    "unlink": "import os; os.unlink(TARGET)",
    "rename": "import os; os.rename(TARGET, TARGET + '2')",
    "truncate": "import os; os.truncate(TARGET, 0)",
    "chmod": "import os; os.chmod(TARGET, 0)",
    "link": "import os; os.symlink(TARGET, 'x')",
    "mkdir": "import os; os.mkdir('d')",
    "tempfile": "import tempfile; tempfile.TemporaryFile()",
    "kill": "import os; os.kill(os.getppid(), 15)",
    "chroot": "import os; os.chroot('/')",
    "memfd": "import os; os.memfd_create('x')",
}


@linux
@pytest.mark.parametrize("name", REFUSED)
def test_what_touches_the_world_is_refused(name: str, tmp_path: Path) -> None:
    """For root too: no processes, no network, no change to any file, no signals."""
    target = tmp_path / "precious"
    target.write_text("as it was", encoding="utf-8")
    ran = run_python(f"TARGET = {str(target)!r}\n{REFUSED[name]}\nprint('done')", limits=SHORT)
    assert not ran.finished
    assert ran.output == ""
    assert "PermissionError" in ran.reason or "FileNotFoundError: [Errno 2] No usable temporary" in ran.reason
    assert target.read_text(encoding="utf-8") == "as it was"
    assert list(tmp_path.iterdir()) == [target]


@linux
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(100)", "time limit"),
        ("while True: pass", "time limit"),
        ("import os\nos.closerange(1, 64)\nwhile True: pass", "killed: SIGKILL"),
        ("while True: print('x' * 1000)", "output limit"),
        ("import sys\nwhile True: sys.stdout.buffer.write(b'\\xff\\x00' * 1000)", "output limit"),
        ("x = bytearray(5 << 30)", "error: MemoryError"),
        ("x = []\nwhile True: x.append('a' * 10**7)", "error: MemoryError"),
        ("import threading, time\nwhile 1: threading.Thread(target=time.sleep, args=(9,)).start()", "error: RuntimeError"),
        ("import os; os._exit(0)", "exit: 0"),
        ("import sys; sys.exit(0)", "exit: 0"),
        ("raise SystemExit", "exit: None"),
        ("raise KeyboardInterrupt", "error: KeyboardInterrupt"),
        ("import ctypes; ctypes.string_at(0)", "killed: SIGSEGV"),
        ("def f(:", "error: SyntaxError"),
        ("1/0", "error: ZeroDivisionError"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "error: ValueError"),
        ("x = '\\0'; import sys; sys.stdout.close(); print(1)", "error: ValueError"),
    ],
)  # fmt: skip
def test_programs_that_do_not_finish_say_why(program: str, reason: str) -> None:
    """Leaving early by any door is not finishing; nothing outlives its limit."""
    ran = run_python(program, limits=SHORT)
    assert not ran.finished
    assert ran.reason.startswith(reason)
    assert len(ran.output.encode(errors="replace")) <= 4 * SHORT.output


@linux
def test_nothing_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment, no open file, an empty folder that is gone afterwards."""
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with tempfile.TemporaryFile() as file:
        os.set_inheritable(file.fileno(), True)
        ran = run_python(
            "import os\nprint(os.getcwd())\nprint(os.listdir('.'), sorted(os.environ), len(os.listdir('/proc/self/fd')))"
        )
    folder, rest = ran.output.splitlines()
    assert rest == "[] ['LC_CTYPE', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED'] 5"
    assert not Path(folder).exists()


@linux
def test_exit_handlers_and_threads_hold_nothing_up() -> None:
    """The result is there when the last line has run."""
    program = """
import atexit, threading, time
atexit.register(time.sleep, 99)
threading.Thread(target=time.sleep, args=(99,)).start()
"""
    assert run_python(program, limits=SHORT).finished


@linux
def test_input_that_is_not_read_is_no_error() -> None:
    """More than a pipe holds, and a program that does not care."""
    assert run_python("print(1)", "x" * 10**6).output == "1\n"
    assert run_python("print(len(open(0).read()))", "x" * 10**6).output == "1000000\n"


@linux
def test_runs_side_by_side_do_not_meet() -> None:
    """From several threads, each gets its own output."""
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: run_python(f"print({i})").output})) for i in range(6)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: f"{i}\n" for i in range(6)}


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs where nothing holds it back."""
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match=r"on Linux \(x86-64, aarch64\) only"):
        run_python("print(1)")
