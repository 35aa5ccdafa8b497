"""LoRA adapters as models: merged once into the base they name or are given; one that does not fit is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from caspo.core.errors import ModelError
from caspo.engines import models
from caspo.engines.models import names
from caspo.engines.opening import ModelSettings, model_settings, open_local
from gguf_file import write_gguf
from tiny import VOCABULARY, build, tokenizer

Command = Callable[..., tuple[int, str, str]]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored(folder: Path, model: Any, found: Any = None) -> Path:
    model.save_pretrained(folder)
    (found or tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return stored(tmp_path / "base", build("llama"))


def adapter(folder: Path, base: Path | None, model: Any = None, **settings: Any) -> torch.Tensor:
    """An adapter with weights at random in ``folder``, which names ``base``; the logits of the adapted model."""
    torch.manual_seed(1)
    model = build("llama") if model is None else model
    more = {"r": 2, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, **settings}
    adapted = get_peft_model(model, LoraConfig(**more))
    adapted.save_pretrained(folder, save_embedding_layers=bool(more.get("modules_to_save")))
    written = json.loads((folder / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = None if base is None else str(base)
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return logits(adapted.eval())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_an_adapter_is_a_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its base is where it says; merged once, and again when the adapter or the base is another."""
    folder = tmp_path / "adapter"
    expected = adapter(folder, base)
    model, _ = models.load(str(folder))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(build("llama")), atol=1e-3)
    first = models.resolve(str(folder))
    monkeypatch.setattr(names, "merge_adapter", lambda *_, **__: pytest.fail("merged again"))
    assert models.resolve(str(folder)) == first
    monkeypatch.undo()
    monkeypatch.setenv("CASPO_CACHE", str(first.parent))
    stored(base, build("llama", seed=1))
    second = models.resolve(str(folder))
    digests = [models.model_digest(str(folder))]
    adapter(folder, base, r=4)
    assert len({first, second, models.resolve(str(folder))}) == 3
    digests.append(models.model_digest(str(folder)))
    stored(base, build("llama"))
    assert len({*digests, models.model_digest(str(folder))}) == 3, "completions are kept by it"


@pytest.mark.parametrize("named", [None, "/no/such/folder", "some-lab/model-that-is-not-here"])
def test_the_base_that_is_given(base: Path, tmp_path: Path, named: str | None, caspo: Command) -> None:
    """By `base` in a recipe's model and `--base`, where the adapter names none or one that is not here."""
    folder = tmp_path / "adapter"
    expected = adapter(folder, None if named is None else Path(named))
    with pytest.raises(ModelError, match=r"base.*--base"):
        models.resolve(str(folder))
    engine = open_local(ModelSettings(name=str(folder), base=str(base)))
    torch.testing.assert_close(logits(engine.model), expected, atol=1e-5, rtol=1e-5)
    asked = ("solve", "How many?", "--model", folder, "--base", base, "--method", "chain_of_thought", "max_tokens=4")
    assert caspo(*asked)[0] == 0
    code, _, err = caspo(*asked[:4], "--method", "chain_of_thought")
    assert code == 1
    assert "--base" in err


def test_a_base_of_its_own_for_each_name(base: Path, tmp_path: Path) -> None:
    """A round's model is whole: the recipe's base is not for it. Given for a whole model, a base is a mistake."""
    settings = ModelSettings(name="x", base=str(base))
    assert (settings.base_of(None), settings.base_of("x")) == (str(base), str(base))
    assert settings.base_of("runs/round-1/model") is None
    assert open_local(settings, str(base)).model is not None
    with pytest.raises(ModelError, match=r"is a whole model. Leave the base out"):
        models.resolve(str(base), base="stories-tiny")


def test_a_bundled_model_or_a_gguf_file_as_base(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    expected = adapter(folder, write_gguf(tmp_path / "base.gguf", build("llama"), tokenizer()))
    torch.testing.assert_close(logits(models.load(str(folder))[0]), expected, atol=1e-4, rtol=1e-4)
    tiny, _ = models.load("stories-tiny")
    expected = adapter(folder, None, tiny)
    torch.testing.assert_close(logits(models.load(str(folder), base="stories-tiny")[0]), expected, atol=1e-4, rtol=1e-4)


def test_what_is_added_to_a_bfloat16_base_is_kept(tmp_path: Path) -> None:
    """The sum is float32: in bfloat16 an adapter of small weights would be rounded away."""
    model = build("llama").to(torch.bfloat16)
    base = stored(tmp_path / "base", model)
    folder = tmp_path / "adapter"
    adapter(folder, base, model)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({key: value.float() * 0.01 for key, value in weights.items()}, folder / "adapter_model.safetensors")
    expected = logits(PeftModel.from_pretrained(models.load(str(base))[0], str(folder)))
    merged, _ = models.load(str(folder))
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, logits(models.load(str(base))[0]), atol=1e-6)


