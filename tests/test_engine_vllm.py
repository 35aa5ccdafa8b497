"""Engine `vllm` against `hf` on the same weights in float32: the tiny model that we ship.

It runs where vLLM is: in `.venv-vllm` (`make vllm`), by `test_vllm.py`, or by hand with that Python.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here; test_vllm.py runs these in .venv-vllm", allow_module_level=True)

from vllm_server import environment

os.environ |= environment()

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError, EngineError, ModelError
from caspo.core.storage import read_json
from caspo.engines import model_settings, open_engine
from caspo.engines.base import Completion, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.engines.vllm import draws
from caspo.engines.vllm.engine import VllmEngine
from caspo.loop.recipe import CaspoRecipe
from caspo.loop.run import run_recipe
from caspo.search import PaperTree, PaperTreeSettings
from caspo.tasks.stories import StoriesTask
from stories_run import RECIPE

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""Nats. Both compute in float32."""
ODD = "Tom has 12 apples, they're 1,000 £!  two  spaces\n\n\ttab naïve ☃ 日本語 🙂 e\u0301 <|end|> \u0000"
OPTIONS: dict[str, Any] = {"enforce_eager": True}


@pytest.fixture(scope="module")
def hf() -> HFEngine:
    return HFEngine(*load("stories-tiny"))


@pytest.fixture(scope="module")
def shared() -> Iterator[VllmEngine]:
    engine = VllmEngine("stories-tiny", dtype="float32", max_rows=32, options=OPTIONS)
    yield engine
    engine.close()


@pytest.fixture
def ours(shared: VllmEngine) -> VllmEngine:
    """The engine, knowing nothing."""
    shared.forget()
    return shared


def prompts(engine: Any, n: int) -> list[tuple[int, ...]]:
    return [engine.prompt(question.text) for question in StoriesTask().questions("test", n)]


def same(a: Completion, b: Completion) -> None:
    assert a.token_ids == b.token_ids
    assert (a.text, a.finish) == (b.text, b.finish)
    assert (a.trace.kind, a.trace.entropy_upper) == ("full", None)
    np.testing.assert_allclose(a.trace.entropy, b.trace.entropy, atol=TOLERANCE)
    for name in ("logprob", "max_logprob", "margin", "varentropy"):
        np.testing.assert_allclose(getattr(a.trace, name), getattr(b.trace, name), atol=10 * TOLERANCE, rtol=1e-3)


