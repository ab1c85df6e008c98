"""The view that suits the output: who reads it, and how many prompts there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.cli.output import Output
from pipeline.cli.progress import progress_bar
from pipeline.cli.views.blocks import Blocks
from pipeline.cli.views.counted import Counted
from pipeline.cli.views.panels import Panels
from pipeline.cli.views.row import Row, View
from pipeline.cli.views.streaming import Streaming


@contextmanager
def view_for(to: Output, rows: Sequence[Row], max_new_tokens: int) -> Iterator[View]:
    """A view of `rows`, open until the end of the context.

    One prompt streams. Several are panels on a terminal, else blocks of text in their order. Under
    `--json` nothing is shown but progress.
    """
    if to.wants_json or (len(rows) > 1 and not to.out.is_terminal):
        below = None if to.wants_json else Blocks(rows)
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
