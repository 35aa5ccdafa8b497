"""Preference pairs out of annotated trees: two continuations of one prefix, one right, one wrong.

Two kinds, after the paper:

- ``confident_wrong``: the wrong step is one the model is sure of; a right sibling is chosen over it;
- ``uncertain_right``: the right step is one the model is unsure of; it is chosen over a wrong sibling.

Both stand after a prefix of which every step was judged right: after an unknown one, as after a wrong one, a verdict
means nothing.

The other half of a pair is the sibling that shares the most tokens with the first before they part, so that a pair is
about the error and not about the wording; of equals the most probable right step and the most confident wrong one.

What is "sure" is relative to the model at hand: quantiles of the confidence of the wrong (right) steps that have a
sibling of the other kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from caspo.confidence import step_score
from caspo.core.config import Config
from caspo.core.errors import DataError
from caspo.engines.rows import shared_length
from caspo.formats.parquet import read_table, write_table
from caspo.records import Node, StepPair, Tree
from caspo.steps import equations
from caspo.trees import check_rules

__all__ = ["PairReport", "PairSettings", "build_pairs", "check_pairs", "read_pairs", "write_pairs"]

PAIR_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("kind", pa.string()),
        ("weight", pa.float32()),
        ("question_id", pa.string()),
        ("depth", pa.int32()),
        ("parent_node", pa.int32()),
        ("chosen_node", pa.int32()),
        ("rejected_node", pa.int32()),
        ("chosen_confidence", pa.float32()),
        ("rejected_confidence", pa.float32()),
        ("rejected_reason", pa.string()),
        ("judge", pa.string()),
    ]
)


class PairSettings(Config):
    """Which siblings become pairs."""

    confident_from: float = Field(0.5, ge=0, le=1)
    """A wrong step is confident from this quantile of the wrong steps' confidence on; 0 takes all."""
    unsure_to: float = Field(0.5, ge=0, le=1)
    """A right step is unsure up to this quantile of the right steps' confidence; 1 takes all."""
    per_group: int = Field(3, ge=1)
    """Pairs of each kind from one sibling group, at most: the clearest first."""
    faults: Literal["all", "reasoning"] = "all"
    """`reasoning` leaves out wrong steps whose equation is false: a small model that is pushed off a wrong sum does not
    learn to calculate, and answers other sums worse."""


@dataclass(frozen=True)
class PairReport:
    """How many pairs there are of each kind, and what became of everything else."""

    pairs: dict[str, int]
    dropped: dict[str, int]
    """Groups and steps that gave no pair, by reason."""
    confident_from: float
    """Confidence in (0, 1] from which a wrong step counted as confident."""
    unsure_to: float
    """Confidence in (0, 1] up to which a right step counted as unsure."""


def build_pairs(trees: Sequence[Tree], settings: PairSettings) -> tuple[list[StepPair], PairReport]:
    """All pairs of the trees, in the order of the trees, and a report. A pure function of its arguments.

    Raises:
        ConfigError: trees whose steps were cut by different rules.
        DataError: trees without the tokens of a model.
    """
    check_rules(trees, "pairs")
    for tree in trees:
        if tree.token_source == "pieces":
            raise DataError(
                f"The tree of question {tree.question.id} was sampled from a server that gives no token ids, so nothing can "
                "be trained on it. Sample from a server with ids (vLLM, llama.cpp), or with the engine hf."
            )
    dropped: Counter[str] = Counter()
    groups: list[tuple[Tree, list[Node], list[Node]]] = []
    for tree in trees:
        for _, children in tree.groups():
            if not tree.prefix_right(children[0].id):
                dropped["group: not after right steps"] += 1
                continue
            labels = Counter(c.verdict.label if c.verdict else "unknown" for c in children)
            dropped["step: verdict unknown"] += labels["unknown"]
            right = [c for c in children if c.right]
            wrong = [c for c in children if c.verdict and c.verdict.label == "wrong"]
            if settings.faults == "reasoning":
                kept = [c for c in wrong if all(e.holds() for e in equations(c.step.text))]
                dropped["wrong step: its equation is false"] += len(wrong) - len(kept)
                wrong = kept
            if right and wrong:
                groups.append((tree, right, wrong))
            elif children:
                dropped[f"group: no {'wrong' if right else 'right'} step"] += 1
    confident_from = _quantile([_confidence(w) for *_, wrong in groups for w in wrong], settings.confident_from, 1.0)
    unsure_to = _quantile([_confidence(r) for *_, right, _ in groups for r in right], settings.unsure_to, 0.0)
    pairs: list[StepPair] = []
    for tree, right, wrong in groups:
        taken: dict[tuple[int, int], StepPair] = {}
        likely_first = sorted(right, key=lambda n: (-float(n.step.trace.logprob.sum()), n.id))
        sure_first = sorted(wrong, key=lambda n: (-_confidence(n), n.id))
        confident = [w for w in sure_first if _confidence(w) >= confident_from]
        for rejected in confident[: settings.per_group]:
            chosen = _nearest(rejected, likely_first)[0]
            taken[chosen.id, rejected.id] = _pair(tree, "confident_wrong", chosen, rejected)
        dropped["wrong step: not confident"] += len(wrong) - len(confident)
        dropped["wrong step: enough from this group"] += max(0, len(confident) - settings.per_group)
        unsure = [r for r in sorted(right, key=lambda n: (_confidence(n), n.id)) if _confidence(r) <= unsure_to]
        for chosen in unsure[: settings.per_group]:
            left = [rejected for rejected in _nearest(chosen, sure_first) if (chosen.id, rejected.id) not in taken]
            taken |= {(chosen.id, rejected.id): _pair(tree, "uncertain_right", chosen, rejected) for rejected in left[:1]}
            dropped["right step: already paired with every wrong sibling"] += not left
        dropped["right step: not unsure"] += len(right) - len(unsure)
        dropped["right step: enough from this group"] += max(0, len(unsure) - settings.per_group)
        pairs += taken.values()
    kinds = Counter(pair.kind for pair in pairs)
    report = PairReport(
        {"confident_wrong": kinds["confident_wrong"], "uncertain_right": kinds["uncertain_right"]},
        {reason: n for reason, n in sorted(dropped.items()) if n},
        confident_from,
        unsure_to,
    )
    return pairs, report


