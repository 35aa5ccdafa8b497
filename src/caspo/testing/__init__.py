"""For tests of what is built on caspo: an engine that plays a script, and checks of a grader."""

from caspo.testing.graders import GraderReport, check_grader
from caspo.testing.scripted import Script, Scripted, ScriptedEngine

__all__ = ["GraderReport", "Script", "Scripted", "ScriptedEngine", "check_grader"]
