"""How each published format of labelled solutions is read. One function a format, from a record to its solutions.

What the formats mean, in our terms (right, wrong, unknown; a step is judged given a right prefix):

- ProcessBench (Zheng et al. 2024): ``label`` is the first wrong step, from 0, or -1. Steps before it are right, those
  after it are unknown.
- PRM800K (Lightman et al. 2023): one record is a tree. The chosen steps make one solution; every other rated completion
  makes one more, of the steps before it and itself, with ``/alternatives`` behind its subset. 1 is right, -1 wrong, 0
  (neither wrong nor progress) and null unknown; a step written by the labeller is right.
- Math-Shepherd (Wang et al. 2024): a step is ``+`` where completions from it reached the answer, ``-`` where none did.
- Step-DPO (Lai et al. 2024): two beginnings of solutions, right but for the rejected step at the end of the second. Its
  steps before are taken to be lines.
- MR-GSM8K (Zeng et al. 2023): the first wrong step is counted from 1.
- ``steps``: ``question``, ``steps``, ``first_error`` from 0 or -1, and where every step has a label (PRMBench) ``labels``,
  1 or -1. ``meta.ended: false`` marks the beginning of a solution.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caspo.errors import DataError
from caspo.steps import split_steps
from caspo.types import Label, Question

__all__ = ["FORMATS", "Format", "LabelledSolution", "read_labelled", "rows_of"]

_SHEPHERD_TAG = "ки"
_RATINGS: dict[object, Label] = {1: "right", -1: "wrong"}


@dataclass(frozen=True)
class LabelledSolution:
    """The steps of a solution, and what somebody said of each."""

    id: str
    question: Question
    steps: tuple[str, ...]
    first_error: int | None
    """Index of the first wrong step, from 0; None: no step is wrong."""
    labels: tuple[Label, ...]
    """One a step; unknown where nobody said."""
    subset: str
    """What figures are given for one by one: ``gsm8k``, ``math``."""
    ended: bool = True
    """The solution ended with its last step; False for the beginning of one."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says of the solution: ``generator``, ``final_answer_correct``."""


Reader = Callable[[Mapping[str, Any], str, str], list[LabelledSolution]]


@dataclass(frozen=True)
class Format:
    """A format: the keys that tell it, and its reader (record, where it stands, an id if it has none)."""

    name: str
    keys: tuple[str, ...]
    read: Reader

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a record is of this format."""
        return all(key in row for key in self.keys) and isinstance(row.get("question"), dict) == (
            self.name == "PRM800K"
        )


def rows_of(path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, default id, record) of every record of a JSON array or a JSONL file."""
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give a JSON or JSONL file of labelled solutions.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Give a file that you may read.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start + 1} is not UTF-8. Convert the file, for example with iconv."
        ) from None
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: the JSON array is cut off or damaged: {error}. Copy the file again.") from None
        for number, row in enumerate(found, start=1):
            yield _checked(row, f"{path}, record {number}", f"{path.stem}-{number}")
        return
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):  # complete files end with a line break
                    raise DataError(
                        f"{where}: the last line is cut off ({error}). Copy the file again, or remove the line."
                    ) from None
                raise DataError(f"{where}: not JSON: {error}. Every line must be one JSON object.") from None
            yield _checked(row, where, f"{path.stem}-{number}")


def _checked(row: object, where: str, default_id: str) -> tuple[str, str, dict[str, Any]]:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a value of type {type(row).__name__} where an object with steps and labels is needed."
        )
    return where, default_id, row


