"""Training as a whole: equivalences (micro-batches, resumption, TRL) and that the gradients point the right way."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from caspo.core.errors import ConfigError, DataError, EngineError, StorageError
from caspo.records import ROOT, Question, StepPair, Tree
from caspo.train.attention import TreeAttention
from caspo.train.lora import LoraSettings
from caspo.train.losses import margins, preference_loss
from caspo.train.scoring import Scorer
from caspo.train.step_dpo import StepDPOSettings, TrainingResult, train_step_dpo
from tiny import build, bushy_tree, node, pairs_of, tokenizer

TREES = [bushy_tree(f"q{i}", i) for i in range(6)]
PAIRS = [pair for tree in TREES for pair in pairs_of(tree)]


def settings(**more: Any) -> StepDPOSettings:
    return StepDPOSettings(**{"learning_rate": 1e-3, "batch_pairs": 8, "warmup": 0.0, **more})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train(out: Path, kind: str = "llama", on_step: Any = None, **more: Any) -> tuple[Any, TrainingResult]:
    model = build(kind)
    extra = {} if on_step is None else {"on_step": on_step}
    return train_step_dpo(model, TREES, PAIRS, settings(**more), seed=3, out=out, **extra)


def log_probs(model: Any, trees: list[Tree]) -> dict[tuple[str, int], float]:
    with torch.no_grad():
        return {key: float(s.logprobs.sum()) for key, s in scored(model, trees).items()}


def scored(model: Any, trees: list[Tree]) -> Any:
    """Every node of the trees, by separate rows."""
    scorer = Scorer(model, packed=False)
    return scorer.score(model, [row for tree in trees for row in scorer.rows(tree, range(len(tree.nodes)))])


def mean_margin(model: Any, reference: Any) -> float:
    now, before = log_probs(model, TREES), log_probs(reference, TREES)
    shift = {key: now[key] - before[key] for key in now}
    return sum(shift[p.question_id, p.chosen] - shift[p.question_id, p.rejected] for p in PAIRS) / len(PAIRS)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_it_learns(kind: str, tmp_path: Path) -> None:
    """With and without sliding windows: right continuations rise against wrong ones, and the figures say so."""
    started = time.monotonic()
    model, result = train(tmp_path, kind, epochs=4)
    assert 0 < result.seconds < time.monotonic() - started, "no second is counted twice"
    assert mean_margin(model, build(kind)) > 1
    assert math.isclose(result.log[0]["dpo"], math.log(2), rel_tol=1e-3), "at the start model and reference agree"
    assert result.loss_last < result.loss_first
    assert result.pair_accuracy_last == 1
    assert result.pairs == {"confident_wrong": len(PAIRS), "uncertain_right": 0}
    assert result.trees == 6
    assert result.unique_tokens < result.pair_tokens
    json.dumps(result.as_json(), allow_nan=False)


def test_packed_and_separate_training_agree(tmp_path: Path) -> None:
    """A model that cannot be packed is trained to the same weights by separate rows."""
    packed, _ = train(tmp_path / "a", confidence=0.5, anchor=0.2)
    apart, _ = train(tmp_path / "b", confidence=0.5, anchor=0.2, layout="separate")
    before = weights(build("llama"))
    for name, value in weights(packed).items():
        assert float((value - before[name]).norm()) > 0
        torch.testing.assert_close(value, weights(apart)[name], atol=2e-4, rtol=1e-3)


def test_micro_batches_do_not_matter(tmp_path: Path) -> None:
    """A step of one micro-batch and of one tree at a time move the weights alike: losses are normalised by the step."""
    more = {"batch_pairs": 1000, "anchor": 0.3, "confidence": 0.7, "learning_rate": 1e-4}
    whole, a = train(tmp_path / "a", micro_tokens=100_000, **more)
    split, b = train(tmp_path / "b", micro_tokens=1, **more)
    assert len(a.log) == len(b.log) == 1
    for key, value in a.log[0].items():
        if (
            "pair_accuracy" not in key and key != "seconds"
        ):  # margins are 0 before the first step, their signs rounding: see below
            assert math.isclose(value, b.log[0][key], rel_tol=1e-4, abs_tol=1e-5), key
    # AdamW's first step is the sign of the gradient, so only weights whose gradient is not rounding noise compare.
    for name, value in weights(whole).items():
        assert float((value - weights(split)[name]).abs().mean()) < 1e-6, name
    _, c = train(tmp_path / "c", micro_tokens=100_000, epochs=2, **more)
    _, d = train(tmp_path / "d", micro_tokens=1, epochs=2, **more)
    assert 0 < c.log[1]["pair_accuracy"] == pytest.approx(d.log[1]["pair_accuracy"], rel=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4)])
def test_resumed_equals_uninterrupted(tmp_path: Path, lora: LoraSettings | None) -> None:
    """Killed twice and run again by the same line: the same weights, bit by bit, and the same log."""
    more = {"epochs": 2, "lora": lora, "confidence": 0.3}
    whole, expected = train(tmp_path / "a", **more)
    done: list[int] = []

    def kill(step: int, total: int, metrics: dict[str, float]) -> None:
        done.append(step)
        if step in (3, 6) and done.count(step) == 1:
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            train(tmp_path / "b", on_step=kill, checkpoint_seconds=1e-9, **more)
    resumed, found = train(tmp_path / "b", on_step=kill, checkpoint_seconds=1e-9, **more)
    assert done == [1, 2, 3, 3, 4, 5, 6, 6, *range(7, len(expected.log) + 1)], "it goes on after the checkpoint"
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    for line, whole_line in zip(found.log, expected.log, strict=True):
        assert {**line, "seconds": 0} == {**whole_line, "seconds": 0}


def test_lora_is_merged(tmp_path: Path) -> None:
    """The result is a plain model that computes what the adapted one did; only it was trained."""
    model, result = train(tmp_path, lora=LoraSettings(rank=4, alpha=8), epochs=3, learning_rate=5e-3, checkpoint_seconds=1e9)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert mean_margin(model, build("llama")) > 0.5
    assert result.pair_accuracy_last > 0.9
    before = weights(build("llama"))
    assert torch.equal(weights(model)["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_lora_merge_keeps_the_logits() -> None:
    """Merging is arithmetic: logits before and after are the same."""
    import peft

    model = peft.get_peft_model(build("llama"), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        after = model.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_bf16_keeps_float32_masters(tmp_path: Path) -> None:
    """Weights stay float32 and move by less than bfloat16 could hold."""
    before = weights(build("llama"))
    model, result = train(tmp_path, precision="bf16", learning_rate=1e-6)
    assert abs(result.log[0]["margin"]) < 1e-4, "the reference is scored as the training sees the model"
    moved = 0
    for name, value in weights(model).items():
        assert value.dtype == torch.float32
        change = value != before[name]
        lost = value.to(torch.bfloat16) == before[name].to(torch.bfloat16)
        moved += int((change & lost).sum())
    assert moved > 1000, "small updates survive"


def test_divergence_is_an_error(tmp_path: Path) -> None:
    """An absurd learning rate ends in an error that says so and at which tree, not in a model of NaN."""
    with pytest.raises(EngineError, match=r"tree of question q\d is nan: training diverged.*lower the learning rate"):
        train(tmp_path, learning_rate=1e30, epochs=5, max_grad_norm=1e30)


def test_a_gradient_that_is_not_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss may still be fine where its gradient is not: the step is refused, with its number."""
    model = build("llama")
    model.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(EngineError, match=r"gradient norm is nan at step 1 of .*diverged"):
        train_step_dpo(model, TREES, PAIRS, settings(), 3, tmp_path)


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    """Training that stops helping on held-out trees ends early, at the weights that were best; killed on the way too."""
    more = {"validation": 0.34, "evaluate_every": 1, "patience": 2, "epochs": 30, "learning_rate": 3e-3}
    model, result = train(tmp_path / "a", **more)
    measured = [line["eval_loss"] for line in result.log if "eval_loss" in line]
    assert len(measured) < 30, "it stopped early"
    assert result.validation_loss == min(measured)
    assert measured.index(min(measured)) == len(measured) - 3, "two measurements without a better one"
    assert all(f"eval_{name}" in result.log[-1] for name in ("margin/depth_1", "pair_accuracy/confident_wrong"))

    def kill(step: int, total: int, metrics: dict[str, float]) -> None:
        if step == len(measured) - 1:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "b", on_step=kill, checkpoint_seconds=1e-9, **more)
    resumed, again = train(tmp_path / "b", checkpoint_seconds=1e-9, **more)
    assert again.validation_loss == result.validation_loss
    for name, value in weights(model).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_metrics_go_to_tensorboard(tmp_path: Path) -> None:
    """The usual callback writes them where the run is; one that is not installed is a clear error."""
    pytest.importorskip("tensorboard")
    train(tmp_path / "train", report_to=("tensorboard",))
    files = list((tmp_path / "tensorboard").rglob("events.*"))
    assert len(files) == 1
    assert b"pair_accuracy/depth_2" in files[0].read_bytes()


