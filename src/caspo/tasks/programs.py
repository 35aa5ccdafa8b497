"""Grading of programs by their tests, in the sandbox: HumanEval's and LiveCodeBench's.

A HumanEval question has ``meta`` prompt, test and entry_point; its program passes when it and ``check(entry_point)`` run to
the end. A LiveCodeBench question has ``meta["tests"]``, each with input, output and testtype: ``stdin`` compares what
a program prints, ``functional`` calls ``Solution().<func_name>`` with one JSON value a line. There the expected
outputs never enter the sandbox, and the first failure ends the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from caspo.records import Question
from caspo.tasks.sandbox import Limits, run_python

__all__ = ["grade_code"]

HUMANEVAL = Limits(seconds=10.0)
LIVECODEBENCH = Limits(seconds=10.0, memory=4 << 30, output=32 << 20)
"""For each test: its authors allow 6 seconds on their machines; ours includes the start of Python."""

_CALL = """

def _caspo_call(Solution=globals().get("Solution")):
    import json, sys
    arguments = [json.loads(line) for line in sys.stdin.read().split("\\n") if line.strip()]
    function = getattr(Solution(), {name!r}) if Solution is not None else globals()[{name!r}]
    result = function(*arguments)
    print("\\n" + {mark!r} + json.dumps(result))
_caspo_call()
"""
_MARK = "caspo-result:"

_NAMES = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
_PRELUDE = "\n".join(
    [f"from {name} import *\nimport {name}" for name in _NAMES.split()]
    + ["from typing import *", "from builtins import *", "sys.setrecursionlimit(50000)", ""]
)
"""What LiveCodeBench's own runner imports before a program: solutions count on it."""


def grade_code(question: Question, answer: str | None) -> bool:
    """Whether the program passes its tests."""
    if answer is None or not answer.strip():
        return False
    if "tests" in question.meta:
        return all(_passes(answer, test, question.meta.get("func_name")) for test in question.meta["tests"])
    meta = question.meta
    program = f"{_whole(answer, meta['prompt'], meta['entry_point'])}\n\n{meta['test']}\n\ncheck({meta['entry_point']})\n"
    return run_python(program, limits=HUMANEVAL).finished


def _whole(answer: str, prompt: str, entry_point: str) -> str:
    """The prompt brings imports and helpers; the answer is the function's body, or the function again."""
    if f"def {entry_point}" not in answer:
        return prompt + answer
    return f"{prompt.rstrip()}\n    pass\n\n{answer}"


def _passes(code: str, test: Mapping[str, Any], name: str | None) -> bool:
    given, expected = str(test["input"]), str(test["output"])
    if test.get("testtype") == "functional" or name:
        ran = run_python(_PRELUDE + code + _CALL.format(name=name, mark=_MARK), given, LIVECODEBENCH)
        _, mark, said = ran.output.rpartition(_MARK)
        try:
            return ran.finished and bool(mark) and bool(json.loads(said) == json.loads(expected))
        except (ValueError, RecursionError):
            return False
    ran = run_python(_PRELUDE + code, given, LIVECODEBENCH)
    return (ran.finished or ran.reason in ("exit: 0", "exit: None")) and _same_output(ran.output, expected)


def _same_output(printed: str, expected: str) -> bool:
    """Line by line without white space around; a line may differ where its words are numbers of equal value."""
    lines, wanted = (text.strip().split("\n") for text in (printed, expected))
    return len(lines) == len(wanted) and all(_same_line(a, b) for a, b in zip(lines, wanted, strict=True))


def _same_line(line: str, wanted: str) -> bool:
    if line.strip() == wanted.strip():
        return True
    try:
        return [Decimal(x) for x in line.split()] == [Decimal(x) for x in wanted.split()]
    except InvalidOperation:
        return False
