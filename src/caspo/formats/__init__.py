"""Trees, pairs and labelled solutions as files: our own Parquet (`parquet`), and the public formats."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.formats.labelled import Format, LabelledSolution
    from caspo.formats.parquet import read_trees, write_trees
    from caspo.formats.step_dpo import pairs_as_step_dpo
    from caspo.formats.table import FORMATS, WRITTEN, Exported, read_labelled, read_solutions, trees_as, write_rows
    from caspo.formats.trees import solutions_of, trees_of

__all__ = [
    "FORMATS", "WRITTEN", "Exported", "Format", "LabelledSolution", "pairs_as_step_dpo", "read_labelled", "read_solutions",
    "read_trees", "solutions_of", "trees_as", "trees_of", "write_rows", "write_trees",
]  # fmt: skip

export(__name__)
