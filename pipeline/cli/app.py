"""The typer application: its commands, `--version`, and how usage errors look."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.cli.doctor import doctor
from pipeline.cli.errors import INTERRUPTED, USAGE, ClickError, describe_usage, print_error, report
from pipeline.cli.eval import evaluate
from pipeline.cli.examples import epilog, reflow
from pipeline.cli.generate import generate
from pipeline.cli.options import OUTPUT
from pipeline.cli.parity import parity
from pipeline.cli.plan import plan
from pipeline.cli.values import flag


class Command(TyperCommand):
    """A command whose `--help` is listed like our own options."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option, without a kind of value and among those about output."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
            option.rich_help_panel = OUTPUT
        return option


class Commands(TyperGroup):
    """A group of commands that tells of wrong usage in one line."""

    def get_help_option(self, ctx: Any) -> Any:
        """The option, without a kind of value."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; leaves with its exit code unless `standalone_mode` is off."""
        standalone_mode = extra.pop("standalone_mode", True)
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra) or 0
            sys.stdout.flush()
        except ClickError as error:
            print_error(describe_usage(error))
            code = USAGE
        except typer.Abort:
            code = INTERRUPTED
        except (KeyboardInterrupt, BrokenPipeError) as error:
            code = report(error, show_traceback=False)
        if not standalone_mode:
            return code
        sys.exit(code)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and leave, if asked."""
    if wanted:
        from kernels import __version__

        typer.echo(f"lamella {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=epilog(None))
def lamella(
    context: typer.Context,
    version: Annotated[
        bool,
        flag("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Llama models in slices: split over stages, run, measured and checked against the whole."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for name, function, summary in (
    ("generate", generate, "Continue prompts with a model split into stages."),
    ("parity", parity, "Compare a split model with the whole one, bit by bit."),
    ("plan", plan, "Show which layers go where, and what they weigh."),
    ("eval", evaluate, "Measure how well a model predicts a text."),
    ("doctor", doctor, "Look for what is missing or wrong on this machine."),
):
    app.command(
        name,
        cls=Command,
        help=reflow(function.__doc__ or ""),
        short_help=summary,
        epilog=epilog(name),
    )(function)
