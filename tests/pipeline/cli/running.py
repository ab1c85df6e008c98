"""Two ways to run the command in tests: in this process, and as users do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from pipeline.cli.app import app

ROOT = Path(__file__).parents[3]


def invoke(*arguments: str, given: str | bytes | None = None) -> Result:
    """Run in this process, with `given` piped in; the output is 80 columns wide."""
    return CliRunner().invoke(app, list(arguments), input=given, env={"COLUMNS": "80"})


def environment() -> dict[str, str]:
    """One thread, 80 columns, no colours asked for."""
    kept = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}


def spawn(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a process of its own; pipes for all three streams unless told otherwise."""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        text=True,
        cwd=ROOT,
        env=environment(),
        **(pipes | options),
    )


def finish(process: subprocess.Popen[str], given: str | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    out, err = process.communicate(given, timeout=60)
    return process.returncode, out, err


def document(result: Result) -> dict[str, Any]:
    """The one JSON document on standard output of a run that went well."""
    assert result.exit_code == 0, result.stderr
    loaded: dict[str, Any] = json.loads(result.stdout)
    return loaded


def only_line(text: str) -> str:
    """The only line there is."""
    assert text.count("\n") == 1, text
    assert text.endswith("\n")
    return text[:-1]
