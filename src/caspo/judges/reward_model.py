"""Judge `reward_model`: a process reward model scores every step, and thresholds make verdicts of the scores.

Three layouts, which differ in where the score of a step is read:

- `qwen`: Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv:2501.07301). A chat whose answer has ``<extra_0>`` after every step;
  a head of the repository's own code classifies those tokens. Needs ``trust_remote_code``.
- `token_classification`: any ``AutoModelForTokenClassification`` trained as by TRL's PRMTrainer: question, steps, a line
  break after each; the last token of the line break is classified.
- `math_shepherd`: Math-Shepherd (Wang et al. 2024, arXiv:2312.08935). A causal model; after each step stands ``ки``, and
  the score is p("+") against p("-") as the next token.

The place of a score is known from the text, not looked up by the token's id: steps may contain the separator, as Russian
ones do. What is not covered: layouts of other families (a chat turn for every step), and models saved as pickles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import Field, model_validator

from caspo.core.config import Config
from caspo.core.errors import ConfigError, ModelError
from caspo.engines.models import resolve
from caspo.engines.models.placement import chosen_device
from caspo.formats.math_shepherd import TAG as SHEPHERD_TAG
from caspo.formats.math_shepherd import with_headers
from caspo.judges.base import Chain
from caspo.records import Label, Question, Verdict

__all__ = ["RewardModelJudge", "RewardModelSettings", "load_reward_model"]

Layout = Literal["qwen", "token_classification", "math_shepherd"]

_QWEN_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
_QWEN_TAG = "<extra_0>"


class RewardModelSettings(Config):
    """Which reward model, and what its scores mean."""

    kind: Literal["reward_model"] = "reward_model"
    model: str
    """Folder or hub name."""
    layout: Layout
    """How the model wants its input, and where its scores stand."""
    right: float = Field(0.5, ge=0, le=1)
    """A step that scores at least this is right (a probability)."""
    wrong: float = Field(0.5, ge=0, le=1)
    """A step that scores less than this is wrong; between the two it is unknown (a probability)."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward pass, padding included; a single longer solution is passed alone."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What it computes in. Not chosen by itself: its scores are held to thresholds."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`, ...; `auto`: CUDA if it is there, else MPS, else the CPU."""
    trust_remote_code: bool = False
    """Run the Python code of the model's repository; `qwen` cannot do without."""

    @model_validator(mode="after")
    def _ordered(self) -> RewardModelSettings:
        if self.wrong > self.right:
            raise ValueError(f"wrong ({self.wrong:g}) must not be above right ({self.right:g})")
        return self


@dataclass(frozen=True)
class _ModelInput:
    """A chain as the model reads it."""

    ids: tuple[int, ...]
    places: tuple[int | None, ...]
    """Per step the token at which its score is read; None for a blank step, which the model is not shown."""


