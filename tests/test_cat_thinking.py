"""CaT on models that think first: what counts of the thinking, what of the answer, and what a long trace costs."""

from __future__ import annotations

from typing import Any

from caspo.records import Question, Solution
from caspo.search import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.evidence import EvidenceModel
from caspo.testing.scripted import Script, Scripted
from recording import Q, Recording, decisions, ends

EVEN = EvidenceModel(bias=0.0, slopes={}, common={}, spread=1.3, scatter=3.0)
"""All paths are believed alike."""
LIMIT = len("<think") + 200
"""Characters, which are tokens here, of a trace that is cut in its thinking: the mark counts from its end."""
FALSE = "<think>\n2 + 3 = 6\n\nNo, I should count again.\n\n2 + 3 = 5\n</think>\n\n"


def thought(text: str, answer: int, weight: float = 1.0, entropy: Any = None) -> Scripted:
    """A trace that thinks this and says that."""
    return Scripted(f"<think>\n{text}\n</think>\n\nThe answer is {answer}.", weight, entropy, eos=True)


def searched(script: Script, seed: int = 0, **more: Any) -> tuple[Solution, Recording]:
    engine = Recording(script)
    given = {"temperature": 1.0, "level": 1.0, "paths": 6, "evidence": EVEN, "max_tokens": 40, "max_thinking_tokens": 200}
    (solution,) = ConfidenceTree(ConfidenceTreeSettings(**{**given, **more})).solve([Q], engine, seed)
    assert solution.generated_tokens == engine.tokens, "all that was decoded is paid for"
    return solution, engine


def test_an_answer_is_read_after_the_thinking_and_nowhere_else() -> None:
    """What the thinking says of the answer is no vote."""
    solution, _ = searched({"Q\n": [thought("The answer is 6.", 5)]})
    assert solution.answer == "5"
    solution, _ = searched({"Q\n": ends(("<think>\nThe answer is 6.", 1))})
    assert (solution.answer, solution.confidence) == (None, 0.0)


def test_a_path_that_is_cut_within_its_thinking_says_nothing_and_agrees_with_nobody() -> None:
    """It is paid for, it is marked as cut, and it tells of a hard question, as a wrong path does."""
    endless = Scripted("<think>\nThe answer is 6. Wait, " + "is it? " * 100, 1, eos=True)
    short = thought("Two and three.", 5)
    solution, engine = searched({"Q\n": [short, endless]}, 3)
    cut = sum("</think>" not in one.text for one in engine.completions)
    assert 0 < cut < 6
    assert max(len(one.token_ids) for one in engine.completions) == LIMIT
    assert solution.answer == "5"
    assert "cut" in decisions(solution).values()
    whole, _ = searched({"Q\n": [short]}, 3, paths=6 - cut)
    assert 0 < solution.confidence < whole.confidence
    nothing, engine = searched({"Q\n": [endless]}, 3)
    assert (nothing.answer, nothing.confidence, len(engine.requests)) == (None, 0.0, 6)


def test_a_false_equation_ends_a_path_in_its_answer_and_not_in_its_thinking() -> None:
    """In its thinking it may be taken back, as here; what is said counts."""
    taken_back, engine = searched({"Q\n": ends((FALSE + "The answer is 5.", 1))})
    assert taken_back.answer == "5"
    assert {one.finish for one in engine.completions} == {"eos"}
    said, engine = searched({"Q\n": ends((FALSE + "2 + 3 = 6\n\nThe answer is 6.", 1), ("The answer is 5.", 1))}, 1)
    assert "pruned" in decisions(said).values()
    pruned = [one for one in engine.completions[1:] if one.finish == "abandoned"]
    assert pruned, "only the first path is not held to it: none had finished"
    assert all(one.text.startswith(FALSE + "2 + 3 = 6\n\n") for one in pruned)


def test_a_prompt_that_opens_the_thinking_is_heeded() -> None:
    """Some templates end in the opening mark: what follows is thinking all the same."""
    question = Question("Q <think>", "5", id="q")
    text = FALSE.removeprefix("<think>\n")
    script = {"Q <think>\n": ends((text + "The answer is 5.", 1), (text + "2 + 3 = 6\n\nThe answer is 6.", 1))}
    engine = Recording(script)
    settings = ConfidenceTreeSettings(level=1.0, paths=6, temperature=1.0, evidence=EVEN)
    (solution,) = ConfidenceTree(settings).solve([question], engine, 2)
    assert solution.answer == "5"
    ended = [one.text for one in engine.completions if one.finish == "abandoned"]
    assert ended
    assert all(one.startswith(text + "2 + 3 = 6\n\n") for one in ended)


