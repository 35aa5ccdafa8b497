"""Choosing an answer among the answers of several paths."""

from __future__ import annotations

from collections.abc import Sequence

from caspo.answers import group_answers

__all__ = ["agreement", "tally", "vote"]


def tally(answers: Sequence[str | None], weights: Sequence[float]) -> list[tuple[str, float]]:
    """Every answer with the sum of its weights, the largest first, on a tie the one that came first.

    Answers of equal value count together (0.5 = 1/2), and are called as the first of them.
    """
    totals: dict[int, float] = {}
    first: dict[int, str] = {}
    for answer, weight, group in zip(answers, weights, group_answers(answers), strict=True):
        if answer is not None:
            totals[group] = totals.get(group, 0.0) + weight
            first.setdefault(group, answer)
    return [(first[group], totals[group]) for group in sorted(totals, key=lambda group: -totals[group])]


def vote(answers: Sequence[str | None], weights: Sequence[float]) -> tuple[str | None, float]:
    """The answer with the largest sum of weights, and its share of all weights.

    Answers of equal value count together; paths without an answer vote for nothing, but their weight counts in the share.
    On a tie the answer that came first wins. No answer at all: ``(None, 0.0)``.
    """
    counted = tally(answers, weights)
    if not counted:
        return None, 0.0
    answer, most = counted[0]
    everything = sum(weights)
    return answer, most / everything if everything > 0 else 0.0


def agreement(answers: Sequence[str | None], chosen: int) -> float:
    """The share of the paths whose answer has the value of that of path ``chosen``, itself included."""
    groups = group_answers(answers)
    return groups.count(groups[chosen]) / len(groups)
