"""Does a task's grader agree with the task's own answers? Every known answer must pass, near misses must not.

A known answer is graded as it stands, as a solution states it ("The answer is X.", in a box), and in other spellings of the
same value. A near miss is another value of the same kind: a digit changed, a sign, a part left out, another option, another
question's answer, a program that returns nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from caspo.answers import options, parse_number, several, stated_answer
from caspo.answers.stated import literal_of
from caspo.records import Question
from caspo.tasks.base import Task
from caspo.tasks.grading import in_order

__all__ = ["GraderReport", "check_grader", "near_misses", "renderings", "respellings"]


@dataclass
class GraderReport:
    """What was asked of a grader, and where it disagreed: (id of the question, what was graded)."""

    questions: int = 0
    right: int = 0
    """Right answers graded, in all spellings."""
    wrong: int = 0
    """Near misses graded."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Right answers that it called wrong."""
    passed: list[tuple[str, str]] = field(default_factory=list)
    """Near misses that it called right."""


def check_grader(task: Task, questions: Sequence[Question], *, spellings: bool = True, misses: bool = True) -> GraderReport:
    """Grade the known answers of questions, and near misses of them."""
    report = GraderReport()
    for i, question in enumerate(questions):
        report.questions += 1
        answers = [question.answer, *(stated_answer(question, text) for text in renderings(question))]
        if spellings:
            answers += respellings(question)
        for answer in answers:
            report.right += 1
            if not task.grade(question, answer):
                report.refused.append((question.id, str(answer)))
        if misses:
            for miss in near_misses(question, questions[(i + 1) % len(questions)]):
                report.wrong += 1
                if task.grade(question, miss):
                    report.passed.append((question.id, miss))
    return report


def renderings(question: Question) -> list[str]:
    """Solutions that state the known answer."""
    gold = question.answer
    if question.meta.get("answer_type") == "code":
        return [f"Here it is:\n```python\n{gold}\n```\nIt works because of its loop."]
    texts = [f"So it is.\nThe answer is {gold}.", f"Thus $\\boxed{{{gold}}}$.", f"Well.\n\n**Final answer:** {gold}"]
    option = options(question).get(gold)
    if option is not None and option != gold:
        texts += [f"The answer is ({gold}).", f"The answer is {gold}. {option}", f"The correct option is clear.\n{gold}"]
    return texts


def respellings(question: Question) -> list[str]:
    """Other spellings of the known answer's value, for maths; empty for other kinds."""
    gold = question.answer
    if question.meta.get("answer_type", "math") != "math":
        return []
    found = [
        f"${gold}$",
        re.sub(r"\\frac", r"\\dfrac", gold),
        re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "", gold),
        re.sub(r"\s*\\?%$", "", gold),
    ]
    if "\\left" not in gold:
        found.append(gold.replace("(", "\\left(").replace(")", "\\right)"))
    if re.search(r"\d", gold):
        found.append(re.sub(r"\s*\\(?:text|mbox)\s*\{[^{}]*\}(?:\^\d)?$", "", gold))
    if len(parts := several(gold)) > 1:
        found += [" \\text{ and } ".join(parts), *([] if in_order(question) else [", ".join(reversed(parts))])]
    if re.fullmatch(r"-?\d+", gold):
        found += [f"{gold}.0", f"{gold} apples", f"{gold}\\text{{ cm}}", f"x = {gold}", f"{int(gold):,}"]
    if match := re.fullmatch(r"[a-z]\s*=\s*([^=]*)", gold):
        found.append(match[1])
    if match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", gold):
        found += [f"{match[1]}{match[2]}/{match[3]}", f"{match[1]}\\frac{{{2 * int(match[2])}}}{{{2 * int(match[3])}}}"]
    return [x for x in dict.fromkeys(found) if x != gold and x.strip("$ ")]


def near_misses(question: Question, other: Question) -> list[str]:
    """Answers that look right and are not; ``other`` is another question of the task."""
    kind = question.meta.get("answer_type", "math")
    if kind == "code":
        broken = re.sub(r"^(\s*)return\b.*$", r"\1return None", question.answer, flags=re.MULTILINE)
        return [broken, "", "import sys\nsys.exit(0)\n", "import os\nos._exit(0)\n"]
    if kind == "choice":
        known = options(question)
        return [key for key in known if known[key] != known[question.answer]]
    gold = question.answer
    found = [*_changed(gold, formula=kind == "math")]
    if not _same_plainly(gold, other.answer):
        found.append(other.answer)
    return [x for x in dict.fromkeys(found) if x.strip() and not _same_plainly(x, gold)]


def _same_plainly(a: str, b: str) -> bool:
    """Whether a miss is none, by simpler means than a grader's; within 1% counts, as some graders allow that."""
    a, b = (re.sub(r"^[a-z]\s*=", "", text) for text in (a, b))
    x, y = parse_number(a), parse_number(b)
    if x is not None and y is not None:
        return abs(x - y) <= max(abs(y), Fraction(1, 10**9)) / 50
    left, right = literal_of(a), literal_of(b)
    if left is not None and right is not None:
        return left == right
    a, b = (re.sub(r"[\s.$]|\\(?:left|right|text|[,;!])", "", text).casefold() for text in (a, b))
    return a == b


def _changed(gold: str, *, formula: bool) -> Iterator[str]:
    value = parse_number(gold)
    if value is not None:
        yield from (str(float(value) * 1.25 + 1), f"{gold}7" if "e" not in gold else "", str(float(-value)))
        return
    if formula:
        yield f"{gold}+1"
    digits = [] if "\\text" in gold or "\\mbox" in gold else list(re.finditer(r"\d", gold))
    for match in (digits[:1] + digits[-1:]) if digits else []:
        yield gold[: match.start()] + str((int(match[0]) + 1) % 10) + gold[match.end() :]
    parts = several(gold)
    if len(parts) > 1 and len({part.strip() for part in parts}) == len(parts):
        yield ", ".join(parts[:-1])
    if formula and gold.startswith("(") and gold.endswith("]"):
        yield f"{gold[:-1]})"
    if not formula and not digits:
        yield f"not {gold}"
