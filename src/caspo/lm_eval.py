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
from functools import cache
from typing import Any, NoReturn

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError, DataError
from caspo.engines.drive import drive
from caspo.engines.prompts import TODAY, template_of
from caspo.engines.until import cut, until
from caspo.records import ROOT, Question, Solution, after_thinking
from caspo.search import DEFAULT_METHOD, METHODS, Method, answer_path
from caspo.steps import Parting
from caspo.trees import TreeBuilder

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
        dtype, device, threads, trust_remote_code, max_rows: of `caspo.engines.ModelSettings`.
        batch_size, max_batch_size: not used: the harness says 1 where its user says nothing; ``max_rows`` is the limit.
        seed: of methods that sample.
        settings: of the method, for example ``paths=8``.
    """

    def __init__(
        self,
        pretrained: str,
        method: str = DEFAULT_METHOD,
        *,
        dtype: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
        max_rows: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        from caspo.engines.opening import ModelSettings, open_local

        known = [name for name, kind in METHODS.items() if not kind().after]
        if method not in known:
            raise ConfigError(f"method={method} cannot continue a prompt as it is. Choose one of {', '.join(known)}.")
        if "max_tokens" in settings:
            raise ConfigError("max_tokens is the task's choice: give --gen_kwargs max_gen_toks=N instead.")
        self._kind = METHODS[method]
        self._settings = [f"{key}={value}" for key, value in settings.items()]
        self._method({"max_tokens": _MAX_GEN_TOKS})  # a wrong setting fails before the model is loaded
        placed = {"dtype": dtype, "device": _device(device), "threads": threads}
        named = {"name": pretrained, "max_rows": max_rows, **placed}
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
        return template_of(self._engine.tokenizer) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the model continues."""
        tokenizer = self._engine.tokenizer
        if not tokenizer.chat_template:
            raise ConfigError("This model has no chat template. Leave out --apply_chat_template.")
        text = tokenizer.apply_chat_template(
            chat_history,
            chat_template=template_of(tokenizer),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **TODAY,
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
        stops = tuple(stop for stop in wanted["until"] if stop)
        limits: dict[str, Any] = {"max_tokens": wanted["max_gen_toks"]}
        if wanted["do_sample"]:
            if self._kind.thrifty and self._kind.draws():  # one solution, drawn as the task says
                limits |= {key: wanted[key] for key in ("temperature", "top_p") if key in wanted}
            elif not self._warned:
                self._warned = True
                logging.getLogger(__name__).warning(
                    "The task asks for sampling (%s); %s draws, or does not, by its own settings.", wanted, self._kind.name
                )
        method, engine = self._method(limits), self._engine
        trees = [TreeBuilder(question, self._prompt(question.text), engine) for question in questions]
        searches = []
        for tree in trees:
            parting = Parting(engine.reading.thinking, thinking=tree.reader(ROOT).thinking)
            searches.append(until(method.started(tree, engine, self._seed), stops, engine, len(tree.prompt_ids), parting))
        return [self._text(solution, stops) for solution in drive(searches, engine, lambda: on_done(1))]

    def _method(self, limits: Mapping[str, Any]) -> Method[Any]:
        given = [f"{key}={value}" for key, value in limits.items()]
        return self._kind(settings_from(self._kind.settings_type, [*given, *self._settings]))

    def _prompt(self, text: str) -> tuple[int, ...]:
        """Tokens of the text, with BOS if the model knows texts with it, unless it is there already."""
        ids = self._engine.encode(text, begins=True)
        if not ids:
            raise DataError("The harness asks to continue an empty text. Give the task a prompt or few-shot examples.")
        return ids

    def _text(self, solution: Solution, stops: Sequence[str]) -> str:
        """What the method answers, after its thinking: the path of the answer, or the best one where none states any."""
        if solution.abstained:
            return ""
        path = answer_path(solution.tree, solution.answer)
        said = after_thinking([node.step for node in path])
        return cut(self._engine.reading.answer_text(said), stops)


def _device(asked: str | None) -> str:
    """The harness asks for cuda:0 when its user asked for nothing; where that is not, it means what there is."""
    import torch

    return "auto" if asked is None or (asked == "cuda:0" and not torch.cuda.is_available()) else asked
