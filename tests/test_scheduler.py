"""Many jobs over one batch: everybody gets their own answer, and nobody waits for a stranger's trouble."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caspo.core.errors import EngineError
from caspo.engines.base import Completion, Engine, Request
from caspo.engines.local.engine import HFEngine
from caspo.records import Question
from caspo.search import (
    METHODS,
    ChainOfThought,
    ConfidenceTree,
    ConfidenceTreeSettings,
    PaperTree,
    PaperTreeSettings,
    SelfConsistency,
)
from caspo.search.base import Search
from caspo.search.sampled import SelfConsistencySettings
from caspo.serve.job import Closing, Done, Event, Failed, Grown, Job, Overloaded, Settled, Ticket
from caspo.serve.scheduler import Scheduler
from caspo.steps import text_of
from caspo.testing.scripted import Script, Scripted, ScriptedBatch, ScriptedEngine
from caspo.trees import TreeBuilder
from recording import FIVE, plain, wild
from tiny import build, tokenizer

CAT = ConfidenceTree(ConfidenceTreeSettings(level=1.0, paths=4))


class Gate(ScriptedEngine):
    """Plays only when it is told to, one request at a time; keeps the order."""

    def __init__(self, script: Script, most: int = 256) -> None:
        super().__init__(script)
        self.most = most
        self.allowed = threading.Semaphore(0)
        self.played: list[str] = []
        self.dropped: list[int] = []

    def play(self, request: Request) -> Completion:
        self.played.append(text_of(self.pieces(request.prefix_ids)).partition("\n")[0])
        return super().play(request)

    def batch(self, most: int | None = None) -> ScriptedBatch:
        engine = self

        class Gated(ScriptedBatch):
            def step(self) -> list[tuple[int, Completion | EngineError]]:
                return super().step() if engine.allowed.acquire(timeout=0.005) else []

            def drop(self, place: int) -> None:
                engine.dropped.append(place)
                super().drop(place)

        return Gated(self, self.most)


def job(engine: Any, text: str = "Q", method: Any = CAT, **more: Any) -> Job:
    return Job(method, Question(text, id=more.pop("name", text)), engine.prompt(text), **more)


@contextmanager
def running(engine: Any, **limits: int) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine, **limits)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop(grace=0)


async def events(ticket: Ticket) -> list[Event]:
    return [event async for event in ticket]


def all_events(engine: Any, jobs: Sequence[Job], **limits: int) -> list[list[Event]]:
    async def main() -> list[list[Event]]:
        return await asyncio.gather(*(events(scheduler.submit(job)) for job in jobs))

    with running(engine, **limits) as scheduler:
        return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to that")


def play(story: Callable[[Gate, Scheduler], Awaitable[None]], rows: int = 256, **limits: int) -> None:
    """A test's story, against a gated engine."""

    async def main() -> None:
        await story(engine, scheduler)

    engine = Gate(wild(1), rows)
    with running(engine, **limits) as scheduler:
        asyncio.run(main())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(METHODS)), st.integers(1, 3))
def test_every_job_gets_what_it_would_get_alone(seed: int, name: str, active: int) -> None:
    engine = ScriptedEngine(wild(seed))
    method = METHODS[name]()
    jobs = [job(engine, f"Q{i}", method, seed=i) for i in range(5)]
    for asked, told in zip(jobs, all_events(engine, jobs, active=active, waiting=9), strict=True):
        done = told[-1]
        assert isinstance(done, Done)
        (alone,) = method.solve([asked.question], _Prompted(engine, asked.prompt_ids), asked.seed)
        assert plain(done.solution) == plain(alone)


class _Prompted(ScriptedEngine):
    def __init__(self, engine: ScriptedEngine, ids: tuple[int, ...]) -> None:
        super().__init__(engine._script)
        self._ids = ids

    def prompt(self, question: str) -> tuple[int, ...]:
        return self._ids


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 1), st.integers(1, 4), st.booleans())
def test_what_is_settled_is_how_the_answers_path_begins(seed: int, below: float, paths: int, alone: bool) -> None:
    engine = ScriptedEngine(wild(seed))
    signals = {"branch_signal": "entropy_max", "rank_signal": "logprob_sum"}
    cat = PaperTree(PaperTreeSettings(paths=paths, branch_below=below, width=1, prune_below=0.05, **signals))
    (told,) = all_events(engine, [job(engine, method=ChainOfThought() if alone else cat)])
    *settled, done = told
    assert isinstance(done, Done)
    path = [node.step for node in done.path]
    assert [event.text for event in settled if isinstance(event, Settled)] == [s.text for s in path[: len(settled)]]
    assert [event.number for event in settled if isinstance(event, Settled)] == list(range(len(settled)))
    if alone:
        assert len(settled) >= len(path) - 1, "all but the last step, which the end itself tells"


