"""Engine `llama_cpp` against `hf` on the same weights in float32: the tiny model that we ship, written as GGUF.

Needs llama-cpp-python (`make llama`); skipped without it. The tests that load SmolLM2 are slow.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caspo.core.errors import EngineError, ModelError
from caspo.engines.base import Completion, Request
from caspo.engines.local.engine import HFEngine
from caspo.engines.models import load
from caspo.engines.prompts import INSTRUCTION
from caspo.engines.rows import shared_length
from caspo.search import METHODS
from caspo.tasks.stories import StoriesTask

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

from caspo.engines.llama.context import LlamaContext
from caspo.engines.llama.engine import LlamaCppEngine, open_llama_cpp
from caspo.steps import text_of
from gguf_file import changed, write_gguf

TOLERANCE = 1e-4
"""Nats. Both compute in float32."""
ODD = (
    "Tom has 12 apples and 3.5 pears, they're 1,000 £!",
    "  two  spaces\n\n\ttab\r\n and naïve ☃ 日本語 🙂 e\u0301",
    "a <|end|> in the text \u0000 \x1f",
    "x",
)


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return load("stories-tiny")


@pytest.fixture(scope="module")
def gguf(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *loaded)


@pytest.fixture(scope="module")
def hf(loaded: tuple[Any, Any]) -> HFEngine:
    return HFEngine(*loaded)


@pytest.fixture(scope="module")
def shared(gguf: Path) -> LlamaCppEngine:
    return LlamaCppEngine(gguf, cells=4096)


@pytest.fixture
def ours(shared: LlamaCppEngine) -> LlamaCppEngine:
    """The engine, knowing nothing."""
    shared.forget()
    return shared


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each call of llama.cpp computed."""
    counts: list[int] = []
    real = LlamaContext.decode

    def decode(self: LlamaContext, fed: Sequence[tuple[int, int, Sequence[int], bool]]) -> Any:
        counts.append(sum(len(ids) for _, _, ids, _ in fed))
        return real(self, fed)

    monkeypatch.setattr(LlamaContext, "decode", decode)
    return counts


def prompts(engine: Any, n: int) -> list[tuple[int, ...]]:
    return [engine.prompt(question.text) for question in StoriesTask().questions("test", n)]


def same(a: Completion, b: Completion, tolerance: float = TOLERANCE) -> None:
    assert a.token_ids == b.token_ids
    assert (a.text, a.finish) == (b.text, b.finish)
    for name in ("entropy", "logprob", "max_logprob", "margin", "varentropy"):
        np.testing.assert_allclose(getattr(a.trace, name), getattr(b.trace, name), atol=10 * tolerance, rtol=1e-3)
    np.testing.assert_allclose(a.trace.entropy, b.trace.entropy, atol=tolerance)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_gives_what_hf_gives(ours: LlamaCppEngine, hf: HFEngine, settings: dict[str, float]) -> None:
    """Tokens, texts, ends and all statistics, drawn ones included: a seed means the same."""
    requests = [
        Request(ids, 7 + i, 10 + 4 * i, stop=("\n",) if i % 2 else (), rank=1 + i % 3, top_k=5 * (i % 2), **settings)  # type: ignore[arg-type]
        for i, ids in enumerate(prompts(hf, 12))
    ]
    for a, b in zip(ours.generate(requests), hf.generate(requests), strict=True):
        same(a, b)
        if b.top_k_logprob is not None:
            assert a.top_k_logprob is not None
            np.testing.assert_allclose(a.top_k_logprob, b.top_k_logprob, atol=1e-3)


def test_a_row_does_not_depend_on_its_neighbours(gguf: Path, ours: LlamaCppEngine) -> None:
    """All at once, three at a time, and one at a time by an engine that knows nothing."""
    requests = [Request(ids, i, 8 + i % 9) for i, ids in enumerate(prompts(ours, 16))]
    together = ours.generate(requests)
    for a, b in zip(together, LlamaCppEngine(gguf, cells=4096, max_rows=3, chunk=16).generate(requests), strict=True):
        same(a, b)
    for a, request in zip(together, requests, strict=True):
        ours.forget()
        same(a, ours.generate([request])[0])


