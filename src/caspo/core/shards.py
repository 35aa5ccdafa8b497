"""A part of the questions for each of several machines, and what has to hold before the parts are put together again.

Shard K of N (K from 1) has every N-th question, beginning with the K-th: sizes differ by one at most, also among the first
of the questions. What is drawn for a question depends on its id and never on its shard, so all shards together are the run
that was not divided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from caspo.core.errors import ConfigError

__all__ = ["Made", "Shard", "check_alike", "check_all_there"]

T = TypeVar("T")

Made = Mapping[str, Any]
"""What results were made of: settings by their dotted names, digests of input files by the options that name them."""


@dataclass(frozen=True)
class Shard:
    """Shard ``number`` of ``of``, counted from 1."""

    number: int
    of: int

    def __post_init__(self) -> None:
        assert 1 <= self.number <= self.of

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that a text such as ``2/4`` names.

        Raises:
            ConfigError: no two whole numbers, or a number that there is no shard of.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text, re.ASCII)
        if found is None:
            raise ConfigError(
                f"--shard {text!r} is not K/N, for example 2/4. (In a SLURM array: "
                "--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT, with --array=1-N.)"
            )
        number, of = (int(part) for part in found.groups())
        if of == 0:
            raise ConfigError(f"--shard {text}: there must be at least one shard. Write K/N with N the number of shards.")
        if number == 0:
            raise ConfigError(
                f"--shard {text}: shards are counted from 1, so the first is 1/{of}. For a SLURM array that begins at 0 "
                f"write --shard $((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT, or submit it with --array=1-{of}."
            )
        if number > of:
            raise ConfigError(
                f"--shard {text}: there are {of} shards, so K is from 1 to {of}. (In a SLURM array the ids must be 1 to N: "
                "submit it with --array=1-N.)"
            )
        return cls(number, of)

    def holds(self, place: int) -> bool:
        """Whether the question at a place among all, from 0, is of this shard."""
        return place % self.of == self.number - 1

    def take(self, items: Sequence[T]) -> list[T]:
        """The items of this shard, in order."""
        return list(items[self.number - 1 :: self.of])


def check_alike(one: str, made: Made, other: str, made_too: Made) -> None:
    """Refuse to put together what was made of different things.

    Args:
        one: names what ``made`` is of, in messages.

    Raises:
        ConfigError: it names what differs.
    """
    keys = sorted(key for key in made.keys() | made_too.keys() if made.get(key) != made_too.get(key))
    if keys:
        lines = (f"  {key}: {_told(made, key)} there, {_told(made_too, key)} here" for key in keys)
        raise ConfigError(
            f"{one} (there) and {other} (here) were not made alike, so they are not parts of one run. These differ:\n"
            + "\n".join(lines)
            + "\nGive the shards of one run, made by the same version with the same recipe, questions and model."
        )


def check_all_there(given: Sequence[tuple[str, Shard]]) -> None:
    """Refuse shards that are not every shard of one division, each once; they are given with where they are.

    Raises:
        ConfigError: another N, a shard twice, or a shard that is missing.
    """
    first, whole = given[0]
    homes: dict[int, str] = {}
    for home, shard in given:
        if shard.of != whole.of:
            raise ConfigError(
                f"{first} is shard {whole} and {home} is shard {shard}: they are of different divisions of the questions, "
                "which overlap. Give all shards of one of them."
            )
        if before := homes.get(shard.number):
            raise ConfigError(
                f"{before} and {home} are both shard {shard}: its questions would count twice. Give each shard once."
            )
        homes[shard.number] = home
    missing = [str(Shard(number, whole.of)) for number in range(1, whole.of + 1) if number not in homes]
    if missing:
        raise ConfigError(
            f"Of {whole.of} shards {len(missing)} {'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing)}. "
            "A part would be taken for the whole. Give all shards; run those that were not run, each by its --shard."
        )


def _told(made: Made, key: str) -> str:
    value = str(made[key]) if key in made else "(absent)"
    return value[:8] if re.fullmatch("[0-9a-f]{64}", value) else value