@pytest.mark.parametrize(
    "method",
    [
        PaperTree(PaperTreeSettings(abstain_below=1.0, branch_below=0)),
        ConfidenceTree(ConfidenceTreeSettings(abstain_below=1.0, paths=1)),
    ],
    ids=lambda method: method.name,
)
def test_nothing_is_told_that_may_be_withheld(method: Any) -> None:
    engine = ScriptedEngine(wild(3))
    (told,) = all_events(engine, [job(engine, method=method)])
    assert [type(event) for event in told] == [Done]


def test_growth_comes_to_the_tree() -> None:
    engine = ScriptedEngine(wild(0))
    (told,) = all_events(engine, [job(engine, grow=True)])
    nodes = {node.id: node for event in told if isinstance(event, Grown) for node in event.nodes}
    done = told[-1]
    assert isinstance(done, Done)
    assert [nodes[i] for i in sorted(nodes)] == list(done.solution.tree.nodes)
    assert len(nodes) > 5
    assert sum(isinstance(event, Grown) for event in told) > 1, "told while it grew"


def test_a_path_ends_at_the_clients_stop() -> None:
    engine = ScriptedEngine({"Q\n": [Scripted("1 + 1 = 2\nSTOP more\nThe answer is 5.", eos=True)]})
    (told,) = all_events(engine, [job(engine, stop=("STOP",))])
    done = told[-1]
    assert isinstance(done, Done)
    text = "".join(node.step.text for node in done.path)
    assert text.startswith("1 + 1 = 2\nSTOP")
    assert "answer" not in text


def test_who_hangs_up_frees_its_rows_at_once() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        many = SelfConsistency(SelfConsistencySettings(samples=8))
        ticket = scheduler.submit(job(engine, "gone", many))
        await until(lambda: scheduler.load().rows == 8)
        ticket.cancel()
        ticket.cancel()
        await until(lambda: scheduler.load().rows == 0)
        assert len(engine.dropped) == 8
        assert scheduler.load()[:2] == (0, 0)
        waiting = scheduler.submit(job(engine, "stays"))
        engine.allowed.release(100)
        assert isinstance((await events(waiting))[-1], Done)
        assert set(engine.played) == {"stays"}

    play(story)


def test_who_hangs_up_has_its_search_closed() -> None:
    """The generator ends there, whether it waits for the model or thinks just then; what it holds is freed."""
    closed = threading.Event()

    class Watched(ConfidenceTree):
        def search(self, tree: TreeBuilder, engine: Engine, seed: int) -> Search:
            try:
                return (yield from super().search(tree, engine, seed))
            finally:
                closed.set()

    async def story(engine: Gate, scheduler: Scheduler) -> None:
        ticket = scheduler.submit(job(engine, method=Watched(CAT.settings)))
        await until(lambda: scheduler.load().rows == 1)
        assert not closed.is_set()
        ticket.cancel()
        await until(closed.is_set)
        assert scheduler.load().rows == 0

    play(story)


def test_a_job_past_its_deadline_fails_whether_it_waits_or_not() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        told = await asyncio.gather(*(events(scheduler.submit(job(engine, f"Q{i}", seconds=0.1))) for i in range(2)))
        assert [[type(e), e.reason] for (e,) in told if isinstance(e, Failed)] == [[Failed, "deadline"]] * 2
        await until(lambda: scheduler.load()[:3] == (0, 0, 0))

    play(story, active=1)


def test_too_many_jobs_are_refused_with_a_time_to_come_back() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        taken = [scheduler.submit(job(engine, f"Q{i}")) for i in range(3)]
        with pytest.raises(Overloaded) as error:
            scheduler.submit(job(engine, "one too many"))
        assert 1 <= error.value.retry_after <= 60
        engine.allowed.release(1000)
        for ticket in taken:
            assert isinstance((await events(ticket))[-1], Done)
        assert isinstance((await events(scheduler.submit(job(engine, "now"))))[-1], Done)

    play(story, active=1, waiting=2)


