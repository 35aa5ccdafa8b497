"""What `caspo plan` says against what training takes: memory as the system measures it, tokens as training counts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from caspo.cli.main import main
from caspo.core.errors import ConfigError, DataError, EngineError, ModelError
from caspo.data.pairs import write_pairs
from caspo.formats.parquet import write_trees
from caspo.train import output_layer
from caspo.train.budget import Devices, Memory, ModelSize, count_tokens, largest_forward, memory
from caspo.train.lora import LoraSettings
from caspo.train.simulate import Forward
from caspo.train.step_dpo import StepDPOSettings, train_step_dpo
from stories_run import write_recipe
from tiny import build, bushy_tree, pairs_of

TOLERANCE = 0.15
"""Of the measured memory; on 2026-11-24 the estimates were within 0.06."""
SMALL = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 8192,
}  # fmt: skip
MIXTURE = {
    **SMALL, "num_hidden_layers": 4, "head_dim": 32, "num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "intermediate_size": 256,
}  # fmt: skip
WIDE = {**SMALL, "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 100_000}
PLAIN = {
    # Freed blocks go back to the system at once, so that resident memory is memory in use; and the kernels that oneDNN
    # compiles for each shape are not kept: in bfloat16 those of all micro-batches and experts came to 0.3 GB.
    "MALLOC_MMAP_THRESHOLD_": "65536", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "1",
}  # fmt: skip
HELD_IN_LESS = {"lora": {"rank": 8}, "base": "bfloat16", "precision": "bf16"}
TREES = [bushy_tree(f"q{i}", i) for i in range(6)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]


def settings(**more: Any) -> StepDPOSettings:
    return StepDPOSettings(**{"learning_rate": 1e-3, "batch_pairs": 8, **more})


def estimate(
    config: Any = None, devices: Devices | None = None, tokens: int = 256, *, gpu: bool = False, **more: Any
) -> tuple[Memory, ModelSize]:
    return memory(config or build("llama").config, settings(**more), Forward(1, tokens), devices or Devices(), gpu=gpu)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("config", "runs"),
    [
        (SMALL, [{}, {"lora": {"rank": 8}, "gradient_checkpointing": True}, HELD_IN_LESS]),
        pytest.param(
            SMALL, [{"gradient_checkpointing": True}, {"lora": {"rank": 8}}, {"precision": "bf16"}], marks=pytest.mark.slow
        ),
        pytest.param({**MIXTURE, "model_type": "qwen3_moe"}, [{}, HELD_IN_LESS], marks=pytest.mark.slow),
        pytest.param({**MIXTURE, "model_type": "mixtral"}, [{}], marks=pytest.mark.slow),
        pytest.param(WIDE, [{"micro_tokens": 1024}, {**HELD_IN_LESS, "micro_tokens": 2048}], marks=pytest.mark.slow),
    ],
    ids=["three", "others", "qwen3_moe", "mixtral", "a large vocabulary"],
)
def test_memory_is_what_is_measured(config: dict[str, Any], runs: list[dict[str, Any]], tmp_path: Path) -> None:
    """Peak resident memory of training random models of 6M to 9M parameters, with everything that changes it."""
    runs = [{"micro_tokens": 512, **run} for run in runs]
    worker = [sys.executable, str(Path(__file__).with_name("memory_worker.py"))]
    done = subprocess.run(
        [*worker, str(tmp_path), json.dumps(config), json.dumps(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **PLAIN},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(measured) == len(runs)
    for run, found in zip(runs, measured, strict=True):
        expected, _ = estimate(AutoConfig.for_model(**config), tokens=run["micro_tokens"], **run)
        assert expected.peak == pytest.approx(found, rel=TOLERANCE), (run, expected)


def test_weights_are_counted() -> None:
    """4 bytes a parameter, 4 of gradient, 8 of AdamW; tied weights once."""
    for tied in (False, True):
        model = build("llama", tie_word_embeddings=tied)
        parameters = sum(p.numel() for p in model.parameters())
        found, size = estimate(model.config)
        assert size.total == size.trained == parameters
        assert (found.weights, found.gradients, found.optimizer) == (4 * parameters, 4 * parameters, 8 * parameters)
        assert size.outside + 2 * size.layer == parameters


def test_adapters_need_little() -> None:
    """Gradients and AdamW of the adapters only."""
    whole, _ = estimate(AutoConfig.for_model(**SMALL))
    found, size = estimate(AutoConfig.for_model(**SMALL), lora=LoraSettings(rank=2))
    assert size.trained < size.total / 20
    assert found.optimizer == 8 * size.trained
    assert found.optimizer + found.gradients < (whole.optimizer + whole.gradients) / 20
    assert found.training < whole.training


def test_more_tokens_more_activations() -> None:
    """Somewhat more than in proportion (masks); far fewer with checkpointing, fewer in bf16 in spite of the casts."""
    small, large = (estimate(AutoConfig.for_model(**SMALL), tokens=tokens)[0] for tokens in (256, 512))
    assert 1.8 < large.activations / small.activations < 2.5
    assert large.mask == 4 * small.mask == 512 * 512
    assert large.weights == small.weights
    again, _ = estimate(AutoConfig.for_model(**SMALL), tokens=512, gradient_checkpointing=True)
    assert again.activations < large.activations / 2
    half, size = estimate(AutoConfig.for_model(**SMALL), tokens=512, precision="bf16")
    assert half.activations < 0.7 * large.activations
    assert small.working == large.working == 0
    assert 0 < half.working <= 2 * size.total


def test_sharding_divides() -> None:
    """Weights, gradients and AdamW; not the pass, nor the reference, which is scored before the model is divided."""
    one, _ = estimate()
    ddp, _ = estimate(devices=Devices(4))
    assert (ddp.weights, ddp.optimizer) == (one.weights, one.optimizer)
    assert ddp.gradients == 2 * one.gradients, "and the buckets they are summed in"
    full, size = estimate(devices=Devices(4, "full"))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(full, part) == -(-getattr(one, part) // 4)
    assert (full.activations, full.logits, full.mask) == (one.activations, one.logits, one.mask)
    assert full.reference == one.reference > 4 * size.total
    assert full.working > 0
    assert full.peak == max(full.training, full.reference)


def test_logits_and_optimiser_step() -> None:
    """A large vocabulary costs 8 bytes a token and word, and parts of them; many weights and few tokens AdamW's step."""
    config = AutoConfig.for_model(**{**SMALL, "vocab_size": 60_000, "hidden_size": 32, "num_hidden_layers": 1})
    cpu, gpu = (estimate(config, tokens=512, gpu=gpu)[0].logits for gpu in (False, True))
    matrix = 512 * 60_000 * 4
    assert 2 * matrix < cpu < 2.1 * matrix
    assert gpu == 5 * matrix, "three more whole matrices of 512 rows, which a GPU reduces at once"
    found, _ = estimate(AutoConfig.for_model(**SMALL), tokens=1, gpu=True)
    assert found.training == found.weights + found.gradients + found.optimizer + found.step