def unlike(found: Sequence[Completion], wanted: Sequence[Completion]) -> int:
    return sum(a.token_ids != b.token_ids for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_gives_what_hf_gives(ours: VllmEngine, hf: HFEngine, settings: dict[str, float]) -> None:
    """Tokens, texts, ends and all statistics, drawn ones included: a seed means the same."""
    assert ours.eos_ids == hf.eos_ids
    requests = [
        Request(ids, 7 + i, 10 + 4 * i, stop=("\n",) if i % 2 else (), rank=1 + i % 3, top_k=5 * (i % 2), **settings)  # type: ignore[arg-type]
        for i, ids in enumerate(prompts(hf, 12))
    ]
    found, wanted = ours.generate(requests), hf.generate(requests)
    largest = max(np.abs(a.trace.entropy - b.trace.entropy).max() for a, b in zip(found, wanted, strict=True))
    print(f"\n{settings}: {sum(len(a.trace) for a in found)} tokens, entropies differ by at most {largest:.1e} nats")
    for a, b in zip(found, wanted, strict=True):
        same(a, b)
        if b.top_k_logprob is not None:
            assert a.top_k_logprob is not None
            np.testing.assert_allclose(a.top_k_logprob, b.top_k_logprob, atol=1e-3)


def test_prompts_and_pieces_are_those_of_hf(ours: VllmEngine, hf: HFEngine) -> None:
    assert prompts(ours, 3) == prompts(hf, 3)
    ids = hf.encode(ODD)
    assert ours.encode(ODD) == ids
    assert ours.pieces(ids) == hf.pieces(ids)
    assert (ours.vocab_size, ours.context_length) == (hf.vocab_size, hf.context_length)


def test_cat_grows_the_same_trees(ours: VllmEngine, hf: HFEngine) -> None:
    signals = {"branch_signal": "entropy_max", "rank_signal": "logprob_sum"}
    method = PaperTree(PaperTreeSettings(max_tokens=64, paths=2, branch_below=1.0, prune_below=0.05, **signals))
    questions = StoriesTask().questions("test", 6)
    for a, b in zip(method.solve(questions, ours), method.solve(questions, hf), strict=True):
        assert [node.step.token_ids for node in a.tree.nodes] == [node.step.token_ids for node in b.tree.nodes]
        assert [node.parent for node in a.tree.nodes] == [node.parent for node in b.tree.nodes]
        assert (a.answer, a.confidence) == (b.answer, pytest.approx(b.confidence, abs=1e-3))


def test_a_row_does_not_depend_on_its_neighbours(ours: VllmEngine) -> None:
    requests = [Request(ids, i, 8 + i % 9) for i, ids in enumerate(prompts(ours, 16))]
    together = ours.generate(requests)
    for a, request in zip(together, requests, strict=True):
        ours.forget()
        same(a, ours.generate([request])[0])


def test_what_was_decoded_is_not_computed_again(ours: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole blocks of vLLM's."""
    cached: list[int] = []
    llm = ours.context._llm
    real = llm.step

    def step() -> Any:
        outputs = real()
        cached.extend(output.num_cached_tokens for output in outputs)
        return outputs

    monkeypatch.setattr(llm, "step", step)
    request = Request(prompts(ours, 1)[0], 3, 60, temperature=0)
    (parent,) = ours.generate([request])
    prefix = request.prefix_ids + parent.token_ids[:-1]
    assert set(cached) == {0}
    cached.clear()
    ours.generate([Request(prefix, 1, 1)])
    assert cached == [(len(prefix) - 1) // 32 * 32]
    ours.forget()
    cached.clear()
    ours.generate([Request(prefix, 1, 1)])
    assert cached == [0]


def test_a_dropped_request_is_not_heard_of_again_and_frees_its_place(ours: VllmEngine) -> None:
    first, second = prompts(ours, 2)
    batch = ours.batch(2)
    batch.add(1, Request(first, 0, 40))
    batch.add(2, Request(second, 0, 5))
    assert batch.free == 0
    batch.step()
    batch.drop(1)
    assert batch.free == 1
    assert [place for _ in range(8) for place, _ in batch.step()] == [2]
    batch.drop(1)
    assert not ours.context._llm.has_unfinished_requests()
    batch.add(3, Request(first, 0, 40))
    batch.close()
    assert not ours.context._llm.has_unfinished_requests()


def test_two_batches_share_the_engine(ours: VllmEngine, hf: HFEngine) -> None:
    requests = [Request(ids, i, 12) for i, ids in enumerate(prompts(ours, 4))]
    batches = [ours.batch(2), ours.batch(2)]
    for i, request in enumerate(requests):
        batches[i % 2].add(i, request)
    found: dict[int, Any] = {}
    while len(found) < 4:
        for batch in batches:
            found |= dict(batch.step())
    assert unlike([found[i] for i in range(4)], hf.generate(requests)) == 0


def test_a_watch_ends_a_row(ours: VllmEngine, hf: HFEngine) -> None:
    told: list[list[int]] = []
    for engine in (ours, hf):
        seen: list[int] = []
        watch = lambda token, row, seen=seen: not seen.append(token) and len(seen) < 5  # noqa: E731
        (found,) = engine.generate([Request(prompts(hf, 1)[0], 0, 40, watch=watch)])
        assert (found.finish, len(found.token_ids)) == ("abandoned", 5)
        told.append(seen)
    assert told[0] == told[1]


def test_limits_of_a_request(ours: VllmEngine) -> None:
    with pytest.raises(EngineError, match="at least one token"):
        ours.generate([Request((), 0, 1)])
    with pytest.raises(EngineError, match="leaves no room in the context"):
        ours.generate([Request((5,) * 1024, 0, 1)])
    with pytest.raises(EngineError, match="tokens that stories-tiny does not have"):
        ours.generate([Request((5, 100_000), 0, 1)])
    (full,) = ours.generate([Request((5, 6) * 511, 0, 50)])
    assert len(full.token_ids) == 2 or full.finish == "eos"


def test_logits_that_are_no_numbers_fail_their_row_alone(
    ours: VllmEngine, hf: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = draws.draw_rows, []

    def poisoned(logits_BV: Any, rows: Any) -> Any:
        steps.append(len(rows))
        for at, row in enumerate(rows):
            if row.place == 1 and len(row.tokens) == 2:
                logits_BV[at, 3] = float("nan")
        return real(logits_BV, rows)

    monkeypatch.setattr(draws, "draw_rows", poisoned)
    requests = [Request(ids, 0, 6) for ids in prompts(ours, 3)]
    batch, found = ours.batch(), dict[int, Any]()
    for place, request in enumerate(requests):
        batch.add(place, request)
    while len(found) < 3:
        found |= dict(batch.step())
    assert isinstance(found.pop(1), EngineError)
    wanted = hf.generate(requests)
    same(found[0], wanted[0])
    same(found[2], wanted[2])


def test_rows_wait_when_memory_runs_out_and_nothing_changes(hf: HFEngine) -> None:
    """vLLM gives rows up and computes them again: no token is drawn twice."""
    tight = {"num_gpu_blocks_override": 13, "max_model_len": 256}
    engine = open_engine(model_settings("stories-tiny", engine="vllm", dtype="float32", max_rows=12, vllm=OPTIONS | tight))
    requests = [Request(ids, i, 70, temperature=0.9) for i, ids in enumerate(prompts(hf, 12))]
    assert unlike(engine.generate(requests), hf.generate(requests)) == 0
    engine.close()  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="was closed"):
        engine.generate(requests)


def test_what_fails_inside_vllm_is_an_error_and_the_engine_is_closed() -> None:
    engine = VllmEngine("stories-tiny", dtype="float32", options=OPTIONS)

    def failing() -> Any:
        raise RuntimeError("out of memory")

    engine.context._llm.step = failing
    for message in ("out of memory.*Open the model again", "was closed"):
        with pytest.raises(EngineError, match=message):
            engine.generate([Request((5, 6), 0, 3)])


def test_a_round_of_training_samples_with_it(tmp_path: Path) -> None:
    """Its memory is free while the model is trained, and the round is measured with the trained weights."""
    out = tmp_path / "run"
    model = {"name": "stories-tiny", "engine": "vllm", "vllm": OPTIONS}
    recipe = settings_from(CaspoRecipe, {**RECIPE, "model": model, "rounds": 1}, "This recipe")
    run_recipe(recipe, out)
    metrics = read_json(out / "metrics.json")
    assert [entry["round"] for entry in metrics["rounds"]] == [0, 1]
    assert sum(metrics["rounds"][1]["training"]["pairs"].values()) > 0


@pytest.mark.parametrize("options", [{"tensor_parallel_size": 2}, {"logits_processors": []}, {"no_such_option": 1}])
def test_an_option_that_cannot_be_had_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        VllmEngine("stories-tiny", options=options)


def test_what_vllm_cannot_load_says_so(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match="could not load"):
        VllmEngine("stories-tiny", options={"max_model_len": 1 << 20})
