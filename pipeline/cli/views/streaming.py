"""One completion, written as it comes."""

from __future__ import annotations

from types import TracebackType

from rich.text import Text

from pipeline.cli.output import Output
from pipeline.cli.text import harmless
from pipeline.cli.views.row import Row


class Streaming:
    """The prompt first, then every piece of text; on a terminal the prompt stands out."""

    def __init__(self, to: Output, row: Row) -> None:
        self._to = to
        self._row = row

    def __enter__(self) -> Streaming:
        if self._to.out.is_terminal:
            prompt = Text(harmless(self._row.prompt), style="bold cyan")
            self._to.out.print(prompt, end="", soft_wrap=True)
        else:
            self._write(self._row.prompt)
        return self

    def update(self, row: Row, new_text: str) -> None:
        """Write the new text."""
        self._write(harmless(new_text) if self._to.out.is_terminal else new_text)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, BrokenPipeError):
            self._write("\n")

    def _write(self, text: str) -> None:
        print(text, end="", flush=True)
