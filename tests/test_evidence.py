"""What several paths say: Bayes' rule over a story that can be played, and the account of shared beginnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given, strategies
from pydantic import ValidationError

from caspo.records import Measured, TokenTrace
from caspo.search.evidence import Belief, EvidenceModel, Origin, belief, log_beliefs, shares

PLAIN = EvidenceModel(spread=0.0, scatter=3.0)
GROUPS = strategies.lists(strategies.none() | strategies.integers(0, 3), max_size=9)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def story(chances: Sequence[float], scatter: float, rng: np.random.Generator) -> tuple[list[int], int | None]:
    """The answers of one question as `belief` tells that they come about, numbered as they come, and the right one."""
    said: list[int] = []
    wrong: list[int] = []
    for right in rng.random(len(chances)) < chances:
        if not right:
            new = rng.random() < scatter / (scatter + len(wrong))
            wrong.append(max(wrong, default=0) + 1 if new else wrong[rng.integers(len(wrong))])
        said.append(0 if right else wrong[-1])
    names = list(dict.fromkeys(said))
    return [names.index(answer) for answer in said], names.index(0) if 0 in names else None


def played(chances: Sequence[float], scatter: float, times: int) -> dict[tuple[int, ...], list[int | None]]:
    """The story, told many times: to every pattern of answers the right ones."""
    rng = np.random.default_rng(0)
    found: dict[tuple[int, ...], list[int | None]] = {}
    odds = np.array([logit(chance) for chance in chances])
    for _ in range(times):
        lost = rng.random() < 0.05  # the numbers do not hold: any share of right paths is as likely
        moved = odds - odds.mean() + logit(rng.random()) if lost else odds
        pattern, right = story((1 / (1 + np.exp(-moved))).tolist(), scatter, rng)
        found.setdefault(tuple(pattern), []).append(right)
    return found


def test_says_how_often_each_answer_is_the_right_one() -> None:
    """Of all times that the story comes to a pattern of answers, each is right as often as it is believed to be."""
    chances = [0.6, 0.3, 0.45]
    for pattern, right in played(chances, PLAIN.scatter, 40_000).items():
        told = belief(pattern, [logit(c) for c in chances], PLAIN)
        for group, probability in told.right.items():
            often = sum(one == group for one in right) / len(right)
            assert often == pytest.approx(probability, abs=4.5 * math.sqrt(0.25 / len(right)))
        assert told.unseen == pytest.approx(
            sum(one is None for one in right) / len(right), abs=4.5 * math.sqrt(0.25 / len(right))
        )


def test_one_path_is_believed_as_its_confidence_says() -> None:
    """And where questions differ, on average over them; in one of twenty questions any chance is as likely."""
    assert belief([0], [logit(0.7)], PLAIN).right[0] == pytest.approx(0.95 * 0.7 + 0.05 * 0.5)
    spread = belief([0], [1.5], EvidenceModel(spread=1.0))
    z = np.random.default_rng(0).normal(size=200_000)
    assert spread.right[0] == pytest.approx(0.95 * float(np.mean(1 / (1 + np.exp(-1.5 - z)))) + 0.025, abs=0.004)


def test_many_that_agree_outvote_one_that_is_sure() -> None:
    """Five paths of an even chance against one of 0.9; two are not enough."""
    for number, leader in ((2, 0), (5, 1)):
        told = belief([0] + [1] * number, [logit(0.9)] + [logit(0.5)] * number, EvidenceModel())
        assert told.leader == leader


@pytest.mark.parametrize("odds", [-5.0, -50.0, -900.0])
def test_paths_that_are_all_taken_for_hopeless_vote_by_majority(odds: float) -> None:
    """Numbers that were fitted to another model may say so of every path: the majority leads for all that, the more of
    them the surer, and one of these paths that is less hopeless counts for more."""
    assert belief([0, 1, 1, 1, 0, 0, 0], [odds] * 7, EvidenceModel()).leader == 0
    alone = [belief([0] * number, [odds] * number, EvidenceModel()).right[0] for number in (1, 2, 5, 10)]
    assert alone == sorted(alone)
    assert alone[0] < 0.1
    assert alone[-1] > 0.7
    assert belief([0, 1], [odds, odds + 2], EvidenceModel()).leader == 1


def test_disagreement_tells_of_a_hard_question() -> None:
    """The more answers there are, the less is believed of any, and the more likely is one that nobody has stated."""
    leads, unseen = [], []
    for number in range(1, 8):
        told = belief(range(number), [0.0] * number, EvidenceModel())
        leads.append(max(told.right.values()))
        unseen.append(told.unseen)
    assert leads == sorted(leads, reverse=True)
    assert belief([0] * 7, [0.0] * 7, EvidenceModel()).right[0] > 0.9
    assert all(value > 0.05 for value in unseen)


@given(GROUPS, strategies.randoms(use_true_random=False), strategies.floats(0, 3), strategies.floats(0.1, 20))
def test_is_a_distribution_that_order_does_not_change(
    groups: list[int | None], random: Random, spread: float, scatter: float
) -> None:
    logits = [random.uniform(-4, 4) for _ in groups]
    model = EvidenceModel(spread=spread, scatter=scatter)
    told = belief(groups, logits, model)
    assert sum(told.right.values()) + told.unseen == pytest.approx(1)
    assert all(0 <= p <= 1 for p in told.right.values())
    assert 0 <= told.lead <= 1
    order = list(range(len(groups)))
    random.shuffle(order)
    again = belief([groups[i] for i in order], [logits[i] for i in order], model)
    assert again.right == pytest.approx(dict(told.right))


@given(GROUPS.filter(bool), strategies.integers(0, 8), strategies.integers(2, 4))
def test_parts_of_a_path_count_as_the_path(groups: list[int | None], at: int, parts: int) -> None:
    """A path divided among continuations that all state its answer changes nothing."""
    at %= len(groups)
    logits = [0.3 * i - 0.5 for i in range(len(groups))]
    whole = belief(groups, logits, EvidenceModel())
    split = belief(
        groups + [groups[at]] * (parts - 1),
        logits + [logits[at]] * (parts - 1),
        EvidenceModel(),
        [1 / parts if i == at else 1.0 for i in range(len(groups))] + [1 / parts] * (parts - 1),
    )
    assert dict(split.right) == pytest.approx(dict(whole.right))


def test_nothing_stated() -> None:
    """No path, or none with an answer: nobody leads. Certain paths are no division by zero."""
    for groups in ([], [None], [None, None]):
        told = belief(groups, [0.0] * len(groups), EvidenceModel())
        assert (told.right, told.leader, told.lead, told.unseen) == ({}, None, 0.0, pytest.approx(1))
    assert belief([0, None], [2.0, -math.inf], EvidenceModel()).right[0] > 0.5
    certain = belief([0, 1], [800.0, -800.0], EvidenceModel())
    assert certain.right == pytest.approx({0: 1.0, 1: 0.0})


def test_the_lead_is_over_the_next_best() -> None:
    """Or over one that nobody has stated, where that is the next best; a tie is a half, and the first answer's."""
    assert Belief({0: 0.6, 1: 0.2}, 0.2).lead == pytest.approx(0.75)
    assert Belief({0: 0.6}, 0.4).lead == pytest.approx(0.6 / 0.7)
    assert Belief({0: 0.1, 1: 0.01}, 0.89).lead == Belief({0: 0.1}, 0.89).lead < 0.5, (
        "an answer that is hardly held changes nothing"
    )
    tie = belief([3, 1], [0.0, 0.0], EvidenceModel())
    assert (tie.leader, tie.lead) == (3, pytest.approx(0.5))


