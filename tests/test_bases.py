"""LoRA over bases in bfloat16 and 4 bits, adapters that are kept, and the precision that a model comes back in."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError, EngineError, ModelError
from caspo.data.pairs import write_pairs
from caspo.engines.models import adapter_and_base, load, stored_dtype
from caspo.engines.opening import ModelSettings
from caspo.loop.stages import train_stage
from caspo.records import Tree
from caspo.train import trainer
from caspo.train.lora import Adapters, LoraSettings, add_adapters, without_adapters
from caspo.train.scoring import Scorer, check_packing
from caspo.train.step_dpo import StepDPOSettings, step_loss, train_step_dpo
from caspo.train.units import make_units, micro_batches
from test_scoring import score, weighted
from tiny import build, bushy_tree, pairs_of, tokenizer

TREES = [bushy_tree(f"q{i}", i) for i in range(6)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]
LORA = {"lora": {"rank": 4, "alpha": 8}, "precision": "bf16", "learning_rate": 1e-2, "batch_pairs": 8, "epochs": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is stored in bfloat16."""
    return stored(tmp_path / "start", torch.bfloat16)


def stored(place: Path, dtype: torch.dtype) -> Path:
    build("llama").to(dtype).save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


def trained(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    """`caspo train` of the pairs."""
    pairs = out / "pairs.parquet"
    if not pairs.exists():
        write_pairs(pairs, PAIRS, TREES, str)
    settings = settings_from(StepDPOSettings, {**LORA, **more})
    asked = ModelSettings(name=str(source))
    told = [spelled(tree) for tree in TREES]
    return train_stage(str(source), asked, [(told, pairs)], settings, 3, out, lambda step, total: None)


def spelled(tree: Tree) -> Tree:
    """Steps whose text is that of their tokens, as the check of the tokenizer wants it."""
    read = tokenizer().decode
    return replace(
        tree,
        nodes=tuple(
            replace(node, step=replace(node.step, text=read(node.step.token_ids, skip_special_tokens=True)))
            for node in tree.nodes
        ),
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(2, 40)[None]).logits
    return found


def dtypes(place: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(place / "model.safetensors").values()}


@pytest.mark.parametrize("came", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["auto", "float32"])
def test_it_comes_back_as_it_came(came: str, asked: str, tmp_path: Path) -> None:
    """Files and configuration: of full training in the precision of the model, or in the one that was asked for."""
    source = stored(tmp_path / "start", getattr(torch, came))
    assert stored_dtype(source) == came
    trained(source, tmp_path, lora=None, epochs=1, save_dtype=asked, precision="float32")
    expected = came if asked == "auto" else asked
    assert dtypes(tmp_path / "model") == {getattr(torch, expected)}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == expected
    assert stored_dtype(tmp_path / "model") == expected


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    """Of which the precision is to be read."""
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        stored_dtype(tmp_path)


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_what_is_kept(base: str, folder: Path, tmp_path: Path) -> None:
    """The merged model is the base with the adapters, which lie beside it, or alone, as peft reads them."""
    from peft import PeftModel

    runs = {name: tmp_path / name for name in ("merged", "adapter", "both")}
    for name, out in runs.items():
        trained(folder, out, base=base, save=name)
        assert (out / "adapter").exists() == (name == "both")
    assert load_file(runs["merged"] / "model" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    whole = load(str(runs["merged"] / "model"))[0]
    torch.testing.assert_close(logits(load(str(runs["both"] / "model"))[0]), logits(whole), atol=0, rtol=0)
    for place in (runs["adapter"] / "model", runs["both"] / "adapter"):
        config = json.loads((place / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(folder.resolve())
        weights = load_file(place / "adapter_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}
        assert (place / "tokenizer.json").exists()
        assert (place / "chat_template.jinja").exists()
        adapted = PeftModel.from_pretrained(load(config["base_model_name_or_path"])[0], str(place))
        assert float((logits(whole) - logits(load(str(folder))[0])).abs().max()) > 0.1, "something was learnt"
        # The merged one was rounded to bfloat16 in the end.
        assert float((logits(adapted) - logits(whole)).abs().mean()) < 0.03


def test_a_float32_model_is_not_rounded(tmp_path: Path) -> None:
    """Adapters over a base that was held in bfloat16 are merged into the float32 weights that are stored."""
    source = stored(tmp_path / "start", torch.float32)
    trained(source, tmp_path, base="bfloat16")
    before, after = (load_file(place / "model.safetensors") for place in (source, tmp_path / "model"))
    assert dtypes(tmp_path / "model") == {torch.float32}
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.linalg.matrix_rank((after[name] - before[name]).numpy(), tol=1e-5) == 4, "nothing but the adapter"


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gemma3"])
def test_adapters_on_another_copy_of_their_base(kind: str, tmp_path: Path) -> None:
    """Taken from the model that was trained and merged into fresh weights, or read by peft: the same model, experts too."""
    from peft import PeftModel

    settings = settings_from(StepDPOSettings, {**LORA, "precision": "float32"})
    adapted, _ = train_step_dpo(build(kind), TREES, PAIRS, settings, 0, tmp_path, merge=False)
    expected = logits(adapted)
    assert float((expected - logits(build(kind))).abs().max()) > 0.1
    adapters = Adapters.of(adapted)
    adapters.save(tmp_path / "adapter", "base")
    torch.testing.assert_close(logits(adapters.on(build(kind))), expected, atol=1e-4, rtol=1e-4)
    read = PeftModel.from_pretrained(build(kind), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(read), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_adapters_go_on_in_the_next_round(base: str, folder: Path, tmp_path: Path) -> None:
    """The second round starts from base and adapter, is held to them, and leaves one adapter for the first base."""
    first = trained(folder, tmp_path / "1", base=base, save="adapter")
    place = tmp_path / "1" / "model"
    assert adapter_and_base(str(place)) == (place, str(folder.resolve()))
    second = trained(tmp_path / "1" / "model", tmp_path / "2", base=base, save="adapter", learning_rate=1e-4)
    assert first["reference"] == second["reference"] == "scored"
    log = [json.loads(line) for line in (tmp_path / "2" / "log.jsonl").read_text().splitlines()]
    assert log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-5), "and not away from a reference without the adapter"
    config = json.loads((tmp_path / "2" / "model" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (str(folder.resolve()), 4)
    before, after = (load_file(tmp_path / n / "model" / "adapter_model.safetensors") for n in "12")
    for name, value in after.items():
        assert 0 < float((value - before[name]).abs().max()) < 0.05, "trained further, not anew"
    third = trained(tmp_path / "2" / "model", tmp_path / "3", base=base)
    assert third["reference"] == "scored"
    assert dtypes(tmp_path / "3" / "model") == {torch.bfloat16}, "as the base of the adapter came"


def test_adapters_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    """Another rank than the recipe's, another base, a damaged folder: each is said in one message."""
    trained(folder, tmp_path / "1", save="adapter")
    place = tmp_path / "1" / "model"
    with pytest.raises(ConfigError, match=r"has rank 4 and alpha 8, and train\.lora asks for rank 2"):
        trained(place, tmp_path / "2", lora={"rank": 2, "alpha": 8})
    file = place / "adapter_config.json"
    config = json.loads(file.read_text())
    other = tmp_path / "other"
    build("llama", hidden_size=16).save_pretrained(other)
    tokenizer().save_pretrained(other)
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(other)}))
    with pytest.raises(ModelError, match="another base"):
        trained(place, tmp_path / "3")
    file.write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="does not say what its base is"):
        trained(place, tmp_path / "4")
    file.write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json.* is damaged"):
        trained(place, tmp_path / "5")


@pytest.mark.parametrize("layers", [1, 3])
def test_adapters_of_a_base_with_other_layers(layers: int, tmp_path: Path) -> None:
    """peft takes what there is and says nothing of the rest: half of an adapter would be trained further."""
    place = made_by_peft(tmp_path, {"num_hidden_layers": layers}, {"num_hidden_layers": 2}, target_modules=["q_proj"])
    with pytest.raises(ModelError, match="another base"):
        trained(place, tmp_path / "1")


@pytest.mark.parametrize(
    "more", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}]
)
def test_adapters_of_more_than_layers(more: dict[str, Any], tmp_path: Path) -> None:
    """Merged into tied embeddings they would change the other end too; whole weights are no adapters. Both are refused."""
    tied = {"tie_word_embeddings": True}
    with pytest.raises(ConfigError, match=r"more than low-rank weights of layers .*merge_and_unload"):
        trained(made_by_peft(tmp_path, tied, tied, **more), tmp_path / "1")


def made_by_peft(place: Path, named: dict[str, Any], trained_on: dict[str, Any], **settings: Any) -> Path:
    """An adapter of a model in ``place`` that says another one, made there too, is its base."""
    from peft import LoraConfig, get_peft_model

    build("llama", **named).save_pretrained(place / "base")
    tokenizer().save_pretrained(place / "base")
    adapted = get_peft_model(build("llama", **trained_on), LoraConfig(r=4, lora_alpha=8, **settings))
    adapted.peft_config["default"].base_model_name_or_path = str(place / "base")
    adapted.save_pretrained(place / "adapter", save_embedding_layers=False)
    return place / "adapter"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base": "bfloat16", "precision": "float32"}, "needs lora and precision: bf16"),
        ({"base": "4bit", "lora": None}, "needs lora and precision: bf16"),
        ({"save": "adapter", "lora": None}, "needs lora: without it there are no adapters"),
        ({"base": "int8"}, "'float32', 'bfloat16' or '4bit'"),
    ],
)
def test_settings_that_make_no_sense(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(StepDPOSettings, {**LORA, **more})


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Of adapters that add something, for the loss of a step."""
    adapted = add_adapters(model, LoraSettings(rank=4, alpha=8), 0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    adapted.train()
    scorer = Scorer(without_adapters(adapted), packed=True)
    settings = settings_from(StepDPOSettings, LORA)
    units = make_units(TREES, PAIRS, judged=False)
    reference = {(tree.question.id, node.id): -3.0 for tree in TREES for node in tree.nodes}
    bf16 = model.dtype == torch.bfloat16
    for micro in micro_batches(units, 60):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step_loss(adapted, scorer, micro, reference, settings)[0].backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}


def angle(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Cosine of two gradients."""
    assert a.keys() == b.keys()
    one, two = (torch.cat([found[name].float().flatten() for name in sorted(a)]) for found in (a, b))
    return float(torch.nn.functional.cosine_similarity(one, two, dim=0))


def test_gradients_over_a_bfloat16_base() -> None:
    """Those of float32, but for rounding."""
    exact, rounded = (gradients(build("llama").to(dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    assert angle(exact, rounded) > 0.99


def test_packed_equals_separate_in_bfloat16() -> None:
    """To 0.1 nats a token, what the check at the start allows; and the gradients point the same way."""
    for tree in TREES:
        assert check_packing(build("llama").bfloat16(), tree, range(9)) < 0.1
    found = []
    for packed in (True, False):
        model = build("llama").bfloat16()
        weighted(score(model, TREES, packed=packed)).backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert angle(*found) > 0.99


@pytest.mark.parametrize("base", ["float32", "bfloat16"])
def test_the_first_loss_is_log_2(base: str, tmp_path: Path) -> None:
    """To the last digit, over any base, of several passes with several trees each: adapters start as nothing, and the
    reference is scored in the rows of the training, where bfloat16 rounds alike."""
    model = build("llama").to(getattr(torch, base))
    settings = settings_from(StepDPOSettings, {**LORA, "base": base, "micro_tokens": 70, "batch_pairs": 1000})
    _, result = train_step_dpo(model, TREES, PAIRS, settings, 0, tmp_path)
    assert result.reference == "scored"
    assert result.log[0]["dpo"] == pytest.approx(math.log(2), abs=1e-6)


def test_nan_is_caught_over_a_bfloat16_base(tmp_path: Path) -> None:
    """A damaged weight ends the training with its name for it, before anything is trained."""
    model = build("llama").bfloat16()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = math.nan
    with pytest.raises(EngineError, match="NaN"):
        train_step_dpo(model, TREES, PAIRS, settings_from(StepDPOSettings, {**LORA, "base": "bfloat16"}), 0, tmp_path)


def test_a_base_held_in_less_is_not_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full sharding divides weights of one precision: it is refused before anything is spread."""
    monkeypatch.setattr(trainer, "_SHARDED", tuple(DistributedType))
    settings = settings_from(StepDPOSettings, {**LORA, "base": "bfloat16"})
    with pytest.raises(ConfigError, match=r"train\.base=float32"):
        train_step_dpo(build("llama").bfloat16(), TREES, PAIRS, settings, 0, tmp_path)


def test_four_bits_without_bitsandbytes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, or what to do without it."""
    monkeypatch.setattr("caspo.engines.models.reading.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"caspo-llm\[bitsandbytes\].*train\.base=bfloat16"):
        trained(folder, tmp_path, base="4bit")
