"""Verdicts that were given once are kept in a file, so that a judging run that was killed goes on where it was.

The file is JSON lines, appended to after every chunk. A line that was cut off by a kill is skipped, and what it held is
asked again. What is not here: several processes that write into one file, and verdicts of instant judges, which are
cheaper to give again than to look up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from caspo.core.storage import explain_os_error, write_file
from caspo.judges.base import Chain, Judge, chain_key
from caspo.records import Verdict

__all__ = ["CachedJudge", "join_caches"]

CHUNK = 256
"""Chains that are judged between two writes: what a kill may cost."""


class CachedJudge:
    """Any judge, asked about each chain once.

    Verdicts are kept under the judge's ``fingerprint`` (its name, where it has none) and everything they may depend on.
    Those that come from a failure are not kept.
    """

    def __init__(self, judge: Judge, path: Path, chunk: int = CHUNK) -> None:
        self.judge_asked, self.path, self.chunk = judge, path, chunk
        self.name, self.instant = judge.name, judge.instant
        self.fingerprint = str(getattr(judge, "fingerprint", judge.name))

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """As `Judge.judge`; what is known is not asked again, and equal chains are asked once."""
        known = self._known
        keys = [chain_key(chain) for chain in chains]
        missing = {key: chain for key, chain in zip(keys, chains, strict=True) if key not in known}
        found: dict[str, list[Verdict]] = {}
        asked = list(missing)
        for start in range(0, len(asked), self.chunk):
            part = asked[start : start + self.chunk]
            judged = dict(zip(part, self.judge_asked.judge([missing[key] for key in part]), strict=True))
            found |= judged
            kept = {key: told for key, told in judged.items() if not any(verdict.failed for verdict in told)}
            self._write(kept)
            known |= kept
        return [list(known[key] if key in known else found[key]) for key in keys]

    @cached_property
    def _known(self) -> dict[str, list[Verdict]]:
        """What the file holds of this judge, and what was added since."""
        known = {}
        for line in self.path.read_bytes().split(b"\n") if self.path.exists() else ():
            try:
                row = json.loads(line)
                if row["judge"] == self.fingerprint:
                    known[row["chain"]] = [Verdict(label, reason, self.name) for label, reason in row["verdicts"]]
            except (ValueError, KeyError, TypeError):  # cut off by a kill: asked again
                continue
        return known

    def _write(self, verdicts: dict[str, list[Verdict]]) -> None:
        rows = (
            {"judge": self.fingerprint, "chain": key, "verdicts": [(x.label, x.reason) for x in told]}
            for key, told in verdicts.items()
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":  # after a line that was cut off
                        text = "\n" + text
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_os_error(error, self.path) from error


def join_caches(files: Iterable[Path], path: Path) -> None:
    """Make one file of the verdicts of several, those of them that exist; one that is there already is left alone."""
    parts = [file.read_bytes() for file in files if file.exists()]
    if parts and not path.exists():
        whole = b"".join(part if part.endswith(b"\n") else part + b"\n" for part in parts)
        write_file(path, lambda temporary: temporary.write_bytes(whole))
