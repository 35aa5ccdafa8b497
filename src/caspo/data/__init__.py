"""From questions to annotated trees, from trees to preference pairs, and both to and from disk."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.data.annotate import AnnotateSettings, judge_trees
    from caspo.data.dataset import write_dataset
    from caspo.data.pairs import PairReport, PairSettings, build_pairs, read_pairs, write_pairs

__all__ = [
    "AnnotateSettings", "PairReport", "PairSettings", "build_pairs", "judge_trees", "read_pairs", "write_dataset",
    "write_pairs",
]  # fmt: skip

export(__name__)
