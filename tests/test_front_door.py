"""`import caspo`: load a model, solve, print."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import caspo
from caspo.search import ChainOfThought
from caspo.testing import Scripted, ScriptedEngine

EASY = "Tom has 3 pens and buys 2. How many?"
SCRIPT = {
    f"{EASY}\n": [Scripted("3 + 2 = 5\n", 0.7), Scripted("3 + 2 = 6 <b>\n", 0.3)],
    f"{EASY}\n3 + 2 = 5\n": [Scripted("The answer is 5.", eos=True)],
    f"{EASY}\n3 + 2 = 6 <b>\n": [Scripted("The answer is 6.", eos=True)],
}


@pytest.fixture
def model() -> caspo.Model:
    return caspo.Model(ScriptedEngine(SCRIPT))


@pytest.fixture(scope="module")
def tiny() -> caspo.Model:
    return caspo.load("stories-tiny")


def test_a_solution_prints_itself(model: caspo.Model) -> None:
    solution = model.solve(EASY, "chain_of_thought")
    assert isinstance(solution, caspo.Solution)
    assert str(solution) == f"{EASY}\n  0.94  3 + 2 = 5\n  1.00  The answer is 5.\n  = 5  (100% sure, 27 tokens)"
    assert repr(solution) == "<Solved = 5  (100% sure, 27 tokens)>"
    assert [text for _, text in solution.steps] == ["3 + 2 = 5", "The answer is 5."]


def test_a_step_without_tokens_and_a_missing_answer_print(model: caspo.Model) -> None:
    engine = ScriptedEngine({"Q\n": [Scripted("I do not know.\n", 1)], "Q\nI do not know.\n": [Scripted("", eos=True)]})
    assert str(caspo.Model(engine).solve("Q", paths=1)).endswith("= no answer  (0% sure, 16 tokens)")


def test_a_notebook_shows_the_tree_and_escapes_everything() -> None:
    text = "<script>alert(1)</script> & 'Q'?"
    script = {
        f"{text}\n": [Scripted("<img src=x onerror=alert(2)>\n", 0.6), Scripted("3 < 4\n", 0.4)],
        f"{text}\n<img src=x onerror=alert(2)>\n": [Scripted('The answer is "<i>".', eos=True)],
        f"{text}\n3 < 4\n": [Scripted("The answer is 4.", eos=True)],
    }
    html = caspo.Model(ScriptedEngine(script)).solve(text, "self_consistency")._repr_html_()
    tags: list[str] = []
    shown: list[str] = []

    class Seen(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

        def handle_data(self, data: str) -> None:
            shown.append(data)

    Seen().feed(html)
    assert set(tags) == {"div", "style", "p", "strong", "ul", "li", "span", "data"}
    assert {text, "<img src=x onerror=alert(2)>", "3 < 4", "The answer is 4."} <= set(shown)
    assert "http" not in html


def test_a_batch_gives_what_each_question_gives_alone(tiny: caspo.Model) -> None:
    questions = ["Ann has 3 nuts. She finds 4 more nuts. How many nuts has she?", EASY]
    told: list[int] = []
    settings = {"samples": 3, "max_tokens": 40}
    found = tiny.solve_all([*questions, questions[0]], "self_consistency", seed=5, on_done=told.append, **settings)
    alone = [str(tiny.solve(question, "self_consistency", seed=5, **settings)) for question in questions]
    assert [str(solution) for solution in found] == [*alone, alone[0]]
    assert sum(told) == 3


def test_the_seed_decides_what_is_drawn(model: caspo.Model) -> None:
    answers = [model.solve(EASY, "self_consistency", seed=seed, samples=1).answer for seed in [*range(9), *range(9)]]
    assert {"5", "6"} == set(answers)
    assert answers[:9] == answers[9:]


def test_cat_is_what_is_done_without_a_word(tiny: caspo.Model) -> None:
    assert str(tiny.solve(EASY)) == str(tiny.solve(EASY, method="cat"))
    assert tiny.solve(EASY, paths=2, max_tokens=40).tree.question == caspo.Question(EASY)


def test_a_question_of_ones_own_keeps_its_id_and_no_questions_are_no_solutions(model: caspo.Model) -> None:
    question = caspo.Question(EASY, "5", id="mine", meta={"level": 1})
    assert model.solve(question).question is question
    assert model.solve_all([]) == []


def test_a_method_may_come_with_its_settings(model: caspo.Model) -> None:
    assert model.solve(EASY, ChainOfThought()).answer == "5"
    with pytest.raises(caspo.CaspoError, match=r"chain_of_thought is given with its settings already\. Set seeds there"):
        model.solve(EASY, ChainOfThought(), seeds=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.solve(""), "The question is empty"),
        (lambda model: model.solve_all([EASY, " \n"]), "The question is empty"),
        (lambda model: model.solve(7), "A question is a text or a caspo.Question, and this is of type int"),
        (lambda model: model.solve_all(EASY), "solve_all takes a list of questions"),
        (lambda model: model.solve(EASY, "magic"), "There is no method 'magic'. Choose one of .*cat"),
        (lambda model: model.solve(EASY, pahts=2), "pahts: unknown key; did you mean 'paths'"),
        (lambda model: model.solve(EASY, paths=0), r"paths: .*greater than or equal to 1.*\(got 0\)"),
        (lambda model: model.solve(EASY, prune_signal="mood"), "prune_signal: no confidence signal is called 'mood'"),
    ],
)
def test_a_wrong_question_method_or_setting(model: caspo.Model, call: object, message: str) -> None:
    with pytest.raises(caspo.CaspoError, match=message):
        call(model)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no/such-folder/at-all", {}, "no/such-folder/at-all"),
        ("", {}, "There is no model folder"),
        ("stories-tiny", {"devise": "cpu"}, "devise: unknown key; did you mean 'device'"),
        ("stories-tiny", {"device": "abacus"}, "'abacus' is not a device"),
        ("stories-tiny", {"dtype": "int8"}, "dtype: .*float32"),
        ("stories-tiny", {"engine": "sglang"}, "engine: .*openai_compatible"),
        ("stories-tiny", {"engine": "vllm", "vllm": {"tensor_parallel_size": 2}}, "needs vLLM|tensor_parallel_size itself"),
        ("stories-tiny", {"vllm": {"quantization": "fp8"}}, "arguments of the engine vllm, not of hf"),
        ("stories-tiny", {"engine": "openai_compatible"}, "needs urls"),
        ("stories-tiny", {"engine": "hf", "url": "http://x"}, "urls are for the engine openai_compatible"),
        ("stories-tiny", {"url": "localhost"}, "'localhost' is no URL"),
        ("stories-tiny", {"engine": "llama_cpp"}, "GGUF"),
        ("missing.gguf", {}, "missing.gguf|needs llama-cpp-python"),
    ],
)
def test_a_model_that_cannot_be_loaded(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(caspo.CaspoError, match=message):
        caspo.load(name, **settings)  # type: ignore[arg-type]


def test_a_password_in_a_url_is_not_repeated() -> None:
    with pytest.raises(caspo.CaspoError) as raised:
        caspo.load("m", url=["http://me:hush@host"])
    assert "hush" not in str(raised.value)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(caspo.CaspoError, match=tmp_path.name):
        caspo.load(tmp_path)
    (tmp_path / "a.GGUF").write_text("not a model")
    with pytest.raises(caspo.CaspoError):
        caspo.load(tmp_path / "a.GGUF")


def test_the_id_of_a_question_comes_from_its_text() -> None:
    assert caspo.Question("Q").id == caspo.Question("Q", "5").id != caspo.Question("R").id
    assert caspo.Question("\ud800").id
    assert caspo.Question("Q", id="x").id == "x"
    with pytest.raises(TypeError):
        caspo.Question("q", "Q", "5")  # type: ignore[misc]


def test_the_package_offers_its_names_and_loads_nothing() -> None:
    script = (
        "import sys, caspo; heavy = {'numpy', 'pydantic', 'torch', 'transformers', 'ast', 'inspect'} & set(sys.modules);"
        "assert not heavy, heavy; assert set(dir(caspo)) == set(caspo.__all__);"
        "assert caspo.METHODS['cat'] and caspo.Question('Q') and caspo.CaspoError;"
        "assert 'torch' not in sys.modules; from caspo import model; assert model.__name__ == 'caspo.model'\n"
        "try: caspo.nothing\nexcept AttributeError as error: assert 'nothing' in str(error)\nelse: raise SystemExit('found')"
    )
    source = str(Path(caspo.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": source}
    )
    assert done.returncode == 0, done.stderr
