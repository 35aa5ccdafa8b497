"""Engine `openai_compatible` against a fake server: every shape of reply, every fault, several endpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.confidence import signals, step_score
from caspo.core.errors import CaspoError, ConfigError, DataError, EngineError
from caspo.data.pairs import PairSettings, build_pairs
from caspo.engines.base import Completion, Request
from caspo.engines.remote.engine import OpenAICompatibleEngine
from caspo.engines.remote.settings import RemoteSettings
from caspo.formats.parquet import read_trees, write_trees
from caspo.records import FIRST_PIECE, Question, Tree
from caspo.search import ChainOfThought, PaperTree, PaperTreeSettings
from caspo.train.checks import check_tokens
from fake_server import EOS, VOCABULARY, FakeServer, distribution, serving
from small_tokenizers import CHATML, GEMMA, made

SHAPES = ["vllm", "sglang", "llama-cpp-python", "llama.cpp"]
FAST: dict[str, Any] = {"timeout": 5.0, "token_timeout": 1.0, "patience": 4.0, "vocab_size": VOCABULARY}


@contextmanager
def engine_for(*servers: FakeServer, **settings: Any) -> Iterator[OpenAICompatibleEngine]:
    urls = tuple(server.url for server in servers)
    engine = OpenAICompatibleEngine(RemoteSettings.model_validate(FAST | {"urls": urls} | settings), "fake")
    try:
        yield engine
    finally:
        engine.close()


def greedy(engine: OpenAICompatibleEngine, text: str = "q:", **more: Any) -> Completion:
    (found,) = engine.generate([Request(engine.encode(text), 0, temperature=0.0, **more)])
    return found


def expected(text: str, most: int = 512) -> str:
    """What greedy decoding writes after a text."""
    written = ""
    while len(written) < most and (token := int(distribution(text + written).argmax())) != EOS:
        written += chr(token)
    return written


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_reply_gives_the_same_text_and_bounds_around_the_entropy(shape: str) -> None:
    with serving(shape) as server, engine_for(server) as engine:
        found = greedy(engine)
        assert (found.text, found.finish) == (expected("q:"), "eos")
        assert engine.features.ids == (shape in ("vllm", "llama.cpp"))
        shown = shape != "llama-cpp-python"  # whether EOS is among the tokens
        assert len(found.token_ids) == len(found.text) + shown
        assert engine.pieces(found.token_ids) == [*(c.encode() for c in found.text), *([b""] if shown else [])]
        trace = found.trace
        assert (trace.kind, trace.k) == ("top_k", 20)
        for place in range(len(found.token_ids)):
            logs = distribution("q:" + found.text[:place])
            entropy = -float((np.exp(logs) * logs).sum())
            assert trace.entropy_upper is not None
            assert trace.entropy[place] - 1e-4 <= entropy <= trace.entropy_upper[place] + 1e-4
            first, second = np.sort(logs)[::-1][:2]
            assert trace.max_logprob[place] == pytest.approx(first, abs=1e-5)
            assert trace.margin[place] == pytest.approx(np.exp(first) - np.exp(second), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sampled_token_outside_the_top_k_does_not_spoil_the_bounds(shape: str) -> None:
    with serving(shape) as server, engine_for(server, top_logprobs=2) as engine:
        requests = [Request(engine.encode(f"{n}:"), n, temperature=1.0, max_new_tokens=10) for n in range(8)]
        outside = 0
        for n, found in enumerate(engine.generate(requests)):
            for place in range(len(found.token_ids)):
                logs = distribution(f"{n}:" + found.text[:place])
                entropy = -float((np.exp(logs) * logs).sum())
                assert found.trace.entropy_upper is not None
                assert found.trace.entropy[place] - 1e-4 <= entropy <= found.trace.entropy_upper[place] + 1e-4
                outside += bool(found.trace.logprob[place] < np.sort(logs)[-2] - 1e-6)
        assert outside > 5


def test_all_samplers_of_the_server_are_neutralised() -> None:
    with serving("vllm") as server, engine_for(server) as engine:
        greedy(engine, max_new_tokens=1)
        (body,) = server.bodies
    assert (body["top_p"], body["min_p"], body["repetition_penalty"], body["repeat_penalty"]) == (1.0, 0.0, 1.0, 1.0)
    assert body["top_k"] == VOCABULARY
    assert body["prompt"] == [ord("q"), ord(":")], "prompts go as ids"


def test_the_whole_vocabulary_is_exact_also_where_a_rank_was_asked_for() -> None:
    with serving("llama.cpp") as server, engine_for(server, top_logprobs=VOCABULARY) as engine:
        logs = distribution("q:")
        entropy = -float((np.exp(logs) * logs).sum())
        for rank in (1, 2, 3):
            for _ in ("asked", "remembered"):
                trace = greedy(engine, rank=rank, max_new_tokens=2, top_k=40).trace
                assert (trace.kind, trace.k, trace.entropy_upper) == ("full", None, None)
                assert trace.entropy[0] == pytest.approx(entropy, abs=1e-4)
                assert trace.varentropy[0] == pytest.approx((np.exp(logs) * logs**2).sum() - entropy**2, abs=1e-3)
                assert trace.logprob[0] == pytest.approx(np.sort(logs)[-rank], abs=1e-5)
            engine.forget()


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_stops_ranks_and_watches(shape: str) -> None:
    with serving(shape) as server, engine_for(server) as engine:
        for rank in (2, 3):
            found = greedy(engine, rank=rank, max_new_tokens=4, top_k=3)
            first = chr(int(np.argsort(-distribution("q:"))[rank - 1]))
            assert found.text == first + expected("q:" + first, 3)
            best = np.sort(distribution("q:"))[::-1]
            assert found.trace.logprob[0] == pytest.approx(best[rank - 1], abs=1e-5)
            assert found.top_k_logprob is not None
            assert found.top_k_logprob[0] == pytest.approx(best[:3].mean(), abs=1e-5)
        text = expected("q:")
        stop = text[3]
        found = greedy(engine, stop=(stop,))
        at = next(i for i, c in enumerate(text) if c == stop and text[:i].strip())
        assert (found.text, found.finish) == (text[: at + 1], "stop")
        seen: list[float] = []
        found = greedy(engine, watch=lambda token, row: seen.append(row[0]) or len(seen) < 4)  # type: ignore[func-returns-value]
        assert (found.text, found.finish) == (text[:4], "abandoned")
        assert seen == pytest.approx(found.trace.entropy.tolist(), abs=1e-5)
        found = greedy(engine, watch=lambda token, row: bool(token >= 0))
        assert found.finish == "eos", "the token that ends a text by itself is not asked about"


def test_a_dropped_request_closes_its_stream() -> None:
    with serving("vllm") as server, engine_for(server) as engine:
        server.pause = 0.2
        batch = engine.batch()
        batch.add(7, Request(engine.encode("q:"), 0, temperature=0.0))
        while not server.streaming:
            assert batch.step() == []
        batch.drop(7)
        until = time.monotonic() + 20
        while server.streaming and time.monotonic() < until:
            assert batch.step() == []
        assert (server.streaming, server.hung_up) == (0, 1)
        batch.close()


def test_no_more_requests_are_on_their_way_than_allowed() -> None:
    with serving("vllm") as server, engine_for(server, concurrency=3) as engine:
        server.pause = 0.05
        assert engine.batch().free == 3
        batch = engine.batch(20)
        for place in range(12):
            batch.add(place, Request(engine.encode(f"{place}:"), 0, temperature=0.0, max_new_tokens=6))
        done = 0
        while done < 12:
            done += len(batch.step())
        assert server.most_streaming == 3


@pytest.mark.parametrize("fault", [("cut", 3), ("half", 3), ("silence", 3), (503, 0), (429, 0.1), (500, 0)])
def test_what_passes_is_tried_again_and_no_token_is_told_of_twice(fault: tuple[Any, float]) -> None:
    with serving("vllm") as server, engine_for(server, token_timeout=0.3) as engine:
        server.faults = [fault, fault]
        seen: list[int] = []
        found = greedy(engine, watch=lambda token, row: not seen.append(token))  # type: ignore[func-returns-value]
        assert (found.text, found.finish) == (expected("q:"), "eos")
        assert len(found.trace) == len(found.token_ids)
        assert seen == list(found.token_ids[:-1])
        assert len(server.bodies) == 3
        if isinstance(fault[0], str):
            assert server.bodies[1]["prompt"] == [*map(ord, "q:" + found.text[:3])], "it goes on from what arrived"


def test_a_limit_of_the_servers_own_ends_no_continuation() -> None:
    """vLLM takes max_new_tokens from a model's generation config for one; llama.cpp has -n."""
    with serving("vllm") as server, engine_for(server) as engine:
        server.limit = 5
        found = greedy(engine)
        assert (found.text, found.finish) == (expected("q:"), "eos")
        assert [len(body["prompt"]) for body in server.bodies] == [2, 7, 12]
        assert greedy(engine, max_new_tokens=7).finish == "length"
        assert [body["max_tokens"] for body in server.bodies[3:]] == [7, 2]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "NaN"),
        ("positive", "above 0"),
        ("none", "without log-probabilities"),
        ("fewer", "0 log-probabilities"),
        ("model", "'another'"),
    ],
)
def test_a_wrong_reply_is_an_error_of_its_request_and_never_confidence(fault: str, message: str) -> None:
    with serving("vllm") as server, engine_for(server) as engine:
        server.faults = [(fault, 2)] * 3
        batch = engine.batch()
        batch.add(0, Request(engine.encode("q:"), 0, temperature=0.0))
        done: list[tuple[int, Any]] = []
        while not done:
            done += batch.step()
        ((_, error),) = done
        assert isinstance(error, EngineError)
        assert message in str(error)
        assert greedy(engine).finish == "eos", "the next request is served"


