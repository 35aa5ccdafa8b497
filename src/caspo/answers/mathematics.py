"""The fingerprint of a formula, from a process of its own that is killed when it takes too long.

A symbolic engine may run for ever on what a model writes (integrals, towers of powers), in C code that no signal
interrupts. So it runs in a child process: started when first needed (a second or two), asked through pipes, killed at the
time limit and started again. All threads share it. What a fingerprint is stands in `mathematics_child`.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from caspo.answers.values import TEXT, repeating

__all__ = ["fingerprint"]

MAX_LENGTH = 300
"""Characters of a formula; longer ones are compared as text only."""
SECONDS = 5.0
"""For one formula."""
STARTING_SECONDS = 60.0
"""For the import of latex2sympy2 and sympy, on a busy machine."""

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_FUNCTION = r"arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|pi"
_WORDLESS = re.compile(r"\\(?:begin|end|operatorname)\s*\{[^{}]*\}|(?<![a-zA-Z])(?:sqrt|gcd|lcm|max|min)(?![a-zA-Z])")
_PROSE = re.compile(
    rf"(?<![\\a-zA-Z])(?!(?:{_FUNCTION})\b)[^\W\d_]{{4,}}|(?:^|(?<=[\s0-9]))(?:the|of|to|in|at|by|is|are|for|per|out|not|all|any)(?=[\s0-9]|$)"
)
_SAID = re.compile(r"(?<![_^{])(?<!_\{)\\(?:text|mbox|textrm|textbf|textit)\s*\{[^{}]*[a-zA-Z]{2}[^{}]*\}")
_SIGNS = {"≤": "\\le ", "≥": "\\ge ", "π": "\\pi ", "∞": "\\infty ", "×": "\\cdot ", "·": "\\cdot ", "⋅": "\\cdot "}
_SIGNS |= {"−": "-", "–": "-", "**": "^", "np.": "", "√": "\\sqrt ", "÷": "/", "θ": "\\theta "}
_SPACING = re.compile(
    r"(?<!\\)\\ |\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits|quad|qquad)(?![a-zA-Z])|(?<!\\)\\[,;:!]|[~\s]+|(?<!\\)\$"
)
_ONE = r"\s*(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\\[a-zA-Z]+|[^\s{}\\])"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ONE}{_ONE}")
_ROOT = re.compile(rf"\\sqrt\s*(\[[^\[\]]*\])?{_ONE}")
_WRAPPER = re.compile(r"\\(?:mathrm|mathbf|mathit|boldsymbol|bm|rm|operatorname\*?)\s*\{\s*(\\?[a-zA-Z]+)\s*\}")
_ACCENT = r"\\(?:d?dot|bar|hat|vec|overline|tilde|mathbf|mathcal)\s*\{\s*\\?[a-zA-Z]+\s*\}"
_NAME = re.compile(
    rf"({_ACCENT}|\\(?!(?:log|sum|int|prod|lim|max|min|cdot|circ)(?![a-zA-Z]))[a-zA-Z]+|(?<![\\a-zA-Z])[a-zA-Z]|(?<=[0-9])[a-zA-Z])"
    r"(?:_\s*(\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\[a-zA-Z]+|\w))?((?:'|\^\s*\{\s*\\prime\s*\}|\^\\prime(?![a-zA-Z]))*)"
)


def fingerprint(formula: str, kind: str = "value") -> str | None:
    """The same text for equal formulas, another one for others; None for prose and what cannot be read.

    ``kind``: "value", or "=" or "<" for a formula that is compared with 0: there a factor (a positive one) does not matter.
    """
    if len(formula) > MAX_LENGTH or _SAID.search(formula) or _PROSE.search(_WORDLESS.sub("", TEXT.sub("", formula))):
        return None
    latex = as_latex(formula)
    if not latex or re.search(r"[0-9]\s+[0-9]", latex):  # "3 4" is no product
        return None
    return _asked(latex, kind)


def as_latex(formula: str) -> str:
    """One spelling for what people and programs write: functions with a backslash, fractions with braces, exact decimals."""
    formula = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", formula)
    for sign, latex in _SIGNS.items():
        formula = formula.replace(sign, latex)
    formula = _SPACING.sub(" ", formula.replace("\\{", "(").replace("\\}", ")")).strip()
    formula = re.sub(r"\\[lr]?vert(?![a-zA-Z])", "|", formula)
    formula = re.sub(r"(?<=[0-9])[eE]([+-]?[0-9]+)(?![0-9a-zA-Z.])", r" \\cdot 10^{\1}", formula)
    formula = re.sub(r"\\tbinom|\\dbinom", r"\\binom", formula)
    formula = re.sub(r"\\binom\s*([0-9])\s*([0-9])", r"\\binom{\1}{\2}", formula)
    formula = re.sub(r"(?:^|\{)\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*(?:\}|$)", r"\\binom{\1}{\2}", formula)
    formula = re.sub(r"^\s*[(\[]\s*(\\begin\s*\{array\}.*\\end\s*\{array\})\s*[)\]]\s*$", r"\1", formula, flags=re.DOTALL)
    formula = re.sub(r"\{[bBvV]?matrix\}|\{array\}\s*\{[^{}]*\}", "{pmatrix}", formula)  # whatever its brackets
    formula = re.sub(r"(?<![\\a-zA-Z])(sqrt|√)(?![a-zA-Z])", r"\\sqrt ", formula)
    formula = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", formula)
    formula = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", re.sub(r"\^\s*(-?[0-9]+)", r"^{\1}", formula))
    formula = _WRAPPER.sub(lambda m: m[1] if len(m[1]) == 1 or m[1].startswith("\\") else f"\\{m[1]}", formula)
    formula = re.sub(rf"(?<![\\a-zA-Z])({_FUNCTION})(?![a-zA-Z])", r"\\\1", formula)
    angle = r" \\cdot \\frac{\\pi}{180}" if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", formula) else ""
    formula = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°", angle, formula)
    formula = re.sub(r"[0-9]*\.[0-9]*\\(?:overline|bar)\s*\{[0-9]+\}|[0-9]*\.[0-9]+|[0-9]+\.(?![0-9])", _exactly, formula)
    formula = _braced(formula)
    formula = re.sub(r"((?:^|[^a-zA-Z_\\])[0-9]+|(?<=[0-9a-zA-Z])\))\s*(?=\()", r"\1 \\cdot ", formula)
    return re.sub(r"\s+", " ", _NAME.sub(_symbol, formula)).strip()


def _exactly(decimal: re.Match[str]) -> str:
    value = repeating(decimal[0]) if "\\" in decimal[0] else Fraction(decimal[0].removesuffix("."))
    if value is None or value.denominator == 1:
        return decimal[0] if value is None else str(value)
    return f"(\\frac{{{value.numerator}}}{{{value.denominator}}})"


def _braced(formula: str) -> str:
    """Fractions and roots with their arguments in braces, from the inside out."""
    for _ in range(8):
        changed = _FRACTION.sub(lambda m: f"\\FRAC{_group(m[1])}{_group(m[2])}", formula)
        changed = _ROOT.sub(lambda m: f"\\SQRT{m[1] or ''}{_group(m[2])}", changed)
        if changed == formula:
            break
        formula = changed
    return formula.replace("\\FRAC", "\\frac").replace("\\SQRT", "\\sqrt")


def _group(part: str) -> str:
    return part if part.startswith("{") else f"{{{part}}}"


def _symbol(match: re.Match[str]) -> str:
    r"""A name with an index, an accent or a prime is one variable, also where the parser knows no such name."""
    name, index, primes = match[1], match[2] or "", match[3]
    if not index and not primes and (not name.startswith("\\") or not re.match(rf"{_ACCENT}|\\gamma$|\\zeta$", name)):
        return name
    primes = "'" * len(re.findall("'|prime", primes))
    spelt = re.sub(r"[{}\s]", "", TEXT.sub(r"\1", f"{name}_{index}{primes}"))
    return f"z_{{{int.from_bytes(hashlib.sha256(spelt.encode()).digest()[:4])}}}"


class _Child:
    """The process; one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, latex: str, kind: str) -> str | None:
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            answer = self._say(json.dumps([latex, kind]), SECONDS)
            if answer is None:
                logging.getLogger(__name__).debug("%r took more than %s seconds", latex, SECONDS)
            return None if answer == "none" else answer

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
def _asked(latex: str, kind: str) -> str | None:
    return _child.ask(latex, kind)
