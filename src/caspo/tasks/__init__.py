"""Question sets, one file each, with their grader; the public benchmarks are one table in `benchmarks`."""

from caspo.tasks.base import QuestionSet, Task, grade
from caspo.tasks.benchmarks import BENCHMARKS, open_benchmark
from caspo.tasks.jsonl import JsonlTask
from caspo.tasks.stories import StoriesTask

__all__ = ["BENCHMARKS", "JsonlTask", "QuestionSet", "StoriesTask", "Task", "grade", "open_benchmark"]
