"""Completions kept in a file: what is given again is what was decoded, to whoever asks, and nothing else."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import DataError, StorageError
from caspo.engines.base import Completion, Request
from caspo.engines.kept import CompletionFile
from caspo.engines.memo import MemoEngine
from caspo.records import Measured, Question, TokenTrace
from caspo.search import (
    ConfidenceTree,
    ConfidenceTreeSettings,
    DeepConfOnline,
    PaperTree,
    PaperTreeSettings,
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.testing.scripted import ScriptedEngine
from test_memo import script
from tiny import Counting, same_tree

QUESTIONS = [Question(f"What is {n} + {n}?", id=f"q{n}") for n in range(4)]
PREFIX = tuple(map(ord, "Q\n"))


def same(a: Completion, b: Completion) -> bool:
    """Every field, to the bit."""
    traces = [(a.trace, b.trace), (a.ahead_trace, b.ahead_trace)]
    columns = all(
        np.array_equal(getattr(x, name), getattr(y, name), equal_nan=True)
        for x, y in traces
        for name in ("entropy", "logprob", "max_logprob", "margin", "varentropy")
    )
    bounds = all(
        (x.entropy_upper is None) == (y.entropy_upper is None) and (x.kind, x.k) == (y.kind, y.k) for x, y in traces
    )
    top_k = (a.top_k_logprob is None) == (b.top_k_logprob is None) and (
        a.top_k_logprob is None or np.array_equal(a.top_k_logprob, b.top_k_logprob)  # type: ignore[arg-type]
    )
    plain = (a.token_ids, a.text, a.finish, a.ahead) == (b.token_ids, b.text, b.finish, b.ahead)
    return columns and bounds and top_k and plain


floats = st.floats(0, 10, width=32)


@st.composite
def completions(draw: st.DrawFn) -> tuple[Request, Completion]:
    """Any completion that an engine may give, with a request it may have been given for."""
    n, ahead = draw(st.integers(0, 6)), draw(st.integers(0, 2))
    kind, top_k = draw(st.sampled_from(["full", "top_k"])), draw(st.sampled_from([0, 5]))

    def trace(size: int) -> TokenTrace:
        rows = [Measured(*[draw(floats) for _ in range(5)], None, draw(floats)) for _ in range(size)]
        return TokenTrace.of(rows, kind, 20 if kind == "top_k" else None)

    finish = draw(st.sampled_from(["eos", "stop", "length"]))
    ids = tuple(draw(st.integers(0, 1 << 31)) for _ in range(n + ahead))
    text = draw(st.text(max_size=8))
    found = np.array([draw(floats) for _ in range(n)], np.float32) if top_k else None
    whole = Completion(ids[:n], text, trace(n), finish, found, ids[n:], trace(ahead))
    limit = n + ahead if finish == "length" else n + ahead + draw(st.integers(0, 3))
    request = Request(PREFIX, draw(st.integers(0, 3)), limit, draw(st.sampled_from([0.0, 0.7])), top_k=top_k)
    return request, whole


@given(completions())
@settings(max_examples=60, deadline=None)
def test_is_given_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Request, Completion]) -> None:
    """By another process, too: the file is opened again."""
    path = tmp_path_factory.mktemp("kept") / "completions.sqlite"
    request, whole = drawn
    first = CompletionFile(path, "model")
    first.put(request, whole)
    first.close()
    again = CompletionFile(path, "model").get(request)
    assert again is not None
    assert same(again, whole)


def _eos(tokens: int) -> Completion:
    rows = [Measured(0.1, -0.1, -0.1, 0.5, 0.0)] * tokens
    return Completion(tuple(range(tokens)), "x" * tokens, TokenTrace.of(rows), "eos")


def test_is_given_to_whoever_would_get_the_same(tmp_path: Path) -> None:
    """A limit that was not met, and the seed of a greedy completion, change nothing; everything else does."""
    kept = CompletionFile(tmp_path / "completions.sqlite", "model")
    greedy, drawn = Request(PREFIX, 1, 10, 0.0), Request(PREFIX, 1, 10, 0.7)
    for request in (greedy, drawn):
        kept.put(request, _eos(5))
    assert kept.get(Request(PREFIX, 2, 10, 0.0)) is not None
    assert kept.get(Request(PREFIX, 1, 7, 0.7)) is not None
    assert kept.get(Request(PREFIX, 1, 4, 0.7)) is None
    assert kept.get(Request(PREFIX, 2, 10, 0.7)) is None
    assert kept.get(Request(PREFIX, 1, 10, 0.6)) is None
    assert kept.get(Request(PREFIX, 1, 10, 0.7, top_p=0.9)) is None
    assert kept.get(Request(PREFIX, 1, 10, 0.0, rank=2)) is None
    assert kept.get(Request(PREFIX, 1, 10, 0.0, stop=("\n",))) is None
    assert kept.get(Request(PREFIX, 1, 10, 0.0, top_k=5)) is None
    assert kept.get(Request((*PREFIX, 7), 1, 10, 0.0)) is None
    assert CompletionFile(kept.path, "another model").get(greedy) is None


def test_a_solution_that_was_cut_serves_its_own_limit_only(tmp_path: Path) -> None:
    """More room has it decoded anew, and what was decoded with more room is what is kept."""
    engine = Counting(script)
    memo = MemoEngine(engine, CompletionFile(tmp_path / "completions.sqlite", "model"))
    cut, roomy = Request(PREFIX, 0, 5, 0.0), Request(PREFIX, 0, 500, 0.0)
    assert memo.generate([cut])[0].finish == "length"
    assert memo.generate([roomy])[0].finish == "eos"
    memo.generate([roomy, roomy])
    assert len(engine.requests) == 2


@pytest.mark.parametrize(
    "method",
    [
        ConfidenceTree(ConfidenceTreeSettings(level=1.0, paths=4, prune_below=0.3)),
        PaperTree(PaperTreeSettings(paths=4, branch_below=1.0)),
        SelfConsistency(SelfConsistencySettings(samples=4, temperature=1.0)),
        DeepConfOnline(),
    ],
    ids=lambda method: method.name,
)
def test_searches_come_out_alike_and_the_second_decodes_nothing(tmp_path: Path, method: object) -> None:
    """With a file, with none, and from the file alone."""
    path = tmp_path / "completions.sqlite"
    plain = method.solve(QUESTIONS, ScriptedEngine(script))  # type: ignore[attr-defined]
    for asked in (True, False):
        engine = Counting(script)
        found = method.solve(QUESTIONS, MemoEngine(engine, CompletionFile(path, "model")))  # type: ignore[attr-defined]
        assert bool(engine.requests) == asked
        for a, b in zip(plain, found, strict=True):
            assert same_tree(a.tree, b.tree)
            assert (a.answer, a.confidence, a.generated_tokens) == (b.answer, b.confidence, b.generated_tokens)


def test_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    """No database, one of another version, a damaged value, a folder where nothing may be written."""
    text = tmp_path / "text.sqlite"
    text.write_text("not a database, and long enough to be taken for none at all " * 20)
    with pytest.raises(DataError, match="no file of completions"):
        CompletionFile(text, "model")
    kept = CompletionFile(tmp_path / "good.sqlite", "model")
    kept.put(Request(PREFIX, 0), _eos(3))
    with sqlite3.connect(kept.path) as database:
        database.execute("UPDATE completions SET value = substr(value, 1, 20)")
    with pytest.raises(DataError, match="damaged"):
        kept.get(Request(PREFIX, 0))
    with sqlite3.connect(kept.path) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(DataError, match="another version"):
        CompletionFile(kept.path, "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        CompletionFile(tmp_path / "file" / "completions.sqlite", "model")
