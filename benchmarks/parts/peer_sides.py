"""The sides of `peers.py`: ours, and adapters to public implementations, each meant for a process of its own.

Every adapter calls the installed package as its documentation says; nothing of theirs is in here. A side gets one question
at a time, because that is all that most peers offer; sides named `*_batch` get all questions together. All sides continue
the same tokens: `peers.py` found the chat messages that the model's template turns into our engine's prompt.
A token is counted when it is sampled, those of abandoned traces and of EOS included.

What is not covered: packages that need a GPU (`deepconf`, facebookresearch's, is a wrapper of vLLM).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from caspo.answers import extract_answer
from caspo.records import Question

__all__ = ["SIDES", "Answered", "Job", "Side"]

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Job:
    """What every side is asked to do."""

    model: str
    """For our engine: a name or folder."""
    folder: str
    """For peers: the same model, with its chat template and sampling written down."""
    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    """Tokens of each question's prompt."""
    messages: tuple[Messages, ...]
    """The same prompts as chat messages."""
    instruction: str
    samples: int
    max_tokens: int
    temperature: float
    window: int
    seed: int
    recipe: str | None
    server: str | None


@dataclass(frozen=True)
class Answered:
    """What a side made of a job."""

    answers: list[str | None]
    tokens: list[int]
    seconds: list[float]
    """Of each question; one figure where all were solved together. Loading and one question before are not in it."""
    note: str


@dataclass(frozen=True)
class Side:
    """A side and what it needs."""

    run: Callable[[Job], Answered]
    peer: bool = False
    """Not ours: CaT is compared with it."""
    module: str | None = None
    """To be found, or the side is left out."""
    install: str = ""
    """The command that brings it."""


def ours(job: Job, name: str, *, together: bool = False) -> Answered:
    """One of our methods; self-consistency gets the number of samples and the temperature, the others are as they come."""
    from caspo.engines.local.engine import HFEngine
    from caspo.engines.models import load
    from caspo.search import METHODS

    engine = HFEngine(*load(job.model), name=job.model, instruction=job.instruction)
    assert all(engine.prompt(q.text) == ids for q, ids in zip(job.questions, job.prompts, strict=True))
    sampled = name == "self_consistency"
    settings = {"samples": job.samples, "temperature": job.temperature} if sampled else {}
    made = METHODS[name]
    method = made(made.settings_type(max_tokens=job.max_tokens, **settings))
    method.solve(job.questions[:1], engine, job.seed)
    solutions, seconds = [], []
    for batch in [job.questions] if together else [[q] for q in job.questions]:
        engine.forget()
        start = time.perf_counter()
        solutions += method.solve(batch, engine, job.seed)
        seconds.append(time.perf_counter() - start)
    note = f"{job.samples} samples" if sampled else "as it comes"
    return Answered([s.answer for s in solutions], [s.generated_tokens for s in solutions], seconds, note)


