"""Reads run folders only; writes one self-contained HTML page. Nothing here computes a result."""

from caspo.report.page import write_report

__all__ = ["write_report"]