class RewardModelJudge:
    """Judges chains by the scores of a reward model.

    Args:
        load: gives the model and its tokenizer when they are first needed; see `load_reward_model`.
        settings: layout, thresholds, batch size.
    """

    name = "reward_model"
    instant = False

    def __init__(self, load: Callable[[], tuple[Any, Any]], settings: RewardModelSettings) -> None:
        self.settings = settings
        self.fingerprint = f"{self.name} {settings.model_dump_json(exclude={'batch_tokens', 'device'})}"
        self._model = cache(load)

    def judge(self, chains: Sequence[Chain]) -> list[list[Verdict]]:
        """As `Judge.judge`."""
        return [self._verdicts(chain, scores) for chain, scores in zip(chains, self.scores(chains), strict=True)]

    def scores(self, chains: Sequence[Chain]) -> list[list[float | None]]:
        """Per chain the score of every step, in [0, 1]; None for a blank one and for what is beyond the model's context."""
        if not chains:
            return []
        model, tokenizer = self._model()
        limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
        rows = [_row(self.settings.layout, tokenizer, chain.question, chain.steps) for chain in chains]
        rows = [
            _ModelInput(row.ids[:limit], tuple(p if p is not None and p < limit else None for p in row.places))
            for row in rows
        ]
        found: list[list[float | None]] = [[None] * len(row.places) for row in rows]
        order = sorted((i for i, row in enumerate(rows) if row.ids), key=lambda i: len(rows[i].ids))
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(rows[order[count]].ids) <= self.settings.batch_tokens:
                count += 1
            batch, order = order[:count], order[count:]
            for place, scores in zip(batch, self._pass([rows[i] for i in batch], model, tokenizer), strict=True):
                found[place] = scores
        return found

    def _pass(self, rows: Sequence[_ModelInput], model: Any, tokenizer: Any) -> list[list[float | None]]:
        """One forward pass; padding stands on the right, where a causal model does not see it."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        device = next(model.parameters()).device
        ids_BT = pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
        mask_BT = pad_sequence([torch.ones(len(row.ids), dtype=torch.long) for row in rows], batch_first=True)
        kept = sorted({place for row in rows for place in row.places if place is not None})
        more: dict[str, Any] = {}
        if self.settings.layout == "math_shepherd":  # a vocabulary of logits at every token would fill the memory
            more["logits_to_keep"] = torch.tensor(kept, device=device)
        with torch.inference_mode():
            logits = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False, **more)[0]
        logits_BKC = logits[..., _candidates(tokenizer)] if more else logits[:, kept]
        if logits_BKC.shape[-1] != 2:
            raise ModelError(
                f"{self.settings.model} tells {logits_BKC.shape[-1]} classes apart; a process reward model has two, wrong "
                "and right. Choose another model, or another layout."
            )
        right = 0 if more else 1
        score_BK = torch.softmax(logits_BKC.float(), dim=-1)[..., right].tolist()
        at = {place: k for k, place in enumerate(kept)}
        return [[None if place is None else score_BK[i][at[place]] for place in row.places] for i, row in enumerate(rows)]

    def _verdicts(self, chain: Chain, scores: Sequence[float | None]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        for step, score in list(zip(chain.steps, scores, strict=True))[chain.given :]:
            label: Label = "unknown"
            if score is None:
                reason = "beyond the context of the reward model" if step.strip() else "an empty step"
            else:
                label = "right" if score >= self.settings.right else "wrong" if score < self.settings.wrong else "unknown"
                reason = f"the reward model gives {score:.3f}"
            verdicts.append(Verdict(label, reason, self.name))
            if label == "wrong":
                break
        return verdicts


def load_reward_model(settings: RewardModelSettings) -> tuple[Any, Any]:
    """The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigError: the layout needs the code of the model's repository, and it is not trusted.
        ModelError: the model cannot be loaded, or a weight is missing.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    if settings.layout == "qwen" and not settings.trust_remote_code:
        raise ConfigError(
            f"{settings.model} in the layout 'qwen' runs code of its own repository. Read that code, then set "
            "trust_remote_code to true in the judge's settings."
        )
    of = {"qwen": AutoModel, "token_classification": AutoModelForTokenClassification, "math_shepherd": AutoModelForCausalLM}[
        settings.layout
    ]
    device = chosen_device(settings.dtype, settings.device)  # before anything is downloaded
    folder = resolve(settings.model, trust_remote_code=settings.trust_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        model, info = of.from_pretrained(
            folder,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=settings.trust_remote_code,
        )
    except Exception as error:  # transformers raises whatever a malformed folder happens to trip over
        raise ModelError(
            f"Could not load the reward model {settings.model!r} from {folder}: {type(error).__name__}: {error}. Check the "
            "folder and the layout."
        ) from error
    if info["missing_keys"]:
        raise ModelError(
            f"{folder} lacks weights ({', '.join(sorted(info['missing_keys'])[:3])}, ...): it is no reward model of the "
            f"layout {settings.layout!r}. Its scores would be random."
        )
    return model.to(device).eval(), tokenizer


def _row(layout: Layout, tokenizer: Any, question: Question, steps: Sequence[str]) -> _ModelInput:
    shown = [step.strip() for step in steps if step.strip()]
    if not shown:
        return _ModelInput((), (None,) * len(steps))
    written = {"qwen": _qwen, "token_classification": _token_classification, "math_shepherd": _math_shepherd}[layout]
    ids, ends = written(tokenizer, question.text.strip(), shown)
    places = iter(ends)
    return _ModelInput(tuple(ids), tuple(next(places) if step.strip() else None for step in steps))


def _token_classification(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens, and the place of each step's score."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    ids += encode(question)
    separator, places = encode("\n"), []
    for step in steps:
        ids += encode(step) + separator
        places.append(len(ids) - 1)
    return ids, places


def _qwen(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens, and the place of each step's score."""
    _single(tokenizer, _QWEN_TAG)
    solution = "".join(f"{step}{_QWEN_TAG}" for step in steps)
    messages = [
        {"role": "system", "content": _QWEN_INSTRUCTION},
        {"role": "user", "content": question},
        {"role": "assistant", "content": solution},
    ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    start = text.rfind(solution)
    if start < 0:
        raise ModelError("The chat template of the reward model changes the solution. Is it a model of the layout 'qwen'?")
    return _encoded(tokenizer, text, _ends(start, steps, _QWEN_TAG), special=False)


def _math_shepherd(tokenizer: Any, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
    """Tokens, and the place of each step's score."""
    _single(tokenizer, SHEPHERD_TAG)
    lines = with_headers(steps)
    tag = f" {SHEPHERD_TAG}\n"
    text = f"{question} " + "".join(f"{line}{tag}" for line in lines)
    ends = [end - 1 for end in _ends(len(question) + 1, lines, tag)]
    return _encoded(tokenizer, text[:-1], ends, special=True)


def _ends(start: int, steps: Sequence[str], tag: str) -> list[int]:
    """Where in the text the tag after each step ends."""
    ends = []
    for step in steps:
        start += len(step) + len(tag)
        ends.append(start)
    return ends


def _encoded(tokenizer: Any, text: str, ends: Sequence[int], *, special: bool) -> tuple[list[int], list[int]]:
    """The tokens of a text, and the token that ends at each of these characters."""
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    last = {end: i for i, (start, end) in enumerate(found["offset_mapping"]) if end > start}
    try:
        return list(found["input_ids"]), [last[end] for end in ends]
    except KeyError as error:
        raise ModelError(
            "The tokenizer of the reward model merges its separator with what follows. Is the layout right for this model?"
        ) from error


def _single(tokenizer: Any, tag: str) -> None:
    if len(tokenizer(tag, add_special_tokens=False)["input_ids"]) != 1:
        raise ModelError(
            f"The tokenizer of the reward model has no single token for {tag!r}: this is no model of that layout. Choose "
            "another layout."
        )


def _candidates(tokenizer: Any) -> list[int]:
    """The tokens for a right and a wrong step."""
    ids = list(tokenizer("+ -", add_special_tokens=False)["input_ids"])
    if len(ids) != 2:
        raise ModelError(
            "The tokenizer of the reward model has no single tokens for '+' and '-': not a Math-Shepherd model."
        )
    return ids
