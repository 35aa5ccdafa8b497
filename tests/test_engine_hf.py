"""Engine `hf` against transformers' own generate and against a plain forward pass, on tiny random models."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from caspo.core.errors import DataError, EngineError, ModelError
from caspo.engines.base import Completion, Request, Watch
from caspo.engines.local.engine import HFEngine
from caspo.engines.local.kv import PrefixStore, RowPool
from caspo.engines.pieces import Pieces
from caspo.engines.prompts import PLAIN_TEMPLATE
from caspo.records import Measured
from caspo.steps import text_of
from small_tokenizers import made
from tiny import VOCABULARY, build, tokenizer

FAMILIES = ("llama", "qwen3", "gemma3", "mistral")
OTHERS = (
    "qwen2", "phi3", "olmo3", "qwen3_moe", "gemma2", "gpt_oss", "bloom", "mpt", "falcon", "opt", "gpt2", "gpt_neox", "phi",
)  # fmt: skip
"""What attends eagerly (caps, sinks, ALiBi), has windows, or learnt or counted positions."""


def prefixes(n: int, seed: int = 0, low: int = 2, high: int = 30) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(t) for t in rng.integers(2, VOCABULARY, rng.integers(low, high))) for _ in range(n)]


def sampled(n: int, **more: Any) -> list[Request]:
    """Ragged requests that sample: prefixes and lengths differ, some prefixes are shared."""
    found = prefixes(n)
    return [
        Request(found[i - i % 3], seed=1000 + i, **{"max_new_tokens": 4 + i % 13, **more})  # type: ignore[arg-type]
        for i in range(n)
    ]


def engine(kind: str = "llama", **more: Any) -> HFEngine:
    return HFEngine(build(kind), tokenizer(), **more)


def same(a: Completion, b: Completion, tolerance: float = 1e-4) -> None:
    assert a.token_ids == b.token_ids
    assert (a.text, a.finish) == (b.text, b.finish)
    for name in ("entropy", "logprob", "max_logprob", "margin", "varentropy"):
        np.testing.assert_allclose(getattr(a.trace, name), getattr(b.trace, name), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_greedy_equals_generate(kind: str) -> None:
    """The decode loop is the model's: the same tokens as `model.generate` on the same ragged batch."""
    ours = engine(kind)
    asked = prefixes(6)
    width = max(map(len, asked))
    ids = torch.tensor([[1] * (width - len(p)) + list(p) for p in asked])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in asked])
    theirs = ours.model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=1)[:, width:]
    for mine, row in zip(ours.generate([Request(p, 0, 20, temperature=0) for p in asked]), theirs.tolist(), strict=True):
        end = row.index(0) + 1 if 0 in row else 20
        assert list(mine.token_ids) == row[:end]


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_row_does_not_depend_on_its_neighbours(kind: str, top_p: float) -> None:
    """Batch of 1, batch of 24, and a batch of which only 3 fit at a time: the same tokens and traces."""
    model = build(kind)
    requests = sampled(24, top_p=top_p)
    together = HFEngine(model, tokenizer()).generate(requests)
    trickled = HFEngine(model, tokenizer(), max_rows=3).generate(requests)
    for a, b in zip(together, trickled, strict=True):
        same(a, b)
    alone = HFEngine(model, tokenizer(), store_bytes=0)
    for i in (0, 7, 23):
        same(together[i], alone.generate([requests[i]])[0])


