"""Programs are graded by what they compute: right ones pass however they are written, and none passes by a trick."""

from __future__ import annotations

import platform
import sys
from typing import Any

import pytest

from caspo.answers import stated_answer
from caspo.answers.fenced import blocks, code_of
from caspo.records import Question
from caspo.tasks.grading import GRADERS
from caspo.tasks.programs import grade_code
from caspo.tasks.sandbox import Limits, run_tests

linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the sandbox needs Linux"
)
SHORT = Limits(seconds=10, memory=1 << 29)

PROMPT = '''from typing import List

def helper(n: int) -> int:
    return n + 1

def double(n: int) -> int:
    """Twice."""
'''
TEST = (
    "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(helper(4)) == 10\n    assert double(1) == 2\n"
)
FUNCTION = Question(
    PROMPT, "    return 2 * n\n", id="f",
    meta={"answer_type": "code", "prompt": PROMPT, "test": TEST, "entry_point": "double"},
)  # fmt: skip
CONTEST = Question(
    "Add.", "(its tests)", id="c",
    meta={"answer_type": "code", "tests": [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}]},
)  # fmt: skip
METHOD = Question(
    "Append.", "(its tests)", id="m",
    meta={
        "answer_type": "code", "func_name": "put",
        "tests": [{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}],
    },
)  # fmt: skip
DOUBLE = "def double(n):\n    return 2 * n\n"
ADD = "a, b = map(int, input().split())\nprint(a + b)\n"
AT_EXIT = """
import os, io, atexit
sys.stdout = io.StringIO()
atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))
"""
UNJOINED = """
import threading
def main():
    print(sum(map(int, input().split())))
threading.Thread(target=main).start()
"""
PUT = "class Solution:\n    def put(self, xs, x):\n        return xs + [x]\n"


@linux
@pytest.mark.parametrize(
    ("question", "code"),
    [
        (FUNCTION, FUNCTION.answer),
        (FUNCTION, DOUBLE),
        (FUNCTION, f"from __future__ import annotations\n{DOUBLE}"),
        (FUNCTION, f"{DOUBLE}\nif __name__ == '__main__':\n    print(double(int(input())))\n"),
        (FUNCTION, f"print('x' * (20 << 20))\n{DOUBLE}"),
        (FUNCTION, "def double(n):\n    for _ in range(200): print('debug' * 50_000)\n    return 2 * n\n"),
        (FUNCTION, "import sys\ndef double(n):\n    sys.stderr.write('x' * (9 << 20))\n    return 2 * n\n"),
        (FUNCTION, f"import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n{DOUBLE}"),
        (FUNCTION, "    def double_it(m):\n        return m * 2\n    return double_it(n)\n"),
        (FUNCTION, "double = lambda n: 2 * n\n"),
        (FUNCTION, "    def double(n):\n        return 2 * n\n"),
        (FUNCTION, "from dataclasses import dataclass\n@dataclass\nclass X:\n    n: 'int'\n" + DOUBLE),
        (FUNCTION, "import atexit, time\natexit.register(time.sleep, 60)\n" + DOUBLE),
        (CONTEST, ADD),
        (CONTEST, f"from __future__ import annotations\n{ADD}"),
        (CONTEST, "if __name__ == '__main__':\n    print(sum(map(int, input().split())))\n"),
        (CONTEST, UNJOINED),
        (CONTEST, f"{ADD}sys.exit(False)\n"),
        (CONTEST, f"{AT_EXIT}{ADD}"),
        (CONTEST, f"{ADD}sys.stdout.close()\n"),
        (CONTEST, f"{ADD}sys.stdout.flush()\nimport os\nos._exit(0)\n"),
        (METHOD, PUT),
        (METHOD, f"from __future__ import annotations\n{PUT}"),
        (METHOD, PUT.replace("return", "print('x' * (40 << 20)); return")),
        (METHOD, PUT + "if __name__ == '__main__':\n    print(Solution().put([], int(input())))\n"),
        (METHOD, "import numpy\ndef put(xs, x): return numpy.array([*xs, x])\n"),
        (METHOD, "def put(xs, x): return (*xs, x)\n"),
    ],
)  # fmt: skip
def test_right_programs_pass(question: Question, code: str) -> None:
    """However much they print, wherever they read, whatever they leave running."""
    assert grade_code(question, code)


