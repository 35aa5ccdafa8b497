"""`caspo solve`: one question, or a file of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caspo.cli.options import (
    BaseOption,
    CompletionsOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    MethodOption,
    MethodSettings,
    ModelOption,
    SkipBad,
    StepsOption,
    ThreadsOption,
    TokenizerOption,
    UrlOption,
)  # fmt: skip

if TYPE_CHECKING:
    from caspo.core.rows import BadRows
    from caspo.model import Solved
    from caspo.records import Question
    from caspo.search import ConfidenceTree, Method

__all__ = ["choose", "solve"]


def solve(
    question: Annotated[
        str, typer.Argument(help="A question, a file of them (JSONL, gzip, Parquet), 'stories', a benchmark.")
    ],
    settings: MethodSettings = None,
    model: ModelOption = "smollm2-135m",
    base: BaseOption = None,
    engine: EngineOption = None,
    url: UrlOption = None,
    tokenizer: TokenizerOption = None,
    method: MethodOption = "cat",
    limit: Annotated[int, typer.Option(min=1, help="Questions of a file, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of sampling and of the choice of questions.")] = 0,
    instruction: Annotated[str | None, typer.Option(help="System message of the prompt.")] = None,
    steps: StepsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    completions: CompletionsOption = None,
    data: Annotated[Path | None, typer.Option(help="Folder of a benchmark's JSONL; the hub by default.")] = None,
    run_code: Annotated[bool, typer.Option("--run-code", help="Run what the model writes, to grade it.")] = False,
    thresholds: Annotated[
        Path | None, typer.Option(help="File of `caspo calibrate`: CaT with its settings and guarantees.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON Lines file for the solutions.")] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Solved questions of a benchmark's training split, shown before each question.")
    ] = 0,
    skip_bad: SkipBad = False,
) -> None:
    """Solve questions with CaT (or another method) and show each step with the model's confidence in it."""
    import json

    from caspo.cli.show import bars, output, tell
    from caspo.core.folders import check_output_file
    from caspo.core.rows import BadRows
    from caspo.core.storage import write_text
    from caspo.engines.models import model_inputs
    from caspo.model import load
    from caspo.tasks.examples import fingerprint

    shown = _examples(question, examples, data)
    prints = fingerprint(shown) if shown else None
    chosen, told = choose(
        thresholds, method, settings, model, engine=engine, base=base, dtype=dtype, instruction=instruction, steps=steps,
        examples=prints,
    )  # fmt: skip
    bad = BadRows() if skip_bad else None
    questions, grade, files = _questions(question, limit, seed, data, run_code, bad)
    if out is not None:
        read = {"QUESTION": files, "--thresholds": [] if thresholds is None else [thresholds]}
        read["--completions"] = [] if completions is None else [completions]
        check_output_file(out, {**read, **model_inputs({"--model": model, "--base": base, "--tokenizer": tokenizer})})
    tell(bad)
    loaded = load(
        model, url=url, tokenizer=tokenizer, device=device, threads=threads, completions=completions, examples=shown, **told
    )
    done = 0
    with bars() as show:

        def advance(solved: int) -> None:
            nonlocal done
            done += solved
            show.stage("solve", done, len(questions))

        solutions = loaded.solve_all(questions, chosen, seed=seed, on_done=advance)
    lines, graded = [], []
    for asked, solution in zip(questions, solutions, strict=True):
        right = grade(asked, solution.answer) if asked.answer else None
        graded += [right] if right is not None else []
        _show(solution, None if solution.abstained else right)
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
                    "steps": [text for _, text in solution.steps],
                }
            )
        )
    tokens = sum(s.generated_tokens for s in solutions) / len(solutions)
    if graded:
        withheld = sum(solution.abstained for solution in solutions)
        graded_so = f"{sum(graded)} of {len(graded)} right" + (f", {withheld} withheld" if withheld else "")
        output.print(f"{graded_so}, {tokens:.0f} generated tokens a question", highlight=False)
    if out is not None:
        write_text(out, "\n".join(lines) + "\n")
        output.print(f"Solutions: {out}")


def choose(
    thresholds: Path | None, method: str, settings: Sequence[str] | None, model: str, **asked: str | None
) -> tuple[Method[Any], dict[str, str]]:
    """The method, and what of the model's settings is told: as given, or as ``thresholds`` were calibrated.

    ``asked``: what is given of ``engine``, ``base``, ``dtype``, ``instruction`` and ``steps``, and the fingerprint of
    ``examples``.
    """
    from caspo.search import method_of

    told = {key: value for key, value in asked.items() if value is not None}
    if thresholds is None:
        chosen: Method[Any] = method_of(method, settings or ())
    else:
        chosen, told = _calibrated(thresholds, method, settings, model, told)
    return chosen, {key: value for key, value in told.items() if key != "examples"}


