"""What a server can do, asked at start-up, so that nothing is assumed of it later.

Three tiny completions and a few look-ups say: whether tokens come as ids and prompts may be sent as ids; how many of the
most probable tokens it shows; whether it tokenises and knows the chat template; how large the vocabulary and the context
are; and whether log-probabilities are the model's own at any temperature, or the sampler's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caspo.core.errors import ConfigError, EngineError
from caspo.engines.remote.pool import Endpoint, Pool
from caspo.engines.remote.reply import Position, positions
from caspo.engines.retries import Passing

__all__ = ["Features", "neutral", "probe"]

_TEXT = "The capital of France is the city of"
_COMPARED = 5
"""Most probable tokens that are compared between temperatures."""
_SAME = 1e-2
"""Nats by which the same log-probability may differ from one request to the next: batches round differently."""


@dataclass(frozen=True)
class Features:
    """What one server offers."""

    server: str
    """llama.cpp, vLLM, SGLang, or what it calls itself."""
    model: str
    """The name that stands in its replies."""
    ids: bool
    """Replies hold token ids, and prompts may be sent as ids."""
    top_logprobs: int
    """Most probable tokens shown at each position."""
    vocab_size: int | None
    """Size of the output layer; None where the server does not tell."""
    context_length: int | None
    """Tokens; None where the server does not tell."""
    tokenizes: bool
    """It has ``/tokenize`` and ``/detokenize``."""
    template: bool
    """It renders chat messages (``/apply-template``, or ``/tokenize`` of messages)."""
    greedy_raw: bool
    """At temperature 0, log-probabilities are the model's own."""
    sampled_raw: bool
    """They are at every temperature and top_p. Otherwise only at temperature 1 and top_p 1."""
    extended: bool
    """It takes fields that OpenAI's API does not have."""

    def describe(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.server}, model {self.model}",
            f"  tokens: {'as ids' if self.ids else 'as text only (trees are unfit for training)'}",
            f"  most probable tokens shown: {self.top_logprobs} of {self.vocab_size or 'an unknown number'}",
            f"  context: {self.context_length or 'unknown'} tokens",
            f"  tokenises: {'yes' if self.tokenizes else 'no'}; chat template: {'yes' if self.template else 'no'}",
            "  log-probabilities: "
            + ("the model's own" if self.sampled_raw else "the sampler's, so only temperatures 0 and 1, without top_p"),
        ]
        return "\n".join(lines)


