"""Progress bars on standard error; where that is no terminal, a line at the end at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.cli.output import Output
from pipeline.cli.sizes import nbytes_text, seconds_text


class _Amount(ProgressColumn):
    """How much of how much, in the words of `unit`."""

    def __init__(self, unit: Callable[[float], str]) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{self._unit(task.completed)} of {self._unit(task.total or 0)}")


@contextmanager
def progress_bar(
    to: Output, what: str, total: int, unit: Callable[[float], str]
) -> Iterator[Callable[[int], None]]:
    """A bar that the yielded function advances, from any thread; it is gone at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Amount(unit), TimeElapsedColumn())
    with Progress(*columns, console=to.err, transient=True, disable=not to.live) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def loading(to: Output, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar over `total` bytes of weights; yields what `LlamaPipeline` reports tensors to."""
    start = time.perf_counter()
    with progress_bar(to, "loading", total, nbytes_text) as advance:
        yield lambda name, nbytes: advance(nbytes)
    to.remark(f"loaded {nbytes_text(total)} in {seconds_text(time.perf_counter() - start)}")
