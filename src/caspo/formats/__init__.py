"""Trees, pairs and labelled solutions as files: our own Parquet, and the public formats, read and written."""

from typing import TYPE_CHECKING

from caspo.lazy import export

if TYPE_CHECKING:
    from caspo.formats.labelled import LabelledSolution, read_labelled
    from caspo.formats.parquet import read_trees, write_trees
    from caspo.formats.trees import pairs_as_step_dpo, read_solutions, solutions_of, trees_as, trees_of, write_rows

__all__ = [
    "LabelledSolution", "pairs_as_step_dpo", "read_labelled", "read_solutions", "read_trees", "solutions_of",
    "trees_as", "trees_of", "write_rows", "write_trees",
]  # fmt: skip

export(__name__)
