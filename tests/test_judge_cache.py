"""Kept verdicts: asked for once, never mistaken for another judge's, and still there after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from caspo.core.errors import StorageError
from caspo.judges.base import Chain, Judge
from caspo.judges.cache import CachedJudge
from caspo.records import Question, Verdict


class Killed(BaseException):
    pass


class Slow:
    """Calls every step right, in as many calls as it is given; notes what it was asked."""

    name = "slow"
    instant = False

    def __init__(self, fingerprint: str = "slow 1", *, dies_after: int = 10**9, fails: bool = False) -> None:
        self.fingerprint, self.dies_after, self.fails = fingerprint, dies_after, fails
        self.asked: list[str] = []

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        if len(self.asked) + len(chains) > self.dies_after:
            raise Killed
        self.asked += [chain.question.id for chain in chains]
        if self.fails:
            return [[Verdict("unknown", "down", self.name, failed=True)] for _ in chains]
        return [[Verdict("right", f"é {chain.question.id}\n", self.name)] for chain in chains]


def chains(number: int) -> list[Chain]:
    return [Chain(Question("?", "1", id=str(i)), ("a",), False) for i in range(number)]


def test_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    """In the same process, in the next one, and for equal chains of one call; in the order of the chains."""
    file = tmp_path / "deep" / "verdicts.jsonl"
    slow = Slow()
    cached: Judge = CachedJudge(slow, file)
    assert isinstance(cached, Judge)
    assert (cached.name, cached.instant) == ("slow", False)
    asked = [*chains(4), *chains(4)[::-1]]
    expected = Slow().judge(asked)
    assert cached.judge(asked) == expected
    assert slow.asked == list("0123")
    assert cached.judge(asked) == expected
    again = Slow()
    assert CachedJudge(again, file).judge(asked) == expected
    assert slow.asked == list("0123")
    assert again.asked == []


def test_a_kill_costs_a_chunk_at_most(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    with pytest.raises(Killed):
        CachedJudge(Slow(dies_after=7), file, chunk=3).judge(chains(10))
    again = Slow()
    assert CachedJudge(again, file, chunk=3).judge(chains(10)) == Slow().judge(chains(10))
    assert again.asked == list("6789")


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path, cut: int) -> None:
    """And what is written after it is whole."""
    file = tmp_path / "verdicts.jsonl"
    CachedJudge(Slow(), file).judge(chains(3))
    file.write_bytes(file.read_bytes()[:-cut])
    again = Slow()
    assert CachedJudge(again, file).judge(chains(4)) == Slow().judge(chains(4))
    assert again.asked == (["3"] if cut == 1 else ["2", "3"])
    last = Slow()
    CachedJudge(last, file).judge(chains(4))
    assert last.asked == []


def test_damage_within_the_file_costs_what_it_hit(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.jsonl"
    CachedJudge(Slow(), file).judge(chains(3))
    first, *others = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"\xff\xfe{]\n[1]\n{}\n" + b"".join(others))
    again = Slow()
    CachedJudge(again, file).judge(chains(3))
    assert again.asked == ["0"]
    assert first


def test_judges_share_a_file_but_no_verdicts(tmp_path: Path) -> None:
    """Other settings make another judge."""
    file = tmp_path / "verdicts.jsonl"
    CachedJudge(Slow("slow 1"), file).judge(chains(2))
    other = Slow("slow 2")
    CachedJudge(other, file).judge(chains(2))
    assert other.asked == ["0", "1"]


def test_failures_are_not_kept(tmp_path: Path) -> None:
    """An endpoint that was down says nothing about the step: the next run asks again."""
    file = tmp_path / "verdicts.jsonl"
    judge = CachedJudge(Slow(fails=True), file)
    assert judge.judge(chains(1))[0][0].label == "unknown"
    again = Slow()
    assert CachedJudge(again, file).judge(chains(1))[0][0].label == "right"
    assert again.asked == ["0"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"verdicts\.jsonl"):
        CachedJudge(Slow(), tmp_path / "file" / "verdicts.jsonl").judge(chains(1))
