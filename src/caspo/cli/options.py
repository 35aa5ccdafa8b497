"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from caspo.core.shards import Shard

__all__ = [
    "METHODS_HERE", "BaseOption", "CompletionsOption", "DeviceOption", "DtypeOption", "EngineOption", "MethodOption",
    "MethodSettings", "ModelOption", "NamesMethods", "ShardOption", "SkipBad", "StepsOption", "ThreadsOption",
    "TokenizerOption", "UrlOption",
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
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the method, e.g. paths=8.")
]
ModelOption = Annotated[str, typer.Option(help="Bundled name, folder, GGUF file, hub name, or a server's.")]
BaseOption = Annotated[
    str | None, typer.Option(help="What a LoRA adapter (--model FOLDER) was trained on, where it does not say or is moved.")
]
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
ShardOption = Annotated[
    Shard | None,
    typer.Option(parser=Shard.parse, metavar="K/N", help="Part K of N of the questions, K from 1 (docs/clusters.md)."),
]
DeviceOption = Annotated[str, typer.Option(help="auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:1, mps, ...")]
DtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; by default bfloat16 where that is faster.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one for each core.")]
CompletionsOption = Annotated[
    Path | None,
    typer.Option(help="File that keeps every completion: another method, threshold or seed decodes only what is new."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out rows of the file that cannot be used, and tell which and why.")
]