def test_a_step_is_continued_without_computing_it_again(ours: LlamaCppEngine, decoded: list[int]) -> None:
    """Children cost one token each at their first step, whether they follow all of their parent or a part of it."""
    request = Request(prompts(ours, 1)[0], 3, 30, temperature=0, keep=True)
    parent = ours.generate([request])[0]
    whole = request.prefix_ids + parent.token_ids
    for prefix in (whole[:-1], whole[:-9], request.prefix_ids):
        decoded.clear()
        children = [Request(prefix, i, 5) for i in range(4)]
        continued = ours.generate(children)
        assert decoded[0] == 4
        ours.forget()
        for a, b in zip(continued, ours.generate(children), strict=True):
            same(a, b)
        ours.forget()
        ours.generate([request])


def test_what_prompts_share_is_computed_once(ours: LlamaCppEngine, decoded: list[int]) -> None:
    """Requests that come together too: the others wait for the first one's prompt."""
    beginning = prompts(ours, 1)[0] * 2
    ends = [(50 + i, 60 + i, 70) for i in range(8)]
    ours.generate([Request((*beginning, *end), i, 1) for i, end in enumerate(ends)])
    assert sum(decoded) == len(beginning) + sum(map(len, ends))


def test_a_dropped_request_frees_its_cells_and_is_not_heard_of_again(ours: LlamaCppEngine) -> None:
    first, second = prompts(ours, 2)
    batch = ours.batch(2)
    batch.add(1, Request(first, 0, 40))
    batch.add(2, Request(second, 0, 5))
    assert batch.free == 0
    batch.step()
    batch.drop(1)
    assert batch.free == 1
    heard = [place for _ in range(8) for place, _ in batch.step()]
    assert heard == [2]
    batch.drop(1)
    batch.close()
    ours.forget()
    assert ours.context.cells.used == 0


def test_closing_a_batch_frees_its_cells(ours: LlamaCppEngine) -> None:
    batch = ours.batch()
    batch.add(0, Request(prompts(ours, 1)[0], 0, 40))
    batch.step()
    batch.close()
    ours.forget()
    assert ours.context.cells.used == 0


def test_when_cells_run_out_requests_wait_and_change_nothing(gguf: Path, ours: LlamaCppEngine) -> None:
    """Rows give way to others, kept steps to both; every result is that of an engine with room."""
    requests = [Request(ids, i, 60, temperature=0, keep=True) for i, ids in enumerate(prompts(ours, 12))]
    tight = LlamaCppEngine(gguf, cells=256)
    assert tight.context.cells.size == 256
    for a, b in zip(tight.generate(requests), ours.generate(requests), strict=True):
        same(a, b)
    assert tight.context.cells.used <= 256


def test_what_can_never_fit_says_what_to_raise(gguf: Path) -> None:
    tight = LlamaCppEngine(gguf, cells=256)
    with pytest.raises(EngineError, match=r"prompt of 300 tokens .*256 cells.*Raise `cells`"):
        tight.generate([Request((5,) * 300, 0, 1)])
    grows = Request((5, 6) * 120, 0, 100, temperature=0)
    batch = tight.batch()
    batch.add(0, grows)
    batch.add(1, Request(prompts(tight, 1)[0], 0, 5))
    heard: dict[int, Completion | EngineError] = {}
    while len(heard) < 2:
        heard.update(batch.step())
    assert isinstance(heard[1], Completion)
    if isinstance(heard[0], Completion):
        assert heard[0].finish == "eos"
    else:
        assert "Raise `cells`" in str(heard[0])


def test_limits_of_a_request(ours: LlamaCppEngine) -> None:
    with pytest.raises(EngineError, match="at least one token"):
        ours.generate([Request((), 0, 1)])
    with pytest.raises(EngineError, match="leaves no room in the context"):
        ours.generate([Request((5,) * 1024, 0, 1)])
    with pytest.raises(EngineError, match="tokens that tiny does not have"):
        ours.generate([Request((5, 100_000), 0, 1)])
    full = ours.generate([Request((5, 6) * 511, 0, 50)])[0]
    assert len(full.token_ids) == 2 or full.finish == "eos"


