"""Several completions on a terminal: a panel for each that has ended, a line for each under way."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from pipeline.cli.output import Output
from pipeline.cli.text import harmless, last_line
from pipeline.cli.views.row import Row


class Panels:
    """Redraws the lines below the panels some times a second."""

    def __init__(self, to: Output, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._out = to.out
        self._live = Live(
            console=to.out, get_renderable=self._lines, transient=True, refresh_per_second=8
        )

    def __enter__(self) -> Panels:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def update(self, row: Row, new_text: str) -> None:
        """Show the completion's panel if it has ended; lines draw themselves."""
        if row.done:
            self._out.print(self._panel(row))

    def _panel(self, row: Row) -> Panel:
        text = Text(harmless(row.prompt), style="bold cyan")
        text.append(harmless(row.text).rstrip(), style="not bold default")
        title = f"{row.number}/{len(self._rows)}"
        return Panel(
            text,
            title=title,
            title_align="left",
            subtitle=row.summary,
            subtitle_align="right",
            border_style="dim",
        )

    def _lines(self) -> Group:
        running = [row for row in self._rows if row.tokens and not row.done]
        waiting = sum(not row.tokens for row in self._rows)
        room = max(1, self._out.height - 3)
        lines = [self._line(row) for row in running[:room]]
        more = [f"{len(running) - room} more under way"] if len(running) > room else []
        more += [f"{waiting} waiting"] if waiting else []
        return Group(*lines, *[Text(", ".join(more), style="dim")] if more else [])

    def _line(self, row: Row) -> Text:
        head = f"{row.number:>4} {row.tokens:>5} tokens  "
        line = Text(head, style="dim", no_wrap=True)
        width = max(1, self._out.width - len(head) - 1)
        return line.append(last_line(row.prompt + row.text, width), style="not dim")
