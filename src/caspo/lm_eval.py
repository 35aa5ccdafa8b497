"""`caspo` as a model type of lm-evaluation-harness: its generative tasks, solved by any method of `caspo.search`.

The harness (0.4) has no discovery of models outside its package: a model type exists once the module that registers it was
imported. `caspo lm-eval` does that and hands over to the harness; in Python `register` does it.

A request is continued exactly as the harness wrote it; the text that comes back is that of the path the method's answer
stands on, cut at the first of the task's `until` strings, and the task's own filter extracts the answer. What is not here:
log-likelihoods. A search has none to offer, so multiple-choice tasks that rank options by them are refused.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from caspo.config import settings_from
from caspo.engines.base import Completion, OnDone, Request
from caspo.engines.until import Until, cut
from caspo.errors import ConfigError, DataError
from caspo.search import METHODS, ChainOfThought, DiPT, Method, answer_path
from caspo.types import Question, Solution

if TYPE_CHECKING:
    from caspo.engines.local.engine import HFEngine

__all__ = ["HarnessModel", "register"]

_MAX_GEN_TOKS = 256
"""Tokens of an answer where a task names no limit: what the harness takes for its own models."""

_CHUNK = 64
"""Requests solved at once; what is finished is in the harness's cache (`--use_cache`) if it is killed."""


@cache
def register() -> None:
    """Make `caspo` a model type of lm-evaluation-harness in this process.

    Raises:
        ConfigError: the harness is not installed.
    """
    try:
        import lm_eval.models  # noqa: F401  the others first: an empty registry is how the harness knows to fill it
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported ({error}). Install it: pip install 'caspo-llm[eval]'"
        ) from error
    register_model("caspo")(type("CaspoLM", (HarnessModel, LM), {}))


