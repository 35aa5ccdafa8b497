"""Final answers: found in a solution, read as numbers, compared and grouped by value.

`values` reads numbers and takes units off, `extract` finds the answer of a solution, `stated` does so for every kind of
question, `compare` says whether two answers are the same, with `mathematics` (math-verify in a process of its own, so that
no formula can make it run for ever) for what is neither a number nor equal text.
"""

from caspo.answers.compare import group_answers, same_answer, several
from caspo.answers.extract import extract_answer
from caspo.answers.stated import options, stated_answer
from caspo.answers.values import parse_number

__all__ = ["extract_answer", "group_answers", "options", "parse_number", "same_answer", "several", "stated_answer"]
