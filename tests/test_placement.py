"""Device and precision, where nobody says them, on machines that are made up; and that a folder keeps what it began with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from caspo.core.errors import ConfigError, ModelError, ResumeError
from caspo.core.folders import PLACEMENT
from caspo.core.storage import read_json
from caspo.engines import models, opening
from caspo.engines.models import placement, probe
from caspo.engines.models.placement import chosen_device, chosen_dtype
from caspo.engines.opening import ModelSettings, open_local, placed
from caspo.loop.settled import join_placements, settled

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch see devices that are not here."""

    def make(cuda: int = 0, mps: bool = False, *, bfloat16: bool = True, emulated: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or (emulated and including_emulation)
        )
        monkeypatch.setattr(torch.cuda, "device", lambda place: torch.no_grad())  # any context
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: bfloat16)

    return make


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose weights count as a large model's."""
    monkeypatch.setattr(placement, "_SMALL", 1000)
    return weights(tmp_path / "large", {"embedding": (512, 8), **{f"layers.{i}.up": (32, 8) for i in range(4)}})


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    """The shapes that were measured; the CPU is twice as fast in bfloat16."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "measure", lambda shape: seen.append(shape) or 2.0)
    return seen


def weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    folder.mkdir()
    save_file({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("has", "device", "expected"),
    [
        ({}, "auto", "cpu"),
        ({"cuda": 1}, "auto", "cuda"),
        ({"cuda": 1, "mps": True}, "auto", "cuda"),
        ({"mps": True}, "auto", "mps"),
        ({"mps": True}, "cpu", "cpu"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
    ],
)
def test_the_device(machine: Callable[..., None], has: dict[str, Any], device: str, expected: str) -> None:
    machine(**has)
    assert str(chosen_device("float32", device)) == expected


@pytest.mark.parametrize(
    ("has", "device", "message"),
    [
        ({}, "cuda", r"no device 'cuda' here: torch .* sees cpu\."),
        ({"cuda": 2}, "cuda:7", r"no device 'cuda:7' here: torch .* sees cuda:0 to cuda:1, cpu\."),
        ({"cuda": 1}, "cuda:1", r"sees cuda, cpu\."),
        ({}, "cuda:200", "no device 'cuda:200' here"),
        ({"cuda": 1}, "cuda:256", "no device 'cuda:256' here"),
        ({}, "mps", "no device 'mps' here"),
        ({}, "xpu", "no device 'xpu' here"),
        ({}, "meta", "no device 'meta' here"),
        ({}, "toaster", "'toaster' is not a device torch knows"),
        ({}, "", "'' is not a device torch knows"),
    ],
)
def test_a_device_that_is_not_here(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, has: dict[str, Any], device: str, message: str
) -> None:
    """It is said before anything is downloaded or converted."""
    machine(**has)
    monkeypatch.setattr("caspo.engines.models.names.resolve", lambda *_, **__: pytest.fail("it was looked for"))
    monkeypatch.setattr(models, "resolve", lambda *_, **__: pytest.fail("it was looked for"))
    with pytest.raises(ConfigError, match=message):
        models.load("some/model", device=device)
    with pytest.raises(ConfigError, match=message):
        opening.open_engine(ModelSettings(name="some/model", device=device))


def test_a_precision_that_the_device_does_not_have(machine: Callable[..., None]) -> None:
    machine(mps=True, bfloat16=False)
    with pytest.raises(ConfigError, match="'mps' does not compute in bfloat16"):
        chosen_device("bfloat16", "mps")
    machine(cuda=1, bfloat16=False)
    assert chosen_device("bfloat16", "cuda").type == "cuda", "slow, but it can, and somebody asks for it"


@pytest.mark.parametrize(
    ("has", "device", "expected"),
    [
        ({"cuda": 1}, "cuda", "bfloat16"),
        ({"cuda": 1, "bfloat16": False}, "cuda", "float32"),  # float16 may overflow
        ({"mps": True}, "mps", "bfloat16"),
        ({"mps": True, "bfloat16": False}, "mps", "float32"),
    ],
)
def test_the_precision_of_a_gpu(
    machine: Callable[..., None], probed: list[Any], large: Path, has: dict[str, Any], device: str, expected: str
) -> None:
    machine(**has)
    assert chosen_dtype(torch.device(device), large).dtype == expected
    assert not probed


@pytest.mark.parametrize(("found", "expected"), [(0.2, "float32"), (1.0, "float32"), (1.29, "float32"), (1.3, "bfloat16")])
def test_the_precision_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, probed: list[Any], large: Path, found: float, expected: str
) -> None:
    """What is faster, by a margin."""
    monkeypatch.setattr(probe, "measure", lambda shape: found)
    assert chosen_dtype(CPU, large).dtype == expected


def test_it_is_measured_once_and_with_the_shape_of_the_layers(probed: list[tuple[int, int]], large: Path) -> None:
    """Embeddings are larger, but no step of decoding multiplies by them layer after layer."""
    assert (
        chosen_dtype(CPU, large)
        == chosen_dtype(CPU, large)
        == ("bfloat16", "probe: bfloat16 is 2.0 times as fast as float32")
    )
    assert probed == [(32, 8)]
    torch_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(torch_threads + 1)
        chosen_dtype(CPU, large)
    finally:
        torch.set_num_threads(torch_threads)
    assert len(probed) == 2, "another number of threads is another question"


def test_experts_in_one_tensor(probed: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "_SMALL", 10)
    chosen_dtype(CPU, weights(tmp_path / "moe", {f"layers.{i}.experts": (4, 16, 6) for i in range(3)}))
    assert probed == [(16, 6)]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"speedup": 9.0}', None],
    ids=["empty", "half", "a list", "of another machine", "not finite"],
)  # fmt: skip
def test_a_damaged_result_is_measured_again(probed: list[Any], large: Path, damage: bytes | None) -> None:
    chosen_dtype(CPU, large)
    (file,) = (models.cache_dir() / "precision").glob("*.json")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"2.0", b"NaN") if damage is None else damage)
    assert chosen_dtype(CPU, large).dtype == "bfloat16"
    assert len(probed) == 2
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written(
    probed: list[Any], large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CASPO_CACHE", str(tmp_path / "file"))
    assert chosen_dtype(CPU, large).dtype == "bfloat16"
    assert len(probed) == 1


def test_the_probe_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine, with small weights: a number, whatever it is."""
    monkeypatch.setattr(probe, "_WEIGHTS", 2**12)
    monkeypatch.setattr(probe, "_SECONDS", 0.0)
    assert 0 < probe.measure((32, 16)) < 1000


