"""Question sets, one file each, with their grader; the public benchmarks are one table in `benchmarks`."""

from caspo.tasks.benchmarks import BENCHMARKS, open_benchmark

__all__ = ["BENCHMARKS", "open_benchmark"]