def test_new_tokens_and_their_rows(base: Path, tmp_path: Path) -> None:
    """An adapter that was trained with more tokens brings their embeddings and its tokenizer."""
    model, more = models.load(str(base))
    more.add_tokens(["tomato", "ten"])
    model.resize_token_embeddings(len(more), mean_resizing=False)
    folder = tmp_path / "adapter"
    expected = adapter(folder, base, model, modules_to_save=["embed_tokens", "lm_head"])
    more.save_pretrained(folder)
    merged, found = models.load(str(folder))
    assert merged.get_input_embeddings().num_embeddings == VOCABULARY + 2
    assert found.tokenize("tomato") == ["tomato"]
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_one_end_of_tied_embeddings(tmp_path: Path, target: str) -> None:
    """The other end stays as it is: merged into the one tensor of both, the sum would be another model."""
    tied = {"tie_word_embeddings": True}
    base = stored(tmp_path / "base", build("llama", **tied))
    folder = tmp_path / "adapter"
    expected = adapter(folder, base, build("llama", **tied), target_modules=["q_proj", target])
    merged, _ = models.load(str(folder))
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_of_some_layers(base: Path, tmp_path: Path) -> None:
    """It fits, as its settings say which; so does one of tokens that the base's embedding has no row for not."""
    folder = tmp_path / "adapter"
    expected = adapter(folder, base, layers_to_transform=[1])
    torch.testing.assert_close(logits(models.load(str(folder))[0]), expected, atol=1e-5, rtol=1e-5)
    found = models.read_tokenizer(base)
    found.add_tokens(["tomato", "ten"])
    found.save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"2 tokens that the model does not know .*embedding has {VOCABULARY} rows"):
        models.load(str(folder))


@pytest.mark.parametrize("kind", ["wider", "fewer layers", "more layers", "another family"])
def test_an_adapter_of_another_base(tmp_path: Path, kind: str, cache: Path) -> None:
    """Other shapes, other layers, other names: it is said that the base is the wrong one."""
    trained = {"fewer layers": {"num_hidden_layers": 1}, "more layers": {"num_hidden_layers": 3}}.get(kind, {})
    base = {
        "wider": lambda: build("llama", hidden_size=64), "another family": lambda: build("gpt_neox"),
    }.get(kind, lambda: build("llama"))()  # fmt: skip
    folder = tmp_path / "adapter"
    adapter(folder, stored(tmp_path / "base", base), build("llama", **trained))
    with pytest.raises(ModelError, match=r"does not fit the model .*trained on another one.*--base"):
        models.resolve(str(folder))
    assert not list(cache.glob("adapter-*"))


def test_adapters_that_are_none(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    adapter(folder, base)
    settings = folder / "adapter_config.json"
    whole = settings.read_text()
    inner = tmp_path / "inner"
    adapter(inner, folder)
    with pytest.raises(ModelError, match="which is an adapter too"):
        models.resolve(str(inner))
    settings.write_text(whole.replace('"LORA"', '"IA3"'))
    with pytest.raises(ModelError, match=r"of the kind 'IA3', and only LoRA"):
        models.resolve(str(folder))
    settings.write_text(whole[:50])
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        models.resolve(str(folder))
    settings.write_text(whole)
    shutil.copy(base / "model.safetensors", folder)
    with pytest.raises(ModelError, match=r"an adapter .* and a whole model"):
        models.resolve(str(folder))
    (folder / "model.safetensors").unlink()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is damaged .* Copy it again"):
        models.resolve(str(folder))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"\*\.bin files can run code"):
        models.resolve(str(folder))


# Whole folders as people have them


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_of_half_precision(tmp_path: Path, dtype: str) -> None:
    model = build("llama").to(getattr(torch, dtype))
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="20KB")
    tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded, _ = models.load(str(folder))
    assert loaded.dtype == torch.float32
    rounded = build("llama")
    for parameter in rounded.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    torch.testing.assert_close(logits(loaded), logits(rounded), atol=1e-5, rtol=1e-5)
    assert models.load(str(folder), dtype=dtype)[0].dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("kind", "kernel"), [("gemma2", "eager"), ("gpt_oss", "eager"), ("bloom", "eager"), ("gemma3", "sdpa"), ("opt", "sdpa")]
)
def test_models_that_attend_eagerly(tmp_path: Path, kind: str, kernel: str) -> None:
    """Score caps, sinks and ALiBi are what the model was trained with: SDPA, which has none of them, is not taken."""
    folder = stored(tmp_path / "model", build(kind))
    model, _ = models.load(str(folder))
    assert model.config._attn_implementation == kernel
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(eager), atol=1e-5, rtol=1e-5)


def test_caps_that_only_the_configuration_tells(tmp_path: Path) -> None:
    """A Gemma 3 with capped scores: its class has SDPA, which would leave the cap out."""
    folder = stored(tmp_path / "model", build("gemma3", attn_logit_softcapping=2.0))
    assert models.load(str(folder))[0].config._attn_implementation == "eager"


def test_a_base_is_for_hf_alone() -> None:
    assert model_settings("x", base="y").base == "y"
