"""The pool of samples: parts that are never rewritten, exact in their tokens, near in their figures; and that it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caspo.core.errors import DataError
from caspo.engines.base import Completion, Request
from caspo.engines.kept import CompletionFile
from caspo.engines.memo import MemoEngine
from caspo.records import Measured, Question, TokenTrace
from caspo.search import (
    ChainOfThought,
    DeepConfOffline,
    DeepConfOfflineSettings,
    Method,
    SelfConsistency,
    SelfConsistencySettings,
)
from caspo.testing.scripted import ScriptedEngine
from test_kept import QUESTIONS
from test_memo import script
from tiny import Counting

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """Benchmarks import each other by their names in their folder."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def pieces(ids: Any) -> list[bytes]:
    return ScriptedEngine(script).pieces(ids)


def completion(rows: list[Measured], ahead: int = 0, finish: Any = "eos") -> Completion:
    own = len(rows) - ahead
    ids = tuple(ord("a") + place % 3 for place in range(len(rows)))
    top_k = np.array([row.top_k_logprob for row in rows[:own]], np.float32)
    traces = TokenTrace.of(rows[:own]), TokenTrace.of(rows[own:])
    text = b"".join(pieces(ids[:own])).decode()
    return Completion(ids[:own], text, traces[0], finish, top_k, ids[own:], traces[1])


def figures(one: Completion) -> dict[str, Any]:
    """All of its columns, by their names."""
    names = ("entropy", "logprob", "max_logprob", "margin", "varentropy")
    columns = {name: np.append(getattr(one.trace, name), getattr(one.ahead_trace, name)) for name in names}
    return {**columns, "top_k_logprob": one.top_k_logprob}


nats, share = st.floats(0, 40, width=32), st.floats(0, 1, width=32)
rows = st.lists(
    st.builds(lambda h, p, q, m, v, k: Measured(h, -max(p, q), -min(p, q), m, v, -k), nats, nats, nats, share, nats, nats),
    max_size=6,
)


@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_comes_back_as_near_as_it_says(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[list[Measured]], data: st.DataObject
) -> None:
    """Tokens, text and end exactly; a figure off by 3% or 0.003 at most, varentropy by three times that. An order among
    figures that models keep stays: no token is more probable than the most probable one."""
    from parts.pool import key_of, keys_in, read_pool, write_pool

    samples = {
        key_of("model", f"q{place % 2}", place - 1, Request((1, 2, place % 2), 0, 9, 0.7, top_k=5)): completion(
            one, data.draw(st.integers(0, len(one))), data.draw(st.sampled_from(["eos", "length"]))
        )
        for place, one in enumerate(drawn)
    }
    part = tmp_path_factory.mktemp("pool") / "part.parquet"
    write_pool(part, samples)
    found = read_pool(part, pieces)
    assert list(found) == list(samples) == keys_in(part)
    for key, one in samples.items():
        again = found[key]
        assert (again.token_ids, again.text, again.finish, again.ahead) == (one.token_ids, one.text, one.finish, one.ahead)
        for name, exact in figures(one).items():
            near = figures(again)[name]
            coarser = 3.1 if name == "varentropy" else 1.0
            allowed = coarser * np.maximum(0.03 * np.abs(exact), 0.003) + 1e-6
            assert (np.abs(near - exact) <= allowed).all(), name
            assert (np.abs(near) <= (1 if name == "margin" else np.inf)).all()
        assert (again.trace.logprob <= again.trace.max_logprob).all()


@pytest.mark.parametrize("wrong", [{"entropy": float("nan")}, {"logprob": float("-inf")}])
def test_what_no_byte_stands_for_is_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    from parts.pool import key_of, write_pool

    row = Measured(0.1, -0.1, -0.1, 0.9, 0.1, -3.0)._replace(**wrong)
    with pytest.raises(DataError, match=next(iter(wrong))):
        write_pool(tmp_path / "part.parquet", {key_of("model", "q", 0, Request((1,), 0)): completion([row])})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_part(tmp_path: Path) -> None:
    from parts.pool import keys_in

    file = tmp_path / "part.parquet"
    file.write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no part of a pool"):
        keys_in(file)