def test_a_watch_ends_a_row(ours: LlamaCppEngine, hf: HFEngine) -> None:
    """It is told the same by both engines, and what it ends is abandoned."""
    told: list[list[float]] = []
    for engine in (ours, hf):
        seen: list[float] = []
        request = Request(
            prompts(hf, 1)[0], 0, 30, watch=lambda _, measured, seen=seen: seen.append(measured[0]) or len(seen) < 6
        )
        assert engine.generate([request])[0].finish == "abandoned"
        told.append(seen)
    np.testing.assert_allclose(*told, atol=TOLERANCE)


def test_one_rows_nan_fails_that_row_alone(tmp_path: Path, hf: HFEngine) -> None:
    """A token whose embedding is damaged, in one of the prompts."""
    model, tokenizer = load("stories-tiny")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    model.get_input_embeddings().weight.data[99] = float("nan")
    damaged = LlamaCppEngine(write_gguf(tmp_path / "damaged.gguf", model, tokenizer), cells=2048)
    good = [Request(ids, i, 20) for i, ids in enumerate(prompts(hf, 3)) if 99 not in ids]
    batch = damaged.batch()
    batch.add(99, Request((5, 99, 7), 0, 20))
    for i, request in enumerate(good):
        batch.add(i, request)
    heard: dict[int, Completion | EngineError] = {}
    while len(heard) < len(good) + 1:
        heard.update(batch.step())
    assert isinstance(heard[99], EngineError)
    assert "NaN" in str(heard[99])
    for i, expected in enumerate(hf.generate(good)):
        completion = heard[i]
        assert isinstance(completion, Completion)
        same(completion, expected)


