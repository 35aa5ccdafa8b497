"""Packages whose public names load their modules when they are first used (PEP 562).

Such a package imports its names in a block that only type checkers run, and calls `export`, which reads the block once a
name is asked for:

    if TYPE_CHECKING:
        from caspo.engines.opening import open_engine

    __all__ = ["open_engine"]

    export(__name__)

It must not export a name that one of its modules has: which of the two it gives would depend on who was first.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any

__all__ = ["export"]


def export(package: str) -> None:
    """Give a package the names that it imports for type checkers; called at its end."""
    module = sys.modules[package]

    @cache
    def homes() -> dict[str, str]:
        """The module of each name."""
        import ast
        import inspect

        (block,) = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.If)]
        imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def find(name: str) -> Any:
        if name not in module.__all__:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(homes()[name]), name)
        setattr(module, name, found)
        return found

    module.__dict__.update(__getattr__=find, __dir__=lambda: list(module.__all__))