def test_endless_silence_ends_with_an_error() -> None:
    with serving("vllm") as server, engine_for(server, timeout=0.2, patience=0.5) as engine:
        server.faults = [("silence", 0)] * 9
        with pytest.raises(EngineError, match="sent nothing for too long"):
            greedy(engine)


def test_a_long_retry_after_is_not_waited_for() -> None:
    with serving("vllm") as server, engine_for(server) as engine:
        server.faults = [(429, 3600)]
        start = time.monotonic()
        with pytest.raises(EngineError, match="429"):
            greedy(engine)
        assert time.monotonic() - start < 3


def test_load_is_shared_and_a_server_that_dies_is_left_out_until_it_is_back() -> None:
    with serving("vllm") as one, serving("vllm") as two, engine_for(one, two) as engine:
        one.pause = two.pause = 0.01
        requests = [Request(engine.encode(f"{n}:"), 0, temperature=0.0, max_new_tokens=8) for n in range(8)]
        wanted = [expected(f"{n}:", 8) for n in range(8)]
        assert [c.text for c in engine.generate(requests)] == wanted
        assert len(one.bodies) == len(two.bodies) == 4
        one.faults = [("cut", 2)] * 4
        assert [c.text for c in engine.generate(requests)] == wanted, "what was on it goes on elsewhere"
        until = time.monotonic() + 5
        while not all(endpoint.up for endpoint in engine.pool.endpoints) and time.monotonic() < until:
            time.sleep(0.02)
        before = len(one.bodies)
        assert [c.text for c in engine.generate(requests)] == wanted
        assert len(one.bodies) > before, "it is asked again"