def test_a_failure_of_llama_cpp_fails_what_was_under_way_and_no_more(
    ours: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise EngineError("broken")

    requests = [Request(ids, i, 6) for i, ids in enumerate(prompts(ours, 4))]
    expected = ours.generate(requests)
    for _ in range(100):  # more often than there are sequences, so none is lost
        batch = ours.batch()
        for i, request in enumerate(requests):
            batch.add(i, request)
        with monkeypatch.context() as patch:
            patch.setattr(ours.context, "decode", fail)
            assert sorted(place for place, _ in batch.step()) == [0, 1, 2, 3]
        assert batch.step() == []
    assert ours.context.cells.used == 0
    for a, b in zip(ours.generate(requests), expected, strict=True):
        same(a, b)


def test_tokens_prompts_and_pieces_are_those_of_hf(ours: LlamaCppEngine, hf: HFEngine) -> None:
    for text in ODD:
        assert ours.prompt(text) == hf.prompt(text)
        if "<|" not in text:
            assert ours.encode(text) == hf.encode(text)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert ours.chat(chat) == hf.chat(chat)
    ids = range(ours.tokenizer.size)
    assert ours.pieces(ids) == hf.pieces(ids)
    assert ours.context_length == hf.context_length


def test_names_of_special_tokens_in_a_text_are_text(ours: LlamaCppEngine) -> None:
    ids = ours.encode("a <|end|> b")
    assert not ours.tokenizer.eos_ids & set(ids)
    assert text_of(ours.pieces(ids)) == "a <|end|> b"
    assert ours.tokenizer.eos_token_id in ours.encode("a <|end|> b", begins=True), "a prompt that somebody wrote in full"


def test_a_prompt_of_one_token(ours: LlamaCppEngine, hf: HFEngine) -> None:
    """With nothing decoded before, and beside longer ones."""
    ours.forget()
    for _ in range(2):
        alone = Request((40,), 3, 6, temperature=0)
        longer = Request(ours.prompt("How many?"), 3, 6, temperature=0)
        mine, other = ours.generate([alone, longer])
        theirs, its = hf.generate([alone, longer])
        assert (mine.token_ids, other.token_ids) == (theirs.token_ids, its.token_ids)
        np.testing.assert_allclose(mine.trace.entropy, theirs.trace.entropy, atol=1e-3)


def test_bos_and_the_end_of_a_turn_are_the_files(tmp_path: Path) -> None:
    """BOS once, as the file says; the token that the template puts behind an answer ends one."""
    model, tokenizer = load("stories-tiny")
    pad = tokenizer.pad_token_id
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|pad|>{% endfor %}"
    turns = LlamaCppEngine(write_gguf(tmp_path / "turns.gguf", model, tokenizer), cells=512)
    assert {pad, tokenizer.eos_token_id} <= turns.tokenizer.eos_ids
    assert turns.encode("Hi", begins=True) == turns.encode("Hi")
    tokenizer.chat_template = None
    begun = LlamaCppEngine(write_gguf(tmp_path / "begun.gguf", model, tokenizer, bos=pad), cells=512)
    assert begun.encode("Hi", begins=True) == begun.encode("<|pad|>Hi", begins=True) == (pad, *begun.encode("Hi"))
    assert begun.prompt("How?")[:2] == (pad, turns.encode("Question")[0])
    assert pad not in begun.tokenizer.eos_ids


def test_marks_of_thinking_are_text_and_end_nothing(ours: LlamaCppEngine, gguf: Path) -> None:
    ends = ours.tokenizer.eos_ids
    special = next(i for i in range(ours.tokenizer.size) if not ours.pieces([i])[0] and i not in ends)
    name, end = (ours.tokenizer.decode([i], skip_special_tokens=False) for i in (special, ours.tokenizer.eos_token_id))
    thinking = LlamaCppEngine(gguf, cells=512, thinking=(name, f"{end} {name}"))
    assert thinking.pieces([special]) == [name.encode()]
    assert thinking.tokenizer.eos_ids == {ours.tokenizer.eos_token_id}, "what the file itself names ends a text"
    assert ours.pieces([special]) == [b""]


def test_a_file_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    model, tokenizer = load("stories-tiny")
    tokenizer.chat_template = None
    bare = LlamaCppEngine(write_gguf(tmp_path / "bare.gguf", model, tokenizer), cells=512)
    assert bare.tokenizer.chat_template is None
    assert bare.prompt("How?") == HFEngine(model, tokenizer).prompt("How?")


def test_cat_gives_the_same_solutions_as_over_hf(ours: LlamaCppEngine, hf: HFEngine) -> None:
    method = METHODS["cat"]()
    questions = StoriesTask().questions("test", 8)
    over_ours, over_hf = (method.solve(questions, engine, seed=0) for engine in (ours, hf))
    assert [s.answer for s in over_ours] == [s.answer for s in over_hf]
    np.testing.assert_allclose([s.confidence for s in over_ours], [s.confidence for s in over_hf], atol=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [({"architecture": "abacus"}, "unknown model architecture: 'abacus'"), ({"tokens": 2000}, "vocabulary")],
)
def test_what_llama_cpp_says_is_told(gguf: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    """An architecture it does not know, more tokens than the embedding has rows."""
    with pytest.raises(ModelError, match=rf"could not load .*{message}"):
        LlamaCppEngine(changed(gguf, tmp_path / "changed.gguf", **more), cells=512)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "Could not open"),
        (lambda file: file.write_bytes(b"PK\x03\x04" + file.read_bytes()[4:]), "not a GGUF file"),
        (lambda file: file.write_bytes(file.read_bytes()[:100_000]), "could not load"),
        (lambda file: file.write_bytes(b"GGUF"), "could not load"),
    ],
)
def test_a_damaged_file_is_refused(gguf: Path, tmp_path: Path, capfd: Any, damage: Any, message: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf.read_bytes())
    damage(file)
    with pytest.raises(ModelError, match=message):
        LlamaCppEngine(file)
    assert capfd.readouterr().err == "", "llama.cpp's log is not for users"


