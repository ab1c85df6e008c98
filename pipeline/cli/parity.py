"""`lamella parity`: does the split model give what the whole one gives, bit by bit?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.errors import FAILED
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
from pipeline.cli.values import count

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.parity import ParityReport

COMPARISON = "What to compare"


@command
def parity(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", hidden=True),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts-file",
            "-f",
            metavar="FILE",
            help="More prompts, one per line; - is standard input. Blank lines are skipped.",
            rich_help_panel=COMPARISON,
        ),
    ] = None,
    steps: Annotated[
        int,
        count(
            "--steps",
            "-n",
            least=0,
            help="Decode steps after the prompts. [dim]Default: 8.[/]",
            show_default=False,
            rich_help_panel=COMPARISON,
        ),
    ] = 8,
    *,
    model: ModelOptions,
    split: SplitOptions,
    mode: RunModeOptions,
    compute: ComputeOptions,
    precision: PrecisionOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Compare the logits of a split model with those of the whole; exit code 1 if they differ.

    Compares on the PROMPTs given, else on 24 made-up ones, enough for stages to overlap. Two
    stages unless told otherwise.
    """
    from pipeline.cli.opening import open_pipeline
    from pipeline.cli.output import Output
    from pipeline.cli.prompts import collect_prompts
    from pipeline.cli.ranks import ran_a_stage, world_here
    from pipeline.cli.request import ALONE, Request
    from pipeline.parity import compare, compared_threads, microbatch_size

    to = Output(output, progress)
    one_stage = split.splits is None and split.stages is None and "," not in (split.devices or "")
    if one_stage and world_here() is None:
        split = replace(split, stages=2)
    request = Request(model, split, mode, compute, precision)
    if ran_a_stage(request):
        return
    texts = None
    if prompts or prompts_file:
        texts = collect_prompts(prompts or [], prompts_file, None, to.remark)
    with open_pipeline(request, to) as parts:
        alone = replace(
            request,
            split=SplitOptions(devices=first_device(split)),
            mode=RunModeOptions("batch"),
            compute=replace(compute, threads=compared_threads(parts), bridge=ALONE),
        )
        with open_pipeline(alone, to) as whole:
            report = compare(parts, whole, texts, steps=steps)
        size = microbatch_size(parts, report.rows // (steps + 1))
    if to.wants_json:
        to.document(report.json())
    else:
        to.out.print(as_table(report, size))
        to.out.print(verdict(report))
    if not report.ok:
        raise typer.Exit(FAILED)


def first_device(split: SplitOptions) -> str | None:
    """Where the whole model runs: on the first stage's device."""
    return None if split.devices is None else split.devices.split(",")[0]


def as_table(report: ParityReport, size: int) -> Table:
    """What was compared, and how far apart it was."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("stages", "mode", "rows at once", "KV cache", "rows", "difference", "bitwise"):
        table.add_column(title)
    table.add_row(
        str(report.stages),
        report.mode,
        str(size),
        report.kv_dtype,
        str(report.rows),
        f"{report.max_abs_diff:.3g}",
        "equal" if report.bitwise_equal else "not equal",
    )
    return table


def verdict(report: ParityReport) -> str:
    """The report in a line, with what cutting the batch changed."""
    uncut = f"against the whole with uncut batches: up to {report.whole_batch_max_abs_diff:.3g}"
    if report.ok:
        return f"[green]split equals whole, bit for bit[/]; {uncut}"
    return f"[bold red]split differs from whole[/] by up to {report.max_abs_diff:.3g}; {uncut}"
