"""Searches are generators: they are sent the completions of a turn in order, and closed when nobody wants them any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, OnDone, Request
from caspo.engines.drive import Asking, Underway, changed, drive
from caspo.engines.until import cut, until
from caspo.search import METHODS
from caspo.testing.scripted import Scripted, ScriptedEngine
from caspo.trees import TreeBuilder
from recording import Q, Recording, plain, wild

ENGINE = ScriptedEngine(lambda text: [Scripted(text[-1] * 2, eos=True)])


def request(letter: str, seed: int = 0) -> Request:
    return Request(ENGINE.encode(f"?{letter}"), seed)


def asking(turns: Sequence[str], closed: list[str] | None = None) -> Asking[str]:
    """Asks for a letter's continuation each; what came, turn by turn."""
    got = []
    try:
        for turn in turns:
            found = yield [request(letter) for letter in turn]
            got.append("".join(one.text for one in found))
    finally:
        if closed is not None:
            closed.append("".join(turns))
    return " ".join(got)


@given(searches=st.lists(st.lists(st.text("abcd", max_size=3), max_size=4), max_size=5), order=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_completions_come_in_the_order_of_their_requests(searches: list[list[str]], order: int) -> None:
    """Whatever order the engine finishes in; turns without requests, and searches without turns, end by themselves."""
    engine = Recording(lambda text: [Scripted(text[-1] * 2, eos=True)], order)
    over: list[int] = []
    found = drive([asking(turns) for turns in searches], engine, lambda: over.append(1))
    doubled = [" ".join("".join(letter * 2 for letter in turn) for turn in turns) for turns in searches]
    assert found == doubled
    assert len(over) == len(searches)


def test_a_turn_is_complete_at_its_last_completion() -> None:
    search: Underway[str] = Underway(asking(["ab", "c"]))
    first = search.begin()
    done = [ENGINE.play(request) for request in first]
    assert not search.receive(1, done[1])
    assert [r.prefix_ids for r in search.receive(0, done[0])] == [request("c").prefix_ids]
    assert not search.over
    assert not search.receive(0, ENGINE.play(request("c")))
    assert (search.over, search.result) == (True, "aabb cc")


def test_every_search_is_closed_when_one_fails() -> None:
    class Failing(ScriptedEngine):
        def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
            raise EngineError("out of memory")

    closed: list[str] = []
    with pytest.raises(EngineError, match="out of memory"):
        drive([asking(["ab"], closed), asking(["c"], closed)], Failing({}))
    assert sorted(closed) == ["ab", "c"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_closed_at_any_turn_and_its_tree_looked_at(name: str) -> None:
    """The tree that the search was given grows while it runs, and stays as it is once it is closed."""
    engine = Recording(wild(7))
    whole = METHODS[name]().solve([Q], ScriptedEngine(wild(7)), 1)[0]
    for turns in range(6):
        method = METHODS[name]()
        tree = TreeBuilder(Q, engine.prompt(method.asked(Q.text)), engine)
        search = method.search(tree, engine, 1)
        solution = None
        try:
            wanted = next(search)
            for _ in range(turns):
                assert {node.id for node in tree.nodes} <= {node.id for node in whole.tree.nodes}
                wanted = search.send([engine.play(request) for request in wanted])
        except StopIteration as end:
            solution = end.value
        search.close()
        with pytest.raises(StopIteration):
            next(search)
        if solution is not None:
            assert plain(solution) == plain(whole)
            return


def test_a_changed_search_is_closed_with_what_it_changes() -> None:
    closed: list[str] = []

    def turn(wanted: Sequence[Request]) -> Asking[Sequence[Completion]]:
        return (yield wanted)

    outer = changed(asking(["a", "b"], closed), turn)
    next(outer)
    outer.close()
    assert closed == ["ab"]
    assert drive([changed(asking([]), turn)], ENGINE) == [""]


@given(text=st.text("abX\n", min_size=1, max_size=12), sizes=st.lists(st.integers(1, 4), min_size=12, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_path_ends_where_it_holds_a_stop(text: str, sizes: list[int]) -> None:
    """Also where the string begins in one request and ends in the next; what asks sees EOS there."""
    stops = ("aX", "bb")

    def pieces() -> Iterator[str]:
        at = 0
        for size in sizes:
            if text[at : at + size]:
                yield text[at : at + size]
            at += size

    engine = ScriptedEngine(lambda so_far: [Scripted(text[len(so_far) - 2 :], eos=True)])

    def search() -> Asking[str]:
        written = ""
        for piece in pieces():
            prompt = engine.encode("Q\n" + written)
            (found,) = yield [Request(prompt, 0, max_new_tokens=len(piece), temperature=0.0)]
            written += found.text
            if found.finish == "eos":
                break
        return written

    (written,) = drive([until(search(), stops, engine, 2)], engine)
    whole = cut(text, stops)
    assert cut(written, stops) == whole
    found_at = [at + len(stop) for stop in stops if (at := text.find(stop)) >= 0]
    assert len(written) <= min(found_at, default=len(text))


def test_without_stops_a_search_is_left_alone() -> None:
    search = asking(["a"])
    assert until(search, (), ENGINE, 1) is search
    with suppress(StopIteration):
        next(search)
