"""Engine `openai_compatible` against vLLM's real server, beside the same weights in `hf`, both in float32: the tiny model
that we ship, which knows its task.

The server's own defaults are hostile: its generation config penalises, cuts and ends what we did not ask to be penalised,
cut or ended. Needs `make vllm` (or a Python that has vLLM in CASPO_VLLM_PYTHON); skipped without it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from caspo.core.errors import ConfigError, EngineError
from caspo.engines.base import Completion, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load, resolve
from caspo.engines.remote.engine import OpenAICompatibleEngine
from caspo.engines.remote.settings import RemoteSettings
from caspo.formats.parquet import read_trees
from caspo.records import Tree
from caspo.search import PaperTree, PaperTreeSettings
from caspo.serve.app import create_app
from caspo.serve.scheduler import Scheduler
from caspo.serve.settings import ServeSettings
from caspo.tasks.stories import StoriesTask
from stories_run import write_recipe
from vllm_server import BLOCK, CONTEXT, VLLM, VllmServer, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM.exists(), reason=f"needs vLLM: `make vllm`, or CASPO_VLLM_PYTHON ({VLLM} is not there)"),
]

ROUNDING = 1e-4
"""Nats. Both compute in float32, in another order."""
HOSTILE = {
    "repetition_penalty": 1.5, "temperature": 0.3, "top_k": 3, "top_p": 0.5, "min_p": 0.2, "presence_penalty": 1.0,
    "frequency_penalty": 1.0, "max_new_tokens": 9,
}  # fmt: skip
"""Any of these changes what is sampled, unless each request says otherwise."""
ODD = "Tom has 12 apples, they're 1,000 £!  two  spaces\n\n\ttab naïve ☃ 日本語 🙂 e\u0301 \u0000"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the model, drawn at random."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, _ = load("stories-tiny")
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(adapter: Path) -> Iterator[VllmServer]:
    running = VllmServer(
        resolve("stories-tiny"), "tiny", "--override-generation-config", json.dumps(HOSTILE),
        "--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"adapted={adapter}",
    )  # fmt: skip
    yield running
    running.kill()


@pytest.fixture(scope="module")
def remote(server: VllmServer) -> Iterator[OpenAICompatibleEngine]:
    engine = engine_of(server)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def local() -> HFEngine:
    return HFEngine(*load("stories-tiny"))


def engine_of(server: VllmServer, name: str = "tiny", **settings: Any) -> OpenAICompatibleEngine:
    asked = {"urls": (server.url + "/v1",), "tokenizer": str(resolve("stories-tiny")), **settings}
    return OpenAICompatibleEngine(RemoteSettings.model_validate(asked), name)


def prompts(engine: Any, n: int) -> list[tuple[int, ...]]:
    return [engine.prompt(question.text) for question in StoriesTask().questions("test", n)]


def exact(local: HFEngine, prompt: tuple[int, ...], ids: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(T,) entropies, and log p, of given tokens by hf."""
    with torch.inference_mode():
        logits = local.model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    logs = torch.log_softmax(logits.double(), -1)
    taken = logs.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    return np.asarray(-(logs.exp() * logs).sum(-1)), np.asarray(taken)


def outside(found: Completion, entropy: np.ndarray) -> float:
    """By how much entropies lie outside their bounds, at most; 0 or less: none does."""
    assert found.trace.kind == "top_k"
    assert found.trace.entropy_upper is not None
    return float(np.maximum(found.trace.entropy - entropy, entropy - found.trace.entropy_upper).max())


def same_greedy(remote: OpenAICompatibleEngine, local: HFEngine, n: int) -> None:
    """The same tokens, texts and ends, and every entropy inside its bounds."""
    requests = [Request(prompt, 0, 96, temperature=0.0) for prompt in prompts(local, n)]
    found, wanted = remote.generate(requests), local.generate(requests)
    worst = max(outside(a, b.trace.entropy) for a, b in zip(found, wanted, strict=True))
    print(f"\n{n} questions, {sum(len(a.token_ids) for a in found)} tokens: at most {worst:.1e} nats outside the bounds")
    assert [(c.token_ids, c.text, c.finish) for c in found] == [(c.token_ids, c.text, c.finish) for c in wanted]
    assert worst < ROUNDING
    assert {c.finish for c in found} == {"eos"}, "ends of texts are among them, and their tokens are measured"
    assert {c.token_ids[-1] for c in found} <= local.eos_ids


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)


