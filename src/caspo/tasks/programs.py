"""Grading of programs by their tests, in the sandbox: HumanEval's and LiveCodeBench's.

A HumanEval question has ``meta`` prompt, test and entry_point; its program passes when ``check(entry_point)`` runs to the
end. A LiveCodeBench question has ``meta["tests"]``, each with input, output and testtype: ``stdin`` compares what a program
prints, ``functional`` calls ``Solution().<func_name>`` with one JSON value a line. The first failure ends the run.

What is expected never enters the process of the program, and what it printed is compared here. Only where HumanEval's
form is used for tests whose arguments are functions or objects do these run in the program's own process, where a
program that sets out to can fake their result; none of HumanEval's does.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from caspo.answers.fenced import defines, parsed
from caspo.records import Question
from caspo.tasks.sandbox import Limits, run_python, run_tests

__all__ = ["grade_code"]

HUMANEVAL = Limits(seconds=10.0)
LIVECODEBENCH = Limits(seconds=10.0, memory=4 << 30, output=32 << 20)
"""For each test: its authors allow 6 seconds on their machines; ours includes the start of Python."""

_CHECK = """
import json
result = candidate(*[json.loads(line) for line in {given!r}.split("\\n") if line.strip()])
assert json.loads(json.dumps(result, default=lambda array: array.tolist())) == json.loads({expected!r})
"""

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
    meta = question.meta
    if "tests" in meta:
        return all(_passes(answer, test, meta.get("func_name")) for test in meta["tests"])
    prompt, test, name = str(meta["prompt"]), str(meta["test"]), str(meta["entry_point"])
    program = _whole(answer, prompt, name)
    # Some tests use other functions of the prompt; the one to be completed is only to be called.
    tests = [*_stub(prompt), f"{name} = candidate", test, "check(candidate)"]
    ran = run_tests(program, name, tests, HUMANEVAL)
    if ran.reason.startswith("error: Unplain: "):
        ran = run_python([*program, f"candidate = {name}", test, "check(candidate)"], "", HUMANEVAL, module="program")
    return ran.finished


def _whole(answer: str, prompt: str, entry_point: str) -> list[str]:
    """The prompt brings imports and helpers; the answer is the function's body, or the function again."""
    if not defines(answer, entry_point):
        return [prompt + answer]
    return [*_stub(prompt), textwrap.dedent(answer)]


def _stub(prompt: str) -> list[str]:
    """The prompt as a program, its last function without a body; nothing where that is no Python."""
    stub = f"{prompt.rstrip()}\n    pass\n"
    return [stub] if parsed(stub) else []


def _passes(code: str, test: Mapping[str, Any], name: str | None) -> bool:
    given, expected = str(test["input"]), str(test["output"])
    if test.get("testtype") == "functional" or name:
        entry = f"getattr(Solution(), {name!r}) if 'Solution' in globals() else globals()[{name!r}]"
        return run_tests([_PRELUDE, code], entry, [_CHECK.format(given=given, expected=expected)], LIVECODEBENCH).finished
    # Twice what is expected, as white space may be added, and a line of many digits written otherwise.
    limits = replace(LIVECODEBENCH, output=max(LIVECODEBENCH.output, 2 * len(expected.encode())))
    ran = run_python([_PRELUDE, code], given, limits)
    return ran.reason in ("", "exit: 0", "exit: None") and _same_output(ran.output, expected)


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
