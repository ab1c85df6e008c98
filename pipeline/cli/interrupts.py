"""Ctrl-C ends a command in one line: at once while nothing runs, in good order while stages do.

Libraries that are being imported may swallow a `KeyboardInterrupt` and go on half-loaded, so until
a pipeline is open the process ends itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.cli.errors import INTERRUPTED


def exit_on_interrupt() -> None:
    """From now on Ctrl-C ends the process; unless the process was told to ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Within, Ctrl-C is a `KeyboardInterrupt`, so that what is open gets closed."""
    if signal.getsignal(signal.SIGINT) is not _exit:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