def test_names_that_are_no_gguf_are_refused() -> None:
    settings = {"instruction": "", "dtype": "float32", "device": "cpu", "max_rows": 4}
    with pytest.raises(ModelError, match=r"reads GGUF files, and 'some/model' is none"):
        open_llama_cpp("some/model", **settings)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"'stories-tiny' has no GGUF file"):
        open_llama_cpp("stories-tiny", **settings)  # type: ignore[arg-type]


def test_a_closed_engine_refuses_instead_of_crashing(gguf: Path) -> None:
    engine = LlamaCppEngine(gguf, cells=256)
    batch = engine.batch()
    batch.add(0, Request((5, 6), 0, 9))
    batch.step()
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        batch.step()
    batch.drop(0)
    batch.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.prompt("How?")
    with pytest.raises(EngineError, match="was closed"):
        engine.generate([Request((5, 6), 0, 9)])


def test_an_engine_left_open_does_not_crash_at_exit(gguf: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from caspo.engines.base import Request; "
        "from caspo.engines.llama.engine import LlamaCppEngine; engine = LlamaCppEngine(Path(sys.argv[1]), cells=256); "
        "batch = engine.batch(); batch.add(0, Request((5, 6), 0, 9)); batch.step()"
    )
    done = subprocess.run([sys.executable, "-c", script, gguf], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Real models


@pytest.fixture(scope="module")
def smollm() -> tuple[LlamaCppEngine, HFEngine]:
    quantised = open_llama_cpp("smollm2-135m", instruction=INSTRUCTION, dtype="float32", device="cpu", max_rows=64)
    return quantised, HFEngine(*load("smollm2-135m"))


@pytest.mark.slow
def test_smollm2_has_the_same_tokens_and_prompts(smollm: tuple[LlamaCppEngine, HFEngine]) -> None:
    ours, hf = smollm
    for text in (*ODD[:1], *ODD[2:], *(question.text for question in StoriesTask().questions("test", 20))):
        assert ours.prompt(text) == hf.prompt(text)
    assert ours.tokenizer.eos_ids >= hf.eos_ids
    assert ours.context_length == hf.context_length


@pytest.mark.slow
def test_smollm2_does_not_depend_on_its_neighbours(smollm: tuple[LlamaCppEngine, HFEngine]) -> None:
    """The kernels for one row and for many add in another order, which eight-bit activations make large: 0.5 nats, as long
    as the tokens are the same. On float32 weights (above) it is 1e-4."""
    ours, _ = smollm
    requests = [Request(ids, i, 16, temperature=0) for i, ids in enumerate(prompts(ours, 16))]
    together = ours.generate(requests)
    for i in (0, 7, 15):
        ours.forget()
        alone = ours.generate([requests[i]])[0]
        same_ones = shared_length(alone.token_ids, together[i].token_ids)
        assert same_ones >= 4
        np.testing.assert_allclose(alone.trace.entropy[:same_ones], together[i].trace.entropy[:same_ones], atol=0.5, rtol=0)


@pytest.mark.slow
def test_gemma3_has_the_same_prompts_and_continues_across_its_window() -> None:
    """A step from the middle of a sequence longer than the window of 512 tokens is that of an engine that knows nothing."""
    ours = open_llama_cpp("gemma3-270m", instruction="", dtype="float32", device="cpu", max_rows=4)
    hf = HFEngine(*load("gemma3-270m"), instruction="")
    bos = ours.tokenizer.bos_token_id
    for text in ODD:
        assert ours.prompt(text) == hf.prompt(text)
        assert ours.encode(text, begins=True) == hf.encode(text, begins=True)
        assert hf.prompt(text).count(bos) == 1
    prefix = ours.prompt(" ".join(f"{i} and {i + 1} make {2 * i + 1}." for i in range(60)))
    assert len(prefix) > 600
    ours.generate([Request(prefix, 0, 8, temperature=0, keep=True)])
    child = Request(prefix[:560], 0, 4, temperature=0)
    continued = ours.generate([child])[0]
    ours.forget()
    again = ours.generate([child])[0]
    assert continued.token_ids[0] == again.token_ids[0]
    np.testing.assert_allclose(continued.trace.entropy[0], again.trace.entropy[0], atol=0.5)