def test_a_reporter_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, with what to do."""
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ConfigError, match=r"report_to.*wandb"):
        train(tmp_path, report_to=("wandb",))


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_other_losses_learn_too(loss: str, tmp_path: Path) -> None:
    """Every objective pulls chosen over rejected; weights of pairs and length normalisation change the update."""
    model, _ = train(tmp_path / "a", loss=loss, epochs=4, beta=0.5)
    assert mean_margin(model, build("llama")) > 0.3
    plain, _ = train(tmp_path / "b", beta=0.5)
    for place, more in enumerate(({"length_normalised": True}, {"pair_weights": "margin"}, {"label_smoothing": 0.2})):
        other, _ = train(tmp_path / str(place), beta=0.5, **more)
        assert any(not torch.equal(v, weights(other)[n]) for n, v in weights(plain).items()), more


@pytest.mark.parametrize("where", ["weights", "optimizer"])
def test_a_full_disk_at_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """safetensors and torch report a full disk by errors of their own; the user sees ours, and can go on."""
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        if where == "weights":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0")

    with monkeypatch.context() as patched:
        if where == "weights":
            patched.setattr("transformers.modeling_utils.safe_save_file", full)
        else:
            patched.setattr(torch, "save", full)
        with pytest.raises(StorageError, match="Free some space"):
            train(tmp_path, checkpoint_seconds=1e-9)
    resumed, _ = train(tmp_path)
    whole, _ = train(tmp_path / "other")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_confidence_term_separates_entropies(tmp_path: Path) -> None:
    """With the confidence term alone right steps become more certain, and wrong ones do not."""

    def entropies(model: Any) -> tuple[float, float]:
        with torch.no_grad():
            scores = scored(model, TREES)
        labels = {(t.question.id, n.id): n.verdict.label for t in TREES for n in t.nodes if n.verdict}
        means = {"right": [], "wrong": []}  # type: dict[str, list[float]]
        for key, score in scores.items():
            means[labels[key]].append(float(score.entropies.mean()))
        return sum(means["right"]) / len(means["right"]), sum(means["wrong"]) / len(means["wrong"])

    start = build("llama", initializer_range=0.9)
    right, wrong = entropies(start)
    trained, _ = train_step_dpo(
        start, TREES, PAIRS, settings(learning_rate=3e-4, beta=1e-6, confidence=1.0, epochs=12), seed=0, out=tmp_path
    )
    right_after, wrong_after = entropies(trained)
    assert right_after < right - 0.3
    assert wrong_after > wrong - 0.05


def test_anchor_holds_the_chosen_up(tmp_path: Path) -> None:
    """With the anchor the chosen steps gain probability by themselves, not only against the rejected."""
    before = log_probs(build("llama"), TREES)
    chosen = {(p.question_id, p.chosen) for p in PAIRS}

    def gain(anchor: float) -> float:
        model, _ = train(tmp_path / str(anchor), anchor=anchor, epochs=2)
        after = log_probs(model, TREES)
        return sum(after[key] - before[key] for key in chosen) / len(chosen)

    assert gain(2.0) > max(0.0, gain(0.0))


def test_no_eos_on_steps_that_are_not_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a step that ended its solution is trained on EOS: a step must not learn to end the solution."""
    seen: list[tuple[int, list[int]]] = []
    real = Scorer.score

    def watch(self: Scorer, model: Any, rows: Any) -> Any:
        seen.extend((key[1], tokens) for row in rows for key, (_, tokens) in row.nodes.items())
        return real(self, model, rows)

    monkeypatch.setattr(Scorer, "score", watch)
    train(tmp_path)
    assert {node for node, _ in seen} == set(range(9))
    for number, tokens in seen:
        assert (0 in tokens) == (number == 7), "node 7 is the only final one"


