"""For tests of what is built on caspo: an engine that plays a script, and checks of a grader.

    engine = ScriptedEngine({"Q\\n": [Scripted("2 + 3 = 5\\nThe answer is 5.", eos=True)]})
    [solution] = MyMethod().solve([Question("Q", "5")], engine)

A method of your own: docs/architecture.md. The engine's script may also be a function, and its choices have probabilities.
"""

from caspo.testing.graders import GraderReport, check_grader
from caspo.testing.scripted import Script, Scripted, ScriptedEngine

__all__ = ["GraderReport", "Script", "Scripted", "ScriptedEngine", "check_grader"]