def _calibrated(
    file: Path, method: str, settings: Sequence[str] | None, model: str, asked: Mapping[str, str]
) -> tuple[ConfidenceTree, dict[str, str]]:
    """CaT as it was calibrated, and what of the model's settings it was calibrated with.

    Raises:
        ConfigError: something else is asked for (``asked``: as `choose` has it), the model's files are others than then, or
            no threshold was shown to keep the share of wrong answers, so that every answer would be given.
    """
    from caspo.core.config import settings_from
    from caspo.core.errors import ConfigError
    from caspo.engines.opening import model_settings, weights_of
    from caspo.search import ConfidenceTree, ConfidenceTreeSettings
    from caspo.search.threshold import Thresholds

    found = Thresholds.load(file)
    other = [f"{key} {value!r}" for key, value in asked.items() if value != found.model.get(key)]
    if "examples" in found.model and "examples" not in asked:
        other.append("a prompt without the examples that it was calibrated with")
    name = found.model["name"]
    if model != name and not (Path(model).exists() and Path(model).resolve() == Path(name).resolve()):
        other.append(f"model {model!r}")
    other += [f"method {method!r}"] if method != ConfidenceTree.name else []
    other += list(settings or ())
    if other:
        raise ConfigError(
            f"{file} holds for method cat with the settings in it and the model {name}, engine {found.model['engine']}, "
            f"dtype {found.model['dtype']}, instruction {found.model['instruction']!r}, steps {found.model['steps']}; with "
            f"{', '.join(other)} nothing is guaranteed. Give --model {name}, no other method, engine, base, dtype, "
            "instruction or steps and no KEY=VALUE; or leave out --thresholds."
        )
    if found.abstain_below is None:
        raise ConfigError(
            f"{file} has no threshold for abstention: none was shown to keep wrong answers to a share of {found.alpha:g}, "
            "so there is no answer that could be given with that guarantee. Calibrate again after more training, with more "
            "--questions or a higher --alpha. To answer everything without a guarantee, leave out --thresholds and give "
            f"prune_below={found.prune_below:g}."
        )
    limits = {"prune_below": found.prune_below, "abstain_below": found.abstain_below}
    chosen = ConfidenceTree(settings_from(ConfidenceTreeSettings, {**found.settings, **limits}, f"The settings in {file}"))
    told = {key: value for key, value in found.model.items() if key not in ("name", "weights", "examples")}
    weights = found.model.get("weights")  # a server's cannot be seen
    if weights is not None and weights != weights_of(model_settings(model, **told)):
        raise ConfigError(
            f"The files of the model {model} are not those that {file} was calibrated with, though its name is the same: it "
            "was trained again, say. For what it is now nothing is guaranteed. Calibrate it (caspo calibrate), give the "
            "model as it was, or leave out --thresholds."
        )
    return chosen, told


def _examples(question: str, number: int, data: Path | None) -> tuple[tuple[str, str], ...]:
    """What is shown before every question."""
    from caspo.core.errors import ConfigError
    from caspo.loop.task import TaskSettings, open_examples
    from caspo.tasks.benchmarks import BENCHMARKS

    if not number:
        return ()
    if question != "stories" and question not in BENCHMARKS:
        raise ConfigError(
            f"--examples are of a task's training split, and {question[:60]!r} is no task. In a recipe: task.examples, "
            "with task.train and task.test."
        )
    return open_examples(TaskSettings(name=question, data=data, run_code=True, examples=number))


def _questions(
    question: str, limit: int, seed: int, data: Path | None, run_code: bool, bad: BadRows | None
) -> tuple[list[Question], Callable[[Question, str | None], bool], list[Path]]:
    """What to solve, how it is graded, and the files that it comes from."""
    from caspo.cli.show import output
    from caspo.core.errors import ConfigError, DataError
    from caspo.core.rows import looks_like_rows
    from caspo.records import Question
    from caspo.tasks.base import Task, grade
    from caspo.tasks.benchmarks import BENCHMARKS, TABLE
    from caspo.tasks.jsonl import JsonlTask

    task: Task
    if question in BENCHMARKS or question == "stories":
        if question in BENCHMARKS and TABLE[question].answer_type == "code" and not run_code:
            raise ConfigError(f"{question} is graded by running what the model writes. Allow it: --run-code.")
        from caspo.loop.task import TaskSettings, open_task, task_files

        settings = TaskSettings(name=question, data=data, run_code=run_code, skip_bad=bad is not None)
        task, files = open_task(settings, "test", bad), task_files(settings, ["test"]).get("task.data", [])
    elif data is not None or run_code:
        raise ConfigError(
            f"--data and --run-code are for benchmarks, and {question[:60]!r} is none. They are {', '.join(BENCHMARKS)}."
        )
    elif looks_like_rows(question):
        task, files = JsonlTask(Path(question), bad=bad), [Path(question)]
    elif not question.strip():
        raise DataError("The question is empty: there is nothing to solve. Give a question with some text.")
    elif bad is not None:
        raise ConfigError(f"--skip-bad is for files of questions, and {question[:60]!r} is none. Leave it out.")
    else:
        return [Question(question, id="question")], grade, []
    drawn = task.questions("test", limit, seed)
    if isinstance(task, JsonlTask) and len(drawn) == limit < (total := len(task.questions("test"))):
        output.print(f"{limit} of the {total} questions in {question} (--limit)", highlight=False)
    return drawn, task.grade, files


def _show(solution: Solved, right: bool | None) -> None:
    """As `Solved` is printed, with colours and the grade."""
    from rich.text import Text

    from caspo.cli.show import output
    from caspo.model import indented

    output.print(Text(solution.question.text, style="bold"))
    for score, text in solution.steps:
        style = "green" if score >= 0.8 else "yellow" if score >= 0.5 else "red"
        output.print(Text.assemble((f"  {score:4.2f}  ", style), indented(text)))
    mark = {True: "right", False: f"wrong, it is {solution.question.answer}", None: ""}[right]
    output.print(Text(f"  {solution.outcome}  {mark}\n"))