def test_a_step_of_the_thinking_that_scores_too_little_ends_a_path() -> None:
    """Pruning by confidence looks at every step, those of the thinking too."""
    unsure = "<think>\nIt may be six.\n\n"
    script = {
        "Q\n": [thought("Five.", 5), Scripted(unsure, 1, 3.0)],
        f"Q\n{unsure}": ends(("So.\n</think>\n\nThe answer is 6.", 1)),
    }
    kept, _ = searched(script, 2)
    assert any("6" in text for text, what in decisions(kept).items() if what == "finished")
    pruned, engine = searched(script, 2, prune_below=0.2)
    assert pruned.answer == "5"
    ended = [one.text for one in engine.completions if one.finish == "abandoned"]
    assert ended
    assert all(text.startswith(unsure) and "</think>" not in text for text in ended)


def test_evidence_is_of_the_whole_trace() -> None:
    """Length and entropy count the thinking's tokens: of traces that say the same, one that thought less, or was
    surer of it, is believed more by a model of evidence that says so."""
    for signals in ({"slopes": {}, "common": {"length": 0.01}}, {"slopes": {"entropy": 3.0}, "common": {}}):
        model = EvidenceModel(bias=2.0, **signals)
        little, _ = searched({"Q\n": [thought("Five.", 5, entropy=0.1)]}, level=0.0, evidence=model)
        much, _ = searched({"Q\n": [thought("Five. " * 20, 5, entropy=0.6)]}, level=0.0, evidence=model)
        assert little.answer == much.answer == "5"
        assert little.confidence > much.confidence + 0.05


def test_a_budget_that_is_smaller_than_one_trace_and_one_that_ends_among_them() -> None:
    """No more is decoded, and nothing is made up."""
    script = {"Q\n": [thought("Well. " * 20, 5)]}
    cut, engine = searched(script, budget=60)
    assert (cut.answer, cut.confidence, cut.generated_tokens, len(engine.requests)) == (None, 0.0, 60, 1)
    one = engine.prompt("Q")
    size = len(script["Q\n"][0].text) + 1
    some, engine = searched(script, budget=2 * size + 10)
    assert (some.answer, some.generated_tokens) == ("5", 2 * size + 10)
    assert [len(request.prefix_ids) for request in engine.requests] == [len(one)] * 3


def test_branches_may_leave_inside_the_thinking_and_are_read_as_thinking_there() -> None:
    """The doubt lies in the middle of the thinking: later paths share what stands before, and no limit is moved by that."""
    head = "<think>\nFirst I count them all.\n\n"
    script = {
        "Q\n": [Scripted(head, 1, 0.0)],
        f"Q\n{head}": [Scripted("2 + 3 = 6\n\nNo: 5.\n</think>\n\nThe answer is 5.", 1, 0.5, eos=True),
                       Scripted("The answer is 7. " * 30, 1, 0.5, eos=True)],
    }  # fmt: skip
    solution, engine = searched(script, branches=True, paths=5)
    shared = [len(request.prefix_ids) - len(engine.prompt("Q")) for request in engine.requests]
    assert shared == [0] + [len(head)] * 4
    assert solution.answer == "5", "what a path says that is cut in its thinking is no answer, and 2 + 3 = 6 is taken back"
    for request, one in zip(engine.requests, engine.completions, strict=True):
        whole = len(request.prefix_ids) - len(engine.prompt("Q")) + len(one.token_ids)
        assert one.text.endswith("The answer is 5.") or whole == LIMIT
    assert len({one.text for one in engine.completions[1:]}) == 2


def test_abstention_of_thinkers() -> None:
    """A trace that was cut lowers the confidence, and an answer under the threshold is withheld."""
    script = {"Q\n": [thought("Five.", 5), Scripted("<think>\n" + "Hm. " * 100, 1, eos=True)]}
    answered, _ = searched(script, 3)
    withheld, _ = searched(script, 3, abstain_below=answered.confidence + 1e-6)
    assert (answered.answer, withheld.answer, withheld.abstained) == ("5", None, True)
    assert withheld.confidence == answered.confidence


LONG = "Then I look at it once more, and it is so.\n\n" * 90
"""Some 4,000 tokens."""


def test_the_default_evidence_knows_nothing_of_long_traces_and_the_majority_wins() -> None:
    """Fitted to short solutions, it takes each of these, unsure as they are, for hopeless. Then CaT does not stop at one
    path, answers with the majority, and is the surer the more agree."""
    more = {"evidence": EvidenceModel(), "level": 0.7, "paths": 10, "max_thinking_tokens": 8000, "max_tokens": 100}
    alike, engine = searched({"Q\n": [thought(LONG, 5, entropy=0.5)]}, **more)
    assert alike.answer == "5"
    assert len(engine.requests) == 4
    assert 0.3 < alike.confidence < 0.5
    script = {"Q\n": [thought(LONG, 5, 3, 0.5), thought(LONG, 6, 1, 0.5), thought(LONG, 7, 1, 0.5)]}
    for seed in range(4):
        split, engine = searched(script, seed, **{**more, "level": 1.0})
        said = [one.text[-2] for one in engine.completions]
        assert split.answer == max("567", key=said.count)