def test_shares_by_hand() -> None:
    """Two leave the first at its 5th token, then one at its 9th; and one leaves one of those that left it."""
    roots = [Origin(), Origin()]
    assert shares(roots) == [1, 1]
    found = shares([*roots, Origin(0, 5), Origin(0, 5), Origin(0, 9), Origin(2, 7)])
    assert found == pytest.approx([1 / 6, 1, 1 / 6, 1 / 3, 1 / 6, 1 / 6])


@given(strategies.lists(strategies.tuples(strategies.integers(0, 20), strategies.integers(1, 9)), max_size=12))
def test_shares_sum_to_the_number_of_beginnings(drawn: list[tuple[int, int]]) -> None:
    origins = [Origin()]
    for path, at in drawn:
        origins.append(Origin() if path >= len(origins) else Origin(path, origins[path].at + at))
    found = shares(origins)
    assert sum(found) == pytest.approx(sum(origin.path is None for origin in origins))
    assert min(found) > 0


def test_a_path_is_told_by_its_numbers_where_it_has_any() -> None:
    """`numbers.` looks at tokens with a digit; a path without one is told by all of it. An unknown signal is refused."""
    trace = TokenTrace.of([Measured(h, -h, -0.1, 0.5, 0.0) for h in (2.0, 0.1, 1.0, 0.3)])
    model = EvidenceModel(bias=1.0, slopes={"entropy_sum": 0.5, "numbers.entropy": 2.0}, common={}, falsehood=3.0)

    def logit(*pieces: bytes, false: bool = False) -> float:
        return float(model.logits([model.signals(trace, pieces, false=false, whole=True)])[0])

    assert logit(b"So", b" 12", b" is", b"3.") == pytest.approx(1 - 0.5 * 3.4 - 2 * 0.2)
    assert logit(b"So", b"it", b"is", b".") == pytest.approx(1 - 0.5 * 3.4 - 2 * 0.85)
    assert logit(b"So", b"it", b"is", b".", false=True) == pytest.approx(1 - 0.5 * 3.4 - 2 * 0.85 - 3)
    for name in ("numbers.length", "size", "numbers."):
        with pytest.raises(ValidationError, match="no signal of a path"):
            EvidenceModel(slopes={name: 1.0})