def test_the_probe_sees_what_vllm_offers(remote: OpenAICompatibleEngine) -> None:
    found = remote.features
    assert (found.server, found.model, found.ids, found.top_logprobs) == ("vLLM", "tiny", True, 20)
    assert found.tokenizes
    assert found.template
    assert found.greedy_raw
    assert found.sampled_raw
    assert remote.context_length == CONTEXT


def test_no_more_log_probabilities_are_asked_for_than_the_server_allows(server: VllmServer) -> None:
    engine = engine_of(server, top_logprobs=50)
    assert (engine.features.top_logprobs, engine.k) == (20, 20)
    engine.close()


def test_greedy_answers_are_those_of_hf_whatever_the_servers_defaults(
    remote: OpenAICompatibleEngine, local: HFEngine
) -> None:
    same_greedy(remote, local, 40)


def test_sampled_tokens_have_the_models_probabilities_whatever_the_temperature(
    remote: OpenAICompatibleEngine, local: HFEngine
) -> None:
    requests = [Request(p, i, 40, temperature=1.5, top_p=0.95, top_k=5) for i, p in enumerate(prompts(local, 12))]
    worst, texts = 0.0, set[str]()
    for request, found in zip(requests, remote.generate(requests), strict=True):
        entropy, taken = exact(local, request.prefix_ids, found.token_ids)
        worst = max(worst, outside(found, entropy))
        np.testing.assert_allclose(found.trace.logprob, taken, atol=10 * ROUNDING)
        texts.add(found.text)
    print(f"\nat most {worst:.1e} nats outside the bounds")
    assert worst < ROUNDING
    assert len(texts) == 12


def test_a_rank_takes_the_token_that_was_next_best(remote: OpenAICompatibleEngine, local: HFEngine) -> None:
    (prompt,) = prompts(local, 1)
    for rank in (2, 3):
        request = Request(prompt, 0, 5, temperature=0.0, rank=rank)
        assert remote.generate([request])[0].token_ids == local.generate([request])[0].token_ids


def test_without_a_tokenizer_prompts_and_bytes_are_the_same(server: VllmServer, local: HFEngine) -> None:
    """The server tokenises then, and what parts of characters are is asked of it."""
    engine = engine_of(server, tokenizer=None, vocab_size=local.vocab_size)
    assert prompts(engine, 3) == prompts(local, 3)
    ids = local.encode(ODD)
    assert engine.encode(ODD) == ids
    assert engine.pieces(ids) == local.pieces(ids)
    same_greedy(engine, local, 4)
    engine.close()


def test_bytes_of_parts_of_characters_are_those_of_hf(remote: OpenAICompatibleEngine, local: HFEngine) -> None:
    """At a temperature at which the model writes nearly anything, behind half a character."""
    half = local.encode("\U0001f642")[:-1]
    requests = [Request((*local.prompt("?"), *half), i, 40, temperature=2.0) for i in range(12)]
    cut = 0
    for found in remote.generate(requests):
        assert remote.pieces(found.token_ids) == local.pieces(found.token_ids)
        assert b"".join(local.pieces(found.token_ids)).decode(errors="replace") == found.text
        cut += sum(not _whole(piece) for piece in local.pieces(found.token_ids))
    assert cut > 0


def _whole(piece: bytes) -> bool:
    return piece.decode(errors="ignore").encode() == piece


def test_an_adapter_has_its_own_name(server: VllmServer, adapter: Path, local: HFEngine) -> None:
    from peft import PeftModel

    model, tokenizer = load("stories-tiny")
    merged = HFEngine(PeftModel.from_pretrained(model, adapter).merge_and_unload(), tokenizer)
    engine = engine_of(server, "adapted")
    assert (engine.features.model, engine.context_length) == ("adapted", CONTEXT)
    requests = [Request(prompt, 0, 24, temperature=0.0) for prompt in prompts(local, 6)]
    found, wanted = engine.generate(requests), merged.generate(requests)
    assert [c.token_ids for c in found] == [c.token_ids for c in wanted]
    assert [c.token_ids for c in found] != [c.token_ids for c in local.generate(requests)]
    assert max(outside(a, b.trace.entropy) for a, b in zip(found, wanted, strict=True)) < 10 * ROUNDING
    engine.close()
    with pytest.raises(ConfigError, match="it serves tiny, adapted"):
        engine_of(server, "another")