class _Counter:
    """Counts the positions for which a model computed logits, one a sequence and pass."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.register_forward_hook(self._add)

    def _add(self, model: Any, args: Any, output: Any) -> None:
        self.tokens += output.logits.shape[0]


def _each(job: Job, solve: Callable[[Messages], tuple[str, int]], note: Callable[[], str]) -> Answered:
    """Ask every question, after one that is not counted; ``solve`` gives text and tokens, or raises and has no answer."""
    failures: list[str] = []

    def attempt(messages: Messages) -> tuple[str, int]:
        try:
            return solve(messages)
        except (IndexError, RuntimeError, ValueError) as error:  # what they raise where their assumptions fail
            failures.append(f"{type(error).__name__}: {error}")
            return "", 0

    attempt(job.messages[0])
    failures.clear()
    answers, tokens, seconds = [], [], []
    for messages in job.messages:
        start = time.perf_counter()
        text, spent = attempt(messages)
        seconds.append(time.perf_counter() - start)
        answers.append(extract_answer(text))
        tokens.append(spent)
    if len(failures) == len(job.messages):
        raise RuntimeError(failures[0])
    failed = f"; {len(failures)} questions failed ({failures[0][:80]})" if failures else ""
    return Answered(answers, tokens, seconds, note() + failed)


def optillm_deepconf(job: Job, *, stopping: bool = False) -> Answered:
    """DeepConf online as optillm has it, with ``samples`` traces where it would take 128, the same share for warm-up.

    As it ships, groups have 2048 tokens: no trace of ours fills one, so none is stopped. With ``stopping`` they have
    ``window`` tokens, and the variant is its cautious one. Its answer is what follows the last full stop of the trace it
    trusts most, or that trace's last 50 characters.
    """
    import torch
    from optillm.deepconf.processor import DeepConfProcessor

    from caspo.engines.models import load

    logging.disable(logging.WARNING)
    model, tokenizer = load(job.folder)
    torch.manual_seed(job.seed)
    counter = _Counter(model)
    settings: dict[str, Any] = {}
    if stopping:
        settings = {"window_size": job.window, "min_trace_length": job.window, "variant": "high"}
    config = {
        "max_traces": job.samples, "warmup_samples": max(2, job.samples // 8), "temperature": job.temperature,
        "max_tokens_per_trace": job.max_tokens, **settings,
    }  # fmt: skip
    runs: list[dict[str, Any]] = []

    def solve(messages: Messages) -> tuple[str, int]:
        counter.tokens = 0
        text, statistics = DeepConfProcessor(model, tokenizer, config).process_online(messages)
        runs.append(statistics)
        # Where it stops a trace it has computed one more position, of which it samples nothing.
        return text, counter.tokens - statistics["early_terminations"]

    def note() -> str:
        traces, stopped = (float(np.mean([r[k] for r in runs[1:]])) for k in ("total_traces", "early_terminations"))
        how = f"variant high, groups of {job.window} tokens" if stopping else "as shipped, groups of 2048 tokens"
        return f"{how}; {traces:.1f} traces a question, {stopped:.1f} of them stopped"

    return _each(job, solve, note)


def optillm_entropy(job: Job) -> Answered:
    """optillm's entropy decoding: one path, whose sampling follows entropy and attention; it needs attention weights."""
    import torch
    from optillm.entropy_decoding import entropy_decode

    from caspo.engines.models import load

    logging.disable(logging.WARNING)
    model, tokenizer = load(job.folder)
    model.set_attn_implementation("eager")
    text = tokenizer.apply_chat_template(job.messages[0], tokenize=False, add_generation_prompt=True)
    if tuple(tokenizer.encode(text)) != job.prompts[0]:
        raise RuntimeError("it would read another prompt: it tokenizes the rendered prompt again, BOS added")
    counter = _Counter(model)
    generator = torch.Generator().manual_seed(job.seed)

    def solve(messages: Messages) -> tuple[str, int]:
        counter.tokens = 0
        text = entropy_decode(
            model, tokenizer, messages, max_new_tokens=job.max_tokens, temperature=job.temperature, generator=generator
        )
        return text, counter.tokens

    return _each(job, solve, lambda: "one path; top-p 0.9, top-k 27, min-p 0.03 are its defaults")


