"""The engine that remembers, against the one it asks: the same continuations, each decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.engines.base import Completion, Request
from caspo.engines.memo import MemoEngine
from caspo.records import Measured, Question
from caspo.search import METHODS, DeepConfOnline
from caspo.steps import Reading
from caspo.testing.scripted import Scripted, ScriptedEngine
from tiny import Counting, same_tree


def script(text: str) -> list[Scripted]:
    """Four steps of a sum, each a choice, then the answer; what is chosen decides how sure the rest is."""
    steps = text.count("\n")
    if steps > 4:
        return [Scripted(f"The answer is {i}.", 3 - i, 0.25 * i, eos=True) for i in range(2)]
    return [Scripted(f"{steps} + {i} = {steps + i}\n", 4 - i, 0.5 * (i + len(text) % 3)) for i in range(3)]


COLUMNS = ("entropy", "logprob", "max_logprob", "margin", "varentropy")


def plain(completion: Completion) -> Any:
    trace, top_k = completion.trace, completion.top_k_logprob
    columns = [getattr(trace, name).tolist() for name in COLUMNS]
    measured = columns if top_k is None else [*columns, top_k.tolist()]
    return completion.token_ids, completion.text, completion.finish, trace.kind, measured


class Patience:
    """A watch with a state: it has enough once the entropies sum to more than it bears."""

    def __init__(self, bears: float) -> None:
        self.bears, self.saw = bears, 0

    def __call__(self, token: int, measured: Sequence[float]) -> bool:
        self.saw += 1
        self.bears -= measured.entropy + (measured.top_k_logprob or 0) / 100
        return self.bears >= 0


ASKED = st.builds(
    lambda seed, tokens, temperature, stop, rank, top_k: Request(
        tuple(map(ord, "Q\n")), seed, tokens, temperature, stop=stop, rank=rank, top_k=top_k
    ),
    st.integers(0, 2),
    st.integers(1, 70),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([(), ("\n",)]),
    st.integers(1, 3),
    st.sampled_from([0, 2]),
)
PATIENCE = st.none() | st.sampled_from([0.0, 0.3, 5.2, 20.1, 1e9])


@settings(deadline=None)
@given(st.lists(st.tuples(ASKED, PATIENCE), max_size=12), st.integers(0, 12))
def test_gives_what_the_engine_gives(asked: list[tuple[Request, float | None]], first: int) -> None:
    """Whatever was asked before, with which watch, in which order; a watch sees the tokens that it would have seen."""
    memo = MemoEngine(ScriptedEngine(script))
    for part in (asked[:first], asked[first:], asked):
        mine, theirs = (
            [_with(request, None if bears is None else Patience(bears)) for request, bears in part] for _ in range(2)
        )
        given, expected = memo.generate(mine), ScriptedEngine(script).generate(theirs)
        assert list(map(plain, given)) == list(map(plain, expected))
        for a, b in zip(mine, theirs, strict=True):
            assert (a.watch is None) == (b.watch is None)
            if isinstance(a.watch, Patience) and isinstance(b.watch, Patience):
                assert a.watch.saw == b.watch.saw


def _with(request: Request, watch: Patience | None) -> Request:
    return Request(**{**vars(request), "watch": watch})


def test_decodes_what_it_does_not_know() -> None:
    """Once, and to its end: a later watch may let it go on for longer; `forget` forgets."""
    engine = Counting(script)
    memo = MemoEngine(engine)
    request = Request(tuple(map(ord, "Q\n")), 0, temperature=0.0)
    short = memo.generate([_with(request, Patience(3.0))])[0]
    longer = memo.generate([_with(request, Patience(6.0))])[0]
    whole = memo.generate([request])[0]
    assert (short.finish, longer.finish, whole.finish) == ("abandoned", "abandoned", "eos")
    assert len(short.token_ids) < len(longer.token_ids) < len(whole.token_ids)
    assert whole.text.startswith(longer.text)
    assert longer.text.startswith(short.text)
    assert len(engine.requests) == 1
    memo.generate([_with(request, None), Request(request.prefix_ids, 1, temperature=0.0)])
    assert len(engine.requests) == 2
    memo.forget()
    memo.generate([request])
    assert len(engine.requests) == 3
    assert (memo.name, memo.prompt("Q"), memo.pieces([65])) == ("scripted", engine.prompt("Q"), [b"A"])


def test_what_follows_takes_the_next_places() -> None:
    """Known and new requests mixed, each followed by others: `on_done` and the list name a continuation alike."""
    memo = MemoEngine(ScriptedEngine(script))
    start = tuple(map(ord, "Q\n"))
    known = [Request(start, seed, stop=("\n",)) for seed in (0, 2, 4)]
    memo.generate(known)
    asked = [Request(start, seed, stop=("\n",)) for seed in range(5)]
    told: dict[int, Completion] = {}

    def follow(place: int, completion: Completion) -> list[Request]:
        told[place] = completion
        request = asked[place]
        if len(request.prefix_ids) > 20:
            return []
        new = [Request(request.prefix_ids + completion.token_ids, seed, stop=("\n",)) for seed in range(2)]
        asked.extend(new)
        return new

    given = memo.generate(list(asked), follow)
    assert len(given) == len(asked) == len(told) > 15
    assert [told[place] for place in range(len(given))] == given
    alone = ScriptedEngine(script).generate(asked)
    assert list(map(plain, given)) == list(map(plain, alone))
    assert memo.generate([]) == []


@pytest.mark.parametrize("name", ["cat", "cat_paper"])
@pytest.mark.parametrize("signal", ["entropy", "entropy_sum", "logprob_sum", "margin"])
def test_searches_share_their_paths(name: str, signal: str) -> None:
    """CaT at every threshold, as without memory: the same trees, answers and prices; most is decoded once."""
    questions = [Question(f"{name}?", "4", id=name) for name in "abc"]
    engine = Counting(script)
    memo = MemoEngine(engine)
    paid = 0
    for threshold in (0.0, 1e-9, 1e-4, 0.01, 0.1, 0.5, 1.0):
        more = (
            {"level": 1.0, "paths": 4} if name == "cat" else {"branch_signal": "entropy_max", "rank_signal": "logprob_sum"}
        )
        method = METHODS[name](METHODS[name].settings_type(prune_signal=signal, prune_below=threshold, **more))
        alone = Counting(script)
        expected = method.solve(questions, alone)
        found = method.solve(questions, memo)
        for a, b in zip(found, expected, strict=True):
            assert same_tree(a.tree, b.tree)
            assert (a.answer, a.confidence, a.generated_tokens) == (b.answer, b.confidence, b.generated_tokens)
        paid += len(alone.requests)
    assert len(engine.requests) == len(set(engine.requests)) < paid / 2
    assert all(request.watch is None for request in engine.requests)


def test_watches_on_what_is_measured_besides() -> None:
    """DeepConf's watch reads the mean log p of the top k: it is shown that too."""
    question = [Question("a?", "4", id="a")]
    alone = DeepConfOnline().solve(question, ScriptedEngine(script), 3)
    memo = MemoEngine(ScriptedEngine(script))
    for _ in range(2):
        found = DeepConfOnline().solve(question, memo, 3)
        assert (found[0].answer, found[0].generated_tokens) == (alone[0].answer, alone[0].generated_tokens)


@pytest.mark.parametrize("bears", range(1, 24))
def test_watches_on_what_may_begin_another_turn(bears: int) -> None:
    """A step has ended, but whether a question was invented after it is not known yet when the watch has enough."""
    engine = ScriptedEngine({"Q\n": [Scripted("So 7.\nQuestion: x\n", eos=True)]}, reading=Reading(turn="Question:"))
    found = []
    for one in (engine, MemoEngine(engine)):
        saw = 0

        def watch(token: int, measured: Measured) -> bool:
            nonlocal saw
            saw += 1
            return saw < bears

        request = Request(engine.prompt("Q"), 0, temperature=0.0, step=engine.reading.reader(), watch=watch)
        (done,) = one.generate([request])
        found.append((done.token_ids, done.ahead, done.finish))
    assert found[0] == found[1]
