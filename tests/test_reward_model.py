"""Reward models with tiny random weights of the real architectures: the right scores, read at the right places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from caspo.core.errors import ConfigError, ModelError
from caspo.engines.models import resolve
from caspo.judges.base import Chain, Judge
from caspo.judges.reward_model import RewardModelJudge, RewardModelSettings, load_reward_model
from caspo.records import Question
from tiny import COMMON, build

LAYOUTS = ("qwen", "token_classification", "math_shepherd")
QUESTION = Question("Ann has 2 nuts and finds 3. How many has she?", "5", id="q")
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
SOLUTIONS: list[tuple[str, ...]] = [
    ("She has 2 and 3.\n", "2 + 3 = 5.\n", "The answer is 5."),
    ("2 * 3 = 6",),
    ("", "2 + 3 = 6\n", "   ", "The answer is 6."),
    ("У Анны яблоки и орешки ки.\n", "二加三等于五。<extra_0>\n", "ки\n", "Step 4: 5"),
    ("2 + 3 = 5\n" * 3, "So 5.\n") * 3,
]
CHAINS = [Chain(QUESTION, steps, True) for steps in SOLUTIONS]


@cache
def tokenizer() -> Any:
    """That of the bundled model, with the separators of both families."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(resolve("stories-tiny"))
    found.add_special_tokens({"additional_special_tokens": ["<extra_0>", "<|im_start|>", "<|im_end|>"]})
    from tokenizers import AddedToken

    found.add_tokens([AddedToken("ки", single_word=True, lstrip=True), AddedToken("+"), AddedToken("-", lstrip=True)])
    found.chat_template = CHATML
    return found


@cache
def model(layout: str) -> Any:
    import transformers as tf

    more: dict[str, Any] = {**COMMON, "vocab_size": len(tokenizer())}
    torch.manual_seed(3)
    if layout == "math_shepherd":
        return build("mistral", 3, vocab_size=len(tokenizer()), sliding_window=None)
    return tf.Qwen2ForTokenClassification(tf.Qwen2Config(**more, num_labels=2)).eval()


def judge_of(layout: str, **more: Any) -> RewardModelJudge:
    settings = RewardModelSettings(model="m", layout=layout, **more)  # type: ignore[arg-type]
    return RewardModelJudge(lambda: (model(layout), tokenizer()), settings)