def test_an_endpoint_that_is_not_like_the_others_is_left_out() -> None:
    with serving("vllm") as one, serving("llama.cpp") as two, engine_for(one, two) as engine:
        requests = [Request(engine.encode(f"{n}:"), 0, temperature=0.0, max_new_tokens=4) for n in range(6)]
        assert [c.text for c in engine.generate(requests)] == [expected(f"{n}:", 4) for n in range(6)]
        assert two.bodies == []


def test_a_server_without_ids_gives_trees_that_are_unfit_for_training(tmp_path: Any) -> None:
    with serving("sglang") as server, engine_for(server) as engine:
        solutions = ChainOfThought().solve([Question("What?", "7", id="q")], engine)
        tree = solutions[0].tree
    assert tree.token_source == "pieces"
    assert min(tree.prompt_ids) >= FIRST_PIECE
    write_trees(tmp_path / "trees.parquet", [tree])
    (again,) = read_trees(tmp_path / "trees.parquet")
    assert again.token_source == "pieces", "the mark is kept"
    with pytest.raises(DataError, match="no token ids"):
        build_pairs([again], PairSettings())
    with pytest.raises(DataError, match="no token ids"):
        check_tokens([again], _Model())


class _Model:
    """As much of a model as `check_tokens` looks at before it refuses."""

    class config:
        @staticmethod
        def get_text_config() -> Any:
            return None

    @staticmethod
    def get_input_embeddings() -> Any:
        return type("Embeddings", (), {"weight": np.zeros((VOCABULARY, 1))})


def test_varentropy_of_a_few_tokens_is_refused_and_left_out_of_all_signals() -> None:
    with serving("vllm") as server, engine_for(server) as engine:
        trace = greedy(engine, max_new_tokens=5).trace
    with pytest.raises(DataError, match="varentropy cannot be had"):
        step_score(trace, "varentropy")
    assert "varentropy" not in signals(trace)


def test_pruning_needs_the_optimistic_bound_to_fail() -> None:
    with serving("vllm") as server, engine_for(server, top_logprobs=3) as engine:

        def solved(prune_below: float) -> Tree:
            settings = PaperTreeSettings(
                children=2, width=1, paths=2, branch_signal="entropy_max", branch_below=1.0, rank_signal="logprob_sum",
                prune_below=prune_below, max_tokens=40,
            )  # fmt: skip
            return PaperTree(settings).solve([Question("q", "7", id="q")], engine)[0].tree

        whole = solved(0.0)
        second = [node for node in whole.nodes if not whole.children(node.id)][-1].id
        optimistic, pessimistic = 1.0, 1.0
        for node in whole.path(second):
            trace = node.step.trace
            assert trace.entropy_upper is not None
            optimistic *= step_score(trace)
            pessimistic *= step_score(replace(trace, entropy=trace.entropy_upper))
        between, above = solved(0.97 * optimistic), solved(1.03 * optimistic)
    assert pessimistic < 0.97 * optimistic, "the bounds are far enough apart for this test"
    assert "pruned" not in {node.decision for node in between.nodes}
    assert "pruned" in {node.decision for node in above.nodes}