def deepconf_recipe(job: Job) -> Answered:
    """The DeepConf recipe for `generate`, online as its model card says: warm-up, threshold, early stopping.

    It leaves the vote to its user: here every trace with an answer has one vote, as in self-consistency. Written from the
    model card; the recipe itself could not be had where this was written.
    """
    import torch
    from transformers import GenerationConfig

    from caspo.engines.models import load
    from caspo.search.vote import vote

    assert job.recipe is not None
    model, tokenizer = load(job.folder)
    torch.manual_seed(job.seed)
    warm_up = max(2, job.samples // 8)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ends = {tokenizer.eos_token_id, pad}
    common = {
        "do_sample": True, "temperature": job.temperature, "top_k": 0, "top_p": 1.0, "max_new_tokens": job.max_tokens,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad,
        "return_dict_in_generate": True, "enable_conf": True, "output_confidences": True, "window_size": job.window,
    }  # fmt: skip

    def generate(ids: Any, n: int, **settings: Any) -> tuple[Any, Any]:
        made = model.generate(
            input_ids=ids.expand(n, -1),
            attention_mask=torch.ones_like(ids).expand(n, -1),
            generation_config=GenerationConfig(**common, **settings),
            custom_generate=job.recipe,
            trust_remote_code=True,
        )
        return made.sequences[:, ids.shape[1] :], made.confidences

    def solve(messages: Messages) -> tuple[str, int]:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        rows, confidences = generate(ids, warm_up, enable_early_stopping=False)
        lengths = [_length(row, ends) for row in rows.tolist()]
        lowest = [float(c[:n].min()) for c, n in zip(confidences, lengths, strict=True)]
        threshold = {"deepconf_variant": "high", "deepconf_warmup_confidences": lowest}
        more, _ = generate(ids, job.samples - warm_up, enable_early_stopping=True, **threshold)
        traces = [*rows.tolist(), *more.tolist()]
        lengths += [_length(row, ends) for row in more.tolist()]
        answers = [extract_answer(tokenizer.decode(row, skip_special_tokens=True)) for row in traces]
        return f"The answer is {vote(answers, [1.0] * len(traces))[0] or ''}", sum(lengths)

    return _each(job, solve, lambda: f"{warm_up} of {job.samples} traces for warm-up, variant high, plain votes")


def _length(row: Sequence[int], ends: set[int | None]) -> int:
    """Tokens up to the first that ends a sequence, itself included."""
    return next((at + 1 for at, token in enumerate(row) if token in ends), len(row))


def its_hub(job: Job, *, together: bool = False) -> Answered:
    """its_hub's self-consistency through an OpenAI-compatible server, `transformers serve` unless one is given.

    With ``together`` it is asked all questions at once, and sends 32 requests at a time.
    """
    from its_hub import OpenAICompatibleLanguageModel, SelfConsistency
    from its_hub.core.algorithms.self_consistency import create_regex_projection_function

    logging.disable(logging.WARNING)
    random.seed(job.seed)  # it settles ties by chance
    # By its default whole texts vote; this is its way to let answers vote.
    algorithm = SelfConsistency(create_regex_projection_function(r"answer is\s*([^\n]+)"))

    async def ask_all(url: str) -> Answered:
        language_model = OpenAICompatibleLanguageModel(
            url, "none", served, temperature=job.temperature, max_completion_tokens=job.max_tokens
        )
        # Else it sends vLLM's `extra_body`, which other servers refuse.
        language_model.endpoint_type = "openai"

        async def ask(messages: Messages) -> Any:
            return await algorithm.ainfer(language_model, _chat(messages), job.samples, return_response_only=False)

        results, seconds = [], []
        async with language_model:
            await ask(job.messages[0])
            for batch in [job.messages] if together else [[messages] for messages in job.messages]:
                start = time.perf_counter()
                results += await asyncio.gather(*map(ask, batch))
                seconds.append(time.perf_counter() - start)
        answers = [extract_answer(result.the_one["content"]) for result in results]
        return Answered(answers, [result.usage.completion_tokens for result in results], seconds, note)

    served = job.folder if job.server is None else job.model
    note = f"{job.samples} samples, {'transformers serve' if job.server is None else 'the server that was given'}"
    with nullcontext(job.server) if job.server is not None else _served(job) as url:
        return asyncio.run(ask_all(url))


def _chat(messages: Messages) -> list[Any]:
    from its_hub.api import ChatMessage

    return [ChatMessage(**message) for message in messages]


@contextmanager
def _served(job: Job) -> Iterator[str]:
    """`transformers serve` on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", job.folder, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32", "--default-seed", str(job.seed)]
    # Without batching it would answer one request after the other; its cache takes most of the memory if not told otherwise.
    command += ["--continuous-batching", "--cb-max-memory-percent", "0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Any) -> None:
    for _ in range(600):
        if server.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"transformers serve ended: {log.read().decode()[-500:]}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError("transformers serve did not come up within two minutes")


_OPTILLM = "pip install --no-deps optillm==0.4.0 and what it imports, see the docstring of peers.py"
_ITS_HUB = "pip install 'its_hub[lm]==1.2.0' 'transformers[serving]'"

SIDES = {
    "cat": Side(partial(ours, name="cat")),
    "cat_batch": Side(partial(ours, name="cat", together=True)),
    "self_consistency": Side(partial(ours, name="self_consistency")),
    "self_consistency_batch": Side(partial(ours, name="self_consistency", together=True)),
    "chain_of_thought": Side(partial(ours, name="chain_of_thought")),
    "its_hub": Side(its_hub, True, "its_hub", _ITS_HUB),
    "its_hub_batch": Side(partial(its_hub, together=True), True, "its_hub", _ITS_HUB),
    "optillm_deepconf": Side(optillm_deepconf, True, "optillm", _OPTILLM),
    "optillm_deepconf_stopping": Side(partial(optillm_deepconf, stopping=True), True, "optillm", _OPTILLM),
    "optillm_entropy": Side(optillm_entropy, True, "optillm", _OPTILLM),
    "deepconf_recipe": Side(deepconf_recipe, True),
}
"""By their names in figures."""
