"""caspo: confidence-aware step preferences and confidence-guided tree search for language models.

    import caspo

    model = caspo.load("smollm2-135m-stories")
    print(model.solve("Tom has 3 pens and buys 2 bags with 4 pens in each. How many pens has he?"))

Importing this package loads neither torch nor transformers: each room loads what it needs when it is used.
"""

from typing import TYPE_CHECKING

from caspo.core.lazy import export

if TYPE_CHECKING:
    from caspo.core.errors import CaspoError
    from caspo.model import Model, Solved, load
    from caspo.records import Question, Solution
    from caspo.search import METHODS

__all__ = ["METHODS", "CaspoError", "Model", "Question", "Solution", "Solved", "__version__", "load"]

__version__ = "0.1.0"

export(__name__)
