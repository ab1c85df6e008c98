"""`lamella eval`: how well a model predicts a text."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.errors import usage_error
from pipeline.cli.grouping import command
from pipeline.cli.options import (
    ComputeOptions,
    ModelOptions,
    OutputOptions,
    PrecisionOptions,
    ProgressOptions,
    RunModeOptions,
    SplitOptions,
)
from pipeline.cli.sizes import seconds_text
from pipeline.cli.values import count

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.perplexity import PerplexityResult


@command
def evaluate(
    text_file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", hidden=True),
    ] = None,
    window: Annotated[
        int | None,
        count(
            "--window",
            "-w",
            help="Tokens fed at once; windows do not overlap. [dim]Default: 512, or the "
            "longest sequence if that is less.[/]",
            rich_help_panel="Text",
        ),
    ] = None,
    *,
    model: ModelOptions,
    split: SplitOptions,
    compute: ComputeOptions,
    precision: PrecisionOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Measure the perplexity of a text: exp of the mean negative log likelihood of its tokens.

    The text is FILE, or standard input for "-", in UTF-8; by default what the bundled model's
    training held out.
    """
    from pipeline.cli.folders import HELD_OUT
    from pipeline.cli.opening import open_pipeline
    from pipeline.cli.output import Output
    from pipeline.cli.progress import progress_bar
    from pipeline.cli.prompts import read_text
    from pipeline.cli.ranks import ran_a_stage, telling_the_others
    from pipeline.cli.request import Request
    from pipeline.perplexity import perplexity

    to = Output(output, progress)
    request = Request(model, split, RunModeOptions(), compute, precision)
    if ran_a_stage(request):
        return
    with telling_the_others():
        text = read_text(text_file or HELD_OUT)
    with open_pipeline(request, to) as pipeline:
        start = time.perf_counter()
        if window is not None and window > pipeline.kv_capacity():
            raise usage_error(
                "--window", window, f"a sequence holds {pipeline.kv_capacity()} tokens"
            )
        with progress_bar(to, "scoring", None, "{:.0f} tokens".format) as update:
            result = perplexity(
                pipeline,
                text,
                window,
                progress=lambda done, total: update(completed=done, total=total),
            )
        seconds = time.perf_counter() - start
    if to.wants_json:
        to.document(result.json())
    else:
        to.out.print(as_table(result))
        to.remark(f"{result.tokens} tokens in {seconds_text(seconds)}")


def as_table(result: PerplexityResult) -> Table:
    """The result in one row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("perplexity", "nats per token", "tokens"):
        table.add_column(title, justify="right")
    table.add_row(f"{result.perplexity:.4f}", f"{result.nll_per_token:.4f}", str(result.tokens))
    return table