def check_pairs(pairs: Sequence[StepPair], trees: Sequence[Tree], report: PairReport) -> None:
    """Refuse trees that gave no pair.

    Raises:
        DataError: there is none; it says what the judge could tell, and what to do.
    """
    if pairs:
        return
    verdicts = [node.verdict for tree in trees for node in tree.nodes if node.verdict]
    if not verdicts:
        raise DataError(f"The {len(trees)} trees hold no judged steps, so there are no pairs. Annotate questions first.")
    judges = ", ".join(sorted({verdict.judge for verdict in verdicts if verdict.judge})) or "without a name"
    told = sum(verdict.label != "unknown" for verdict in verdicts)
    dropped = ", ".join(f"{reason}: {n}" for reason, n in report.dropped.items())
    todo = (
        "Choose a judge that can tell (task.judge: rollouts needs the known answers only; docs/judges.md has the others)"
        if told < len(verdicts) / 2
        else "Sample more, raise the temperature, or choose problems that the model solves sometimes but not always"
    )
    raise DataError(
        f"The {len(trees)} trees give no pairs ({dropped}). The judge {judges} could tell {told} of {len(verdicts)} steps "
        f"({told / len(verdicts):.0%}). {todo}."
    )


def write_pairs(path: Path, pairs: Sequence[StepPair], trees: Sequence[Tree], text: Callable[[Sequence[int]], str]) -> None:
    """Write pairs as Parquet that TRL loads as it is: ``prompt``, ``chosen``, ``rejected``, then the provenance.

    ``text`` gives the text of tokens, special tokens included.
    """
    by_id = {tree.question.id: tree for tree in trees}
    rows = []
    for pair in pairs:
        tree = by_id[pair.question_id]
        chosen, rejected = tree.nodes[pair.chosen], tree.nodes[pair.rejected]
        assert rejected.verdict is not None
        rows.append(
            {
                "prompt": text(tree.prefix_ids(pair.parent)),
                "chosen": text(chosen.step.token_ids),
                "rejected": text(rejected.step.token_ids),
                "kind": pair.kind,
                "weight": pair.weight,
                "question_id": pair.question_id,
                "depth": chosen.depth,
                "parent_node": pair.parent,
                "chosen_node": pair.chosen,
                "rejected_node": pair.rejected,
                "chosen_confidence": pair.chosen_confidence,
                "rejected_confidence": pair.rejected_confidence,
                "rejected_reason": rejected.verdict.reason,
                "judge": rejected.verdict.judge,
            }
        )
    write_table(path, rows, PAIR_SCHEMA)


def read_pairs(path: Path, trees: Sequence[Tree]) -> list[StepPair]:
    """Read pairs back, checked against the trees they point into.

    Raises:
        DataError: the file is damaged, or a pair points at a node that is not there.
    """
    by_id = {tree.question.id: tree for tree in trees}
    pairs = []
    for row in read_table(path, PAIR_SCHEMA):
        tree = by_id.get(row["question_id"])
        nodes = (row["chosen_node"], row["rejected_node"])
        if tree is None or any(n >= len(tree.nodes) or tree.nodes[n].parent != row["parent_node"] for n in nodes):
            raise DataError(
                f"{path} has a pair of question {row['question_id']} that is not in the trees. The two were made by "
                "different runs: build the pairs again from these trees."
            )
        pairs.append(
            StepPair(
                row["question_id"],
                row["parent_node"],
                *nodes,
                row["kind"],
                row["chosen_confidence"],
                row["rejected_confidence"],
                row["weight"],
            )
        )
    return pairs


def _pair(tree: Tree, kind: Literal["confident_wrong", "uncertain_right"], chosen: Node, rejected: Node) -> StepPair:
    confidences = _confidence(chosen), _confidence(rejected)
    return StepPair(tree.question.id, chosen.parent, chosen.id, rejected.id, kind, *confidences)


def _nearest(step: Node, siblings: Sequence[Node]) -> list[Node]:
    """The siblings that share the most tokens with ``step`` before they part first; of equals, in the order given."""
    return sorted(siblings, key=lambda sibling: -shared_length(step.step.token_ids, sibling.step.token_ids))


def _confidence(node: Node) -> float:
    return step_score(node.step.trace)


def _quantile(values: Sequence[float], q: float, otherwise: float) -> float:
    return float(np.quantile(values, q)) if values else otherwise
