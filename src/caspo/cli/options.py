"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

__all__ = [
    "METHODS_HERE", "EngineOption", "MethodOption", "MethodSettings", "ModelOption", "NamesMethods", "SkipBad",
    "StepsOption", "TokenizerOption", "UrlOption",
]  # fmt: skip

METHODS_HERE = "{methods}"
"""Stands in the help of an option for the names of all methods."""


class NamesMethods(TyperCommand):
    """A command whose help names the methods. They are imported when its help is shown, not whenever any command starts."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Put the names in."""
        from caspo.search import METHODS

        for option in self.params:
            if isinstance(option, TyperOption) and option.help:
                option.help = option.help.replace(METHODS_HERE, ", ".join(METHODS))
        super().format_help(ctx, formatter)


MethodOption = Annotated[str, typer.Option(help=f"How to search (docs/search.md): {METHODS_HERE}.")]
MethodSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the method, e.g. children=8.")
]
ModelOption = Annotated[str, typer.Option(help="Bundled name, folder, hub name, or a server's.")]
EngineOption = Annotated[
    str | None, typer.Option(help="hf, llama_cpp, vllm, or openai_compatible (with --url the default).")
]
UrlOption = Annotated[list[str] | None, typer.Option(help="Address of a server of the model; once for every server.")]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Hub name or folder of a server's tokenizer, where it tells no vocabulary (vLLM).")
]
StepsOption = Annotated[
    str | None, typer.Option(help="What a step is (docs/steps.md): reasoning, line, paragraph, sentence, or delimiter:TEXT.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows of the file that cannot be used, and tell which and why.")
]
