"""What the samples of a pool say of a model: numbers for `caspo.search.evidence`, fitted and tried on other questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspo.search.evidence import EvidenceModel
from caspo.search.evidence_fit import Told, fit_evidence, log_loss
from parts.measure import Figure, difference

__all__ = ["fitted"]


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