def test_branches_of_a_search_are_continued_from_the_servers_cache(
    server: VllmServer, remote: OpenAICompatibleEngine, local: HFEngine
) -> None:
    signals = {"branch_signal": "entropy_max", "rank_signal": "logprob_sum"}
    method = PaperTree(PaperTreeSettings(max_tokens=96, paths=2, branch_below=1.0, prune_below=0.05, **signals))
    before = [server.metric(f"vllm:prefix_cache_{name}") for name in ("hits", "queries")]
    solutions = method.solve(StoriesTask().questions("test", 8), remote)
    hits, queries = (
        server.metric(f"vllm:prefix_cache_{name}") - was for name, was in zip(("hits", "queries"), before, strict=True)
    )
    print(f"\n{hits:.0f} of {queries:.0f} prompt tokens were there, in blocks of {BLOCK}")
    assert hits > 0.4 * queries
    for solution in solutions:
        assert solution.tree.token_source == "model"
        held_by_bounds(solution.tree, local)


def held_by_bounds(tree: Tree, local: HFEngine) -> None:
    """Every path's tokens are measured as hf measures them."""
    for node in tree.nodes:
        prefix = (*tree.prompt_ids, *(token for earlier in tree.path(node.id)[:-1] for token in earlier.step.token_ids))
        entropy, taken = exact(local, prefix, tuple(node.step.token_ids))
        trace = node.step.trace
        assert trace.entropy_upper is not None
        assert (trace.entropy - ROUNDING < entropy).all()
        assert (entropy < trace.entropy_upper + ROUNDING).all()
        np.testing.assert_allclose(trace.logprob, taken, atol=10 * ROUNDING)


def test_what_is_dropped_or_abandoned_is_no_longer_decoded(server: VllmServer, remote: OpenAICompatibleEngine) -> None:
    prompt = remote.prompt("Count.")
    batch = remote.batch()
    for place in range(8):
        watch = (lambda token, row: False) if place == 7 else None
        batch.add(place, Request(prompt, place, 900, temperature=2.0, watch=watch))
    done: list[tuple[int, Any]] = []
    while not done:
        done += batch.step()
    assert [(place, over.finish) for place, over in done] == [(7, "abandoned")]
    batch.close()
    wait_for(lambda: server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0, 120)


def test_a_client_that_vanishes_leaves_nothing_behind(server: VllmServer) -> None:
    engine = engine_of(server)
    batch = engine.batch()
    for place in range(4):
        batch.add(place, Request(engine.prompt("Count."), place, 900, temperature=2.0))
    wait_for(lambda: batch.step() == [] and server.metric("vllm:num_requests_running") > 0)
    engine.close()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, 120)


