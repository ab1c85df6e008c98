"""`lamella check`: is every implementation of an operator as exact as it has to be?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.errors import FAILED, usage_error
from pipeline.cli.grouping import command
from pipeline.cli.interrupts import raising_interrupts
from pipeline.cli.operators import (
    WHAT,
    CaseOption,
    DeviceOptions,
    ImplOptions,
    OperatorArguments,
    TimeoutOptions,
    chosen_device,
    chosen_impls,
    chosen_operators,
)
from pipeline.cli.options import OutputOptions, ProgressOptions
from pipeline.cli.sizes import plural, seconds_text
from pipeline.cli.values import flag

if TYPE_CHECKING:
    from kernels.checking import Checked, CheckJob
    from pipeline.cli.output import Output


@command
def check(
    operators: OperatorArguments = None,
    case: CaseOption = None,
    bench_cases: Annotated[
        bool,
        flag(
            "--bench-cases",
            help="Also the large cases that bench times; slow in the interpreter.",
            rich_help_panel=WHAT,
        ),
    ] = False,
    *,
    impl: ImplOptions,
    device: DeviceOptions,
    timeout: TimeoutOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Measure the error of each OPERATOR (default: all) against its reference in float64.

    The largest error may be at most 2x, the mean error 1.5x, that of the reference at the inputs'
    own precision. Without a GPU, Triton kernels run in Triton's interpreter. Exit code 1 if an
    error is over its budget.
    """
    from kernels.checking import check_jobs
    from pipeline.cli.output import Output

    to = Output(output, progress)
    names = chosen_operators(operators)
    where = chosen_device(device.device)
    impls = chosen_impls(impl, names, bool(operators), where)
    jobs = check_jobs(
        names, impls, like=impl.like, device=where, bench_cases=bench_cases, only=case or ""
    )
    if not jobs:
        raise usage_error(
            "--case", case or "", f"no case of {', '.join(names)} has this in its name"
        )
    start = time.perf_counter()
    rows = run(jobs, timeout.timeout, to)
    seconds = time.perf_counter() - start
    ok = all(row.ok for row in rows)
    if to.wants_json:
        to.document({"ok": ok, "device": where, "cases": [document(row) for row in rows]})
    else:
        show(rows, to)
        to.out.print(verdict(rows, len(jobs)))
        to.remark(f"in {seconds_text(seconds)} on {where}")
    if not ok:
        raise typer.Exit(FAILED)


def run(jobs: Sequence[CheckJob], timeout: float, to: Output) -> list[Checked]:
    """All outputs of all jobs, in the registry's order."""
    from kernels.checking import run_checks
    from pipeline.cli.progress import progress_bar

    rows: list[Checked] = []
    with (
        raising_interrupts(),
        progress_bar(to, "checking", len(jobs), "{:.0f} cases".format) as update,
    ):
        for outputs in run_checks(jobs, job_seconds=timeout):
            rows += outputs
            update(advance=1)
    order = {(job.op, job.case): number for number, job in enumerate(jobs)}
    return sorted(rows, key=lambda row: order[row.op, row.case])


def document(row: Checked) -> dict[str, Any]:
    """A row for `--json`; `message` only where there is one."""
    fields = asdict(row)
    return {name: value for name, value in fields.items() if (name, value) != ("message", None)}


def show(rows: Sequence[Checked], to: Output) -> None:
    """A table for each operator, a row for each output; what was raised follows."""
    from rich.table import Table
    from rich.text import Text

    from pipeline.cli.text import harmless

    for op in dict.fromkeys(row.op for row in rows):
        table = Table(box=None, title=op, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column("case", overflow="fold", ratio=1)
        for title in ("impl", "output"):
            table.add_column(title, overflow="fold")
        for title in ("error", "budget", "mean", ""):
            table.add_column(title, justify="right", no_wrap=True)
        last = ""
        for row in rows:
            if row.op == op:
                name = row.case if row.case != last else ""
                last = row.case
                numbers = [number(row.error), number(row.budget), part(row)]
                mark = "[green]ok[/]" if row.ok else "[bold red]RED[/]"
                table.add_row(name, harmless(row.impl), row.output or "-", *numbers, mark)
        to.out.print(table)
        for row in rows:
            if row.op == op and row.message:
                why = f"-> {row.case}, {row.impl}: {row.message}"
                to.out.print(Text(harmless(why), style="red"))
        to.out.print()


def number(value: float | None) -> str:
    """An error with two digits."""
    return "-" if value is None else f"{value:.1e}"


def part(row: Checked) -> str:
    """The mean error in percent of its budget."""
    if row.mean_error is None or row.mean_budget is None:
        return "-"
    if not row.mean_budget:
        return "0%" if row.mean_error == 0 else "over"
    share = 100 * row.mean_error / row.mean_budget
    return f"{share:.0f}%" if share == share else "nan"


def verdict(rows: Sequence[Checked], cases: int) -> str:
    """The report in a line."""
    red = {(row.op, row.case, row.impl) for row in rows if not row.ok}
    done = {(row.op, row.case, row.impl) for row in rows}
    if red:
        ops = ", ".join(dict.fromkeys(row.op for row in rows if not row.ok))
        return f"[bold red]{len(red)} of {plural(len(done), 'check')} red[/]: {ops}"
    return f"[green]{plural(len(done), 'check')} of {plural(cases, 'case')} within budget[/]"
