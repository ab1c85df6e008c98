"""`lamella doctor`: is everything here that Lamella needs, and what to do if not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from pipeline.cli.errors import FAILED
from pipeline.cli.grouping import command
from pipeline.cli.options import OutputOptions

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.cli.health.finding import Finding

MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}


@command
def doctor(output: OutputOptions) -> None:
    """Look at this machine: libraries, CPU, GPUs, compilers, the bundled model.

    Every finding says how to mend what is wrong. Exit code 1 if something that is needed fails.
    """
    from pipeline.cli.output import Output

    to = Output(output)
    findings = list(examine())
    ok = all(finding.status != "fail" for finding in findings)
    if to.wants_json:
        to.document({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        to.out.print(as_table(findings))
        to.out.print(verdict(findings))
    if not ok:
        raise typer.Exit(FAILED)


def examine() -> Iterator[Finding]:
    """All findings; what needs torch is left out where torch does not load."""
    from pipeline.cli.folders import BUNDLED
    from pipeline.cli.health.finding import Finding
    from pipeline.cli.health.packages import import_names, packages

    yield from packages()
    yield from import_names()
    try:
        from pipeline.cli.health.accelerator import accelerator
        from pipeline.cli.health.bundled import checkpoint
        from pipeline.cli.health.processor import processor
    except (ImportError, OSError) as error:
        yield Finding("software", "imports", "fail", str(error), "install the missing library")
        return
    yield from processor()
    yield from accelerator()
    yield from checkpoint(BUNDLED)


def as_table(findings: Iterable[Finding]) -> Table:
    """One row per finding, under the name of its subject; a fix follows on a row of its own."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    subject = ""
    for finding in findings:
        if finding.subject != subject:
            if subject:
                table.add_row()
            subject = finding.subject
            table.add_row("", Text(subject, style="bold"))
        table.add_row(MARKS[finding.status], finding.name, Text(finding.found))
        if finding.fix:
            table.add_row("", "", Text(f"-> {finding.fix}", style="yellow"))
    return table


def verdict(findings: Iterable[Finding]) -> str:
    """The report in one line."""
    statuses = [finding.status for finding in findings]
    failed, warned = statuses.count("fail"), statuses.count("warn")
    if failed:
        return f"\n[bold red]{failed} failed[/], {warned} warnings, of {len(statuses)} checks"
    if warned:
        return f"\n[green]all that is needed is here[/], {warned} warnings"
    return "\n[green]all is well[/]"
