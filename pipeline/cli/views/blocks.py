"""Plain blocks of text in the order of the prompts, for files and pipes."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cli.views.row import Row


class Blocks:
    """Writes each completion once it and all before it have ended."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._waiting = list(rows)
        self._count = len(rows)

    def update(self, row: Row, new_text: str) -> None:
        """Write what can be written now."""
        while self._waiting and self._waiting[0].done:
            self._write(self._waiting.pop(0))

    def _write(self, row: Row) -> None:
        print(f"--- {row.number}/{self._count} ({row.summary})")
        print(f"{row.prompt}{row.text}\n", flush=True)
