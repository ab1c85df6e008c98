"""A persistent thread that does one stage's work in order, with its own intra-op thread count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from kernels.errors import LamellaError

T = TypeVar("T")

JOIN_SECONDS = 30.0
"""How long `close` waits for work that is under way."""


class Ticket(Generic[T]):
    """The outcome of one piece of work; waiting for it twice is fine."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._done = threading.Event()
        self._value: T
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do the work; called once, by the worker. Whatever it raises waits for the waiter."""
        work, self._work = self._work, None
        assert work is not None, "a ticket runs once"
        try:
            self._value = work()
        except BaseException as error:  # travels to the waiter, which raises it
            self._error = error
        finally:
            self._done.set()

    @property
    def error(self) -> BaseException | None:
        """What the work raised; None while it is not over."""
        return self._error

    def wait(self) -> None:
        """Block until the work is over, whatever its outcome."""
        self._done.wait()

    def result(self) -> T:
        """Block until the work is over; its value, or the exception it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class StageWorker:
    """One thread and a first-in-first-out queue; torch runs in it under `inference_mode`.

    Args:
        name: of the thread.
        threads: intra-op threads of what it runs.
    """

    def __init__(self, name: str, threads: int = 1) -> None:
        self.name = name
        self._queue: SimpleQueue[Ticket[object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # Only the queue goes to the thread: a worker that nobody holds can be freed.
        self._thread = threading.Thread(
            target=_serve, args=(self._queue, threads), name=name, daemon=True
        )
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> Ticket[T]:
        """Queue `work`. Raises `LamellaError` once the worker is closed."""
        ticket = Ticket(work)
        with self._lock:
            if self._closed:
                raise LamellaError(f"worker {self.name!r} is closed")
            self._queue.put(ticket)  # type: ignore[arg-type]
        return ticket

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self, timeout: float = JOIN_SECONDS) -> bool:
        """Finish what is queued, end the thread and wait for it; again is fine.

        Returns whether the thread ended within `timeout` seconds.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()


def _serve(queue: SimpleQueue[Ticket[object] | None], threads: int) -> None:
    # PyTorch sets a thread's count to the last one set anywhere when that thread first asks for it,
    # on its own before the first parallel operation. Asking now makes what is set here stay.
    torch.get_num_threads()
    torch.set_num_threads(threads)
    with torch.inference_mode():
        while (ticket := queue.get()) is not None:
            ticket.run()
            del ticket  # its value must not live until the next work comes