class HarnessModel:
    """What the harness asks of a model; `register` mixes it with the harness's base class.

    Args:
        pretrained: bundled name, folder or hub name.
        method: a name of `caspo.search.METHODS`.
        dtype, device, trust_remote_code, max_rows: of `caspo.loop.stages.ModelSettings`.
        batch_size, max_batch_size: not used: the harness says 1 where its user says nothing; ``max_rows`` is the limit.
        seed: of methods that sample.
        settings: of the method, for example ``children=8``.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = "cat",
        *,
        dtype: str = "float32",
        device: str | None = None,
        trust_remote_code: bool = False,
        max_rows: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        from caspo.engines.opening import ModelSettings, open_local

        if method not in METHODS or method == DiPT.name:
            known = ", ".join(name for name in METHODS if name != DiPT.name)
            raise ConfigError(f"method={method} cannot continue a prompt as it is. Choose one of {known}.")
        if "max_tokens" in settings:
            raise ConfigError("max_tokens is the task's choice: give --gen_kwargs max_gen_toks=N instead.")
        self._kind = METHODS[method]
        self._settings = [f"{key}={value}" for key, value in settings.items()]
        self._method({"max_tokens": _MAX_GEN_TOKS})  # a wrong setting fails before the model is loaded
        named = {"name": pretrained, "dtype": dtype, "device": _device(device), "max_rows": max_rows}
        model = ModelSettings.model_validate({**named, "trust_remote_code": trust_remote_code})
        self._engine = open_local(model)
        self._seed = seed
        self._warned = False

    @property
    def tokenizer_name(self) -> str:
        """Stands in the keys of the harness's caches."""
        return str(self._engine.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template of `--apply_chat_template`, for the harness's records."""
        return str(self._engine.tokenizer.chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the model continues."""
        tokenizer = self._engine.tokenizer
        if not tokenizer.chat_template:
            raise ConfigError("This model has no chat template. Leave out --apply_chat_template.")
        text = tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Refused."""
        raise ConfigError(
            "This task asks for log-likelihoods of given texts, and a search has none. Choose a generative task (its "
            "output_type is generate_until; gsm8k_cot and mmlu_pro are some), or run this one with --model hf."
        )

    loglikelihood_rolling = loglikelihood

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text of the method's answer to every request, in order."""
        from tqdm import tqdm

        texts = [""] * len(requests)
        seen: Counter[str] = Counter()
        groups: dict[str, list[tuple[int, Question]]] = {}
        for place, request in enumerate(requests):
            context, arguments = request.args
            # Repeats of one prompt are drawn differently, whatever else is asked.
            question = Question(context, id=f"{context}\x1f{seen[context]}")
            seen[context] += 1
            groups.setdefault(repr(sorted(arguments.items())), []).append((place, question))
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for group in groups.values():
                for start in range(0, len(group), _CHUNK):
                    chunk = group[start : start + _CHUNK]
                    arguments = requests[chunk[0][0]].args[1]
                    found = self._solve([question for _, question in chunk], arguments, bar.update)
                    for (place, _), text in zip(chunk, found, strict=True):
                        texts[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)  # type: ignore[attr-defined]
        return texts

    def _solve(self, questions: Sequence[Question], arguments: Mapping[str, Any], on_done: Any) -> list[str]:
        from lm_eval.models.utils import normalize_gen_kwargs

        wanted = normalize_gen_kwargs(dict(arguments), _MAX_GEN_TOKS)
        until = tuple(stop for stop in wanted["until"] if stop)
        limits: dict[str, Any] = {"max_tokens": wanted["max_gen_toks"]}
        if wanted["do_sample"]:
            if self._kind is ChainOfThought:
                limits |= {key: wanted[key] for key in ("temperature", "top_p") if key in wanted}
            elif not self._warned:
                self._warned = True
                logging.getLogger(__name__).warning(
                    "The task asks for sampling (%s); %s draws, or does not, by its own settings.",
                    wanted,
                    self._kind.name,
                )
        engine = _AsWritten(self._engine, until)
        solutions = self._method(limits).solve(questions, engine, self._seed, on_done)
        return [self._text(solution, until) for solution in solutions]

    def _method(self, limits: Mapping[str, Any]) -> Method[Any]:
        given = [f"{key}={value}" for key, value in limits.items()]
        return self._kind(settings_from(self._kind.settings_type, [*given, *self._settings]))

    def _text(self, solution: Solution, until: Sequence[str]) -> str:
        """What the method answers: the path of the answer, or the best one where no path states any."""
        if solution.abstained:
            return ""
        ids = [token for node in answer_path(solution.tree, solution.answer) for token in node.step.token_ids]
        return cut(str(self._engine.tokenizer.decode(ids, skip_special_tokens=True)), until)


class _AsWritten:
    """An engine that continues texts as they are, and for which a path ends where it holds one of the ``until`` strings.

    A search sees such an end as EOS: nothing may follow.
    """

    def __init__(self, engine: HFEngine, until: tuple[str, ...]) -> None:
        self._engine, self._until = engine, until
        self._prompts: set[tuple[int, ...]] = set()
        self.name = engine.name

    def prompt(self, question: str) -> tuple[int, ...]:
        """Tokens of the text, with the special tokens that its tokenizer begins with, unless they are there already."""
        tokenizer = self._engine.tokenizer
        begun = bool(tokenizer.bos_token) and question.startswith(tokenizer.bos_token)
        ids = tuple(tokenizer(question, add_special_tokens=not begun)["input_ids"])
        if not ids:
            raise DataError("The harness asks to continue an empty text. Give the task a prompt or few-shot examples.")
        self._prompts.add(ids)
        return ids

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return self._engine.pieces(token_ids)

    def forget(self) -> None:
        """Drop what was kept of earlier prefixes."""
        self._engine.forget()

    def generate(self, requests: Sequence[Request], on_done: OnDone | None = None) -> list[Completion]:
        """As `Engine.generate`."""
        watches: list[Until] = []

        def watched(request: Request) -> Request:
            watches.append(Until(self._written(request.prefix_ids), self._until, self._engine, request.watch))
            return replace(request, watch=watches[-1])

        def received(place: int, completion: Completion) -> list[Request]:
            assert on_done is not None
            return [watched(request) for request in on_done(place, watches[place].ended(completion))]

        found = self._engine.generate([watched(r) for r in requests], received if on_done is not None else None)
        return [watch.ended(completion) for watch, completion in zip(watches, found, strict=True)]

    def _written(self, prefix_ids: tuple[int, ...]) -> str:
        """What was generated before a request; a string may begin in it and end in what follows."""
        lengths = sorted({len(prompt) for prompt in self._prompts}, reverse=True)
        start = next((n for n in lengths if prefix_ids[:n] in self._prompts), len(prefix_ids))
        return "".join(self._engine.pieces(prefix_ids[start:]))


def _device(asked: str | None) -> str:
    """The harness asks for cuda:0 when its user asked for nothing; where there is no GPU that means the CPU."""
    import torch

    if asked == "cuda:0" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No GPU is there: running on the CPU.")
        return "cpu"
    return asked or "cpu"
