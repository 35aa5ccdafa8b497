"""The command line. Every command is one function in a file of this room; heavy imports happen inside them."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from caspo import __version__
from caspo.cli import calibrate, exchange, harness, judge, plan, run, serve, solve, stages
from caspo.cli.options import NamesMethods
from caspo.core.errors import CaspoError
from caspo.core.threads import patient

__all__ = ["app", "main"]

app = typer.Typer(
    name="caspo",
    help="Make reasoning language models reliable: confidence-aware step alignment (CASPO) and search (CaT).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("solve", cls=NamesMethods)(solve.solve)
app.command("serve", cls=NamesMethods)(serve.serve)
app.command("plan")(plan.plan)
app.command("annotate")(stages.annotate)
app.command("judge")(judge.judge)
app.command("export")(exchange.export)
app.command("import")(exchange.import_labelled)
app.command("pairs")(stages.pairs)
app.command("train")(stages.train)
app.command("calibrate")(calibrate.calibrate)
app.command("evaluate")(stages.evaluate)
app.command("report")(stages.report)
app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)(harness.lm_eval)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"caspo {__version__}")
        raise typer.Exit


class _Choices(logging.Handler):
    """Says what was chosen for a model: to stderr, as it is no result."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line, above a bar if there is one."""
        from caspo.cli.show import console

        console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


_CHOICES = _Choices()


def main() -> None:
    """Run a command; a `CaspoError` becomes one message on stderr and exit code 1, Ctrl-C exit code 130."""
    # Our own bars tell the progress; this must be set before transformers is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    patient()
    opening = logging.getLogger("caspo.engines.opening")
    opening.setLevel(logging.INFO)
    if "serve" not in sys.argv[1:2]:  # which logs all there is
        opening.addHandler(_CHOICES)
    try:
        app()
    except CaspoError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Stopped. Run the same command again to go on.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