@pytest.mark.parametrize(
    "kind", ["qwen2", "qwen3", "smollm3", "granite", "mistral", "phi3", "olmo3", "gemma2", "gemma3", "qwen3_moe"]
)
def test_families(kind: str) -> None:
    """Every family is planned, with sliding layers too, and without a word to stderr."""
    for lora in (None, LoraSettings(rank=2)):
        found, _ = estimate(build(kind).config, lora=lora, precision="bf16", gradient_checkpointing=True)
        assert found.activations > 0
        assert found.mask in (256 * 256, 2 * 256 * 256, 2 * 4 * 256 * 256)  # eager attention adds it, in float32


def test_what_cannot_be_planned(capfd: pytest.CaptureFixture[str]) -> None:
    """Is said in one message."""
    with pytest.raises(ModelError, match="memory of a t5 cannot be planned"):
        estimate(AutoConfig.for_model("t5", vocab_size=320))
    assert "Traceback" not in capfd.readouterr().err
    with pytest.raises(EngineError, match=r"train\.layout=separate"):
        estimate(AutoConfig.for_model("bloom", hidden_size=32, n_head=2, n_layer=2, vocab_size=320))


@pytest.mark.parametrize("more", [{}, {"confidence": 0.5, "epochs": 2}, {"validation": 0.3}, {"micro_tokens": 24}])
def test_tokens_are_what_training_counts(more: dict[str, Any], tmp_path: Path) -> None:
    """The figures of `TrainingResult` and the steps of its log."""
    tokens, micros = count_tokens(TREES, PAIRS, settings(**more), 3)
    _, result = train_step_dpo(build("llama"), TREES, PAIRS, settings(**more), seed=3, out=tmp_path)
    assert (tokens.unique, tokens.separate, tokens.trees) == (result.unique_tokens, result.pair_tokens, result.trees)
    assert tokens.pairs == sum(result.pairs.values())
    assert tokens.steps == sum("grad_norm" in line for line in result.log)
    assert tokens.micro_batches == len(micros) >= tokens.steps
    assert tokens.longest_path == max(len(tree.prefix_ids(node.id)) for tree in TREES for node in tree.nodes)
    assert (tokens.trained < tokens.unique) == ("validation" in more)
    assert (tokens.computed > tokens.trained) == ("micro_tokens" in more), "trees that are cut"
    assert largest_forward(settings(**more), micros).tokens <= (more.get("micro_tokens") or 2048)


