"""How sure the model is, from its own token distributions: signals of a step, bounds of the entropy, calibration.

`signals` reads a `TokenTrace`, `calibration` turns scores into probabilities and measures how honest they are; `logits`
(the one module here that needs torch) is where a distribution becomes the numbers of a trace.
"""

from caspo.confidence.calibration import Calibrator, brier, ece, fit, reliability
from caspo.confidence.signals import DEFAULT_SIGNAL, SIGNALS, best_possible, entropy_bounds, signals, step_score

__all__ = [
    "DEFAULT_SIGNAL", "SIGNALS", "Calibrator", "best_possible", "brier", "ece", "entropy_bounds", "fit", "reliability",
    "signals", "step_score",
]  # fmt: skip
