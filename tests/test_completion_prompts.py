"""What `/v1/completions` continues: the tokens of its prompts."""

from __future__ import annotations

from typing import Any

import pytest

from caspo.engines.local.engine import HFEngine
from caspo.serve.plan import plan_completion
from caspo.serve.request_schema import CompletionRequest
from serving import settings
from small_tokenizers import made
from tiny import build


def prompts(engine: HFEngine, prompt: Any) -> list[tuple[int, ...]]:
    server = settings()
    body = CompletionRequest.model_validate({"model": server.model, "prompt": prompt, "max_tokens": 4})
    return [job.prompt_ids for job in plan_completion(body, server).jobs(engine, "somebody")]


@pytest.mark.parametrize("bos", [True, False])
def test_bos_is_before_a_text_once_and_never_before_tokens(bos: bool) -> None:
    """Where the model knows texts with it. One token is enough, with BOS or without."""
    tokenizer = made("bytes", bos=bos)
    engine = HFEngine(build("llama", vocab_size=len(tokenizer)), tokenizer)
    (letter,) = engine.encode("x")
    first = (tokenizer.bos_token_id,)
    assert prompts(engine, ["x", "<s>x"]) == [((*first, letter) if bos else (letter,)), (*first, letter)]
    assert prompts(engine, [letter]) == [(letter,)]
