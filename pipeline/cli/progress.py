"""Progress bars on standard error; where that is no terminal, a line at the end at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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
    to: Output, what: str, total: int | None, unit: Callable[[float], str]
) -> Iterator[Callable[..., None]]:
    """A bar that is gone at the end. The function it yields, which any thread may call, takes what
    `Progress.update` does: `advance=`, or `completed=` and `total=` where that comes late."""
    columns = (TextColumn("{task.description}"), BarColumn(), _Amount(unit), TimeElapsedColumn())
    with Progress(*columns, console=to.err, transient=True, disable=not to.live) as bar:
        task = bar.add_task(what, total=total)
        yield partial(bar.update, task)


@contextmanager
def loading(to: Output, total: int) -> Iterator[Callable[[str, int], None]]:
    """A bar over `total` bytes of weights; yields what `LlamaPipeline` reports tensors to."""
    start = time.perf_counter()
    with progress_bar(to, "loading", total, nbytes_text) as update:
        yield lambda name, nbytes: update(advance=nbytes)
    to.remark(f"loaded {nbytes_text(total)} in {seconds_text(time.perf_counter() - start)}")
