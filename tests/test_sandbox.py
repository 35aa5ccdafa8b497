"""Programs that nobody has read can compute, read and print; whatever else they try fails, and they end in time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from caspo.core.errors import ConfigError
from caspo.tasks import sandbox, sandbox_lock
from caspo.tasks.sandbox import Limits, held_back, run_python

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
        ("x = []\nwhile True: x.append(bytes(10**8))", "error: MemoryError"),
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
def test_a_program_ends_as_python_ends() -> None:
    """Threads that nobody joins are waited for, exit handlers run, whatever holds output is flushed."""
    program = """
import atexit, io, os, sys, threading, time
def late():
    time.sleep(0.2)
    print("from a thread")
threading.Thread(target=late).start()
buffered = io.TextIOWrapper(os.fdopen(os.dup(1), "wb"))
buffered.write("from a file of its own\\n")
atexit.register(lambda: print("at exit"))
print("last line", flush=True)
"""
    ran = run_python(program)
    assert (ran.finished, ran.reason) == (True, "")
    assert sorted(ran.output.splitlines()) == ["at exit", "from a file of its own", "from a thread", "last line"]
    assert run_python(program + "sys.exit(0)").output.splitlines()[-2:] == ["at exit", "from a file of its own"]


@linux
@pytest.mark.parametrize(
    "last", ["atexit.register(time.sleep, 99)", "threading.Thread(target=time.sleep, args=(99,)).start()"]
)
def test_what_goes_on_after_the_last_line_ends_at_the_limit(last: str) -> None:
    """It ran to its last line, and it did not end in time: both are said."""
    started = time.monotonic()
    ran = run_python(f"import atexit, threading, time\nprint(1)\n{last}", limits=SHORT)
    assert (ran.finished, ran.reason) == (True, "time limit")
    assert time.monotonic() - started < 10


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


FLOOD = """
import os
data = b"x" * (1 << 20)
for place in range(3, 64):
    try:
        while True: os.write(place, data)
    except OSError: pass
"""


@linux
@pytest.mark.parametrize(
    "program", [FLOOD, f"import threading\nfor _ in range(4): threading.Thread(target=exec, args=({FLOOD!r},)).start()"]
)
def test_the_pipe_of_the_result_cannot_be_flooded(program: str) -> None:
    """What a process says of its result is a few words; this one's memory does not grow with what is sent instead."""
    tracemalloc.start()
    ran = run_python(program, limits=SHORT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (ran.finished, ran.reason) == (False, "output limit")
    assert peak < 2 << 20


@linux
def test_a_program_cannot_speak_for_the_machine() -> None:
    """That nothing can be run here is said before a program starts; said by one, it stops no evaluation."""
    write = (
        "import os\nfor place in range(3, 64):\n try: os.write(place, b'refused: by me')\n except OSError: pass\nos._exit(0)"
    )
    ran = run_python(write)
    assert (ran.finished, ran.reason) == (False, "refused: by me")


@linux
@pytest.mark.parametrize("powerless", [False, True], ids=["as-we-are", "as-anybody"])
@pytest.mark.parametrize("landlock", [True, False])
def test_the_process_that_runs_a_program_cannot_be_looked_into(landlock: bool, powerless: bool, tmp_path: Path) -> None:
    """Memory, environment, open files: as root or not (a root without powers is held to what anybody is held to), by
    Landlock where the kernel has it, and without it. The process of the tests is as closed."""
    if landlock and not sandbox_lock.landlock():
        pytest.skip("this kernel has no Landlock")
    file = tmp_path / "file"
    file.write_text("precious", encoding="utf-8")

    def told(*words: str) -> list[str]:
        command = [sys.executable, str(Path(__file__).with_name("sandbox_parent.py")), str(file), *words]
        environment = {"WORD": "hunter2", "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(
            [*command, *(["powerless"] if powerless else [])], env=environment, capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
        return ran.stdout.splitlines()

    assert told(*([] if landlock else ["no-landlock"])) == ["[] ", ""]
    (seen,) = told("control")  # any other process of this user sees all of it, so the above says something
    if seen == "[]":
        pytest.skip("this machine lets no process look into another")
    assert seen == "['environment', 'file', 'memory']"


@linux
def test_this_process_is_as_open_afterwards_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it must hide by itself it does so while programs run, several at a time too, and says what it cannot hide."""
    monkeypatch.setattr(sandbox_lock, "landlock", lambda: False)
    sandbox._warn_once.cache_clear()
    assert run_python("print(1)").finished
    assert run_python("print(1)").finished
    assert [record.getMessage() for record in caplog.records] == [held_back()]
    assert "no Landlock" in held_back()
    if not sandbox_lock.hide(True):
        pytest.skip("this process is hidden anyway")
    sandbox_lock.hide(False)
    threads = [threading.Thread(target=run_python, args=(f"import time; time.sleep({i})",)) for i in (0, 3, 3)]
    for thread in threads:
        thread.start()
    threads[0].join()
    assert not sandbox_lock.hide(True), "two are under way, and it was not hidden"
    for thread in threads:
        thread.join()
    assert sandbox_lock.hide(True), "nothing is under way, and it was hidden"
    sandbox_lock.hide(False)


@linux
def test_files_that_are_not_pythons_are_not_read(tmp_path: Path) -> None:
    """Benchmarks with their answers, keys, other processes' command lines: where the kernel has Landlock."""
    if not sandbox_lock.landlock():
        pytest.skip("this kernel has no Landlock")
    file = tmp_path / "answers.jsonl"
    file.write_text("42", encoding="utf-8")
    for path in (str(file), __file__, "/etc/shadow", f"/proc/{os.getpid()}/cmdline"):
        assert run_python(f"print(open({path!r}).read())").reason.startswith("error: PermissionError"), path
    for path in (str(tmp_path), "/proc", "/", "/etc"):
        assert run_python(f"import os\nos.listdir({path!r})").reason.startswith("error: PermissionError"), path
    program = "import hashlib, random, numpy.linalg, os\nhashlib.md5(b''), open(os.devnull), open('/etc/hostname')"
    assert run_python(program).finished
    assert "no others" in held_back()


@linux
def test_root_is_nobody_in_there() -> None:
    """No capabilities, and none to be had."""
    status = run_python("print(open('/proc/self/status').read())").output
    told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {told[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {""}
    assert (told["NoNewPrivs"], told["Seccomp"]) == ("1", "2")


@linux
def test_a_program_does_not_outlive_us() -> None:
    """Killed at any moment, we leave nothing that runs."""
    script = "from caspo.tasks.sandbox import run_python\nrun_python('import time; time.sleep(60)')"
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-c", script], env={"PYTHONPATH": os.pathsep.join(sys.path)}) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text(encoding="utf-8").split() if children.exists() else ["-"]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)  # it has locked itself up by now
        process.kill()
    if found == ["-"]:
        pytest.skip("this kernel does not tell the children of a process")
    status = Path(f"/proc/{found[0]}/status")
    while status.exists() and "State:\tZ" not in status.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs where nothing holds it back."""
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match=r"on Linux \(x86-64, aarch64\) only"):
        run_python("print(1)")
