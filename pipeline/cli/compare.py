"""`lamella compare`: has the work tree become faster or slower than a commit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.errors import FAILED, blaming, usage_error
from pipeline.cli.grouping import command
from pipeline.cli.interrupts import raising_interrupts, raising_terminations
from pipeline.cli.operators import (
    HOW,
    WHAT,
    CaseOption,
    DeviceOptions,
    OperatorArguments,
    TimeoutOptions,
    chosen_device,
    chosen_operators,
)
from pipeline.cli.options import OutputOptions, ProgressOptions
from pipeline.cli.sizes import plural
from pipeline.cli.values import count, number, text

if TYPE_CHECKING:
    from kernels.benchmarking.compare import Compared
    from pipeline.cli.output import Output

MARKS = {
    "faster": "[green]faster[/]",
    "slower": "[bold red]slower[/]",
    "same": "[dim]same[/]",
    "new": "[green]new[/]",
    "refused": "[bold red]RED[/]",
}


@command
def compare(
    operators: OperatorArguments = None,
    base: Annotated[
        str,
        text(
            "--base",
            "-b",
            metavar="REF",
            help="Commit, branch or tag to compare with. [dim]Default: HEAD.[/]",
            show_default=False,
            rich_help_panel=WHAT,
        ),
    ] = "HEAD",
    case: CaseOption = None,
    rounds: Annotated[
        int,
        count(
            "--rounds",
            least=2,
            help="Turns of each side. [dim]Default: 5.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = 5,
    seconds: Annotated[
        float,
        number(
            "--seconds",
            allowed="above 0",
            test=lambda x: x > 0,
            help="Of each turn, for each case and implementation. [dim]Default: 0.1.[/]",
            show_default=False,
            rich_help_panel=HOW,
        ),
    ] = 0.1,
    *,
    device: DeviceOptions,
    timeout: TimeoutOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Time each OPERATOR (default: all) at a commit and in the work tree, taking turns.

    A case is faster or slower only if the difference is beyond the spread of both sides over the
    rounds; it is new if the commit does not have it. Kernels of both sides are checked first; exit
    code 1 if one is red.
    """
    from kernels.benchmarking.compare import compare as compare_all
    from kernels.benchmarking.run import BenchRequest
    from pipeline.cli.output import Output
    from pipeline.cli.progress import progress_bar

    to = Output(output, progress)
    names = chosen_operators(operators)
    where = chosen_device(device.device)
    impls = ("triton",) if where == "cuda" else ("cpu",)
    request = BenchRequest(
        tuple(names), where, impls, only=case or "", seconds=seconds, timeout=timeout.timeout
    )
    if not request.jobs():
        raise usage_error("--case", case or "", f"no case of {', '.join(names)} to time has this")
    with (
        blaming("--base", base),
        raising_interrupts(),
        raising_terminations(),
        progress_bar(to, "timing", None, "{:.0f} cases".format) as update,
    ):
        report = compare_all(
            request, base, rounds, lambda done, total: update(completed=done, total=total)
        )
    rows = report["results"]
    if to.wants_json:
        to.document({**report, "results": [document(row) for row in rows]})
    else:
        show(rows, to)
        to.out.print(verdict(rows, report["base"]["commit"]))
    if any(row.refused for row in rows):
        raise typer.Exit(FAILED)


def document(row: Compared) -> dict[str, Any]:
    """A row for `--json`; `refused` only where there is a reason."""
    fields = {**asdict(row), "speedup": row.speedup, "verdict": row.verdict}
    return {name: value for name, value in fields.items() if (name, value) != ("refused", None)}


def show(rows: Sequence[Compared], to: Output) -> None:
    """A table for each operator; what was refused follows."""
    from rich.table import Table
    from rich.text import Text

    from pipeline.cli.text import harmless

    for op in dict.fromkeys(row.op for row in rows):
        table = Table(box=None, title=op, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("case", overflow="fold", ratio=1)
        table.add_column("impl", overflow="fold")
        for title in ("base us", "here us", "speed", "+-", ""):
            table.add_column(title, justify="right", no_wrap=True)
        for row in (row for row in rows if row.op == op):
            table.add_row(row.case, row.impl, *figures(row), MARKS[row.verdict])
        to.out.print(table)
        for row in (row for row in rows if row.op == op and row.refused):
            why = f"-> {row.case}, {row.impl}: {row.refused}"
            to.out.print(Text(harmless(why), style="red"))
        to.out.print()


def figures(row: Compared) -> list[str]:
    """The numbers of a row."""
    if row.base_us is None or row.here_us is None or row.spread is None or row.speedup is None:
        return ["-"] * 4
    return [
        f"{row.base_us:.1f}",
        f"{row.here_us:.1f}",
        f"{row.speedup:.2f}x",
        f"{100 * row.spread:.0f}%",
    ]


def verdict(rows: Sequence[Compared], commit: str) -> str:
    """The report in a line."""
    found = [row.verdict for row in rows]
    parts = [f"{found.count(name)} {name}" for name in MARKS if name in found]
    return f"{plural(len(rows), 'figure')} against {commit}: {', '.join(parts)}"
