"""How much the paths that are still to come can weigh in CaT's vote: what "cannot be overtaken" stands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Open", "most_to_come"]


class Open(NamedTuple):
    """A place where a path goes on, or where paths may begin. Weights are in any one unit."""

    weight: float
    """No path through here weighs more; and with ``shared`` weights, nor do all paths through its token together."""
    begins: bool
    """Whether new paths begin here, otherwise one that has begun goes on."""
    tokens: float = 1.0
    """Where paths begin: how many different tokens may begin them, the last one a fraction of ``weight``."""


def most_to_come(places: Sequence[Open], left: int, *, shared: bool) -> float:
    """The weight that the paths that go on and at most ``left`` new ones come to together, at most.

    Args:
        places: all that are open; paths that begin later begin on one of these.
        left: new paths that may begin.
        shared: whether weights are probabilities, so that all paths through a token share its weight.
    """
    if not places:
        return 0.0
    if not shared:
        # A path weighs no more than the place it comes from, and there are no more paths than these.
        return (left + sum(not place.begins for place in places)) * max(place.weight for place in places)
    # Probabilities. What becomes of a path that goes on, with all branches that it may open, are different continuations of
    # one prefix: together no more probable than it. New paths take different tokens at a place: none weighs more than
    # `weight`, and together they weigh no more than `tokens` times that. So j new paths there weigh no more than the j
    # largest of `weight`, `weight`, ..., and the fraction; what follows a new path's token is within its own weight. Then
    # `left` new paths weigh no more than the `left` largest of all places.
    under_way, new = 0.0, list[float]()
    for place in places:
        if place.begins:
            whole = int(place.tokens)
            new += [place.weight] * whole + [place.weight * (place.tokens - whole)]
        else:
            under_way += place.weight
    return under_way + sum(sorted(new, reverse=True)[:left])
