"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["EngineOption", "MethodOption", "MethodSettings", "ModelOption", "TokenizerOption", "UrlOption"]

MethodOption = Annotated[str, typer.Option(help="How to search: a name of docs/search.md, as self_consistency or beam.")]
MethodSettings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the method, e.g. children=8.")
]
ModelOption = Annotated[str, typer.Option(help="Bundled name, folder, hub name, or a server's.")]
EngineOption = Annotated[str | None, typer.Option(help="hf, llama_cpp, or openai_compatible (with --url the default).")]
UrlOption = Annotated[list[str] | None, typer.Option(help="Address of a server of the model; once for every server.")]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Hub name or folder of a server's tokenizer, where it tells no vocabulary (vLLM).")
]