def test_bases() -> None:
    """Two bytes a frozen parameter, about half a one in 4 bits; adapters stay masters; sharding it is refused."""
    config = AutoConfig.for_model(**SMALL)
    found = {base: estimate(config, **{**HELD_IN_LESS, "base": base}) for base in ("float32", "bfloat16", "4bit")}
    (whole, size), (half, _), (fourth, _) = found.values()
    frozen = size.total - size.trained
    assert whole.weights - half.weights == 2 * frozen
    linear = 6 * (256 * 256 * 2 + 256 * 128 * 2 + 256 * 704 * 3)
    assert size.rounded == linear
    assert half.weights - fourth.weights == pytest.approx((2 - 0.5159) * linear, rel=1e-3)
    assert half.optimizer == fourth.optimizer == 8 * size.trained
    assert fourth.working == half.working + 2 * 256 * 704
    assert whole.reference - half.reference > 2 * frozen
    with pytest.raises(ConfigError, match=r"train\.base=float32"):
        estimate(config, devices=Devices(2, "full"), **HELD_IN_LESS)


def test_logits_are_planned_in_parts() -> None:
    """However many tokens: two matrices of a quarter of a gigabyte; whole where the model changes its logits afterwards."""
    parts = estimate(AutoConfig.for_model(**WIDE), tokens=2048)[0].logits
    assert 2 * output_layer.HELD < parts + 400_000 * 2 < 2.1 * output_layer.HELD
    granite = AutoConfig.for_model(**{**WIDE, "model_type": "granite"})
    assert estimate(granite, tokens=2048)[0].logits > 2 * 2048 * 400_000


@pytest.mark.parametrize(("kind", "more"), [("qwen3_moe", {}), ("mixtral", {}), ("olmoe", {"num_key_value_heads": 8})])
def test_active_parameters(kind: str, more: dict[str, Any]) -> None:
    """Of eight experts two take a token: the rest is not active, and all of it is held."""
    _, size = estimate(AutoConfig.for_model(**{**MIXTURE, "model_type": kind, **more}))
    experts = 4 * 8 * 3 * 256 * 256
    assert size.total - size.active == experts * 6 // 8
    _, dense = estimate(AutoConfig.for_model(**SMALL))
    assert dense.active == dense.total