EQUAL = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __abs__(self): return 0
    __sub__ = __rsub__ = lambda self, other: 0
"""
TRICKS = {
    "leaves": """
def double(n):
    import os
    os._exit(0)
""",
    "exits": """
def double(n):
    raise SystemExit(0)
""",
    "is equal to all": EQUAL
    + """
def double(n): return Yes()
""",
    "a list of it": EQUAL
    + """
class L(list, Yes): pass
def double(n): return L()
""",
    "a number of it": EQUAL
    + """
class I(Yes, int): pass
def double(n): return I(0)
""",
    "a number of numpy's": """
import numpy
class F(numpy.float64):
    def __eq__(self, other): return True
def double(n): return F(0)
""",
    "an array": """
import numpy
def double(n): return numpy.ones(())
""",
    "replaces check": """
import sys
def double(n):
    f = sys._getframe()
    while f:
        f.f_globals['check'] = f.f_globals['candidate'] = print
        f = f.f_back
""",
    "replaces assert": """
import builtins, sys
builtins.AssertionError = ValueError
def double(n):
    sys.excepthook = print
    raise ValueError
""",
    "looks for the mark": """
import gc, os
def double(n):
    for x in gc.get_objects():
        for y in x.values() if isinstance(x, dict) else []:
            for p in range(3, 30) if str(y).startswith('finished ') else []:
                try: os.write(p, str(y).encode())
                except OSError: pass
    os._exit(0)
""",
    "writes everywhere": """
import os
for p in range(3, 64):
    try: os.write(p, b'finished')
    except OSError: pass
def double(n): return None
""",
    "answers too early": """
import os, json, struct
def double(n):
    m = json.dumps(['value', 4, []]).encode()
    for p in range(3, 64):
        try: os.write(p, (struct.pack('<Q', len(m)) + m))
        except OSError: pass
    return 4
""",
    "asks to be judged in its own process": """
import os, json, struct
class Yes:
    def __eq__(self, other): return True
m = json.dumps("error: Unplain: an argument").encode()
for p in range(3, 64):
    try: os.write(p, struct.pack("<Q", len(m)) + m)
    except OSError: pass
def double(n):
    return Yes()
""",
    "fills the pipe": """
import os
def double(n):
    for p in range(3, 64):
        try:
            while True: os.write(p, b'\\xff' * (1 << 20))
        except OSError: pass
""",
    "looks for what is expected": """
import gc, sys
def double(n):
    texts = [str(x) for x in gc.get_objects()]
    texts += [str(f.f_globals) for f in sys._current_frames().values()]
    return 2 * n if any(''.join(['candidate(hel', 'per(4))']) in x for x in texts) else None
""",
    "exits before": """
raise SystemExit(0)
"""
    + DOUBLE,
    "at exit": """
import atexit, os
atexit.register(os._exit, 0)
def double(n): return None
""",
}


@linux
@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_passes(name: str) -> None:
    """What is expected is never in the program's process, nor is the comparison."""
    assert not grade_code(FUNCTION, TRICKS[name])
    method = TRICKS[name].replace("double", "put").replace("(n)", "(xs, x)").replace("2 * n", "[*xs, x]")
    assert not grade_code(METHOD, method)


VALUES = [
    "None", "True", "3", "-(10 ** 5000)", "0.1 + 0.2", "1e300", "float('inf')", "2j + 1", "'\\ud800é'", "b'\\x00'",
    "[1, [2, (3,)], {4}]", "{1: 'a', (2, 3): {'b': None}}", "frozenset({1})",
    "range(3, 9, 2)", "Decimal('1.10')", "Fraction(22, 7)", "deque([1, 2])",
    "OrderedDict([('c', 1)])", "Counter('aab')", "datetime.date(2020, 1, 2)", "datetime.datetime(2020, 1, 2, 3, 4)",
    "datetime.timedelta(1, 2, 3)", "bytearray(b'ab')", "...", "numpy.float32(0.1)", "numpy.int64(7)", "numpy.bool_(True)",
]  # fmt: skip
IMPORTS = (
    "import datetime, enum, numpy\nfrom collections import *\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    "Point = namedtuple('Point', 'x y')\nclass N(int): pass\nclass L(list): pass\nclass E(enum.IntEnum):\n    A = 5\n"
)


