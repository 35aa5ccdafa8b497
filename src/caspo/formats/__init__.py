"""Trees, pairs and labelled solutions as files: our own Parquet (`parquet`), and the public formats."""

from caspo.formats.labelled import Format, LabelledSolution
from caspo.formats.step_dpo import pairs_as_step_dpo
from caspo.formats.table import FORMATS, WRITTEN, Exported, read_labelled, read_solutions, trees_as, write_rows
from caspo.formats.trees import solutions_of, trees_of

__all__ = [
    "FORMATS", "WRITTEN", "Exported", "Format", "LabelledSolution", "pairs_as_step_dpo", "read_labelled", "read_solutions",
    "solutions_of", "trees_as", "trees_of", "write_rows",
]  # fmt: skip
