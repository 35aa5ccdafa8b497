"""Runs search methods on a question set and measures accuracy, cost and calibration."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.evaluate.answer_figures import risk_coverage
    from caspo.evaluate.estimates import PairedDifference, auroc, bootstrap_ci, paired_difference, wilson
    from caspo.evaluate.judge_run import judge_solutions, score_judge
    from caspo.evaluate.metrics import round_metrics
    from caspo.evaluate.paths import faithfulness
    from caspo.evaluate.run import EvaluateSettings, Outcome, evaluate_methods, read_outcomes
    from caspo.evaluate.samples import pass_at_k

__all__ = [
    "EvaluateSettings", "Outcome", "PairedDifference", "auroc", "bootstrap_ci", "evaluate_methods", "faithfulness",
    "judge_solutions", "paired_difference", "pass_at_k", "read_outcomes", "risk_coverage", "round_metrics",
    "score_judge", "wilson",
]  # fmt: skip

export(__name__)
