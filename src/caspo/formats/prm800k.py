"""PRM800K (Lightman et al. 2023, arXiv:2305.20050): one record is a tree of rated completions.

The chosen steps make one solution; every other rated completion makes one more, of the steps before it and itself, with
``/alternatives`` behind its subset. 1 is right, -1 wrong, 0 (neither wrong nor progress) and null unknown; a step written by
the labeller is right. A record without steps (a problem that was given up, or is bad) gives no solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caspo.core.errors import DataError
from caspo.formats.labelled import RATINGS, Format, LabelledSolution, Record, bare, get, question_of, separated, steps_of
from caspo.records import Label, Node, Tree

__all__ = ["PRM800K"]

_RATING: Mapping[str, object] = {label: rating for rating, label in RATINGS.items()}


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    asked, label = get(row, "question", where), get(row, "label", where)
    identity = str(row.get("id") or default_id)
    question = question_of(asked, "problem", identity, where, answer="ground_truth_answer", solution="ground_truth_solution")
    given = (get(label, "steps", f"{where}, label") or []) if isinstance(label, dict) else None
    if not isinstance(given, list) or not all(isinstance(step, dict) for step in given):
        raise DataError(f"{where}: 'label' must hold a list of 'steps', each an object, or null; it is {label!r:.80}.")
    phase = "phase 1" if row.get("generation") is None else "phase 2"
    path: list[tuple[str, Label]] = []
    others: list[LabelledSolution] = []
    for number, step in enumerate(given, start=1):
        rated = step.get("completions") or []
        options = [_completion(c, where, number) for c in (rated if isinstance(rated, list) else [rated])]
        written, chosen = _written(step.get("human_completion"), where, number), step.get("chosen_completion")
        if chosen is not None and not (type(chosen) is int and 0 <= chosen < len(options)):
            raise DataError(
                f"{where}: step {number} chooses completion {chosen!r} of {len(options)}; it must be one of them or null."
            )
        before, known = tuple(text for text, _ in path), tuple(said for _, said in path)
        for place, (text, said) in enumerate(options):
            if place != (0 if chosen is None and not written else chosen):
                name, subset = f"{identity}/step-{number}/completion-{place}", f"{phase}/alternatives"
                steps = separated((*before, text))
                others.append(LabelledSolution(name, question, steps, (*known, said), subset, ended=False))
        if chosen is None and written:
            path.append((written, "right"))
        elif options:
            path.append(options[chosen or 0])
        if chosen is None and not written and len(options) != 1:
            break  # nothing was chosen to go on from
    if not path:
        return []
    ended = label.get("finish_reason") == "solution"
    texts, labels = zip(*path, strict=True)
    return [LabelledSolution(identity, question, separated(texts), labels, phase, ended), *others]


def _completion(value: object, where: str, number: int) -> tuple[str, Label]:
    if not isinstance(value, dict) or value.get("rating") not in (1, 0, -1, None):
        raise DataError(f"{where}: step {number} has a completion without a rating of 1, 0, -1 or null: {value!r:.80}.")
    return steps_of({"text": [value.get("text")]}, "text", where)[0], RATINGS.get(value.get("rating"), "unknown")


def _written(value: object, where: str, number: int) -> str:
    """The labeller's own step; empty where there is none."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str | None):
        raise DataError(f"{where}: the human completion of step {number} is of type {type(text).__name__}, not text.")
    return (text or "").strip()


def _write(tree: Tree) -> Iterator[Record]:
    """One record for every way through the tree to a prefix none of whose continuations was continued."""
    for parent, children in tree.groups():
        if any(tree.children(child.id) for child in children):
            continue
        path = tree.path(parent)
        steps = [_choice(tree.children(node.parent), node) for node in path]
        best = next((c for c in children if c.right and c.final), None)
        steps.append(_choice(children, best))
        judged = [c.verdict.label if c.verdict else "unknown" for c in children]
        reason = "solution" if best else "found_error" if set(judged) == {"wrong"} else "give_up"
        question = tree.question
        yield {
            "id": f"{question.id}/{parent}",
            "generation": None,
            "question": {
                "problem": question.text,
                "ground_truth_solution": question.solution,
                "ground_truth_answer": question.answer,
            },
            "label": {"steps": steps, "finish_reason": reason},
        }


def _choice(children: Sequence[Node], chosen: Node | None) -> Record:
    completions = [
        {"text": bare(c.step.text), "rating": _RATING.get(c.verdict.label if c.verdict else ""), "flagged": None}
        for c in children
    ]
    place = None if chosen is None else [c.id for c in children].index(chosen.id)
    return {"completions": completions, "human_completion": None, "chosen_completion": place}


PRM800K = Format("prm800k", "PRM800K", ("question", "label"), _read, write_tree=_write, nested=True)