def test_bad_input(tmp_path: Path) -> None:
    """No pairs, or pairs without their tree: an error that says what to do."""
    with pytest.raises(DataError, match="no pairs to train on"):
        train_step_dpo(build("llama"), TREES, [], settings(), 0, tmp_path)
    with pytest.raises(DataError, match="question q5 have no tree"):
        train_step_dpo(build("llama"), TREES[:5], PAIRS, settings(), 0, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_model_that_ignores_the_tree_mask_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If packing gives other numbers than separate rows, nothing is trained; separate rows still are."""
    monkeypatch.setattr(TreeAttention, "mask", lambda *args: None)
    before = weights(build(kind))
    model = build(kind)
    with pytest.raises(EngineError, match="does not honour"):
        train_step_dpo(model, TREES, PAIRS, settings(), 3, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    train(tmp_path, kind, layout="separate")


def test_loss_equals_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pairs, as token ids, through TRL's DPOTrainer: the same loss and the same gradients.

    TRL's own tokenisation appends EOS to every completion; it is skipped here, since steps have none.
    """
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    policy, reference = build("llama", seed=1), build("llama", seed=2)
    by_id = {tree.question.id: tree for tree in TREES}
    rows = [
        {
            "prompt_ids": list(by_id[p.question_id].prefix_ids(p.parent)),
            "chosen_ids": list(by_id[p.question_id].nodes[p.chosen].step.token_ids),
            "rejected_ids": list(by_id[p.question_id].nodes[p.rejected].step.token_ids),
        }
        for p in PAIRS
    ]

    class Tokenised(trl.DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    config = trl.DPOConfig(
        output_dir=str(tmp_path), beta=0.3, report_to=[], use_cpu=True, max_length=None, bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    theirs = copy.deepcopy(policy)
    trainer = Tokenised(theirs, reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
    theirs.train()
    loss = trainer.compute_loss(theirs, trainer.data_collator(rows))
    loss.backward()

    scores, frozen = scored(policy, TREES), scored(reference, TREES)

    def side(found: Any, which: str) -> torch.Tensor:
        return torch.stack([found[p.question_id, getattr(p, which)].logprobs.sum() for p in PAIRS])

    with torch.no_grad():
        held = [side(frozen, "chosen"), side(frozen, "rejected")]
    margin = margins(side(scores, "chosen") - held[0], side(scores, "rejected") - held[1])
    losses = preference_loss(margin, beta=0.3)
    losses.mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.mean().detach(), loss.detach(), atol=1e-4, rtol=1e-5)
    for (name, mine), (_, other) in zip(policy.named_parameters(), theirs.named_parameters(), strict=True):
        assert float((mine.grad - other.grad).norm()) <= 1e-3 * float(other.grad.norm()) + 1e-6, name


def test_pairs_of_one_tree_share_their_nodes(tmp_path: Path) -> None:
    """A step that is chosen in one pair and in another as well counts in both: the loss is that of the pairs."""
    ids = (5, 6, 7)
    nodes = (
        node(0, ROOT, 1, (8, 9), "right"), node(1, ROOT, 1, (10,), "wrong"), node(2, ROOT, 1, (11, 12, 13), "wrong"),
    )  # fmt: skip
    tree = Tree(Question("?", "1", id="one"), ids, nodes)
    pairs = [StepPair("one", ROOT, 0, wrong, "confident_wrong", 0.5, 0.5, weight=wrong) for wrong in (1, 2)]
    _, result = train_step_dpo(build("llama"), [tree], pairs, settings(), 0, tmp_path)
    assert len(result.log) == 1
    assert math.isclose(result.log[0]["loss"], math.log(2) * (1 + 2) / 2, rel_tol=1e-3), "weights count"
