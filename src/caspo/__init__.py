"""caspo: confidence-aware step preferences and confidence-guided tree search for language models.

Importing this package loads neither torch nor transformers: each room loads what it needs when it is used.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
