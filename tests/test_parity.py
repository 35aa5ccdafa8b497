"""Three ways to the entropies of the same tokens: `hf`, `llama_cpp` in this process, and llama.cpp's real server.

On float32 weights (the tiny model that we ship, written as GGUF) all three agree to rounding. On SmolLM2's four-bit weights
`hf` computes with their exact values, and llama.cpp rounds activations to eight bits before each product: that is what the
wider tolerance is for; its two builds differ from one another as much, by the order of their sums. The server gives every
token's probability, from which its entropy is exact.
Run with ``-s`` to see the differences.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.engines.base import Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import gguf_file, load
from caspo.tasks.stories import StoriesTask

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

from caspo.engines.llama.engine import LlamaCppEngine
from gguf_file import write_gguf

pytestmark = pytest.mark.slow


@contextmanager
def server(file: Path) -> Iterator[str]:
    """The server's address."""
    script = Path(__file__).parent / "llama_server_float32.py"
    with subprocess.Popen(
        [sys.executable, script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        try:
            said = (line.split() for line in running.stdout)
            yield next(words[1] for words in said if words[:1] == ["LISTENING"])
        finally:
            running.kill()


def asked(address: str, ids: tuple[int, ...], vocabulary: int) -> tuple[int, float]:
    """The server's next token after ``ids``, and the entropy there."""
    body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "return_tokens": True}
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.load(answer)["completion_probabilities"][0]
    logp = np.array([one["logprob"] for one in found["top_logprobs"]], dtype=np.float64)
    assert len(logp) == vocabulary
    p = np.exp(logp)
    assert abs(p.sum() - 1) < 1e-3
    return int(found["id"]), float(-(p * np.maximum(logp, -1e4)).sum())


def entropies(hf: HFEngine, file: Path, questions: int, tokens: int) -> dict[str, np.ndarray[Any, Any]]:
    """Of each engine, along the greedy continuations of `hf`; and how often each takes its token."""
    prompts = [hf.prompt(question.text) for question in StoriesTask().questions("test", questions)]
    done = hf.generate([Request(ids, 0, tokens, temperature=0) for ids in prompts])
    prefixes = [
        prompt + completion.token_ids[:t]
        for prompt, completion in zip(prompts, done, strict=True)
        for t in range(len(completion.token_ids))
    ]
    taken = np.array([token for completion in done for token in completion.token_ids])
    ours = LlamaCppEngine(file, cells=4096)
    single = ours.generate([Request(ids, 0, 1, temperature=0, keep=True) for ids in prefixes])
    with server(file) as address:
        remote = [asked(address, ids, ours.tokenizer.size) for ids in prefixes]
    return {
        "hf": np.concatenate([completion.trace.entropy for completion in done]),
        "llama_cpp": np.array([completion.trace.entropy[0] for completion in single]),
        "server": np.array([entropy for _, entropy in remote]),
        "llama_cpp takes": np.array([completion.token_ids[0] for completion in single]) == taken,
        "server takes": np.array([token for token, _ in remote]) == taken,
    }


def differences(found: dict[str, np.ndarray[Any, Any]]) -> dict[tuple[str, str], float]:
    """The largest of each pair; printed with the mean."""
    largest = {}
    for a, b in (("hf", "llama_cpp"), ("hf", "server"), ("llama_cpp", "server")):
        difference = np.abs(found[a] - found[b])
        print(f"\n{a} - {b}: {len(difference)} tokens, max {difference.max():.2e}, mean {difference.mean():.2e} nats")
        largest[a, b] = float(difference.max())
    print(f"same token: llama_cpp {found['llama_cpp takes'].mean():.3f}, server {found['server takes'].mean():.3f}")
    return largest


def test_the_same_float32_weights_give_the_same_entropies(tmp_path: Path) -> None:
    model, tokenizer = load("stories-tiny")
    found = entropies(HFEngine(model, tokenizer), write_gguf(tmp_path / "tiny.gguf", model, tokenizer), 8, 40)
    assert max(differences(found).values()) < 1e-3
    assert found["llama_cpp takes"].all()
    assert found["server takes"].all()


def test_the_same_four_bit_weights_give_nearly_the_same_entropies() -> None:
    model, tokenizer = load("smollm2-135m")
    found = entropies(HFEngine(model, tokenizer), gguf_file("smollm2-135m"), 4, 12)
    assert max(differences(found).values()) < 0.5
    assert max(np.abs(found["hf"] - found[name]).mean() for name in ("llama_cpp", "server")) < 0.1
    assert found["llama_cpp takes"].mean() > 0.9
