"""The typer application: its commands, `--version`, and how usage errors look."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pipeline.cli.aot import aot
from pipeline.cli.bench import bench
from pipeline.cli.check import check
from pipeline.cli.compare import compare
from pipeline.cli.doctor import doctor
from pipeline.cli.errors import (
    INTERRUPTED,
    USAGE,
    ClickError,
    describe_usage,
    flush_stdout,
    print_error,
    report,
)
from pipeline.cli.eval import evaluate
from pipeline.cli.examples import examples, reflow
from pipeline.cli.generate import generate
from pipeline.cli.options import OUTPUT
from pipeline.cli.parity import parity
from pipeline.cli.plan import plan
from pipeline.cli.values import flag


class _Help:
    """What `--help` shows beyond what typer does: examples below the options."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then examples, each on a line of its own."""
        super().format_help(ctx, formatter)  # type: ignore[misc]
        lines = ["", typer.style(" Examples", bold=True), *examples(ctx.command.name), ""]
        typer.echo("\n".join(lines))

    def get_help_option(self, ctx: Any) -> Any:
        """The option, without a kind of value and among those about output."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.metavar = ""
            option.rich_help_panel = OUTPUT if isinstance(self, TyperCommand) else None
        return option


class Command(_Help, TyperCommand):
    """A command with examples in its help."""


class Commands(_Help, TyperGroup):
    """A group of commands that tells of wrong usage in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; leaves with its exit code unless `standalone_mode` is off."""
        standalone_mode = extra.pop("standalone_mode", True)
        extra["standalone_mode"] = False
        try:
            code = super().main(*args, **extra) or 0
        except ClickError as error:
            print_error(describe_usage(error))
            code = USAGE
        except typer.Abort:
            code = INTERRUPTED
        except (KeyboardInterrupt, OSError) as error:
            code = report(error, show_traceback=False)
        code = flush_stdout() or code
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


@app.callback(invoke_without_command=True)
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
    ("check", check, "Measure operators against their float64 reference."),
    ("aot", aot, "Compile kernels for GPUs that are not here."),
    ("bench", bench, "Time operators beside other libraries."),
    ("compare", compare, "Time operators at a commit and now, taking turns."),
    ("doctor", doctor, "Look for what is missing or wrong on this machine."),
):
    app.command(
        name,
        cls=Command,
        help=reflow(function.__doc__ or ""),
        short_help=summary,
    )(function)
