"""`lamella aot`: do the kernels compile for GPUs that are not here, and what do they take?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.errors import FAILED, blaming, usage_error
from pipeline.cli.grouping import command
from pipeline.cli.interrupts import raising_interrupts
from pipeline.cli.operators import (
    WHAT,
    OperatorArguments,
    TimeoutOptions,
    chosen_operators,
)
from pipeline.cli.options import OutputOptions, ProgressOptions
from pipeline.cli.sizes import plural, seconds_text
from pipeline.cli.values import flag, text

if TYPE_CHECKING:
    from kernels.aot import Compiled, Request
    from pipeline.cli.output import Output

CODE = "Code of one kernel"


@command
def aot(
    operators: OperatorArguments = None,
    arch: Annotated[
        list[str] | None,
        text(
            "--arch",
            metavar="ARCH",
            help="sm_80, sm_90, sm_100 or gfx942; several times for several. [dim]Default: all "
            "that Triton can compile for here.[/]",
            rich_help_panel=WHAT,
        ),
    ] = None,
    impl: Annotated[
        str | None,
        text(
            "--impl",
            metavar="IMPL",
            help="Your own function, as module:function or file.py:function, in place of the one "
            "operator; it launches through kernels.launch.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        text(
            "--kernel",
            help="Which kernel, by a part of its name. [dim]Default: the first.[/]",
            rich_help_panel=CODE,
        ),
    ] = None,
    ttgir: Annotated[
        bool, flag("--ttgir", help="Show Triton's own form of it.", rich_help_panel=CODE)
    ] = False,
    ptx: Annotated[bool, flag("--ptx", help="Show its PTX.", rich_help_panel=CODE)] = False,
    sass: Annotated[
        bool, flag("--sass", help="Show its machine code.", rich_help_panel=CODE)
    ] = False,
    *,
    timeout: TimeoutOptions,
    output: OutputOptions,
    progress: ProgressOptions,
) -> None:
    """Compile every kernel variant that models launch for each OPERATOR (default: all), without a
    GPU.

    Shows registers, spills and shared memory. Exit code 1 if one does not compile, spills
    registers or takes more than the architecture has. What was compiled before comes from a cache
    in $LAMELLA_CACHE (default: ~/.cache/lamella).
    """
    from kernels.aot import ARCHS, Request, default_archs, print_code
    from kernels.own import is_own, load_own
    from pipeline.cli.output import Output

    to = Output(output, progress)
    names = chosen_operators(operators)
    for name in arch or ():
        if name not in ARCHS:
            raise usage_error("--arch", name, f"expected one of {', '.join(ARCHS)}")
    if impl is not None:
        if not is_own(impl):
            raise usage_error("--impl", impl, "expected module:function or file.py:function")
        if len(names) != 1:
            raise usage_error("--impl", impl, "name the one operator that it stands for")
        with blaming("--impl", impl):
            load_own(impl)
    kinds = [kind for kind, on in (("ttgir", ttgir), ("ptx", ptx), ("sass", sass)) if on]
    if kernel is not None and not kinds:
        raise usage_error("--kernel", kernel, "needs --ttgir, --ptx or --sass")
    request = Request(tuple(names), tuple(dict.fromkeys(arch or default_archs())), impl)
    if kinds:
        # One architecture is enough to read, unless more were asked for.
        request = request if arch else Request(request.ops, ("sm_90",), impl)
        with blaming("--kernel", kernel or ""), raising_interrupts():
            found = [
                (kind, *part)
                for kind in kinds
                for part in print_code(request, kernel or "", kind, job_seconds=timeout.timeout)
            ]
        show_code(found, to)
        return
    rows, seconds = compiled(request, timeout.timeout, to)
    ok = all(row.ok for row in rows)
    if to.wants_json:
        to.document({"ok": ok, "kernels": [document(row) for row in rows]})
    else:
        show(rows, to)
        to.out.print(verdict(rows))
        cached = sum(row.cached for row in rows)
        to.remark(f"in {seconds_text(seconds)}, {cached} of {len(rows)} from the cache")
    if not ok:
        raise typer.Exit(FAILED)


def compiled(request: Request, timeout: float, to: Output) -> tuple[list[Compiled], float]:
    """The matrix and the seconds that it took."""
    from kernels.aot import compile_matrix
    from pipeline.cli.progress import progress_bar

    start = time.perf_counter()
    with (
        raising_interrupts(),
        progress_bar(to, "compiling", None, "{:.0f} kernels".format) as update,
    ):
        rows = compile_matrix(
            request,
            told=lambda done, total: update(completed=done, total=total),
            job_seconds=timeout,
        )
    return rows, time.perf_counter() - start


def show_code(found: Sequence[tuple[str, str, str]], to: Output) -> None:
    """Code as it is; titles go to standard error, so that the output can be assembled."""
    if to.wants_json:
        to.document({"code": [{"kind": k, "title": t, "text": c} for k, t, c in found]})
        return
    for kind, title, code in found:
        to.remark(f"{kind} of {title}")
        print(code, end="" if code.endswith("\n") else "\n")


def document(row: Compiled) -> dict[str, Any]:
    """A row for `--json`; `error` only where there is one."""
    fields = {**asdict(row), "ok": row.ok}
    return {name: value for name, value in fields.items() if (name, value) != ("error", None)}


def show(rows: Sequence[Compiled], to: Output) -> None:
    """A table for each operator, a row for each variant; problems follow."""
    from rich.table import Table
    from rich.text import Text

    from kernels.aot import ARCHS
    from pipeline.cli.text import harmless

    for op in dict.fromkeys(row.op for row in rows):
        table = Table(box=None, title=op, title_justify="left", title_style="bold", pad_edge=False)
        for title in ("kernel", "variant"):
            table.add_column(title, overflow="fold")
        table.add_column("arch", no_wrap=True)
        for title in ("regs", "spills", "shared KiB", ""):
            table.add_column(title, justify="right", no_wrap=True)
        for row in (row for row in rows if row.op == op):
            limit = ARCHS[row.arch].shared_bytes // 1024
            shared = "-" if row.shared_bytes is None else f"{row.shared_bytes / 1024:.0f} / {limit}"
            table.add_row(
                row.kernel,
                row.variant,
                row.arch,
                "-" if row.registers is None else str(row.registers),
                "-" if row.spills is None else str(row.spills),
                shared,
                "[green]ok[/]" if row.ok else "[bold red]RED[/]",
            )
        to.out.print(table)
        for row in (row for row in rows if row.op == op and not row.ok):
            why = f"-> {row.kernel}, {row.variant}, {row.arch}: {'; '.join(row.problems)}"
            to.out.print(Text(harmless(why), style="red"))
        to.out.print()


def verdict(rows: Sequence[Compiled]) -> str:
    """The report in a line."""
    if not rows:
        return "[yellow]no Triton kernel here[/]"
    red = [row for row in rows if not row.ok]
    if red:
        ops = ", ".join(dict.fromkeys(row.op for row in red))
        return f"[bold red]{len(red)} of {plural(len(rows), 'kernel')} red[/]: {ops}"
    archs = ", ".join(dict.fromkeys(row.arch for row in rows))
    return f"[green]{plural(len(rows), 'kernel')} compile for {archs}, without spills, and fit[/]"