def test_separate_rows() -> None:
    """The padded rows of the largest micro-batch; without trees they are not known."""
    with pytest.raises(ConfigError, match="--trees and --pairs"):
        largest_forward(settings(layout="separate"))
    _, micros = count_tokens(TREES, PAIRS, settings(), 0)
    packed, apart = (largest_forward(settings(layout=layout), micros) for layout in ("packed", "separate"))
    assert packed.rows == 1
    assert apart.rows > 6
    assert apart.tokens > packed.tokens
    found, _ = memory(build("llama").config, settings(layout="separate"), apart)
    assert found.mask == apart.rows * apart.width**2
    with pytest.raises(DataError, match="no pairs"):
        count_tokens(TREES, [], settings(), 0)


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: object) -> str:
    """What ``caspo plan`` prints, in one line; of an error, its message."""
    monkeypatch.setattr(sys, "argv", ["caspo", "plan", *map(str, args)])
    try:
        main()
    except SystemExit as left:
        if left.code:
            err = capsys.readouterr().err
            assert "Traceback" not in err
            return " ".join(err.split())
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_is_planned_by_its_base(
    named: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the configuration of the base that it names or is given, of which there need be no weights."""
    build("llama").config.save_pretrained(tmp_path / "base")
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "base") if named else None})
    )
    given = [] if named else [f"model.base={tmp_path / 'base'}"]
    out = told(capsys, monkeypatch, write_recipe(tmp_path / "recipe.yaml"), f"model.name={place}", *given)
    assert "M parameters" in out
    assert "Largest pass" in out


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bounds from the recipe alone, then exact numbers from trees; times only where a throughput is given."""
    recipe = write_recipe(tmp_path / "recipe.yaml")
    out = told(capsys, monkeypatch, recipe)
    assert "stories-tiny: 4.2M parameters, 4.2M trained, float32, 1 device" in out
    assert "Largest pass: 2,048 tokens at most" in out
    assert "at most 384 steps, 196,608 tokens: 8 questions, 12 prefixes each, 4 samples, 512 tokens" in out
    assert "Time: give --tokens-per-second" in out
    write_trees(tmp_path / "tree" / "part-0000.parquet", TREES)
    write_pairs(tmp_path / "pairs.parquet", PAIRS, TREES, str)
    data = ("--trees", tmp_path / "tree", "--pairs", tmp_path / "pairs.parquet")
    out = told(capsys, monkeypatch, recipe, *data, "--tokens-per-second", 2)
    tokens, micros = count_tokens(TREES, PAIRS, settings(), 1)
    assert f"{len(PAIRS)} pairs in 6 trees: {tokens.unique} unique tokens" in out
    assert f"Largest pass: {largest_forward(settings(), micros).tokens} tokens." in out
    assert f"Training: {tokens.unique / 2:.0f} s at 2 unique tokens a second." in out
    assert f"Longest path: {tokens.longest_path} tokens, of a context of" in out
    out = told(capsys, monkeypatch, recipe, "--tokens-per-second", 10, "--sampling-tokens-per-second", 1, "rounds=2")
    assert "Sampling: at most 109.2 h at 1 tokens a second. Training: at most 10.9 h at 10 unique tokens" in out


def test_several_servers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They share the time of sampling, and that of a judge that completes what was sampled."""
    task = {"name": "stories", "levels": [2], "judge": {"kind": "rollouts", "max_tokens": 100}}
    recipe = write_recipe(tmp_path / "recipe.yaml", task=task)
    rate = ("--sampling-tokens-per-second", 10)
    out = told(capsys, monkeypatch, recipe, *rate)
    assert "Sampling: at most 5.5 h at 10 tokens a second. Judging by rollouts: at most 17.1 h at the same." in out
    assert "Machines: 1 server to sample, 1 device to train." in out
    out = told(capsys, monkeypatch, recipe, *rate, "--sampling-servers", 4, "--devices", 8)
    assert "Sampling: at most 82 min at 10 tokens a second of each of 4 servers. Judging by rollouts: at most 4.3 h" in out
    assert "Machines: 4 servers to sample, 8 devices to train." in out


def test_a_hub_model_offline(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its config.json lies beside the recipe: Qwen3-8B-Base has 8.19 billion parameters. Another model is asked for."""
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    recipe = root / "recipes" / "qwen3-8b-base" / "recipe.yaml"
    rates = ("--sampling-tokens-per-second", 1000, "--tokens-per-second", 10000)
    out = told(capsys, monkeypatch, recipe, "--sampling-servers", 4, *rates)
    assert "Qwen/Qwen3-8B-Base: 8,190.7M parameters" in out
    assert "Machines: 4 servers to sample, 8 devices to train." in out
    # what docs/clusters.md says of it
    for figure in ("896,000 steps, 458,752,000 tokens", "at most 63.7 h", "at most 25.5 h", "highest │ 27.0", "peak │ 32.5"):
        assert figure in out
    out = told(capsys, monkeypatch, recipe, "model.name=Qwen/Another-8B")
    assert "The configuration of the model 'Qwen/Another-8B' could not be read" in out


def test_devices_of_the_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Number and sharding come from the file of accelerate; options beat it."""
    recipe = write_recipe(tmp_path / "recipe.yaml")
    shipped = Path(__file__).parent.parent / "recipes" / "accelerate"
    for name, sharded in (("ddp", False), ("fsdp2", True), ("zero3", True)):
        out = told(capsys, monkeypatch, recipe, f"accelerate={shipped / name}.yaml")
        assert "8 devices" in out
        assert ("fully sharded" in out) == sharded
    out = told(capsys, monkeypatch, recipe, f"accelerate={shipped / 'fsdp2.yaml'}", "--devices", 2, "--sharding", "none")
    assert "2 devices" in out
    assert "fully sharded" not in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--tokens-per-second", "-1"), "--tokens-per-second is -1; a throughput is more than 0"),
        (("--sampling-tokens-per-second", "0"), "--sampling-tokens-per-second is 0"),
        (("--sharding", "half"), "Choose none (DDP) or full"),
        (("--trees", "x"), "--trees was given 1 times and --pairs 0 times"),
        (("accelerate=none.yaml",), "Cannot read accelerate: none.yaml"),
        (("accelerate=odd.yaml",), "num_processes 2 and distributed_type TPU, which cannot be planned"),
        (("accelerate=zero2.yaml",), "zero_stage that is not 3"),
        (("accelerate=broken.yaml",), "is not valid YAML"),
        (("model.name=./none",), "There is no model folder './none'"),
        (("model.name=odd",), "configuration of the model 'odd' could not be read"),
        (("train.micro_token=1",), "did you mean 'micro_tokens'?"),
        (("train.layout=separate",), "how many paths there are is not known"),
    ],
)
def test_wrong_input(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Is said in one message."""
    monkeypatch.chdir(tmp_path)
    files = {
        "odd": {"distributed_type": "TPU", "num_processes": 2},
        "zero2": {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 2}},
    }
    for name, content in files.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    Path("broken.yaml").write_text("a: [")
    Path("odd").mkdir()
    Path("odd/config.json").write_text('{"model_type": "nothing"}')
    assert message in told(capsys, monkeypatch, write_recipe(tmp_path / "recipe.yaml"), *args)
    assert "Cannot read the recipe" in told(capsys, monkeypatch, "missing.yaml")
