"""Judging labelled solutions, in chunks that survive a kill, and what came of it.

``<folder>/part-0000.json`` holds the verdicts of a chunk; ``scores.json`` (`judge_scores`) is written last. A chunk in
which the judge failed somewhere (an endpoint was down) is judged again next time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caspo.core.config import Config
from caspo.core.errors import ConfigError
from caspo.core.shards import Shard
from caspo.core.storage import read_json, write_json
from caspo.evaluate.judge_scores import Judged, judge_scores
from caspo.formats import LabelledSolution
from caspo.judges.base import Chain, Judge, chain_key

__all__ = ["JudgeRun", "digest", "join_verdicts", "judge_solutions", "of_shard", "score_judge"]

_CHUNK = 200
"""Solutions judged between two files."""


class JudgeRun(Config):
    """What a folder of verdicts was made of; `claimed` refuses to go on with another."""

    judge: dict[str, Any]
    """Its settings."""
    model: str | None = None
    """The model that completes steps, for `rollouts`."""
    base: str | None = None
    """Of an adapter that does."""
    solutions: str
    """What was judged, with its digest."""


def digest(solutions: Sequence[LabelledSolution]) -> str:
    """A digest of the questions and steps, and of nothing that a judge is not told."""
    keys = (chain_key(Chain(s.question, s.steps, s.ended)) for s in solutions)
    return hashlib.sha256("".join(keys).encode()).hexdigest()[:16]


def judge_solutions(
    solutions: Sequence[LabelledSolution],
    judge: Judge,
    folder: Path,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """The verdicts of a judge on solutions, with what they are labelled; chunks that are there already are read."""
    judged: list[Judged] = []
    for start, file in _parts(len(solutions), folder):
        chunk = solutions[start : start + _CHUNK]
        records = read_json(file) if file.exists() else None
        if records is None or any(_failed(v) for r in records for v in r["verdicts"]):
            verdicts = judge.judge([Chain(s.question, s.steps, s.ended) for s in chunk]) if chunk else []
            records = [
                {"id": s.id, "verdicts": [{"label": v.label, "reason": v.reason, "failed": v.failed} for v in found]}
                for s, found in zip(chunk, verdicts, strict=True)
            ]
            write_json(file, records)
        judged += [
            Judged(s, tuple(v["label"] for v in record["verdicts"])) for s, record in zip(chunk, records, strict=True)
        ]
        on_chunk(start + len(chunk), len(solutions))
    return judged


def of_shard(solutions: Sequence[LabelledSolution], shard: Shard) -> list[LabelledSolution]:
    """The solutions of a shard: all those of each of its questions, which are counted as they first come."""
    return [solutions[place] for place in _places(solutions, shard)]


def _places(solutions: Sequence[LabelledSolution], shard: Shard) -> list[int]:
    questions: dict[str, int] = {}
    return [i for i, s in enumerate(solutions) if shard.holds(questions.setdefault(s.question.text, len(questions)))]


def join_verdicts(solutions: Sequence[LabelledSolution], shards: Mapping[Shard, Path], folder: Path) -> None:
    """Write the files of `judge_solutions` in ``folder`` from those of all shards.

    Raises:
        ConfigError: a shard is not finished.
    """
    found: list[Any] = [None] * len(solutions)  # by their places: ids may stand twice in a file
    for shard, home in shards.items():
        records = [record for file in sorted(home.glob("part-[0-9]*.json")) for record in read_json(file)]
        places = _places(solutions, shard)
        if [record["id"] for record in records] != [solutions[place].id for place in places]:
            raise ConfigError(
                f"{home} is not finished: it holds {len(records)} of the {len(places)} solutions of shard {shard}. "
                "Run its command again; killed, it goes on where it was."
            )
        for place, record in zip(places, records, strict=True):
            found[place] = record
    for start, file in _parts(len(solutions), folder):
        if not file.exists():
            write_json(file, found[start : start + _CHUNK])


def _parts(number: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """The file of each chunk, with where the chunk begins; a shard without a question has an empty one."""
    for part, start in enumerate(range(0, number, _CHUNK) or range(1)):
        yield start, folder / f"part-{part:04d}.json"


def _failed(verdict: Mapping[str, Any]) -> bool:
    """Whether a verdict in a file comes from a failure; files of earlier versions tell it by the reason alone."""
    return bool(verdict.get("failed", verdict["reason"].startswith("failed: ")))


def score_judge(name: str, judged: Sequence[Judged], folder: Path) -> dict[str, Any]:
    """Write ``scores.json``: how good the judge called ``name`` is against the labels."""
    scores = {"schema": 1, "judge": name, "against": "labels", "sets": judge_scores(judged)}
    write_json(folder / "scores.json", scores)
    return scores