def _process_bench(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    steps = _steps(row, "steps", where)
    first = _first_error(_get(row, "label", where), len(steps), where, "label")
    identity = str(row.get("id") or default_id)
    # "gsm8k-12" is of gsm8k
    subset = str(row.get("subset") or re.sub(r"-[0-9]+$", "", identity))
    question = _question(row, "problem", identity, where)
    return [_by_first_error(identity, question, steps, first, subset, _rest(row, "problem", "steps", "label"))]


def _own(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    steps = _steps(row, "steps", where)
    first = _first_error(_get(row, "first_error", where), len(steps), where, "first_error")
    identity = str(row.get("id") or default_id)
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"{where}: 'meta' is of type {type(meta).__name__}, not an object. Make it one or remove it.")
    named = (meta.get(key) for key in ("subset", "subject", "task", "classification", "question_type"))
    subset = str(next((name for name in named if name), row.get("source") or "all"))
    question = _question(row, "question", identity, where)
    ended = meta.get("ended") is not False
    labels = row.get("labels")
    if labels is None:
        return [_by_first_error(identity, question, steps, first, subset, meta, ended=ended)]
    if not isinstance(labels, list) or len(labels) != len(steps) or any(x not in (1, -1) for x in labels):
        raise DataError(
            f"{where}: 'labels' must hold 1 or -1 for each of the {len(steps)} steps; it is {labels!r:.80}."
        )
    given = tuple(_RATINGS[x] for x in labels)
    if first != (given.index("wrong") if "wrong" in given else None):
        raise DataError(
            f"{where}: 'first_error' is {row['first_error']}, which 'labels' do not say. Correct one of them."
        )
    return [LabelledSolution(identity, question, steps, first, given, subset, ended, meta)]


def _mr_gsm8k(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    key = "model_output_steps"
    if isinstance(_get(row, key, where), str):
        row = {**row, key: [line for line in row[key].split("\n") if line.strip()]}
    steps = _steps(row, key, where)
    given = _get(row, "model_output_solution_first_error_step", where)
    first = None
    if str(given).strip() not in ("N/A", "", "None"):
        if not str(given).strip().isdigit() or int(given) < 1:
            raise DataError(f"{where}: the first error step is {given!r}, neither N/A nor a number from 1.")
        first = _first_error(int(given) - 1, len(steps), where, "model_output_solution_first_error_step")
    said = row.get("model_output_solution_correctness")
    if said in ("correct", "wrong") and (said == "wrong") != (first is not None):
        raise DataError(
            f"{where}: the solution is {said!r}, but its first error step is {given!r}. Correct one of them."
        )
    identity = str(row.get("uuid") or default_id)
    question = _question(
        row, "question", identity, where, answer="ground_truth_answer", solution="ground_truth_solution"
    )
    subset = str(row.get("question_type") or "all")
    return [_by_first_error(identity, question, steps, first, subset, {})]


def _math_shepherd(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    """``input`` has a tag behind every step (and maybe ``?``); ``label`` is the same text with + or - in the tag's place."""
    text, labelled = (_text(row, key, where) for key in ("input", "label"))
    *parts, rest = re.split(rf"(?<!\S){_SHEPHERD_TAG}(?!\S)", text)
    if not parts or rest.strip() not in ("", "?"):
        raise DataError(
            f"{where}: 'input' must end each of its steps with {_SHEPHERD_TAG}; it ends with {text[-30:]!r}."
        )
    parts = [re.sub(r"^ *\?", "", part) if number else part for number, part in enumerate(parts)]
    problem, first_mark, first_step = parts[0].rpartition("Step 1:")
    if not first_mark:
        raise DataError(f"{where}: 'input' has no 'Step 1:', so its question cannot be told from its steps.")
    steps = [first_step, *(re.sub(r"^\s*Step [0-9]+:", "", part) for part in parts[1:])]
    labels: list[Label] = []
    position = 0
    for number, part in enumerate(parts, start=1):
        begins = labelled.find(part.strip(), position)
        position = begins + len(part.strip())
        sign = re.compile(rf"\s*(?:{_SHEPHERD_TAG})?\s*([+-])").match(labelled, position)
        if begins < 0 or sign is None:
            raise DataError(
                f"{where}: 'label' does not end step {number} of 'input' ({part.strip()[-40:]!r}) with + or -."
            )
        labels.append("right" if sign[1] == "+" else "wrong")
        position = sign.end()
    if labelled[position:].strip():
        raise DataError(
            f"{where}: 'label' goes on after the {len(parts)} steps of 'input': {labelled[position:]!r:.60}."
        )
    cleaned = _steps({"input": [step.strip() for step in steps]}, "input", where)
    first = labels.index("wrong") if "wrong" in labels else None
    question = _question({"input": problem.strip()}, "input", default_id, where)
    return [LabelledSolution(default_id, question, cleaned, first, tuple(labels), str(row["task"]))]


def _step_dpo(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    before = row.get("initial_reason_steps") or ""
    if not isinstance(before, str):
        raise DataError(f"{where}: 'initial_reason_steps' is of type {type(before).__name__}, not text.")
    identity = str(row.get("id") or default_id)
    question = _question(row, "prompt", identity, where)
    shared = tuple(line.strip() for line in split_steps(before))
    subset = str(row.get("dataset") or "all")
    found = []
    right: Label = "right"
    for key, first in (("chosen", None), ("rejected", len(shared))):
        steps = (*shared, _text(row, key, where).strip())
        labels = (*([right] * len(shared)), right if first is None else "wrong")
        found.append(LabelledSolution(f"{identity}/{key}", question, steps, first, labels, subset, False))
    return found


def _prm800k(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    asked, label = _get(row, "question", where), _get(row, "label", where)
    identity = str(row.get("id") or default_id)
    question = _question(
        asked, "problem", identity, where, answer="ground_truth_answer", solution="ground_truth_solution"
    )
    if not isinstance(label, dict) or not isinstance(label.get("steps"), list):
        raise DataError(f"{where}: 'label' has no list of 'steps', which PRM800K needs.")
    path: list[tuple[str, Label]] = []
    others: list[LabelledSolution] = []
    for number, step in enumerate(label["steps"], start=1):
        options = [_completion(c, where, number) for c in step.get("completions") or []]
        written, chosen = step.get("human_completion"), step.get("chosen_completion")
        if chosen is not None and not (isinstance(chosen, int) and 0 <= chosen < len(options)):
            raise DataError(
                f"{where}: step {number} chooses completion {chosen!r} of {len(options)}; it must be one of them or null."
            )
        before = tuple(text for text, _ in path)
        for place, (text, said) in enumerate(options):
            if place != (0 if chosen is None and not written else chosen):
                others.append(
                    LabelledSolution(
                        f"{identity}/step-{number}/completion-{place}", question, (*before, text),
                        len(before) if said == "wrong" else None, (*(other for _, other in path), said),
                        f"{_phase(row)}/alternatives", False,
                    )
                )  # fmt: skip
        if chosen is None and written:
            path.append((_written(written, where, number), "right"))
        elif options:
            path.append(options[chosen or 0])
        else:
            break
    if not path:
        raise DataError(f"{where}: the record has no step. Remove the line.")
    labels = tuple(said for _, said in path)
    first = labels.index("wrong") if "wrong" in labels else None
    ended = label.get("finish_reason") == "solution"
    steps = tuple(text for text, _ in path)
    return [LabelledSolution(identity, question, steps, first, labels, _phase(row), ended), *others]


def _phase(row: Mapping[str, Any]) -> str:
    return "phase 1" if row.get("generation") is None else "phase 2"


def _completion(value: object, where: str, number: int) -> tuple[str, Label]:
    if not isinstance(value, dict) or value.get("rating") not in (1, 0, -1, None):
        raise DataError(f"{where}: step {number} has a completion without a rating of 1, 0, -1 or null: {value!r:.80}.")
    return _steps({"text": [value.get("text")]}, "text", where)[0], _RATINGS.get(value.get("rating"), "unknown")


def _written(value: object, where: str, number: int) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the human completion of step {number} has no text.")
    return text


def _by_first_error(
    identity: str,
    question: Question,
    steps: tuple[str, ...],
    first: int | None,
    subset: str,
    meta: Mapping[str, Any],
    *,
    ended: bool = True,
) -> LabelledSolution:
    """Labels from the place of the first error: right before it, unknown after it."""
    labels: list[Label] = ["right"] * len(steps)
    if first is not None:
        after: list[Label] = ["unknown"] * (len(steps) - first - 1)
        labels[first:] = ["wrong", *after]
    return LabelledSolution(identity, question, steps, first, tuple(labels), subset, ended, meta)


def _get(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise DataError(f"{where}: no {key!r}, which the records before it have. Add it or remove the record.")
    return row[key]


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = _get(row, key, where)
    if not isinstance(value, str) or not value.strip():
        what = "empty" if isinstance(value, str) else f"of type {type(value).__name__}, not text"
        raise DataError(f"{where}: {key!r} is {what}.")
    return value


def _steps(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _get(row, key, where)
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise DataError(f"{where}: {key!r} must be a list with at least one step; it is {values!r:.80}.")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str) or not value.strip():
            what = "empty" if isinstance(value, str) else f"of type {type(value).__name__}, not text"
            raise DataError(f"{where}: step {number} of {key!r} is {what}. Labels count steps: none may be left out.")
    return tuple(values)


def _first_error(value: object, steps: int, where: str, key: str) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < steps:
        raise DataError(
            f"{where}: {key!r} is {value!r}, but there are {steps} steps: it must be from -1 (none) to {steps - 1}."
        )
    return None if value == -1 else value


def _question(
    row: Mapping[str, Any], key: str, identity: str, where: str, answer: str = "answer", solution: str = "solution"
) -> Question:
    """The question; an unknown answer is an empty text."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: the question is of type {type(row).__name__}, not an object.")
    known, worked = row.get(answer), row.get(solution)
    return Question(
        _text(row, key, where),
        "" if known is None else str(known),
        id=identity,
        solution=worked if isinstance(worked, str) else None,
    )


def _rest(row: Mapping[str, Any], *taken: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in taken and key != "id"}


FORMATS: tuple[Format, ...] = (
    Format("ProcessBench", ("problem", "steps", "label"), _process_bench),
    Format("PRM800K", ("question", "label"), _prm800k),
    Format("Math-Shepherd", ("input", "label", "task"), _math_shepherd),
    Format("Step-DPO", ("prompt", "initial_reason_steps", "chosen", "rejected"), _step_dpo),
    Format("MR-GSM8K", ("question", "model_output_steps", "model_output_solution_first_error_step"), _mr_gsm8k),
    Format("steps", ("question", "steps", "first_error"), _own),
)


def read_labelled(path: Path) -> list[LabelledSolution]:
    """The labelled solutions of a JSON or JSONL file, in its order; the format is told by the keys of its first record.

    Raises:
        DataError: a file that is missing, cut off or of an unknown format; a label beyond the steps; an empty step; two
            solutions with one id. The message names the line.
    """
    solutions: list[LabelledSolution] = []
    seen: dict[str, str] = {}
    read = None
    for where, default_id, row in rows_of(path):
        if read is None:
            read = next((form.read for form in FORMATS if form.fits(row)), None)
            if read is None:
                known = "; ".join(f"{form.name} ({', '.join(form.keys)})" for form in FORMATS)
                raise DataError(
                    f"{where}: no known format of labelled solutions has the keys {', '.join(map(repr, row)) or '(none)'}. "
                    f"Known formats and the keys they need: {known}."
                )
        for solution in read(row, where, default_id):
            first = seen.setdefault(solution.id, where)
            if first != where:
                raise DataError(
                    f"{where}: the id {solution.id!r} is that of {first} too. Ids must be unique: change one."
                )
            solutions.append(solution)
    if not solutions:
        raise DataError(f"{path}: the file holds no labelled solution. It needs at least one.")
    return solutions
