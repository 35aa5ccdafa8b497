"""TRL's stepwise supervision (the rows of its `PRMTrainer`): a ``prompt``, its ``completions``, and true or false for each.

False is wrong. A solution that states no answer in its last step did not end. TRL writes its ``step_separator`` (a line
break) behind every step: what stood there is left out of the records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from caspo.answers import extract_answer
from caspo.core.errors import DataError
from caspo.formats.labelled import Format, LabelledSolution, Record, bare, get, question_of, separated, steps_of
from caspo.records import Label, Tree

__all__ = ["TRL_STEPWISE"]

_KNOWN: Mapping[object, Label] = {True: "right", False: "wrong"}


def _read(row: Mapping[str, Any], where: str, default_id: str) -> list[LabelledSolution]:
    given = get(row, "labels", where)
    if row.get("completions") == [] and given == []:
        return []  # what TRL's own script makes of PRM800K has some
    steps = separated(steps_of(row, "completions", where))
    if not isinstance(given, list) or len(given) != len(steps) or any(label not in (True, False) for label in given):
        raise DataError(
            f"{where}: 'labels' must hold true or false for each of the {len(steps)} completions; it is {given!r:.80}."
        )
    question = question_of(row, "prompt", default_id, where)
    ended = extract_answer(steps[-1]) is not None
    return [LabelledSolution(default_id, question, steps, tuple(_KNOWN[label] for label in given), "all", ended)]


def _write(tree: Tree) -> Iterator[Record]:
    """One record for every way to a step that is known, as are all before it, and that no known step follows."""
    known: set[int] = set()
    for node in tree.nodes:
        before_right = node.depth == 1 or (node.parent in known and tree.nodes[node.parent].right)
        if before_right and node.verdict and node.verdict.label != "unknown":
            known.add(node.id)
    for end in sorted(known - {tree.nodes[node].parent for node in known}):
        path = tree.path(end)
        yield {
            "prompt": tree.question.text,
            "completions": [bare(node.step.text) for node in path],
            "labels": [node.right for node in path],
        }


_KEYS = ("prompt", "completions", "labels")
TRL_STEPWISE = Format("trl_stepwise", "TRL's stepwise supervision", _KEYS, _read, write_tree=_write, known_only=True)