def test_what_paths_have_in_common_moves_them_alike() -> None:
    """A common signal counts by its mean over the whole paths: not those that were ended early, or have no tokens."""
    model = EvidenceModel(bias=1.0, slopes={"entropy": 2.0}, common={"length": 0.1}, falsehood=0.0)
    traces = [TokenTrace.of([Measured(h, -h, -0.1, 0.5, 0.0)] * n) for h, n in ((0.5, 10), (0.25, 30), (1.0, 5))]
    rows = [
        model.signals(trace, [b"a"] * len(trace), false=False, whole=whole)
        for trace, whole in zip(traces, (True, True, False), strict=True)
    ]
    found = model.logits([*rows, [math.nan] * 3])
    assert found.tolist() == pytest.approx([1 - 1.0 - 2, 1 - 0.5 - 2, 1 - 2.0 - 2, -math.inf])
    assert model.logits(np.array([rows, rows])).tolist() == [pytest.approx(found[:3].tolist())] * 2, "question by question"
    assert model.logits(rows[2:]).tolist() == pytest.approx([1 - 2.0]), "no whole path: nothing in common is known"


def test_many_questions_at_once_are_believed_as_one_by_one() -> None:
    """Padded to one length, with groups of different numbers."""
    rng, model = np.random.default_rng(0), EvidenceModel()
    for _ in range(20):
        sizes = rng.integers(1, 7, size=4)
        groups = [rng.integers(-1, 3, size=n) for n in sizes]
        logits = [rng.normal(size=n) for n in sizes]
        padded = np.stack([np.pad(g, (0, 7 - len(g)), constant_values=-1) for g in groups])
        values = np.stack([np.pad(x, (0, 7 - len(x))) for x in logits])
        counts = np.stack([np.pad(np.ones(n), (0, 7 - n)) for n in sizes])
        many = np.exp(log_beliefs(padded, values, counts, model))
        for row, some, x in zip(many, groups, logits, strict=True):
            one = belief([None if g < 0 else int(g) for g in some], x.tolist(), model)
            assert row[-1] == pytest.approx(one.unseen)
            assert {g: row[g] for g in one.right} == pytest.approx(dict(one.right))
            assert row.sum() == pytest.approx(1)
