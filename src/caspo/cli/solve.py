"""`caspo solve`: one question, or a file of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caspo.cli.options import METHODS_HERE, EngineOption, ModelOption, TokenizerOption, UrlOption

if TYPE_CHECKING:
    from caspo.engines.opening import ModelSettings
    from caspo.search import ConfidenceTree
    from caspo.types import Node, Question, Solution

__all__ = ["asked_model", "calibrated", "solve"]


def solve(
    question: Annotated[str, typer.Argument(help="A question, a JSONL file of them, 'stories', or a benchmark.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the method, e.g. children=8.")
    ] = None,
    model: ModelOption = "smollm2-135m",
    engine: EngineOption = None,
    url: UrlOption = None,
    tokenizer: TokenizerOption = None,
    method: Annotated[str, typer.Option(help=f"One of {METHODS_HERE}.")] = "cat",
    limit: Annotated[int, typer.Option(min=1, help="Questions of a file, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of the choice of questions.")] = 0,
    instruction: Annotated[str | None, typer.Option(help="System message of the prompt.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    data: Annotated[Path | None, typer.Option(help="Folder of a benchmark's JSONL; the hub by default.")] = None,
    run_code: Annotated[bool, typer.Option("--run-code", help="Run what the model writes, to grade it.")] = False,
    thresholds: Annotated[
        Path | None, typer.Option(help="File of `caspo calibrate`: CaT with its settings and guarantees.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON Lines file for the solutions.")] = None,
) -> None:
    """Solve questions with CaT (or another method) and show each step with the model's confidence in it."""
    import json

    from caspo.cli.show import bars, output
    from caspo.config import settings_from
    from caspo.engines.opening import open_engine
    from caspo.errors import ConfigError
    from caspo.search import METHODS
    from caspo.storage import write_text

    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r}. Choose one of {', '.join(METHODS)}.")
    chosen = METHODS[method]
    if thresholds is None:
        configured = chosen(settings_from(chosen.settings_type, settings or ()))
    else:
        configured = calibrated(thresholds, method, model, settings)
    questions, grade = _questions(question, limit, seed, data, run_code)
    named = {"name": model, "device": device} | ({} if instruction is None else {"instruction": instruction})
    opened = open_engine(asked_model(named, engine, url, tokenizer))
    done = 0
    with bars() as show:

        def advance(solved: int) -> None:
            nonlocal done
            done += solved
            show.stage("solve", done, len(questions))

        solutions = configured.solve(questions, opened, seed, advance)
    lines, graded = [], []
    for asked, solution in zip(questions, solutions, strict=True):
        right = grade(asked, solution.answer) if asked.answer else None
        graded += [right] if right is not None else []
        _show(asked, solution, right)
        lines.append(
            json.dumps(
                {
                    "id": asked.id,
                    "question": asked.text,
                    "answer": solution.answer,
                    "gold": asked.answer or None,
                    "correct": right,
                    "confidence": solution.confidence,
                    "generated_tokens": solution.generated_tokens,
                    "steps": [node.step.text.strip() for node in _told(solution)],
                }
            )
        )
    tokens = sum(s.generated_tokens for s in solutions) / len(solutions)
    if graded:
        output.print(f"{sum(graded)} of {len(graded)} right, {tokens:.0f} generated tokens a question", highlight=False)
    if out is not None:
        write_text(out, "\n".join(lines) + "\n")
        output.print(f"Solutions: {out}")


def asked_model(
    named: dict[str, str], engine: str | None, urls: list[str] | None, tokenizer: str | None
) -> ModelSettings:
    """The model as it was asked for."""
    from pydantic import ValidationError

    from caspo.engines.opening import ModelSettings
    from caspo.errors import ConfigError

    chosen = engine or ("openai_compatible" if urls else "hf")
    try:
        return ModelSettings.model_validate(
            {**named, "engine": chosen, "urls": tuple(urls or ()), "tokenizer": tokenizer}
        )
    except ValidationError as error:
        problems = "; ".join(str(problem["msg"]) for problem in error.errors())
        raise ConfigError(f"This model cannot be used: {problems}. Check --engine and --url.") from error


def calibrated(file: Path, method: str, model: str, settings: list[str] | None) -> ConfidenceTree:
    """CaT as it was calibrated."""
    from caspo.errors import ConfigError
    from caspo.search import ConfidenceTree, ConfidenceTreeSettings
    from caspo.search.threshold import Thresholds

    found = Thresholds.load(file)
    if method != ConfidenceTree.name or settings or found.model != model:
        raise ConfigError(
            f"{file} holds for method cat with the settings in it and the model {found.model}; with others nothing is "
            f"guaranteed. Give --model {found.model}, no other method and no KEY=VALUE; or leave out --thresholds."
        )
    limits = {"prune_below": found.prune_below, "abstain_below": found.abstain_below or 0.0}
    return ConfidenceTree(ConfidenceTreeSettings.model_validate({**found.settings, **limits}))


def _questions(
    question: str, limit: int, seed: int, data: Path | None, run_code: bool
) -> tuple[list[Question], Callable[[Question, str | None], bool]]:
    """What to solve, and how it is graded."""
    from caspo.errors import ConfigError, DataError
    from caspo.tasks.base import Task, grade
    from caspo.tasks.benchmarks import BENCHMARKS, TABLE
    from caspo.tasks.jsonl import JsonlTask
    from caspo.types import Question

    task: Task
    if question in BENCHMARKS or question == "stories":
        if question in BENCHMARKS and TABLE[question].answer_type == "code" and not run_code:
            raise ConfigError(f"{question} is graded by running what the model writes. Allow it: --run-code.")
        from caspo.loop.task import TaskSettings, open_task

        task = open_task(TaskSettings(name=question, data=data, run_code=run_code), "test")
    elif data is not None or run_code:
        raise ConfigError(
            f"--data and --run-code are for benchmarks, and {question[:60]!r} is none. They are {', '.join(BENCHMARKS)}."
        )
    elif question.endswith((".jsonl", ".json")):
        task = JsonlTask(Path(question))
    elif not question.strip():
        raise DataError("The question is empty: there is nothing to solve. Give a question with some text.")
    else:
        return [Question("question", question, "")], grade
    return task.questions("test", limit, seed), task.grade


def _told(solution: Solution) -> tuple[Node, ...]:
    """The path to report."""
    from caspo.search import answer_path

    return answer_path(solution.tree, solution.answer)


def _show(question: Question, solution: Solution, right: bool | None) -> None:
    from rich.text import Text

    from caspo.cli.show import output
    from caspo.confidence import step_score

    output.print(Text(question.text, style="bold"))
    for node in _told(solution):
        score = step_score(node.step.trace)
        style = "green" if score >= 0.8 else "yellow" if score >= 0.5 else "red"
        output.print(Text.assemble((f"  {score:4.2f}  ", style), node.step.text.strip()))
    mark = {True: "right", False: f"wrong, it is {question.answer}", None: ""}[right]
    answer = "no answer" if solution.answer is None else solution.answer
    output.print(Text(f"  = {answer}  (vote {solution.confidence:.0%}, {solution.generated_tokens} tokens)  {mark}\n"))
