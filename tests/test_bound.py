"""The bound behind "cannot be overtaken": no way in which the open places may turn out weighs more."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.search.bound import Open, most_to_come

share = st.floats(0.0, 1.0)


@given(data=st.data(), left=st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_no_outcome_is_heavier(data: st.DataObject, left: int) -> None:
    """Places whose weights are probabilities: paths that go on keep a part of theirs, new ones take tokens whose
    probabilities fall and together do not exceed what is left."""
    places, under_way, new = [], 0.0, []
    for begins in data.draw(st.lists(st.booleans(), min_size=1, max_size=5)):
        weight = data.draw(share)
        if not begins:
            places.append(Open(weight, begins=False))
            under_way += weight * data.draw(share)
            continue
        tokens = data.draw(st.floats(0.0, 4.0))
        places.append(Open(weight, begins=True, tokens=tokens))
        rest, last = tokens * weight, weight
        for _ in range(data.draw(st.integers(0, 6))):
            last = min(last, rest) * data.draw(share)
            rest -= last
            new.append(last)
    begun = data.draw(st.lists(st.sampled_from(new), max_size=left, unique_by=id)) if new and left else []
    heaviest = sorted(new, reverse=True)[:left]
    bound = most_to_come(places, left, shared=True)
    assert under_way + sum(begun) <= bound + 1e-9
    assert under_way + sum(heaviest) <= bound + 1e-9


@given(weights=st.lists(st.tuples(share, st.booleans()), min_size=1, max_size=6), left=st.integers(0, 5))
def test_scores_that_are_no_probabilities(weights: list[tuple[float, bool]], left: int) -> None:
    """Every path weighs at most what its place does, and there are no more paths than those."""
    places = [Open(weight, begins) for weight, begins in weights]
    heaviest = max(weight for weight, _ in weights)
    under_way = sum(weight for weight, begins in weights if not begins)
    assert under_way + left * heaviest <= most_to_come(places, left, shared=False) + 1e-9


def test_by_hand() -> None:
    """A path under way with 0.2; a place with a token of 0.4 and half as much besides; one more with 0.1."""
    places = [Open(0.2, begins=False), Open(0.4, begins=True, tokens=1.5), Open(0.1, begins=True)]
    assert most_to_come(places, 0, shared=True) == pytest.approx(0.2)
    assert most_to_come(places, 1, shared=True) == pytest.approx(0.6)
    assert most_to_come(places, 2, shared=True) == pytest.approx(0.8)
    assert most_to_come(places, 9, shared=True) == pytest.approx(0.9)
    assert most_to_come(places, 1, shared=False) == pytest.approx(0.8)
    assert most_to_come([], 3, shared=True) == 0.0