def test_a_client_that_asks_for_much_does_not_delay_another() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        many = SelfConsistency(SelfConsistencySettings(samples=50))
        flood = [scheduler.submit(job(engine, f"flood{i}", many, client="a")) for i in range(3)]
        await until(lambda: scheduler.load().rows == 4)
        other = scheduler.submit(job(engine, "other", ChainOfThought(), client="b"))
        await until(lambda: scheduler.load().active == 4)
        engine.allowed.release(10)
        assert isinstance((await events(other))[-1], Done)
        assert engine.played.index("other") <= 5, "the next free row was its own"
        for ticket in flood:
            ticket.cancel()

    play(story, active=4, rows=4)


def test_waiting_jobs_of_many_clients_take_turns() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        first = [scheduler.submit(job(engine, f"a{i}", ChainOfThought(), client="a")) for i in range(6)]
        second = [scheduler.submit(job(engine, f"b{i}", ChainOfThought(), client="b")) for i in range(2)]
        engine.allowed.release(1000)
        for ticket in [*first, *second]:
            await events(ticket)
        assert {"b0", "b1"} <= set(engine.played[:6])

    play(story, active=2)


def test_a_request_that_cannot_be_served_fails_alone() -> None:
    script = {"good\n": [Scripted(FIVE, eos=True)]}
    told = all_events(ScriptedEngine(script), [job(ScriptedEngine(script), name) for name in ("bad", "good")])
    assert isinstance(told[0][-1], Failed)
    assert "no continuation" in told[0][-1].message
    assert isinstance(told[1][-1], Done)


def test_a_batch_that_fails_is_replaced() -> None:
    class Fragile(ScriptedEngine):
        broken = True

        def batch(self, most: int | None = None) -> ScriptedBatch:
            engine = self

            class Breaking(ScriptedBatch):
                def step(self) -> list[tuple[int, Completion | EngineError]]:
                    if engine.broken:
                        raise RuntimeError("out of memory, at secret address 0x1")
                    return super().step()

            return Breaking(self, 9)

    async def story() -> None:
        for _ in range(3):
            (failed,) = await events(scheduler.submit(job(engine)))
            assert isinstance(failed, Failed)
            assert "secret" not in failed.message
        assert not scheduler.load().healthy
        engine.broken = False
        assert isinstance((await events(scheduler.submit(job(engine))))[-1], Done)
        assert scheduler.load().healthy

    engine = Fragile(wild(1))
    with running(engine) as scheduler:
        asyncio.run(story())


def test_shutting_down_finishes_what_is_under_way_and_takes_nothing_new() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        ticket = scheduler.submit(job(engine))
        await until(lambda: scheduler.load().rows == 1)
        stopping = asyncio.get_running_loop().run_in_executor(None, scheduler.stop, 30.0)
        await until(lambda: scheduler._closing)
        with pytest.raises(Closing):
            scheduler.submit(job(engine))
        engine.allowed.release(1000)
        assert isinstance((await events(ticket))[-1], Done)
        await stopping

    play(story)


def test_shutting_down_fails_what_is_not_done_in_time() -> None:
    async def story(engine: Gate, scheduler: Scheduler) -> None:
        ticket = scheduler.submit(job(engine))
        await until(lambda: scheduler.load().rows == 1)
        stopping = asyncio.get_running_loop().run_in_executor(None, scheduler.stop, 0.05)
        (failed,) = await events(ticket)
        await stopping
        assert isinstance(failed, Failed)
        assert failed.reason == "shutdown"

    play(story)


def test_jobs_share_a_real_model_without_meeting() -> None:
    """Greedy and sampled, long and short, with shared beginnings: as each alone."""
    engine = HFEngine(build("llama"), tokenizer(), name="tiny", max_rows=6)
    cat = ConfidenceTree(ConfidenceTreeSettings(level=1.0, paths=3, max_tokens=24))
    sampled = SelfConsistency(SelfConsistencySettings(samples=3, max_tokens=16))
    jobs = [job(engine, f"Ann has {i} nuts", cat if i % 2 else sampled, seed=i, name=f"q{i}") for i in range(6)]
    together = all_events(engine, jobs)
    for asked, told in zip(jobs, together, strict=True):
        engine.forget()
        done = told[-1]
        assert isinstance(done, Done)
        (alone,) = asked.method.solve([asked.question], engine, asked.seed)
        assert [n.step.token_ids for n in done.solution.tree.nodes] == [n.step.token_ids for n in alone.tree.nodes]
        assert done.solution.answer == alone.answer
