"""Where a command writes: results to standard output, remarks and progress to standard error."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from pipeline.cli.options import OutputOptions, ProgressOptions


class Output:
    """The two streams of a command.

    Attributes:
        out: console on standard output, for results.
        err: console on standard error, for progress and remarks; mute under `--quiet`.
    """

    def __init__(self, options: OutputOptions, progress: ProgressOptions | None = None) -> None:
        self.wants_json = options.json
        self.quiet = progress is not None and progress.quiet
        self.out = Console(highlight=False)
        self.err = Console(highlight=False, stderr=True, quiet=self.quiet)

    @property
    def live(self) -> bool:
        """Whether standard error is a terminal that may be redrawn."""
        return self.err.is_terminal and not self.quiet

    def remark(self, text: str) -> None:
        """Tell about the run, on standard error."""
        self.err.print(Text(text), soft_wrap=True)

    def remark_on(self, renderable: RenderableType) -> None:
        """Show a table about the run, on standard error."""
        self.err.print(renderable)

    def document(self, document: dict[str, Any]) -> None:
        """Write the one JSON document of `--json`; numbers that JSON lacks become null."""
        print(json.dumps(_finite(document), indent=2, allow_nan=False), file=sys.stdout, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
