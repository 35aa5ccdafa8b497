"""Reads run folders only; writes one self-contained HTML page. Nothing here computes a result."""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.report.page import write_report
    from caspo.report.trees import notebook_tree

__all__ = ["notebook_tree", "write_report"]

export(__name__)
