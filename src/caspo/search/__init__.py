"""Ways to solve questions with an engine; `METHODS` names them."""

from collections.abc import Mapping, Sequence
from typing import Any

from caspo.core.config import settings_from
from caspo.core.errors import ConfigError
from caspo.search.adaptive import ESC, AdaptiveConsistency, AdaptiveConsistencySettings, ESCSettings
from caspo.search.base import Method, PathSettings
from caspo.search.beam import Beam, BeamSettings
from caspo.search.best_of_n import BestOfN, BestOfNSettings
from caspo.search.confidence_tree import ConfidenceTree, ConfidenceTreeSettings
from caspo.search.deepconf import DeepConfOffline, DeepConfOfflineSettings, DeepConfOnline, DeepConfOnlineSettings
from caspo.search.dipt import DiPT, DiPTSettings
from caspo.search.entropy_tree import EntropyTree, EntropyTreeSettings
from caspo.search.paper_tree import PaperTree, PaperTreeSettings
from caspo.search.paths import answer_path
from caspo.search.reasc import ReASC, ReASCSettings
from caspo.search.sampled import ChainOfThought, ChainOfThoughtSettings, SelfConsistency, SelfConsistencySettings

__all__ = [
    "DEFAULT_METHOD", "ESC", "METHODS", "AdaptiveConsistency", "AdaptiveConsistencySettings", "Beam", "BeamSettings",
    "BestOfN", "BestOfNSettings", "ChainOfThought", "ChainOfThoughtSettings", "ConfidenceTree", "ConfidenceTreeSettings",
    "DeepConfOffline", "DeepConfOfflineSettings", "DeepConfOnline", "DeepConfOnlineSettings", "DiPT", "DiPTSettings",
    "ESCSettings", "EntropyTree", "EntropyTreeSettings", "Method", "PaperTree", "PaperTreeSettings", "PathSettings", "ReASC",
    "ReASCSettings", "SelfConsistency", "SelfConsistencySettings", "answer_path", "method_of",
]  # fmt: skip

METHODS: dict[str, type[Method[Any]]] = {
    method.name: method
    for method in (
        ChainOfThought, SelfConsistency, ConfidenceTree, BestOfN, Beam, DeepConfOffline, DeepConfOnline, DiPT,
        AdaptiveConsistency, ESC, ReASC, EntropyTree, PaperTree,
    )
}  # fmt: skip
"""Every method by its name in recipes and in `metrics.json`."""

DEFAULT_METHOD = ConfidenceTree.name
"""What solves where nobody chose."""


def method_of(name: str, settings: Sequence[str] | Mapping[str, Any] = ()) -> Method[Any]:
    """The method of this name with these settings: ``key=value`` each, or a mapping.

    Raises:
        ConfigError: no such method, no such setting, or a value that a setting cannot have.
    """
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}. Choose one of {', '.join(METHODS)}.")
    return METHODS[name](settings_from(METHODS[name].settings_type, settings))
