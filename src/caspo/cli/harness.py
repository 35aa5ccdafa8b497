"""`caspo lm-eval`."""

from __future__ import annotations

import sys

import typer

__all__ = ["lm_eval"]


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with `caspo` as a model type: --model caspo --model_args pretrained=NAME,method=cat.

    Every option is the harness's own.
    """
    from caspo.lm_eval import register

    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
