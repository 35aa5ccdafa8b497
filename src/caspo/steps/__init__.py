"""Where a solution's steps begin and end, and what they calculate.

`split_steps` cuts a finished text, `StepReader` cuts tokens while they come; both by a `Segmenter` (segmenter.py), which
alone knows where steps end. Its rules by name are in rules.py, the default in reasoning.py. `Parting` takes the model's
thinking apart from what it says. `equations` finds the statements ``lhs = rhs`` that a step makes in running text
(equations.py), `states_falsehood` whether one is false beyond doubt (false_equations.py).
"""

from caspo.steps.equations import Equation, Expression, equations, worth
from caspo.steps.false_equations import false_equations, states_falsehood
from caspo.steps.parting import Part, Parting
from caspo.steps.reader import THINKING, Characters, Reading, StepReader, in_thinking, split_steps, split_tokens, text_of
from caspo.steps.rules import rule_name

__all__ = [
    "THINKING", "Characters", "Equation", "Expression", "Part", "Parting", "Reading", "StepReader", "equations",
    "false_equations", "in_thinking", "rule_name", "split_steps", "split_tokens", "states_falsehood", "step_key", "text_of",
    "worth",
]  # fmt: skip


def step_key(text: str) -> str:
    """Two sampled steps with the same key are the same step: the text with its white space normalised."""
    return " ".join(text.split())
