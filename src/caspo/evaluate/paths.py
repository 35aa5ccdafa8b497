"""Whether a right answer was reached by wrong steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caspo.evaluate.estimates import wilson
from caspo.records import Verdict

__all__ = ["faithfulness"]


def faithfulness(paths: Sequence[Sequence[Verdict]]) -> dict[str, Any]:
    """The ``faithfulness`` of a method in `metrics.json`, from the verdicts on the paths of its right answers.

    ``wrong_step`` is the share of the paths that hold a wrong step, of those (``n``) on which the judge could tell any.
    Steps it could not tell are not counted as wrong, so the share is a lower bound unless ``whole``, the number of paths
    judged to their end or to a wrong step, equals n.
    """
    labels = [{verdict.label for verdict in path} for path in paths]
    judged = [of_path for of_path in labels if of_path - {"unknown"}]
    if not judged:
        return {"n": 0, "whole": 0, "wrong_step": None, "wrong_step_ci95": None}
    wrong = sum("wrong" in of_path for of_path in judged)
    whole = sum("wrong" in of_path or "unknown" not in of_path for of_path in judged)
    interval = list(wilson(wrong, len(judged)))
    return {"n": len(judged), "whole": whole, "wrong_step": wrong / len(judged), "wrong_step_ci95": interval}