def test_limits_of_a_request(remote: OpenAICompatibleEngine) -> None:
    with pytest.raises(EngineError, match="no room in the context"):
        remote.generate([Request((5,) * CONTEXT, 0)])
    (full,) = remote.generate([Request((5, 6) * (CONTEXT // 2 - 1), 0, 50)])
    assert len(full.token_ids) == 2 or full.finish == "eos"
    (long,) = remote.generate([Request((5, 6), 0, 10 * CONTEXT, temperature=0.0)])
    assert len(long.token_ids) == CONTEXT - 2 or long.finish == "eos"


def test_more_requests_than_the_server_takes_at_once(remote: OpenAICompatibleEngine, local: HFEngine) -> None:
    engine = engine_of_many(remote)
    requests = [Request(prompt, 0, 20, temperature=0.0) for prompt in prompts(local, 80)]
    found, wanted = engine.generate(requests), local.generate(requests)
    assert [c.token_ids for c in found] == [c.token_ids for c in wanted]
    engine.close()


def engine_of_many(remote: OpenAICompatibleEngine) -> OpenAICompatibleEngine:
    settings = remote.settings.model_copy(update={"concurrency": 80})
    return OpenAICompatibleEngine(settings, "tiny")


def test_trees_annotated_through_a_server_that_dies_are_whole_and_fit_for_training(
    server: VllmServer, local: HFEngine, tmp_path: Path, caspo: Any
) -> None:
    """Killed in the middle and started again, the run goes on; its trees give pairs, and hf scores them."""
    model = {
        "engine": "openai_compatible", "name": "tiny", "urls": [server.url], "tokenizer": str(resolve("stories-tiny")),
        "patience": 900,
    }  # fmt: skip
    recipe = write_recipe(tmp_path / "recipe.yaml", model=model, annotate={"questions": 24, "samples": 4})
    before = server.metric("vllm:request_success")

    def dies() -> None:
        wait_for(lambda: server.metric("vllm:request_success") > before + 20)
        server.kill()
        server.start()

    killer = threading.Thread(target=dies)
    killer.start()
    code, _, err = caspo("annotate", recipe, "--out", tmp_path / "out")
    killer.join()
    assert code == 0, err
    assert server.metric("vllm:request_success") > 0, "the new one had something to do"
    trees = read_trees(tmp_path / "out" / "tree")
    assert len(trees) == 24
    for tree in trees:
        assert tree.token_source == "model"
        assert tree.prompt_ids == local.prompt(tree.question.text)
        held_by_bounds(tree, local)
    code, _, err = caspo("pairs", recipe, "--trees", tmp_path / "out" / "tree", "--out", tmp_path / "pairs")
    assert code == 0, err
    own = write_recipe(tmp_path / "own.yaml")
    code, _, err = caspo("annotate", own, "--rescore", tmp_path / "out" / "tree", "--out", tmp_path / "scored")
    assert code == 0, err
    for tree, again in zip(trees, read_trees(tmp_path / "scored" / "tree"), strict=True):
        for node, exactly in zip(tree.nodes, again.nodes, strict=True):
            assert node.step.token_ids == exactly.step.token_ids
            np.testing.assert_allclose(node.step.trace.logprob, exactly.step.trace.logprob, atol=1e-3)


def test_caspo_serve_stands_in_front_of_it(remote: OpenAICompatibleEngine, local: HFEngine) -> None:
    (question,) = StoriesTask().questions("test", 1)
    scheduler = Scheduler(remote, active=8, waiting=8)
    app = create_app(scheduler, remote, ServeSettings(model="tiny", instruction="", port=0))
    scheduler.start()

    async def chat(**fields: Any) -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:
            body = {"model": "tiny", "messages": [{"role": "user", "content": question.text}], **fields}
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, response.text
            return response.json()

    try:
        greedy = asyncio.run(chat(temperature=0, max_tokens=96))
        tree = asyncio.run(chat(max_tokens=96))
    finally:
        scheduler.stop(0.0)
    messages = [{"role": "user", "content": question.text}]
    (wanted,) = local.generate([Request(local.chat(messages), 0, 96, temperature=0.0)])
    assert greedy["choices"][0]["message"]["content"].strip() == wanted.text.strip()
    assert tree["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def processed() -> Iterator[VllmServer]:
    """It shows the sampler's log-probabilities, and its sampler penalises unless it is told not to."""
    options = ("--logprobs-mode", "processed_logprobs", "--override-generation-config", json.dumps(HOSTILE))
    running = VllmServer(resolve("stories-tiny"), "tiny", *options)
    yield running
    running.kill()


def test_of_processed_log_probabilities_only_those_are_taken_that_are_the_models(
    processed: VllmServer, local: HFEngine
) -> None:
    engine = engine_of(processed)
    assert engine.features.greedy_raw
    assert not engine.features.sampled_raw
    same_greedy(engine, local, 8)
    (prompt,) = prompts(local, 1)
    (found,) = engine.generate([Request(prompt, 3, 40, temperature=1.0)])
    entropy, taken = exact(local, prompt, found.token_ids)
    assert outside(found, entropy) < ROUNDING
    np.testing.assert_allclose(found.trace.logprob, taken, atol=10 * ROUNDING)
    for odd in ({"temperature": 0.7}, {"top_p": 0.9}):
        with pytest.raises(EngineError, match="--logprobs-mode raw_logprobs"):
            engine.generate([Request(prompt, 3, 40, **odd)])  # type: ignore[arg-type]
    engine.close()


def test_logits_are_not_taken_for_log_probabilities() -> None:
    running = VllmServer(resolve("stories-tiny"), "tiny", "--logprobs-mode", "raw_logits")
    try:
        with pytest.raises(ConfigError, match=r"above 0 .*--logprobs-mode"):
            engine_of(running)
    finally:
        running.kill()


def test_the_engine_vllm_in_process() -> None:
    """`test_engine_vllm.py`, by the Python that has vLLM."""
    tests = Path(__file__).parent
    command = [str(VLLM), "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", str(tests / "test_engine_vllm.py")]
    env = environment() | {"PYTHONPATH": str(tests.parent / "src")}
    done = subprocess.run(command, cwd=tests.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
