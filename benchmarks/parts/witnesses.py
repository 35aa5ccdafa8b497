"""What the samples of a pool say of a model: numbers for `caspo.search.evidence`, fitted and tried on other questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caspo.answers import group_answers, stated_answer
from caspo.engines.base import Completion, Engine
from caspo.records import Question
from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence, log_loss
from caspo.tasks.base import Task
from caspo.trees import TreeBuilder
from parts.measure import Figure, difference
from parts.pool import Key

__all__ = ["fitted", "witnesses"]


def witnesses(
    engine: Engine, task: Task, questions: Sequence[Question], found: Mapping[Key, Completion], least: int
) -> list[Told]:
    """The samples of each question of which there are ``least``, the greedy one first, as a search would draw them."""
    model, all_told = EvidenceModel(), list[Told]()
    for question in questions:
        tree = TreeBuilder(question, engine.prompt(question.text), engine)
        keys = sorted((key for key in found if key.question_id == question.id), key=lambda key: key.number)
        samples = [found[key] for key in keys if found[key].token_ids]
        if len(samples) < least:
            continue
        answers = [stated_answer(question, tree.said(one.text), ended=one.finish == "eos") for one in samples]
        groups = [None if a is None else group for a, group in zip(answers, group_answers(answers), strict=True)]
        right = next((g for a, g in zip(answers, groups, strict=True) if a is not None and task.grade(question, a)), None)
        signals = [model.signals(one.trace, engine.pieces(one.token_ids)) for one in samples]
        all_told.append(Told(groups, np.array(signals), right))
    return all_told


def fitted(told: Sequence[Told]) -> dict[str, Figure]:
    """The model that fits all questions, printed; its log loss on questions that it was not fitted on, and that of the
    numbers which CaT comes with."""
    print(fit_evidence(told).model_dump_json())
    halves = (told[0::2], told[1::2])
    fresh = [log_loss(fit_evidence(one), other) for one, other in (halves, halves[::-1])]
    note = "nats, fitted on one half of the questions and tried on the other, both ways"
    return {
        "evidence_log_loss": difference(float(np.mean(fresh)), min(fresh), max(fresh), note, "nats", len(told)),
        "evidence_log_loss_default": difference(
            log_loss(EvidenceModel(), told), None, None, "as it comes", "nats", len(told)
        ),
    }