@linux
def test_values_come_back_as_what_they_are() -> None:
    """Equal to what they were made from, of the same type, and to nothing else."""
    lines = [f"assert candidate({i}) == {v} and type(candidate({i})) is type({v}), {i}" for i, v in enumerate(VALUES)]
    others = [f"assert candidate({i}) != candidate({i + 1}), {i}" for i in range(len(VALUES) - 1)]
    program = IMPORTS + f"def value(i): return [{', '.join(VALUES)}][i]"
    assert run_tests([program], "value", [IMPORTS, *lines, *others], SHORT).reason == ""


@linux
@pytest.mark.parametrize(
    ("returned", "test"),
    [
        ("defaultdict(list, {1: [2]})", "candidate() == {1: [2]}"),
        ("Point(1, 2)", "candidate() == (1, 2)"),
        ("N(5)", "candidate() == 5 and isinstance(candidate(), int)"),
        ("L([1, L([2])])", "candidate() == [1, [2]]"),
        ("E.A", "candidate() == 5"),
        ("{1: 2}.keys()", "candidate() == {1}"),
        ("numpy.array([1, 2])", "candidate().tolist() == [1, 2] and candidate().sum() == 3"),
        ("numpy.array(['a', None], dtype=object)", "candidate().tolist() == ['a', None]"),
        ("list(numpy.arange(3))", "candidate() == [0, 1, 2]"),
        ("float('nan')", "candidate() != candidate()"),
        ("Fraction(1, 2)", "abs(candidate() - 0.5) < 1e-9"),
        ("(x * x for x in range(3))", "list(candidate()) == [0, 1, 4]"),
        ("iter([1, 2])", "next(candidate()) == 1"),
        ("lambda x, y=1: x + y", "candidate()(2, y=3) == 5"),
        ("type('T', (), {'size': 3, 'add': lambda self, x: x + 1, '__len__': lambda self: 2})()",
         "candidate().size == 3 and candidate().add(1) == 2 and len(candidate()) == 2"),
    ],
)  # fmt: skip
def test_what_right_programs_return_is_judged_as_it_was_meant(returned: str, test: str) -> None:
    """Subclasses as what they are a subclass of; what is no plain value can be used as it could be in one process."""
    assert run_tests([f"{IMPORTS}def f(): return {returned}"], "f", [f"assert {test}"], SHORT).reason == ""


@linux
@pytest.mark.parametrize(
    "test",
    [
        "x = [3, 1]\nassert candidate(x) is None and x == [1, 3]",
        "try:\n    candidate({})\nexcept AttributeError:\n    pass\nelse:\n    assert False",
        "import numpy\nassert candidate(numpy.array([2, 1])) is None",
    ],
)
def test_arguments_are_changed_and_errors_raised_as_in_one_process(test: str) -> None:
    """Functions that work in place, and those that are to refuse."""
    assert run_tests(["def f(x): x.sort()"], "f", [test], SHORT).reason == ""


@linux
def test_tests_with_arguments_of_their_own_kind_run_beside_the_program() -> None:
    """Functions and objects cannot be sent; such tests judge as they always did."""
    prompt = "class Node:\n    def __init__(self, value): self.value = value\n\ndef f(node, g):\n    pass\n"
    test = "def check(candidate):\n    assert candidate(Node(3), lambda x: x + 1) == 4\n"
    meta = {"prompt": prompt, "test": test, "entry_point": "f"}
    question = Question("?", "", id="q", meta=meta)
    assert grade_code(question, "def f(node, g): return g(node.value)")
    assert not grade_code(question, "def f(node, g): return node.value")
    assert not grade_code(question, "import os\ndef f(node, g): os._exit(0)")


