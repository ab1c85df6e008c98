"""The view that suits the output: who reads it, and how many prompts there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pipeline.cli.output import Output
from pipeline.cli.progress import progress_bar
from pipeline.cli.text import harmless
from pipeline.cli.views.blocks import Blocks
from pipeline.cli.views.counted import Counted
from pipeline.cli.views.panels import Panels
from pipeline.cli.views.row import Row, View
from pipeline.cli.views.streaming import Streaming


@contextmanager
def view_for(
    to: Output, rows: Sequence[Row], max_new_tokens: int, *, silent: bool = False
) -> Iterator[View]:
    """A view of `rows`, open until the end of the context.

    One prompt streams. Several are panels on a terminal, else blocks of text in their order. Under
    `--json`, or if it is to be silent, nothing is shown but progress.
    """
    silent = silent or to.wants_json
    if silent or (len(rows) > 1 and not to.out.is_terminal):
        below = None if silent else Blocks(rows)
        with progress_bar(
            to, "generating", len(rows) * max_new_tokens, lambda count: f"{count:.0f} tokens"
        ) as update:
            yield Counted(below, max_new_tokens, lambda amount: update(advance=amount))
    elif len(rows) > 1:
        with Panels(to, rows) as panels:
            yield panels
    else:
        with Streaming(to, rows[0]) as streaming:
            yield streaming


def write_all(to: Output, rows: Sequence[Row]) -> None:
    """Completions that have ended, all at once: one as it would stream, several as blocks."""
    if len(rows) == 1:
        with Streaming(to, rows[0]) as streaming:
            streaming.update(rows[0], rows[0].text)
        return
    if to.out.is_terminal:
        rows = [replace(row, prompt=harmless(row.prompt), text=harmless(row.text)) for row in rows]
    Blocks(rows).update(rows[0], "")
