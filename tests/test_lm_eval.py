"""`caspo` under lm-evaluation-harness: prompts as written, `until` honoured, log-likelihoods refused. No network."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caspo.answers import extract_answer
from caspo.core.errors import ConfigError
from caspo.engines.base import Completion, Request
from caspo.engines.drive import Asking, drive
from caspo.engines.opening import ModelSettings, open_engine
from caspo.engines.until import until
from caspo.steps import text_of
from caspo.tasks.stories import StoriesTask

pytest.importorskip("lm_eval", reason="pip install 'caspo-llm[eval]'")

QUESTIONS = StoriesTask((1, 2)).questions("test", 6, 3)

TASK = """
task: tiny_stories
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:\\n"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], max_gen_toks: 80, do_sample: false}}
filter_list:
  - name: stated
    filter: [{{function: regex, regex_pattern: "answer is (-?[0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


class Asked(NamedTuple):
    """A request of the harness."""

    args: tuple[str, dict[str, Any]]


def prompt(text: str) -> str:
    return f"Question: {text}\nAnswer:\n"


def texts(model: Any, prompts: Sequence[str], **arguments: Any) -> list[str]:
    """What the model says to the prompts."""
    found: list[str] = model.generate_until([Asked((p, arguments)) for p in prompts], disable_tqdm=True)
    return found


@pytest.fixture(scope="module")
def made() -> Callable[[str], Any]:
    """Makes models of the registered type, as the harness does."""
    from lm_eval.api.registry import get_model

    from caspo.lm_eval import register

    register()
    register()
    assert get_model("hf") is not None, "the harness's own models are still there"
    return lambda arguments: get_model("caspo").create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})


@pytest.fixture(scope="module")
def greedy(made: Any) -> Any:
    return made("pretrained=stories-tiny,method=chain_of_thought")


@pytest.fixture(scope="module")
def written(greedy: Any) -> list[str]:
    """Our own engine's greedy texts."""
    engine = open_engine(ModelSettings(name="stories-tiny"))
    ids = [tuple(engine.tokenizer(prompt(q.text), add_special_tokens=False)["input_ids"]) for q in QUESTIONS]
    found = engine.generate([Request(prefix, 0, max_new_tokens=80, temperature=0.0) for prefix in ids])
    return [completion.text for completion in found]


def test_a_task_runs_from_its_own_file(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CaT: every question is answered, and the figure is that of the texts the harness kept."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in QUESTIONS))
    (tmp_path / "tiny_stories.yaml").write_text(TASK.format(file=file))
    found = lm_eval.simple_evaluate(
        model=made("pretrained=stories-tiny,method=cat,paths=2"),
        tasks=["tiny_stories"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = found["samples"]["tiny_stories"]
    assert len(samples) == len(QUESTIONS)
    right = [extract_answer(s["resps"][0][0]) == s["target"] for s in samples]
    assert found["results"]["tiny_stories"]["exact_match,stated"] == sum(right) / len(right)
    assert any(right)


def test_chain_of_thought_is_the_engines_own_text(greedy: Any, written: list[str]) -> None:
    """The prompt is continued as it is, and nothing is added to or taken from the text."""
    prompts = [prompt(q.text) for q in QUESTIONS]
    assert texts(greedy, prompts, until=["Question:"], max_gen_toks=80) == written
    assert texts(greedy, prompts, max_gen_toks=80) == written, "a task without until"
    assert [t[:4] for t in texts(greedy, prompts, max_gen_toks=3)] == [t[:4] for t in written]


@pytest.mark.parametrize("method", ["chain_of_thought", "cat", "beam", "self_consistency"])
def test_until_ends_every_path(made: Any, method: str) -> None:
    """No text holds one of the strings, of every method; nor does a search go on after one."""
    model = made(f"pretrained=stories-tiny,method={method}")
    prompts = [prompt(q.text) for q in QUESTIONS[:2]]
    for stops in (["\n"], ["answer is", "\n\n"], "The"):
        strings = [stops] if isinstance(stops, str) else stops
        for text in texts(model, prompts, until=stops, max_gen_toks=40):
            assert not any(stop in text for stop in strings)
    assert all(texts(model, prompts, until=["\n"], max_gen_toks=40)), "the first step is there"


def test_until_is_what_the_text_was_cut_at(greedy: Any, written: list[str]) -> None:
    """The first of several strings, whichever it is; a string that never comes changes nothing."""
    prompts = [prompt(q.text) for q in QUESTIONS]
    found = texts(greedy, prompts, until=["answer", "=", "never"], max_gen_toks=80)
    assert found == [min(text.split("answer")[0], text.split("=")[0], key=len) for text in written]


def test_decoding_ends_at_until() -> None:
    """Tokens after the string are not paid for, where it begins in one request and ends in the next, too."""
    inner = open_engine(ModelSettings(name="stories-tiny"))
    text = prompt(QUESTIONS[0].text)
    (whole,) = inner.generate([Request(tuple(inner.tokenizer(text)["input_ids"]), 0, 80, 0.0)])
    ids = tuple(inner.tokenizer(text)["input_ids"])

    def ended(prefix_ids: tuple[int, ...]) -> Completion:
        def asking() -> Asking[Completion]:
            (found,) = yield [Request(prefix_ids, 0, 80, 0.0)]
            return found

        return drive([until(asking(), (".\nThe",), inner, len(ids))], inner)[0]

    first = ended(ids)
    assert first.finish == "eos"
    assert whole.text.startswith(first.text)
    assert ".\nThe" in first.text
    assert ".\nThe" not in text_of(inner.pieces(first.token_ids[:-1]))
    cut = next(n for n in range(len(first.token_ids)) if inner.pieces(first.token_ids[:n])[-1:] == [b"\n"] and n > 2)
    second = ended(ids + whole.token_ids[:cut])
    joined = text_of(inner.pieces(whole.token_ids[:cut])) + second.text
    assert joined.count(".\nThe") == 1
    assert second.finish == "eos"


def test_repeats_of_a_prompt_are_drawn_differently(made: Any) -> None:
    """A task may ask the same several times, with sampling; the same list again gives the same texts."""
    model = made("pretrained=stories-tiny,method=chain_of_thought")
    prompts = [prompt(QUESTIONS[0].text)] * 6
    first = texts(model, prompts, until=["Question:"], max_gen_toks=60, do_sample=True, temperature=1.5)
    assert len(set(first)) > 1
    assert texts(model, prompts, until=["Question:"], max_gen_toks=60, do_sample=True, temperature=1.5) == first


def test_chat_template(greedy: Any) -> None:
    """What `--apply_chat_template` makes is continued as it is."""
    (question,) = QUESTIONS[:1]
    text = greedy.apply_chat_template([{"role": "user", "content": question.text}])
    assert text == prompt(question.text)
    assert greedy.chat_template(True)
    assert greedy.chat_template(False) is None
    assert "/" not in greedy.tokenizer_name


def test_what_cannot_be_done_is_refused(made: Any, greedy: Any) -> None:
    """With what to do instead."""
    for ask in (greedy.loglikelihood, greedy.loglikelihood_rolling):
        with pytest.raises(ConfigError, match="generative task"):
            ask([])
    for arguments, message in (
        ("method=magic", "method=magic"),
        ("method=dipt", "as it is"),
        ("method=cat,pahts=3", "did you mean 'paths'"),
        ("method=cat,max_tokens=3", "max_gen_toks"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(f"pretrained=stories-tiny,{arguments}")


def test_without_the_harness(tmp_path: Path) -> None:
    """The message says what to install."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ImportError('not here')")
    script = "import sys; sys.path.insert(0, sys.argv.pop()); from caspo.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "lm-eval", "--tasks", "x", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'caspo-llm[eval]'" in done.stderr
    assert "Traceback" not in done.stderr