OUTPUT = "```\n[1, 2]\n4\n```"
SHELL = "```bash\npython solution.py\n```"
INDENTED = "\n".join(f"   {line}" for line in f"```python\n{DOUBLE}```".splitlines())
SOLUTIONS = [
    (FUNCTION, f"Here:\n```python\n{DOUBLE}```"),
    (FUNCTION, f"Here:\n```\n{DOUBLE}```\nIt prints\n{OUTPUT}"),
    (FUNCTION, f"```python\n{DOUBLE}```\nRun it:\n{SHELL}\n"),
    (FUNCTION, f"```python\n{DOUBLE}```\nOutput:\n```text\n4\n```\n"),
    (FUNCTION, f"```python\n{DOUBLE}```\nOutput:\n{OUTPUT}\n"),
    (FUNCTION, f"```py\n{DOUBLE}```\nUse it:\n```py\nprint(double(2))\n```\n"),
    (FUNCTION, f"~~~python\n{DOUBLE}~~~\nDone."),
    (FUNCTION, f"~~~\n{DOUBLE}~~~\nIt prints\n~~~\n4\n~~~"),
    (FUNCTION, f"````python\n{DOUBLE}````"),
    (FUNCTION, f"1. Like this:\n\n{INDENTED}\n\n2. Done."),
    (FUNCTION, f"1. Like this:\n\n   ```python\n{DOUBLE}   ```\n"),
    (FUNCTION, f"-  ```python\n{INDENTED.split(chr(10), 1)[1]}\n"),
    (FUNCTION, f"```Python 3\r\n{DOUBLE}```".replace("\n", "\r\n")),
    (FUNCTION, f"The code is ```python\n{DOUBLE}```."),
    (FUNCTION, f"```python\n{DOUBLE}"),
    (FUNCTION, f"```python\n{FUNCTION.answer}```"),
    (FUNCTION, f"{DOUBLE}\nThis works: it's twice the number."),
    (FUNCTION, f"From the task we see it.\n\n{DOUBLE}"),
    (CONTEST, f"```\n{ADD}```\nInput\n```\n2 3\n```\nOutput\n```\n5\n```"),
    (CONTEST, f"```python\n{ADD}```\nFor example:\n```python\nprint(2 + 3)\n```"),
    (METHOD, f"```python\n{PUT}```\n```python\nprint(Solution().put([], 1))\n```"),
]


@linux
@pytest.mark.parametrize(("question", "text"), SOLUTIONS)
def test_the_program_of_a_solution_is_found(question: Question, text: str) -> None:
    """In whatever fence, whatever stands after it."""
    assert grade_code(question, stated_answer(question, text)), stated_answer(question, text)


@pytest.mark.parametrize(
    "text",
    [
        "So it returns\n~~~python\n[1, 'a']\n~~~",
        "1. So:\n   ```\n   [1, 'a']\n   ```",
        "```python\n[1, 'a']\n```\nTry it:\n```bash\npython f.py\n```",
        "```python\ndef f(x):\n    return x\n```\nOutput:\n```\n[1, 'a']\n```",
        "[ANSWER]f(3) == [1, 'a'][/ANSWER]",
    ],
)
def test_the_value_of_a_solution_is_found(text: str) -> None:
    """CRUXEval's answers, in whatever fence."""
    question = Question("What does f(3) return?", "[1, 'a']", id="x", meta={"answer_type": "literal"})
    assert GRADERS["literal"](question, stated_answer(question, text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no code at all", None),
        ("```\n\n```", None),
        ("```json\n{}\n```", "{}"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2"),
        ("Use ``` for fences.\n```python\nx = 1\n```", "x = 1"),
        ("~~no~~\n```\nx = 1\n```", "x = 1"),
        ("````markdown\n```\nx\n```\n````", "x"),  # what a page of Markdown holds
    ],
)
def test_blocks(text: str, found: Any) -> None:
    """Nothing is made up; a fence ends where its own kind stands."""
    assert code_of(text) == found
    assert all(block.strip() for _, block in blocks(text))