def slow_scores(layout: str, steps: Sequence[str]) -> list[float]:
    """As the model cards do it: one solution at a time, the scores found by the separator's token."""
    shown = [step.strip() for step in steps if step.strip()]
    tok, net = tokenizer(), model(layout)
    if layout == "token_classification":
        ids = tok(QUESTION.text, add_special_tokens=False)["input_ids"]
        places = []
        for step in shown:
            ids = ids + tok(step, add_special_tokens=False)["input_ids"] + tok("\n", add_special_tokens=False)["input_ids"]
            places.append(len(ids) - 1)
        with torch.inference_mode():
            scores = net(input_ids=torch.tensor([ids])).logits.softmax(-1)[0, :, 1]
        return [float(scores[place]) for place in places]
    if layout == "qwen":
        system = {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."}
        answer = {"role": "assistant", "content": "<extra_0>".join(shown) + "<extra_0>"}
        user = {"role": "user", "content": QUESTION.text}
        text = tok.apply_chat_template([system, user, answer], tokenize=False, add_generation_prompt=False)
        ids_T = torch.tensor([tok.encode(text)])
        with torch.inference_mode():
            scores = net(input_ids=ids_T).logits.softmax(-1)[0, :, 1]
        return [float(x) for x in scores[ids_T[0] == tok.convert_tokens_to_ids("<extra_0>")]]
    lines = [step if step.startswith("Step ") else f"Step {i}: {step}" for i, step in enumerate(shown, start=1)]
    ids_T = torch.tensor([tok.encode(f"{QUESTION.text} " + "\n".join(f"{line} ки" for line in lines))])
    candidates = tok.encode("+ -")
    with torch.inference_mode():
        scores = net(input_ids=ids_T).logits[0, :, candidates].softmax(-1)[:, 0]
    return [float(x) for x in scores[ids_T[0] == tok.convert_tokens_to_ids("ки")]]


def plain(scores: Sequence[float | None]) -> list[float]:
    return [score for score in scores if score is not None]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_model_card(layout: str) -> None:
    """Every step's own, in a batch with others of other lengths; blank steps have none."""
    found = judge_of(layout).scores(CHAINS)
    for place in (0, 1, 2, 4):
        assert plain(found[place]) == pytest.approx(slow_scores(layout, SOLUTIONS[place]), abs=1e-5)
    assert [score is None for score in found[2]] == [True, False, True, False]
    assert len({round(score, 6) for scores in found for score in plain(scores)}) > 8, "the scores tell places apart"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_separator_within_a_step_is_not_taken_for_the_end_of_it(layout: str) -> None:
    """Russian steps hold Math-Shepherd's separator as a word: looked up by its token, every later score would shift."""
    (scores,) = judge_of(layout).scores([CHAINS[3]])
    slow = slow_scores(layout, SOLUTIONS[3])
    at = {"qwen": [0, 2, 3, 4], "token_classification": [0, 1, 2, 3], "math_shepherd": [1, 2, 4, 5]}[layout]
    assert plain(scores) == pytest.approx([slow[i] for i in at], abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_one_gives_what_a_batch_of_64_gives(layout: str) -> None:
    """Padding changes nothing, nor does the order; an empty chain and no chain at all are harmless."""
    chains = [CHAINS[i % 5] for i in range(64)]
    together = judge_of(layout, batch_tokens=1_000_000).scores(chains)
    alone = judge_of(layout, batch_tokens=1).scores(chains)
    for a, b in zip(together, alone, strict=True):
        assert [x is None for x in a] == [x is None for x in b]
        assert plain(a) == pytest.approx(plain(b), abs=1e-5)
    assert judge_of(layout).judge([]) == []
    assert judge_of(layout).judge([Chain(QUESTION, (), True), Chain(QUESTION, ("", " \n"), True)])[0] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_beyond_the_context_is_unknown(layout: str) -> None:
    """With the reason; the steps before it are judged as if nothing followed."""
    short = Chain(QUESTION, ("2 + 3 = 5",), False)
    long = Chain(QUESTION, ("2 + 3 = 5", "and so on " * 150, "The answer is 5."), True)
    judge = judge_of(layout, wrong=0.0)
    (verdicts,) = judge.judge([long])
    assert [v.label for v in verdicts[1:]] == ["unknown", "unknown"]
    assert "context" in verdicts[1].reason
    scores = judge.scores([long, short])
    assert scores[0][0] == pytest.approx(scores[1][0], abs=1e-5)


def labels(judge: Judge, chain: Chain) -> list[str]:
    return [verdict.label for verdict in judge.judge([chain])[0]]


def test_thresholds_make_the_verdicts() -> None:
    """At least `right`: right; less than `wrong`: wrong, and the end; between: unknown."""
    chain = CHAINS[0]
    scores = plain(judge_of("qwen").scores([chain])[0])
    middle = sorted(scores)[1]
    assert labels(judge_of("qwen", right=0.0, wrong=0.0), chain) == ["right"] * 3
    assert labels(judge_of("qwen", right=1.0, wrong=1.0), chain) == ["wrong"]
    assert labels(judge_of("qwen", right=1.0, wrong=0.0), chain) == ["unknown"] * 3
    expected = ["right" if score >= middle else "unknown" for score in scores]
    assert labels(judge_of("qwen", right=middle, wrong=0.0), chain) == expected
    assert labels(judge_of("qwen", right=0.0, wrong=0.0), Chain(QUESTION, chain.steps, True, given=2)) == ["right"]
    with pytest.raises(ValidationError, match="above"):
        RewardModelSettings(model="m", layout="qwen", right=0.2, wrong=0.3)


def test_models_are_loaded_from_folders(tmp_path: Path) -> None:
    """The layouts of transformers' own classes; the scores are those of the model that was saved."""
    for layout in ("token_classification", "math_shepherd"):
        folder = tmp_path / layout
        model(layout).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        settings = RewardModelSettings(model=str(folder), layout=layout)  # type: ignore[arg-type]
        found = RewardModelJudge(lambda settings=settings: load_reward_model(settings), settings).scores(CHAINS[:2])
        for a, b in zip(found, judge_of(layout).scores(CHAINS[:2]), strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    settings = RewardModelSettings(model=str(tmp_path / "math_shepherd"), layout="token_classification")
    with pytest.raises(ModelError, match=r"lacks weights \(score"):
        load_reward_model(settings)


REMOTE = """
from torch import nn
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput

class TinyRewardModel(Qwen2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.score = nn.Sequential(nn.Linear(config.hidden_size, 8), nn.ReLU(), nn.Linear(8, 2))
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)[0]
        return TokenClassifierOutput(logits=self.score(hidden))
"""


def test_code_of_a_repository_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A head of its own, as Qwen2.5-Math-PRM has."""
    import transformers as tf

    namespace: dict[str, Any] = {"__name__": "remote"}
    exec(REMOTE, namespace)
    torch.manual_seed(5)
    tiny = namespace["TinyRewardModel"](tf.Qwen2Config(**{**COMMON, "vocab_size": len(tokenizer())})).eval()
    tiny.config.auto_map = {"AutoModel": "modeling_tiny.TinyRewardModel"}
    tiny.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "modeling_tiny.py").write_text(REMOTE)
    settings = RewardModelSettings(model=str(tmp_path), layout="qwen")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_reward_model(settings)
    trusted = settings.model_copy(update={"trust_remote_code": True})
    loaded = RewardModelJudge(lambda: load_reward_model(trusted), trusted).scores(CHAINS[:2])
    own = RewardModelJudge(lambda: (tiny, tokenizer()), settings).scores(CHAINS[:2])
    for a, b in zip(loaded, own, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_a_model_of_another_layout_is_refused() -> None:
    """No separator in its vocabulary, or not two classes: its scores would mean nothing."""
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(resolve("stories-tiny"))
    for layout in ("qwen", "math_shepherd"):
        settings = RewardModelSettings(model="m", layout=layout)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="no single token"):
            RewardModelJudge(lambda layout=layout: (model(layout), bare), settings).judge(CHAINS)
    settings = RewardModelSettings(model="m", layout="token_classification")
    with pytest.raises(ModelError, match="classes apart"):
        RewardModelJudge(lambda: (model("math_shepherd"), tokenizer()), settings).judge(CHAINS)