def test_settings_of_neighbours_do_not_matter() -> None:
    """A row without top-p draws the same token beside rows with top-p, other temperatures or none."""
    model = build("llama")
    requests = sampled(8)
    mixed = [
        request if i % 2 == 0 else Request(request.prefix_ids, request.seed, 9, (0.0, 0.7)[i % 4 // 2], 0.5)
        for i, request in enumerate(requests)
    ]
    alone = HFEngine(model, tokenizer()).generate(requests)
    beside = HFEngine(model, tokenizer()).generate(mixed)
    for i in range(0, 8, 2):
        same(alone[i], beside[i])


@pytest.mark.parametrize("kind", FAMILIES)
def test_continuing_equals_recomputing(kind: str) -> None:
    """Steps continued from kept keys and values equal the same steps by an engine that knows nothing."""
    model = build(kind)
    kept = HFEngine(model, tokenizer())
    prefix = prefixes(1, low=9)[0]
    for depth in range(4):
        requests = [Request(prefix, 77 * depth + i, 6, keep=True) for i in range(5)]
        continued = kept.generate(requests)
        for a, b in zip(continued, HFEngine(model, tokenizer()).generate(requests), strict=True):
            same(a, b)
        prefix += next(c.token_ids for c in continued if c.finish != "eos")


@pytest.mark.parametrize("kind", OTHERS)
def test_a_batch_equals_forward_passes_one_by_one(kind: str) -> None:
    """Ragged rows, decoded together and then continued from what was kept: each has the log-probabilities of its text alone
    through the model."""
    ours = engine(kind)
    first = [replace(request, keep=True) for request in sampled(10)]
    done = ours.generate(first)
    more = [Request(a.prefix_ids + c.token_ids, 7, 9) for a, c in zip(first, done, strict=True) if c.finish != "eos"]
    assert more
    for request, found in zip([*first, *more], [*done, *ours.generate(more)], strict=True):
        with torch.inference_mode():
            logits = ours.model(input_ids=torch.tensor([request.prefix_ids + found.token_ids])).logits
        logp = logits[0, len(request.prefix_ids) - 1 : -1].double().log_softmax(-1)
        expected = logp.gather(1, torch.tensor(found.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(found.trace.logprob, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_trace_equals_a_full_forward_pass(kind: str) -> None:
    """Every statistic is of the raw distribution, whatever the temperature; checked in float64."""
    ours = engine(kind)
    request = Request(prefixes(1, seed=4)[0], 5, 24, temperature=0.6, top_p=0.8)
    done = ours.generate([request])[0]
    ids = torch.tensor([request.prefix_ids + done.token_ids])
    with torch.inference_mode():
        logits = ours.model(input_ids=ids).logits[0, len(request.prefix_ids) - 1 : -1].double()
    logp = logits.log_softmax(-1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    best = p.topk(2).values
    expected = {
        "entropy": entropy,
        "logprob": logp.gather(1, torch.tensor(done.token_ids)[:, None])[:, 0],
        "max_logprob": logp.max(-1).values,
        "margin": best[:, 0] - best[:, 1],
        "varentropy": (p * (logp + entropy[:, None]) ** 2).sum(-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(done.trace, name), values.numpy(), atol=1e-4, err_msg=name)


def forced(script: dict[int, int]) -> tuple[HFEngine, tuple[int, ...]]:
    """An engine whose next token depends on the last one as ``script`` says; and a two-token prompt."""
    ours = engine()
    real = ours.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = real(*args, **kwargs)
        last = kwargs["input_ids"][:, -1]
        out.logits = torch.full_like(out.logits, -20.0)
        for row, token in enumerate(last.tolist()):
            out.logits[row, -1, script.get(token, 5)] = 20.0
        return out

    ours.model.forward = forward
    return ours, (2, 3)


def chain(*texts: str) -> dict[int, int]:
    """Tokens that spell the given texts, one each, after token 3, then EOS."""
    ids = [3]
    for text in texts:
        found = tokenizer()(text, add_special_tokens=False)["input_ids"]
        assert len(found) == 1, f"{text!r} is {len(found)} tokens"
        ids += found
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, [*ids[1:], 0], strict=True))


def test_stop_string() -> None:
    """A step ends with its stop string, which is part of it; what only white space precedes does not end it."""
    ours, prefix = forced(chain("\n", "B", "q", "\t", "Z"))
    done = ours.generate([Request(prefix, 0, 9, 0, stop=("\t",))])[0]
    assert (done.text, done.finish) == ("\nBq\t", "stop")
    done = ours.generate([Request(prefix, 0, 9, 0, stop=("\n", "\t"))])[0]
    assert (done.text, done.finish) == ("\nBq\t", "stop"), "a leading line break does not end the step"


def test_stop_string_across_tokens() -> None:
    """A stop string that several tokens make up is found."""
    ours, prefix = forced(chain("B", "q", "Z", "K"))
    done = ours.generate([Request(prefix, 0, 9, 0, stop=("qZ",))])[0]
    assert (done.text, done.finish) == ("BqZ", "stop")


def test_eos_is_a_token_but_not_text() -> None:
    """EOS counts as a token with a trace, and never shows in the text."""
    ours, prefix = forced(chain("B", "q"))
    done = ours.generate([Request(prefix, 0, 9, 0)])[0]
    assert (done.text, done.finish) == ("Bq", "eos")
    assert done.token_ids[-1] == 0
    assert len(done.trace) == len(done.token_ids) == 3
    assert ours.pieces(done.token_ids) == [b"B", b"q", b""]


def test_token_limit() -> None:
    """`max_new_tokens` is exact, and a stop string in the last allowed token still counts as a stop."""
    ours, prefix = forced(chain("B", "q", "\n"))
    done = ours.generate([Request(prefix, 0, 2, 0, stop=("\n",)), Request(prefix, 0, 3, 0, stop=("\n",))])
    assert [(d.text, d.finish) for d in done] == [("Bq", "length"), ("Bq\n", "stop")]
    done = ours.generate([Request(prefix, 0, 1, 0, stop=("B",))])
    assert done[0].finish == "length", "a stop string with nothing before it is no stop"


def test_context_limit() -> None:
    """Decoding ends where the context ends; there even a stop is `length`, since nothing can go on from there."""
    ours, prefix = forced(chain("B", "q", "\n"))
    ours.decoder.context_length = 5
    done = ours.generate([Request(prefix, 0, 9, 0, stop=("\n",))])[0]
    assert (len(done.token_ids), done.finish) == (3, "length")
    ours.decoder.context_length = 4
    assert len(ours.generate([Request(prefix, 0, 9, 0)])[0].token_ids) == 2
    with pytest.raises(EngineError, match=r"leaves no room in the context"):
        ours.generate([Request((2, 3, 4, 5), 0)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits(bad: float) -> None:
    """NaN or infinite logits are an error, never a token."""
    ours = engine()
    with torch.no_grad():
        ours.model.lm_head.weight[7] = bad
    with pytest.raises(EngineError, match="NaN or infinite logits"):
        ours.generate(sampled(3))


def test_no_requests() -> None:
    """Nothing asked, nothing done."""
    assert engine().generate([]) == []


@pytest.mark.parametrize("max_rows", [3, 64])
def test_requests_added_on_the_way_equal_separate_calls(max_rows: int) -> None:
    """What a completion leads to is sampled in the same batch, takes the next places, and is what a call of its own gives,
    however long the texts grow and however few rows fit."""
    model = build("llama")
    first = sampled(9, stop=("\t",))
    ours = HFEngine(model, tokenizer(), max_rows=max_rows)
    asked = list(first)

    def follow(place: int, completion: Completion) -> list[Request]:
        assert len(asked) >= place
        if completion.finish == "eos" or len(asked[place].prefix_ids) > 120:
            return []
        more = [
            Request(asked[place].prefix_ids + completion.token_ids, seed=7 * place + i, max_new_tokens=60) for i in (1, 2)
        ]
        asked.extend(more[: 1 + (place % 3 == 0)])
        return more[: 1 + (place % 3 == 0)]

    together = ours.generate(first, follow)
    assert len(together) == len(asked) > 3 * len(first)
    assert max(len(r.prefix_ids) + len(c.token_ids) for r, c in zip(asked, together, strict=True)) > 150
    for request, completion in list(zip(asked, together, strict=True))[::5]:
        same(completion, HFEngine(model, tokenizer()).generate([request])[0])


def test_an_error_of_a_callback_ends_the_call() -> None:
    """A callback that raises, or adds what cannot be served, raises out of the call; the engine works afterwards."""
    ours = engine()

    def fail(place: int, completion: Completion) -> list[Request]:
        return [Request((), 0)]

    with pytest.raises(EngineError, match="at least one token"):
        ours.generate(sampled(8), fail)
    same(ours.generate(sampled(8))[3], engine().generate(sampled(8))[3])


def test_prompts() -> None:
    """An empty question is an error; a model without a chat template gets the plain one; templates are used."""
    ours = engine()
    with pytest.raises(DataError, match="question is empty"):
        ours.prompt(" \n")
    with_template = ours.prompt("How many?")
    ours.tokenizer = copy.deepcopy(ours.tokenizer)
    ours.tokenizer.chat_template = None
    assert ours.prompt("How many?") == with_template
    assert text_of(ours.pieces(with_template)) == "Question: How many?\nAnswer:\n"
    ours.tokenizer.chat_template = PLAIN_TEMPLATE.replace("Question: ", "<") + "{{ messages[0]['content'] }}"
    assert "step by step" in text_of(ours.pieces(ours.prompt("How many?")))


def test_a_template_without_system_role() -> None:
    """Where a template refuses system messages, the instruction stands before the question."""
    ours = engine(instruction="Be brief.")
    ours.tokenizer = copy.deepcopy(ours.tokenizer)
    ours.tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN_TEMPLATE
    )
    assert text_of(ours.pieces(ours.prompt("Why?"))) == "Question: Be brief.\n\nWhy?\nAnswer:\n"


def test_pieces_keep_their_spaces() -> None:
    """Joined pieces are the text, also where a tokenizer drops the space before what it decodes (Llama 2, Mistral)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<e>", "?", "▁a", "▁dog", "▁runs"])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    ours = HFEngine(build("llama"), PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>"))
    ids = ours.tokenizer("a dog runs")["input_ids"]
    assert ours.tokenizer.decode([ids[1]]) == "dog"
    assert ours.pieces([*ids, 0]) == [b" a", b" dog", b" runs", b""]


@pytest.mark.parametrize("style", ["bytes", "sentencepiece"])
def test_pieces_of_added_tokens(style: str) -> None:
    """Added tokens are text too: a mark of thinking as it is, Gemma's runs of spaces (written as "▁▁") as spaces."""
    small = made(style)
    small.add_tokens([AddedToken("<think>", special=False), AddedToken("▁▁▁", special=False, normalized=False)])
    ids = small.convert_tokens_to_ids(["<think>", "▁▁▁"])
    ours = Pieces(small)
    assert [ours[i] for i in ids] == [b"<think>", b"   " if style == "sentencepiece" else "▁▁▁".encode()]
    text = "1 √⅓ <think> ✅ 日本"
    assert text_of(ours[i] for i in small(text, add_special_tokens=False)["input_ids"]).lstrip() == text


def test_no_eos() -> None:
    """A model and tokenizer without EOS would never end: refused."""
    bare = copy.deepcopy(tokenizer())
    bare.eos_token = None
    model = build("llama", eos_token_id=None)
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        HFEngine(model, bare)


def test_other_architectures_are_refused() -> None:
    """State-space, linear-attention and encoder-decoder models keep another state than keys and values."""
    import transformers as tf

    mamba = tf.MambaForCausalLM(tf.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4))
    t5 = tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    linear = build("llama")
    linear.config.layer_types = ["linear_attention", "full_attention"]
    for model in (mamba, t5, linear):
        with pytest.raises(ModelError, match="full or sliding attention"):
            HFEngine(model, tokenizer())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_branch_in_the_middle_costs_no_prefill(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any place of a kept continuation another token may be taken: the same as recomputed, nothing recomputed."""
    model = build(kind)
    kept, fresh = HFEngine(model, tokenizer()), HFEngine(model, tokenizer())
    prefix = prefixes(1, low=9)[0]
    (first,) = kept.generate([Request(prefix, 0, 12, temperature=0.0, keep=True)])
    monkeypatch.setattr(kept.decoder, "_prefill", None)  # calling it would fail
    requests = [
        Request(prefix + first.token_ids[:at], 0, 6, temperature=0.0, rank=rank)
        for at in range(0, len(first.token_ids), 3)
        for rank in (1, 2, 5)
    ]
    for request, a, b in zip(requests, kept.generate(requests), fresh.generate(requests), strict=True):
        same(a, b)
        if request.rank == 1:
            at = len(request.prefix_ids) - len(prefix)
            assert a.token_ids[: len(first.token_ids) - at] == first.token_ids[at : at + len(a.token_ids)]
        else:
            assert a.trace.logprob[0] < a.trace.max_logprob[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_prompts_share_is_computed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A common beginning is prefilled once, for later calls too, and the tokens are those of separate prompts."""
    ours = engine(kind)
    shared = prefixes(1, seed=5, low=40, high=41)[0]
    asked = [Request((*shared, *rest), seed=0, max_new_tokens=6, temperature=0.0) for rest in prefixes(5, seed=6)]
    apart = []
    for request in asked:
        ours.forget()
        apart += ours.generate([request])
    computed = 0
    forward = ours.model.forward

    def counted(*args: Any, **more: Any) -> Any:
        nonlocal computed
        computed += more["input_ids"].numel() if more["input_ids"].shape[1] > 1 else 0
        return forward(*args, **more)

    monkeypatch.setattr(ours.model, "forward", counted)
    ours.forget()
    for a, b in zip(apart, [*ours.generate(asked[:4]), *ours.generate(asked[4:])], strict=True):
        same(a, b)
    rest = max(len(request.prefix_ids) for request in asked) - len(shared)
    assert computed <= len(shared) + len(asked) * rest


@pytest.mark.parametrize("kind", FAMILIES)
def test_prefill_in_chunks_equals_prefill_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts are computed a part at a time; kept prefixes or none."""
    model, requests = build(kind), sampled(12)
    whole = HFEngine(model, tokenizer()).generate(requests)
    monkeypatch.setattr("caspo.engines.local.decoder._PREFILL_TOKENS_CPU", 5)
    for store in (0, 1 << 20):
        for a, b in zip(whole, HFEngine(model, tokenizer(), store_bytes=store).generate(requests), strict=True):
            same(a, b)


def test_rows_under_way_go_on_while_a_long_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of prefill at a step; one that is given up meanwhile never joins, and an error leaves the others waiting."""
    monkeypatch.setattr("caspo.engines.local.decoder._PREFILL_TOKENS_CPU", 5)
    ours, prompts = engine(), prefixes(3, seed=8, low=24)
    requests = [Request(prompt, i, 40) for i, prompt in enumerate(prompts)]
    expected = engine().generate(requests)
    passes, prefill = [], ours.decoder._prefill
    monkeypatch.setattr(ours.decoder, "_prefill", lambda batch: passes.append(len(batch)) or prefill(batch))
    batch = ours.batch(3)
    batch.add(0, requests[0])
    batch.step()
    before, steps = len(passes), 0
    batch.add(1, requests[1])
    batch.add(2, requests[2])
    found: dict[int, Completion | EngineError] = {}
    while len(passes) < before + 3:
        found.update(batch.step())
        steps += 1
        assert len(passes) <= before + steps
        assert batch.free == 0
    batch.drop(2)
    assert batch.free == 1
    broken = ours.decoder._prefill
    monkeypatch.setattr(ours.decoder, "_prefill", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batch.step()
    monkeypatch.setattr(ours.decoder, "_prefill", broken)
    while len(found) < 2:
        found.update(batch.step())
    for place in (0, 1):
        done = found[place]
        assert isinstance(done, Completion)
        same(done, expected[place])
    assert 2 not in found
    batch.close()


def test_a_prompt_that_nobody_wants_any_more_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given up between its passes (a client hung up): the next in line does not wait for what is left of it."""
    monkeypatch.setattr("caspo.engines.local.decoder._PREFILL_TOKENS_CPU", 2)
    ours, (first, long, other) = engine(), prefixes(3, seed=8, low=24)
    batch = ours.batch(3)
    batch.add(0, Request(first, 0, 40))
    batch.step()
    batch.add(1, Request(long, 1, 40))
    batch.step()
    passes: list[list[int]] = []
    prefill = ours.decoder._prefill
    monkeypatch.setattr(ours.decoder, "_prefill", lambda asked: passes.append([*map(len, asked)]) or prefill(asked))
    batch.drop(1)
    batch.add(2, Request(other, 2, 40))
    batch.step()
    assert passes == [[2]]  # the beginning of the other one
    batch.close()


def test_a_lone_prompt_joins_a_search_that_takes_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not held back for as long as too few rows leave."""
    monkeypatch.setattr("caspo.engines.local.batch._HELD_STEPS", 3)
    ours, requests = engine(), [Request(prompt, 0, 12, temperature=0.0) for prompt in prefixes(8, low=9)]
    done = ours.generate(requests)
    enduring = next(request for request, one in zip(requests, done, strict=True) if len(one.token_ids) == 12)
    ours.forget()
    batch = ours.batch(16)
    for place in range(15):
        batch.add(place, enduring)
    batch.step()
    batch.add(15, Request(prefixes(1, seed=4, low=9)[0], 0, 1))
    assert [place for _ in range(4) for place, _ in batch.step()] == [15]
    batch.close()


def test_watched_rows_end_where_they_are_told() -> None:
    """A watch sees every token with its own numbers; what it refuses is the last. Its neighbours do not notice."""
    ours = engine()
    plain = ours.generate(sampled(6, max_new_tokens=20))
    seen: list[list[tuple[int, Measured]]] = [[] for _ in range(6)]

    def watch(place: int) -> Watch:
        def see(token: int, measured: Measured) -> bool:
            seen[place].append((token, measured))
            return place % 2 == 0 or len(seen[place]) < 3

        return see

    asked = [replace(r, watch=watch(i), top_k=4) for i, r in enumerate(sampled(6, max_new_tokens=20))]
    for place, (found, whole) in enumerate(zip(ours.generate(asked), plain, strict=True)):
        if place % 2 == 0 or len(whole.token_ids) < 3:
            assert found.token_ids == whole.token_ids
        else:
            assert (found.token_ids, found.finish) == (whole.token_ids[:3], "abandoned")
        tokens, measured = [t for t, _ in seen[place]], [m for _, m in seen[place]]
        assert tuple(tokens) == found.token_ids[: len(tokens)]
        np.testing.assert_array_equal([m.entropy for m in measured], found.trace.entropy[: len(tokens)])
        assert found.top_k_logprob is not None
        np.testing.assert_allclose([m.top_k_logprob for m in measured], found.top_k_logprob[: len(tokens)], rtol=1e-6)
        assert (found.top_k_logprob <= found.trace.max_logprob).all()


def test_prefix_store_finds_prefixes() -> None:
    """Any beginning of a stored sequence is found, cut to its length; nothing else is."""
    store = PrefixStore(10_000)
    keys = torch.arange(8.0).reshape(1, 4, 2)
    store.put((1, 2, 3, 4), [(keys, keys + 1)])
    store.put((1, 2, 9), [(keys[:, :3] + 50, keys[:, :3])])
    for length in range(1, 5):
        found = store.get((1, 2, 3, 4)[:length])
        assert found is not None
        assert found[0][0].shape[1] == length
    assert found is not None
    assert torch.equal(found[0][0], keys)
    for ids in ((2,), (1, 3), (1, 2, 3, 4, 5), (1, 2, 9, 9), (0,)):
        assert store.get(ids) is None


def test_prefix_store_keeps_to_its_budget() -> None:
    """The oldest go first; what was used lately stays; a budget of nothing keeps nothing."""
    one = [(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2))]  # 64 bytes
    store = PrefixStore(128)
    store.put((1,), one)
    store.put((2,), one)
    assert store.get((1,)) is not None
    store.put((3,), one)
    assert [store.get((i,)) is not None for i in (1, 2, 3)] == [True, False, True]
    nothing = PrefixStore(0)
    nothing.put((1,), one)
    assert nothing.get((1,)) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_row_pool(data: st.DataObject) -> None:
    """Rows come, grow and leave at random in a pool as narrow as can be: each keeps its own keys, in order."""
    capacity, longest = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 12))
    pool = RowPool(2, capacity, longest + 1 + data.draw(st.integers(0, 3)), torch.device("cpu"))
    expected: list[list[float]] = []
    fresh = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        free = capacity - len(expected)
        if free and (not expected or data.draw(st.booleans())):
            new = []
            for _ in range(data.draw(st.integers(1, free))):
                length = data.draw(st.integers(1, longest - 1))
                new.append([fresh + i for i in range(length)])
                fresh += 100
            pool.admit([[(torch.tensor(v)[None, :, None], -torch.tensor(v)[None, :, None])] * 2 for v in new])
            expected += new
        for row in reversed(range(len(expected))):
            if len(expected[row]) >= longest:
                pool.remove(row)
                expected[row] = expected[-1]
                expected.pop()
        if not expected:
            continue
        assert pool.positions()[:, 0].tolist() == [len(v) for v in expected]
        column = torch.tensor([fresh + i for i in range(len(expected))])
        fresh += 100
        mask = pool.mask()
        for layer in pool.layers:
            keys, values = layer.update(column[:, None, None, None], -column[:, None, None, None])
            assert mask.shape == (len(expected), keys.shape[2]), "the mask covers the window that attention sees"
            for row, known in enumerate(expected):
                assert keys[row, 0, mask[row], 0].tolist() == [*known, float(column[row])]
                assert values[row, 0, mask[row], 0].tolist() == [-v for v in [*known, float(column[row])]]
        pool.advance()
        expected = [[*known, float(column[row])] for row, known in enumerate(expected)]
        row = data.draw(st.integers(0, len(expected) - 1))
        assert pool.take(row)[1][0][0, :, 0].tolist() == expected[row]
