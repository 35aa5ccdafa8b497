"""Runs programs that look into the process which runs them, and prints what they found. Usage: FILE [WORD ...]

FILE is kept open; ``control``: any other process of this user looks instead; ``no-landlock``: as on a kernel without it;
``powerless``: without capabilities, held to what a plain user is held to.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

from caspo.tasks import sandbox_lock
from caspo.tasks.sandbox import run_python, run_tests

LOOK = """
import os, sys
def look(pid):
    found = set()
    try:
        if b"hunter2" in open(f"/proc/{pid}/environ", "rb").read(): found.add("environment")
    except OSError: pass
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                path = f"/proc/{pid}/fd/{name}"  # pipes would be waited for
                if os.path.isfile(path) and "precious" in open(path).read(): found.add("file")
            except (OSError, ValueError): pass
    except OSError: pass
    try:
        memory = open(f"/proc/{pid}/mem", "rb")
        for line in open(f"/proc/{pid}/maps"):
            if " rw-p " not in line: continue
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            try:
                memory.seek(low)
                if ("the expected " + "output is 42").encode() in memory.read(min(high - low, 1 << 26)): found.add("memory")
            except (OSError, ValueError, OverflowError): pass
    except OSError: pass
    return sorted(found)
def opened():
    "Other processes of a sandbox whose memory can be opened."
    found = []
    for pid in range(os.getpid() - 50, os.getpid() + 50):
        try:
            if pid != os.getpid() and b"sandbox_child" in open(f"/proc/{pid}/cmdline", "rb").read():
                found.append(open(f"/proc/{pid}/mem", "rb"))
        except OSError: pass
    return len(found)
"""


def main() -> None:
    """Look."""
    file, *words = sys.argv[1:]
    if "no-landlock" in words:
        sandbox_lock.landlock = lambda: False
    if "powerless" in words:
        sandbox_lock._drop_capabilities(ctypes.CDLL(None, use_errno=True))
    secret = "".join(["the expected ", "output is 42"])
    with Path(file).open(encoding="utf-8") as held:
        assert held.readable()
        looking = f"{LOOK}\nprint(look(os.getppid()))"
        if "control" in words:
            subprocess.run([sys.executable, "-c", looking], check=True, stdin=subprocess.DEVNULL)
        else:
            ran = run_python(looking)
            print(ran.output.strip(), ran.reason)
            print(run_tests([LOOK], "opened", ["assert candidate() == 0"]).reason)
    assert secret


if __name__ == "__main__":
    main()