def test_damaged_weights(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\xff" * 9, b"\x02" + b"\0" * 7 + b"[]", b"\x09" + b"\0" * 7 + b'{"a": {}}')):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="is damaged"):
            chosen_dtype(CPU, folder)


def test_what_is_said_is_not_probed(probed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """And the model is not looked for to choose; a small model never is probed."""
    monkeypatch.setattr(models, "resolve", lambda *_, **__: pytest.fail("it was looked for"))
    explicit = ModelSettings(name="some/model", dtype="bfloat16", device="cpu", threads=1)
    assert placed(explicit) == explicit
    monkeypatch.undo()
    assert placed(ModelSettings(name="stories-tiny")).dtype == "float32"
    assert not probed


def test_bfloat16_weights_are_used_as_they_lie() -> None:
    engine = opening.open_local(ModelSettings(name="stories-tiny", dtype="bfloat16"))
    assert {str(p.dtype) for p in engine.model.parameters()} == {"torch.bfloat16"}


def test_a_judge_beside_vllm_is_placed() -> None:
    """A recipe samples with vLLM, and its judge completes steps with the model itself: with nothing left open."""
    engine = opening.open_local(ModelSettings(name="stories-tiny", engine="vllm", device="cpu"))
    assert engine.model.dtype == torch.float32


def test_a_server_chooses_for_itself() -> None:
    remote = ModelSettings(engine="openai_compatible", name="m", urls=("http://localhost:1",))
    assert placed(remote) == remote


def test_a_judge_beside_vllm_has_its_precision_chosen() -> None:
    """What needs the model itself loads it with `hf`, where ``auto`` is no precision."""
    opened = open_local(ModelSettings(name="stories-tiny", engine="vllm", vllm={"enforce_eager": True}))
    assert opened.model.dtype == torch.float32


def test_one_line_says_what_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """Once, however often the model is opened."""
    opening._tell.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            placed(ModelSettings(name="stories-tiny", threads=1, device="cpu"))
    assert [r.getMessage() for r in caplog.records] == ["stories-tiny: device cpu, float32 (a small model), 1 thread"]


def test_a_folder_keeps_what_it_was_begun_with(
    probed: list[Any], large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Callable[..., None]
) -> None:
    """On a machine that would choose otherwise, too."""
    monkeypatch.setattr(models, "resolve", lambda *_, **__: large)
    open_settings = ModelSettings(name="some/model")
    begun = settled(open_settings, tmp_path, threads=1)
    assert (begun.dtype, begun.device, begun.threads) == ("bfloat16", "cpu", 1)
    assert read_json(tmp_path / PLACEMENT) == {"device": "cpu", "dtype": "bfloat16", "threads": 1}
    monkeypatch.setattr(probe, "measure", lambda shape: 0.5)
    monkeypatch.setattr(models, "resolve", lambda *_, **__: pytest.fail("nothing is to be chosen"))
    machine(cuda=1)
    assert settled(open_settings, tmp_path) == begun
    assert settled(open_settings.model_copy(update={"device": "cuda"}), tmp_path).device == "cuda"
    with pytest.raises(ResumeError, match="was begun in bfloat16, and float32 is asked for"):
        settled(open_settings.model_copy(update={"dtype": "float32"}), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"device": "cpu", "dtype": "int8", "threads": 1})])
def test_a_damaged_note_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / PLACEMENT).write_text(content)
    with pytest.raises(Exception, match=r"placement\.json is") as found:
        settled(ModelSettings(name="stories-tiny"), tmp_path)
    assert type(found.value).__name__ in ("ResumeError", "DataError")


def test_fewer_cores_than_it_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PLACEMENT).write_text(json.dumps({"device": "cpu", "dtype": "float32", "threads": 64}))
    monkeypatch.setattr("caspo.loop.settled.cores", lambda: 1)
    assert settled(ModelSettings(name="stories-tiny"), tmp_path).threads == 1


def test_shards_in_one_precision(tmp_path: Path) -> None:
    """What they were begun with is that of the folder they are joined in; of several precisions they are not one run."""
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    for folder, threads in ((a, 1), (b, 2)):
        folder.mkdir()
        (folder / PLACEMENT).write_text(json.dumps({"device": "cpu", "dtype": "bfloat16", "threads": threads}))
    join_placements([a, b], out)
    assert read_json(out / PLACEMENT) == read_json(a / PLACEMENT)
    (b / PLACEMENT).write_text(json.dumps({"device": "cuda", "dtype": "float32", "threads": 1}))
    with pytest.raises(ConfigError, match=r"a was made in bfloat16 and .*b in float32"):
        join_placements([a, b], out)
    join_placements([], tmp_path / "of a server")
    assert not (tmp_path / "of a server").exists()
