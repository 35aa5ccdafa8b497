"""Final answers: found in a solution, read, compared and grouped by what they say.

`values` reads numbers, `units` is the list of units, `quantities` numbers with what stands around them; `parts` takes
answers apart. `compare` gives each answer a key: the same answers are those with the same key; `known` says what is right
for a known one. `mathematics` gives formulas theirs, in a process of its own, so that none can make it run for ever.
`extract` finds the answer of a solution, `stated` does so for every kind of question.
"""

from caspo.answers.compare import group_answers, same_answer
from caspo.answers.extract import extract_answer
from caspo.answers.known import right_answer
from caspo.answers.parts import several
from caspo.answers.stated import options, stated_answer
from caspo.answers.values import parse_number

__all__ = [
    "extract_answer", "group_answers", "options", "parse_number", "right_answer", "same_answer", "several", "stated_answer",
]  # fmt: skip