class Dying(Counting):
    """Is killed after some completions."""

    def play(self, request: Request) -> Completion:
        if len(self.requests) == 7:
            raise KeyboardInterrupt
        return super().play(request)


def test_grows_from_session_to_session(tmp_path: Path) -> None:
    """Killed, exported, and taken in elsewhere, it goes on with what is missing; parts stay as they are. What methods ask
    for by default is all there."""
    import pool

    first, folder = Dying(script), tmp_path / "pool"
    here, elsewhere = (CompletionFile(tmp_path / f"{name}.sqlite", "model") for name in ("here", "elsewhere"))
    asked = pool.plan(first, "model", QUESTIONS, 3)
    assert [key.number for key in asked] == [number for number in (-1, 0, 1, 2) for _ in QUESTIONS]
    with pytest.raises(KeyboardInterrupt):
        pool.decode(first, here, asked)
    pool.export(first, here, asked, folder)
    (part,) = folder.iterdir()
    before = part.read_bytes()

    second = Counting(script)
    pool.take_in(second, elsewhere, asked, folder)
    pool.decode(second, elsewhere, asked)
    assert len(second.requests) == len(asked) - 7
    pool.export(second, elsewhere, asked, folder)
    pool.export(second, elsewhere, asked, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["part-000.parquet", "part-001.parquet"]
    assert part.read_bytes() == before
    pool.take_in(second, here, asked, folder)

    third = Counting(script)
    memo = MemoEngine(third, here)
    methods: list[Method[Any]] = [
        ChainOfThought(),
        SelfConsistency(SelfConsistencySettings(samples=3)),
        DeepConfOffline(DeepConfOfflineSettings(samples=3)),
    ]
    for method in methods:
        found = method.solve(QUESTIONS, memo)
        assert [one.answer for one in found] == [one.answer for one in method.solve(QUESTIONS, ScriptedEngine(script))]
    assert third.requests == []


def test_what_is_of_another_prompt_or_model_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same questions by another instruction, say; and two models may have one tokenizer, and prompts alike."""
    import pool

    class Polite(Counting):
        def prompt(self, question: str) -> tuple[int, ...]:
            return super().prompt(f"Please: {question}")

    kept = CompletionFile(tmp_path / "kept.sqlite", "model")
    plain, polite = Counting(script), Polite(script)
    asked = pool.plan(plain, "model", QUESTIONS, 1)
    pool.decode(plain, kept, asked)
    pool.export(plain, kept, asked, tmp_path)
    for engine, model in ((polite, "model"), (plain, "another")):
        pool.take_in(engine, kept, pool.plan(engine, model, QUESTIONS, 1), tmp_path)
        assert f"0 samples are new; {len(asked)} in the parts are of other" in capsys.readouterr().out


def test_under_another_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was filled under a name of its own is exported by it, and taken in as this model's."""
    import pool

    file, questions = tmp_path / "kept.sqlite", tmp_path / "questions.jsonl"
    asked = [Question(f"Tom has {n} pens and buys 2 more. How many pens has he?", str(n + 2)) for n in range(3)]
    questions.write_text("".join(json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in asked))
    given = ["--model", "stories-tiny", "--task", questions, "--questions", "0:2", "--samples", "1", "--threads", "1"]
    given += ["--device", "cpu", "--pool", tmp_path / "pool", "--completions", file]

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pool.py", *arguments, *map(str, given)])
        pool.main()
        return capsys.readouterr().out

    run("sample", "--identity", "a name", "--shard", "1/2")
    assert "2 of 4 samples are there" in run("sample", "--identity", "a name")
    assert "4 samples" in run("export", "--identity", "a name")
    assert "4 samples are new" in run("import")
    assert "4 of 4 samples are there" in run("sample")
    assert "bytes_a_token" in run("measure")
