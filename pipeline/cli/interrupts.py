"""Ctrl-C ends a command in one line: at once while nothing runs, in good order while stages do.
So does, where something must be cleared away, being told to end.

Libraries that are being imported may swallow a `KeyboardInterrupt` and go on half-loaded, so until
a pipeline is open the process ends itself.
"""

from __future__ import annotations

import os
import signal
import threading
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


@contextmanager
def raising_terminations() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `SystemExit`, so that what is open gets closed."""
    former = {}
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
        # Whoever ignores one (nohup) goes on ignoring it; only a main thread may ask for another.
        main = threading.current_thread() is threading.main_thread()
        if number is not None and main and signal.getsignal(number) is signal.SIG_DFL:
            former[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: nothing disturbs the clearing away
    raise SystemExit(128 + number)


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