def test_a_server_that_shows_the_samplers_probabilities_serves_only_where_they_are_the_models() -> None:
    with serving("sglang", scaled=True) as server, engine_for(server) as engine:
        assert "only temperatures 0 and 1" in engine.features.describe()
        greedy(engine, max_new_tokens=2)
        engine.generate([Request(engine.encode("q:"), 0, temperature=1.0, max_new_tokens=2)])
        with pytest.raises(EngineError, match="SGLANG_RETURN_ORIGINAL_LOGPROB=1"):
            engine.generate([Request(engine.encode("q:"), 0, temperature=0.7, max_new_tokens=2)])


def test_as_many_logprobs_are_asked_for_as_the_server_gives() -> None:
    with serving("vllm", most=5) as server, engine_for(server) as engine:
        assert engine.k == 5
        assert greedy(engine, max_new_tokens=3).trace.k == 5
        with pytest.raises(EngineError, match="rank 6"):
            greedy(engine, rank=6)


def test_an_unknown_vocabulary_model_or_server_is_a_clear_error() -> None:
    with serving("vllm") as server:
        with pytest.raises(ConfigError, match="vocab_size"), engine_for(server, vocab_size=None):
            pass
        with pytest.raises(ConfigError, match="serves fake"):
            OpenAICompatibleEngine(RemoteSettings(urls=(server.url,), vocab_size=9), "other")
        url = server.url
    with pytest.raises(ConfigError, match="answers"):
        OpenAICompatibleEngine(RemoteSettings(urls=(url,), vocab_size=9), "fake")


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with serving("vllm", key="right-secret") as server:
        monkeypatch.setenv("FAKE_KEY", "wrong-secret")
        with pytest.raises(CaspoError) as caught, engine_for(server, key_variable="FAKE_KEY"):
            pass
        assert "FAKE_KEY" in str(caught.value)
        assert "wrong-secret" not in str(caught.value)
        monkeypatch.setenv("FAKE_KEY", "right-secret")
        with caplog.at_level("DEBUG"), engine_for(server, key_variable="FAKE_KEY") as engine:
            assert greedy(engine).finish == "eos"
            assert "secret" not in repr(engine.settings) + repr(engine.features) + repr(vars(engine.pool))
        assert "right-secret" not in caplog.text


@pytest.mark.parametrize("shape", ["vllm", "llama.cpp"])
def test_bos_is_sent_once_as_an_id(shape: str) -> None:
    """In front of a prompt that begins a text, also of one that has it already, and of nothing else."""
    with serving(shape, bos="\x02") as server, engine_for(server) as engine:
        hi = tuple(map(ord, "Hi"))
        assert engine.encode("Hi") == hi
        assert engine.encode("Hi", begins=True) == engine.encode("\x02Hi", begins=True) == (2, *hi)
        assert engine.encode("", begins=True) == (2,)
        engine.generate([Request(engine.encode("q:", begins=True), 0, max_new_tokens=1)])
        assert server.bodies[-1]["prompt"] == [2, ord("q"), ord(":")]
    with serving(shape) as server, engine_for(server) as engine:
        assert engine.encode("Hi", begins=True) == hi


def test_bos_is_left_to_a_server_that_takes_texts(tmp_path: Path) -> None:
    """It puts BOS before a text, whether or not there is one."""
    tokenizer = made("bytes", GEMMA, bos=True)
    tokenizer.save_pretrained(tmp_path)
    with serving("sglang") as server, engine_for(server, tokenizer=str(tmp_path)) as engine:
        sent = [engine.prompt("How?"), engine.encode("<s>Hi", begins=True), engine.encode("Hi", begins=True)]
        assert not engine.features.ids
        engine.generate([Request(ids, 0, max_new_tokens=1) for ids in sent])
        prompts = sorted(body["prompt"] for body in server.bodies)
    assert prompts[1:] == ["Hi", "Hi"]
    assert prompts[0].startswith("<|im_start|>user")


def test_a_known_templates_end_of_turn_ends_a_continuation(tmp_path: Path) -> None:
    """Of a server that would go on: it knows the EOS of the base model only."""
    tokenizer = made("bytes", CHATML, eos="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path)
    end, letter = tokenizer.convert_tokens_to_ids("<|im_end|>"), ord("a")
    with serving("vllm") as server, engine_for(server, tokenizer=str(tmp_path)) as engine:
        assert engine.ends(end, None)
        assert engine.ends(None, b"<|im_end|>")
        assert engine.ends(tokenizer.eos_token_id, None)
        assert not engine.ends(letter, "a")
