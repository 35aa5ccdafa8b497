"""math-verify's opinion on two formulas, from a process of its own that is killed when it takes too long.

A symbolic engine may run for ever on what a model writes (towers of powers), in C code that no signal interrupts, and
math-verify's own limit works in the main thread only. So it runs in a child process: started when first needed (a second
or two), asked through pipes, killed at the time limit and started again. All threads share it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from caspo.answers.values import TEXT

__all__ = ["same_mathematics"]

MAX_LENGTH = 300
"""Characters of a formula; longer ones are compared as text only."""
SECONDS = 5.0
"""For one comparison."""
STARTING_SECONDS = 60.0
"""For the import of math-verify and sympy, on a busy machine."""

_FUNCTION = r"arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|pi"
_NO_WORDS = re.compile(r"\\(?:begin|end|operatorname)\s*\{[^{}]*\}")
_PROSE = re.compile(rf"(?<!\\)\b(?!(?:{_FUNCTION})\b)[^\W\d_]{{3,}}")


def same_mathematics(a: str, b: str) -> bool:
    """Whether two formulas are equal; False for prose, which would be compared by its first number, and when unsure."""
    a, b = _latex(a), _latex(b)
    if any(not x or len(x) > MAX_LENGTH or _PROSE.search(_NO_WORDS.sub("", TEXT.sub("", x))) for x in (a, b)):
        return False
    return _asked(a, b)


def _latex(formula: str) -> str:
    """Functions written without a backslash, as people and programs write them, get one."""
    formula = formula.strip().strip("$").rstrip(".").replace("np.", "").replace("**", "^")
    formula = re.sub(r"(?<=[0-9])[.](?![0-9])", "", re.sub(r"[\s~]+", " ", formula)).strip()  # "1./3" is 1/3
    formula = re.sub(r"(?<=[0-9])[eE]([+-]?[0-9]+)(?![0-9a-zA-Z.])", r" \\cdot 10^{\1}", formula)
    formula = re.sub(r"\{[bB]matrix\}", "{pmatrix}", formula)  # a matrix, whatever its brackets
    formula = formula.replace("≤", "\\le ").replace("≥", "\\ge ").replace("π", "\\pi ").replace("∞", "\\infty ")
    formula = re.sub(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)|√\(([^()]*)\)|√([0-9]+)", _root, formula)
    return re.sub(rf"(?<![\\a-zA-Z])({_FUNCTION})(?![a-zA-Z])", r"\\\1", formula)


def _root(match: re.Match[str]) -> str:
    return f"\\sqrt{{{match[1] or match[2] or match[3]}}}"


class _Child:
    """The process; one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, a: str, b: str) -> bool:
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            answer = self._say(json.dumps([a, b]), SECONDS)
            if answer is None:
                logging.getLogger(__name__).debug("%r and %r took more than %s seconds", a, b, SECONDS)
            return answer == "same"

    def _start(self) -> None:
        # -P: this folder is not a place to import from. After a fork, the parent's child is not ours to use.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("mathematics_child.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._owner = os.getpid()
        self._say("", STARTING_SECONDS)

    def _say(self, line: str, seconds: float) -> str | None:
        """The answer to a line; None where the process died or had to be killed."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if answer:
            return answer
        self.close()
        return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what the dead process did not read
                pipe.close()  # type: ignore[union-attr]


_child = _Child()
atexit.register(_child.close)


@lru_cache(maxsize=10000)
def _asked(a: str, b: str) -> bool:
    return _child.ask(a, b)