def neutral(extended: bool, vocab_size: int | None) -> dict[str, Any]:
    """What switches off every sampler that a server or a model's own settings may have switched on.

    Servers ignore the names that they do not know, but OpenAI's refuses them: only where it is ``extended``.
    """
    fields: dict[str, Any] = {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    if extended:
        # vLLM and SGLang: min_p, repetition_penalty; llama.cpp: the others. top_k is understood by all: everything.
        fields |= {
            "top_k": vocab_size or 1 << 20, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0,
            "typical_p": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0, "dry_multiplier": 0.0, "dynatemp_range": 0.0,
            "mirostat": 0, "timings_per_token": True, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
    return fields


async def probe(pool: Pool, endpoint: Endpoint, model: str, most: int) -> Features:
    """Ask one endpoint what it can do; ``most``: most probable tokens wanted at each position.

    Raises:
        ConfigError: it does not serve the model, or shows no log-probabilities.
        EngineError: it does not answer, or refuses us.
    """
    listed = await _listed(pool, endpoint, model)
    meta = listed.get("meta") or {}
    owner = str(listed.get("owned_by") or "")
    asking = _Probing(pool, endpoint, model)
    reply = await asking.first(most)
    greedy = _positions(reply, asking.most)
    shown = max(len(position.top) for position in greedy)
    tokenizes = await _works(pool, endpoint, "/detokenize", {"model": model, "tokens": [1]})
    ids = all(position.taken.token is not None for position in greedy)
    if ids:
        prompt = [token for position in greedy for token in [position.taken.token] * 2]
        ids = await _works(pool, endpoint, "/v1/completions", asking.body(0.0, 1.0, 1) | {"prompt": prompt})
    plain = _positions(await asking(1.0, 1.0, _COMPARED), asking.most)
    odd = _positions(await asking(2.0, 0.9, _COMPARED), asking.most)
    messages = [{"role": "user", "content": "1"}]
    template = await _works(pool, endpoint, "/apply-template", {"messages": messages}) or (
        owner != "llamacpp" and await _works(pool, endpoint, "/tokenize", {"model": model, "messages": messages})
    )
    context = listed.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train")
    return Features(
        server={"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang"}.get(owner, owner or "a server"),
        model=str(reply.get("model") or model),
        ids=ids,
        top_logprobs=shown,
        vocab_size=meta.get("n_vocab"),
        context_length=None if context is None else int(context),
        tokenizes=tokenizes,
        template=template,
        greedy_raw=_agree(greedy[0], plain[0]),
        sampled_raw=_agree(odd[0], plain[0]),
        extended=asking.extended,
    )


class _Probing:
    """Completions of one token of one text."""

    def __init__(self, pool: Pool, endpoint: Endpoint, model: str) -> None:
        self.pool, self.endpoint, self.model = pool, endpoint, model
        self.extended, self.most = True, 1

    async def first(self, most: int) -> dict[str, Any]:
        """The greedy one, with as many fields and log-probabilities as the server takes."""
        for number in dict.fromkeys([most, min(most, 20), min(most, 5), 1]):
            for extended in (True, False):
                self.extended, self.most = extended, number
                try:
                    return await self(0.0, 1.0)
                except Passing:
                    raise
                except EngineError as error:
                    problem = error
        raise problem

    async def __call__(self, temperature: float, top_p: float, most: int | None = None) -> dict[str, Any]:
        body = self.body(temperature, top_p, most=self.most if most is None else min(most, self.most))
        reply: Any = await self.pool.request(self.endpoint, "POST", "/v1/completions", body)
        if not isinstance(reply, dict):
            raise EngineError(f"{self.endpoint.root} did not answer with an object.")
        return reply

    def body(self, temperature: float, top_p: float, most: int) -> dict[str, Any]:
        """A request."""
        sampling = {"temperature": temperature, "top_p": top_p, "seed": 1, "max_tokens": 1, "logprobs": most}
        return {"model": self.model, "prompt": _TEXT, **sampling, **neutral(self.extended, None)}


async def _listed(pool: Pool, endpoint: Endpoint, model: str) -> Mapping[str, Any]:
    """The server's entry for the model; any name will do for a server of one file."""
    reply = await pool.request(endpoint, "GET", "/v1/models")
    entries = [e for e in (reply.get("data") if isinstance(reply, dict) else None) or [] if isinstance(e, dict)]
    for entry in entries:
        if model in (entry.get("id"), *(entry.get("aliases") or ())):
            # Of an adapter vLLM tells the context with the base model only.
            base = next((other for other in entries if entry.get("parent") and other.get("id") == entry["parent"]), {})
            return {**entry, "max_model_len": entry.get("max_model_len") or base.get("max_model_len")}
    if len(entries) == 1 and (entries[0].get("owned_by") == "llamacpp" or str(entries[0].get("id")).endswith(".gguf")):
        return entries[0]
    names = ", ".join(str(entry.get("id")) for entry in entries) or "none at all"
    raise ConfigError(f"{endpoint.root} does not serve the model {model!r}; it serves {names}. Set the model's name.")


async def _works(pool: Pool, endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> bool:
    try:
        await pool.request(endpoint, "POST", path, body)
    except Passing as error:
        if not error.answered:
            raise
        return False
    except EngineError:
        return False
    return True


def _positions(reply: Mapping[str, Any], most: int) -> list[Position]:
    choices = reply.get("choices")
    found = positions(choices[0], most) if isinstance(choices, list) and choices and isinstance(choices[0], dict) else []
    if not found:
        raise ConfigError(
            "The server answers without log-probabilities, and without them there is no confidence. Start it so that "
            "/v1/completions gives them (docs/engines.md names the flags of vLLM, SGLang and llama.cpp)."
        )
    return found


def _agree(one: Position, other: Position) -> bool:
    """Whether two lists of one place hold the same numbers."""
    return all(abs(a.logprob - b.logprob) <= _SAME for a, b in zip(one.top[:_COMPARED], other.top, strict=False))
