"""The front door: a model by its name, questions in, solutions that print themselves out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from caspo.confidence import step_score
from caspo.core.errors import ConfigError, DataError
from caspo.engines import Engine, model_settings, open_engine
from caspo.records import Node, Question, Solution
from caspo.report import notebook_tree
from caspo.search import Method, answer_path, method_of

__all__ = ["Model", "Solved", "indented", "load"]


class Solved(Solution):
    """A `Solution` that shows itself: as text when it is printed, as a tree in a notebook.

    >>> model = caspo.load("smollm2-135m-stories")
    >>> print(model.solve("Tom has 3 pens and buys 2 bags with 4 pens in each. How many pens has he?"))
    Tom has 3 pens and buys 2 bags with 4 pens in each. How many pens has he?
      0.82  The bags have 2 * 4 = 8 pens.
      0.60  The pens have 3 + 8 = 11 pens.
      0.93  The answer is 11.
      = 11  (46% sure, 74 tokens)
    """

    @property
    def question(self) -> Question:
        """What was asked."""
        return self.tree.question

    @property
    def steps(self) -> list[tuple[float, str]]:
        """The steps that the answer stands on, each with the model's confidence in it, in [0, 1]."""
        return [(_confidence(node), node.step.text.strip()) for node in answer_path(self.tree, self.answer)]

    @property
    def outcome(self) -> str:
        """The answer, how sure it is, and what it cost, in a line."""
        missing = "withheld" if self.abstained else "no answer"
        answer = missing if self.answer is None else self.answer
        return f"= {answer}  ({self.confidence:.0%} sure, {self.generated_tokens} tokens)"

    def __str__(self) -> str:
        lines = [f"{confidence:4.2f}  {indented(text)}" for confidence, text in self.steps]
        return "\n  ".join([self.question.text, *lines, self.outcome])

    def __repr__(self) -> str:
        return f"<Solved {self.outcome}>"

    def _repr_html_(self) -> str:
        return notebook_tree(
            self.question.text,
            [
                {
                    "id": node.id,
                    "parent": node.parent,
                    "text": node.step.text,
                    "confidence": _confidence(node),
                    "decision": node.decision,
                    "count": node.count,
                }
                for node in self.tree.nodes
            ],
            self.outcome,
        )


def indented(step: str) -> str:
    """A step as it stands behind its confidence: the lines after its first one below that."""
    return step.replace("\n", "\n" + " " * 8)


def _confidence(node: Node) -> float:
    """A step without a token (an answer of nothing) is certain."""
    return step_score(node.step.trace) if len(node.step.trace) else 1.0


class Model:
    """A model that is ready to solve questions; `load` makes one. `engine` is what it runs on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __repr__(self) -> str:
        return f"<Model {self.engine.name}>"

    def solve(
        self, question: str | Question, method: str | Method[Any] = "cat", *, seed: int = 0, **settings: Any
    ) -> Solved:
        """Solve one question; see `solve_all`."""
        return self.solve_all([question], method, seed=seed, **settings)[0]

    def solve_all(
        self,
        questions: Sequence[str | Question],
        method: str | Method[Any] = "cat",
        *,
        seed: int = 0,
        on_done: Callable[[int], None] | None = None,
        **settings: Any,
    ) -> list[Solved]:
        """Solve many questions in one batch: a solution for each, in order, whatever else is in the batch.

        Args:
            method: a name of `caspo.METHODS` with its ``settings`` (docs/search.md), or a method with settings of its own.
            seed: of what is drawn; the same seed, question and settings give the same solution.
            on_done: called with the number of questions that were solved since the last call.

        Raises:
            ConfigError: no such method, no such setting, or a value that a setting cannot have.
            DataError: a question is empty, or no question.
            EngineError: generation failed, or a question is longer than the model's context.
        """
        if isinstance(questions, str | Question):
            raise DataError("solve_all takes a list of questions, and this is one. Use solve, or put it into a list.")
        if isinstance(method, str):
            method = method_of(method, settings)
        elif settings:
            raise ConfigError(f"{method.name} is given with its settings already. Set {', '.join(settings)} there.")
        asked = [_asked(question) for question in questions]
        return [
            Solved(**{field.name: getattr(solution, field.name) for field in fields(solution)})
            for solution in method.solve(asked, self.engine, seed, on_done)
        ]


def _asked(question: str | Question) -> Question:
    if isinstance(question, Question):
        return question
    if isinstance(question, str):
        return Question(question)
    raise DataError(f"A question is a text or a caspo.Question, and this is of type {type(question).__name__}.")


def load(
    name: str | os.PathLike[str], *, url: str | Sequence[str] | None = None, engine: str | None = None,
    examples: Sequence[tuple[str, str]] = (), **settings: Any,
) -> Model:  # fmt: skip
    """Load a model.

    Args:
        name: a bundled name (README.md lists them), a folder, a hub name, a GGUF file, or the name that a server gives it.
        url: of a server that has the model, or of several.
        engine: `hf`, `llama_cpp`, `vllm` or `openai_compatible`; by default what ``name`` and ``url`` suggest.
        examples: questions with their solutions, shown before every question; the last takes the place of one that is asked.
        settings: of `caspo.engines.ModelSettings`, such as ``device="cuda"``, ``dtype="bfloat16"`` or ``instruction``.

    Raises:
        ConfigError: no such setting, a value it cannot have, examples that are no pairs, or a server that cannot be used.
        ModelError: there is no such model, or it cannot be loaded.
    """
    for example in examples:
        if not isinstance(example, tuple | list) or [isinstance(text, str) for text in example] != [True, True]:
            raise ConfigError(f"{example!r:.80} is no example. Each is a pair: a question and its solution, both texts.")
    return Model(open_engine(model_settings(os.fspath(name), url=url, engine=engine, **settings), examples=examples))
