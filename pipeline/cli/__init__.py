"""The command `lamella`: one small module per command, heavy imports only inside the commands."""

from __future__ import annotations

import io
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command on `sys.argv` and leave with its exit code."""
    from pipeline.cli.app import app
    from pipeline.cli.interrupts import exit_on_interrupt

    exit_on_interrupt()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no text is worth failing for
    app(prog_name="lamella")
