"""`lamella bench`: how fast are the operators, beside what else is installed?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.errors import FAILED, blaming, usage_error
from pipeline.cli.grouping import command
from pipeline.cli.interrupts import raising_interrupts
from pipeline.cli.operators import (
    HOW,
    CaseOption,
    DeviceOptions,
    ImplOptions,
    OperatorArguments,
    TimeoutOptions,
    chosen_device,
    chosen_impls,
    chosen_operators,
)
from pipeline.cli.options import OUTPUT, OutputOptions, ProgressOptions
from pipeline.cli.sizes import plural
from pipeline.cli.values import flag, number

if TYPE_CHECKING:
    from kernels.benchmarking.run import BenchRequest
    from pipeline.cli.output import Output


@command
def bench(
    operators: OperatorArguments = None,
    case: CaseOption = None,
    seconds: Annotated[
        float,
        number(
            "--seconds",
            allowed="above 0",
            test=lambda x: x > 0,
            help="For each case and implementation. [dim]Default: 0.3.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = 0.3,
    tune: Annotated[
        bool,
        flag(
            "--tune",
            help="First time every launch configuration and keep the best for this GPU.",
            rich_help_panel=HOW,
        ),
    ] = False,
    tune_seconds: Annotated[
        float,
        number(
            "--tune-seconds",
            allowed="above 0",
            test=lambda x: x > 0,
            help="For all of --tune, about. [dim]Default: 600.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = 600.0,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw a roofline to FILE (png, svg or pdf); needs matplotlib.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    *,
    impl: ImplOptions,
    device: DeviceOptions,
    timeout: TimeoutOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Time each OPERATOR (default: all) on realistic sizes, beside the peers that are installed.

    Medians with a cold L2 cache on a GPU; bytes a second also as a fraction of what a copy reaches
    in the same run. On a CPU: the cpu implementation beside the reference and torch. A kernel
    whose check is red is not timed; exit code 1 if there is one.
    """
    from kernels.benchmarking.roofline import plot as draw
    from kernels.benchmarking.roofline import require_plotting
    from kernels.benchmarking.run import BenchRequest
    from pipeline.cli.output import Output

    to = Output(output, progress)
    names = chosen_operators(operators)
    where = chosen_device(device.device)
    impls = chosen_impls(impl, names, bool(operators), where)
    if where == "cpu" and "triton" in impls:
        raise usage_error("--impl", "triton", "needs a CUDA GPU: interpreted, it has no speed")
    if tune and where == "cpu":
        raise usage_error("--tune", "here", "needs a CUDA GPU")
    if plot is not None:
        with blaming("--plot", plot):
            require_plotting(plot)
    request = BenchRequest(
        tuple(names),
        where,
        tuple(impls),
        impl.like,
        case or "",
        seconds=seconds,
        timeout=timeout.timeout,
    )
    if not request.jobs():
        raise usage_error("--case", case or "", f"no case of {', '.join(names)} to time has this")
    tuned = sweep(request, tune_seconds, to) if tune else []
    report = run(request, to)
    if to.wants_json:
        to.document({**report, **({"tuned": tuned} if tune else {})})
    else:
        show(report, to)
    if plot is not None and report["results"]:
        draw(report, plot)
    if any(not row["peer"] for row in report["refused"]):
        raise typer.Exit(FAILED)


def run(request: BenchRequest, to: Output) -> dict[str, Any]:
    """All cases, with a bar."""
    from kernels.benchmarking.run import bench as time_all
    from pipeline.cli.progress import progress_bar

    jobs = request.jobs()
    with (
        raising_interrupts(),
        progress_bar(to, "timing", len(jobs), "{:.0f} cases".format) as update,
    ):
        return time_all(request, jobs, told=lambda rows: update(advance=1))


def sweep(request: BenchRequest, seconds: float, to: Output) -> list[dict[str, Any]]:
    """Tune, and tell what was found."""
    from kernels.benchmarking.run import tune as tune_all
    from pipeline.cli.progress import progress_bar

    with (
        raising_interrupts(),
        progress_bar(to, "tuning", None, "{:.0f} operators".format) as update,
    ):
        rows = tune_all(request, seconds, told=lambda op: update(advance=1))
    for row in rows:
        if "error" in row:
            to.remark(f"{row['op']}: {row['error']}")
        else:
            gain = row["default_us"] / row["best_us"]
            to.remark(
                f"{row['name']}: {gain:.2f}x the default's speed with {row['config']} "
                f"({row['tried']} of {row['of']} tried, {row['red']} of them red)"
            )
    return rows


def show(report: dict[str, Any], to: Output) -> None:
    """A table for each operator; what was refused follows."""
    from rich.table import Table
    from rich.text import Text

    from pipeline.cli.text import harmless

    rows = report["results"]
    for op in dict.fromkeys(row["op"] for row in [*rows, *report["refused"]]):
        table = Table(box=None, title=op, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("case", overflow="fold", ratio=1)
        table.add_column("impl", overflow="fold")
        for title in ("us", "+-", "GB/s", "of copy", "TFLOP/s"):
            table.add_column(title, justify="right", no_wrap=True)
        last = ""
        for row in (row for row in rows if row["op"] == op):
            name, last = (row["case"] if row["case"] != last else ""), row["case"]
            style = "dim" if row["peer"] else "none"
            table.add_row(name, Text(harmless(row["impl"]), style=style), *figures(row))
        to.out.print(table)
        for row in (row for row in report["refused"] if row["op"] == op):
            why = f"-> {row['case']}, {row['impl']}: not timed: {row['refused']}"
            to.out.print(Text(harmless(why), style="dim" if row["peer"] else "red"))
        to.out.print()
    where = report["environment"]
    to.out.print(
        f"{where['device']}, load {where['load_average']:.1f}, torch {where['torch']}, "
        f"triton {where['triton']}, "
        f"commit {where['commit']}: copy {report['copy_gb_per_s']:.1f} GB/s, products "
        f"{report['product_tflop_per_s']:.2f} TFLOP/s",
        markup=False,
    )
    to.out.print(verdict(rows, report["refused"]))


def figures(row: dict[str, Any]) -> list[str]:
    """The numbers of a row."""
    from kernels.benchmarking.timing import NOISY

    noisy = " noisy" if row["spread"] > NOISY else ""
    return [
        f"{row['median_us']:.1f}",
        f"{100 * row['spread']:.0f}%{noisy}",
        f"{row['gb_per_s']:.1f}",
        f"{100 * row['fraction_of_copy']:.0f}%",
        f"{row['tflop_per_s']:.3f}",
    ]


def verdict(rows: Sequence[dict[str, Any]], refused: Sequence[dict[str, Any]]) -> str:
    """The report in a line."""
    ours = sum(not row["peer"] for row in rows)
    red = sum(not row["peer"] for row in refused)
    if red:
        return f"[bold red]{plural(red, 'figure')} refused[/], {ours} checked and timed"
    return f"[green]{plural(ours, 'figure')} of ours, each checked before it was timed[/]"
