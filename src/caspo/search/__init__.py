"""Ways to solve questions with an engine; `METHODS` names them."""

from caspo.search.base import Method, PathSettings
from caspo.search.confidence_tree import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.sampled import ChainOfThought, ChainOfThoughtSettings, SelfConsistency, SelfConsistencySettings

__all__ = [
    "METHODS",
    "ChainOfThought",
    "ChainOfThoughtSettings",
    "ConfidenceTree",
    "ConfidenceTreeSettings",
    "Method",
    "PathSettings",
    "SelfConsistency",
    "SelfConsistencySettings",
]

METHODS = {method.name: method for method in (ChainOfThought, SelfConsistency, ConfidenceTree)}
"""Every method by its name in recipes and in `metrics.json`."""
