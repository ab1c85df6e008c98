"""Streams and events without a GPU: work that is queued runs later, in any order that they allow.

Nothing runs until somebody waits for an event, and then what runs is drawn by chance among the
streams whose next piece of work is not held up.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.bridges.cuda import CudaStreams


@dataclass
class _Work:
    run: Callable[[], Any]
    may_run: Callable[[], bool] = lambda: True


class FakeStream:
    """A queue of work on a device."""

    def __init__(self, cuda: FakeCuda, device: torch.device) -> None:
        self.device = device
        self.queue: deque[_Work] = deque()
        self._cuda = cuda

    def add(self, run: Callable[[], Any]) -> None:
        """Queue a piece of work."""
        self.queue.append(_Work(run))
        self._cuda.queued()

    def wait_event(self, event: FakeEvent) -> None:
        """Hold up what follows until the event's latest record is reached."""
        number = event.recorded
        self.queue.append(_Work(lambda: None, lambda: event.reached >= number))
        self._cuda.queued()


class FakeEvent:
    """Reached once the stream that it was recorded on comes that far."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.recorded = self.reached = 0
        self._device: torch.device | None = None
        self._cuda = cuda

    def record(self, stream: FakeStream) -> None:
        """Mark the stream's end as it is now."""
        assert self._device in (None, stream.device), "an event belongs to one device"
        self._device = stream.device
        self.recorded += 1
        number = self.recorded
        stream.add(lambda: setattr(self, "reached", number))

    def synchronize(self) -> None:
        """Run what it takes."""
        self._cuda.run_until(lambda: self.reached >= self.recorded)

    def elapsed_time(self, end: FakeEvent) -> float:
        """A millisecond for every copy."""
        for event in (self, end):
            assert event.recorded > 0
            assert event.reached == event.recorded, "a time was read too early"
        return 1.0


class FakeCuda(CudaStreams):
    """Devices that are all the host's memory.

    Args:
        seed: of the order in which work runs.
        eager: run everything when it is queued.
    """

    def __init__(self, seed: int = 0, *, eager: bool = False) -> None:
        self._random = random.Random(seed)
        self._eager = eager
        self._streams: list[FakeStream] = []
        self._current: FakeStream | None = None

    # What tests do

    @contextmanager
    def computing_on(self, stream: FakeStream | None) -> Iterator[None]:
        """Whose turn it is; None for a stage on the CPU."""
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def run_some(self, pieces: int) -> None:
        """Run up to so many pieces of work."""
        for _ in range(pieces):
            if not self._run_one():
                return

    def run_all(self) -> None:
        """Run everything that is queued."""
        self.run_until(lambda: not any(stream.queue for stream in self._streams))

    def run_until(self, reached: Callable[[], bool]) -> None:
        """Run pieces of work, by chance, until that is so."""
        while not reached():
            assert self._run_one(), "everybody waits for somebody else"

    def queued(self) -> None:
        """A stream has more to do."""
        while self._eager and self._run_one():
            pass

    def _run_one(self) -> bool:
        ready = [stream for stream in self._streams if stream.queue and stream.queue[0].may_run()]
        if not ready:
            return False
        self._random.choice(ready).queue.popleft().run()
        return True

    # What links do

    def are_peers(self, source: torch.device, target: torch.device) -> bool:
        return True

    def stream(self, device: torch.device) -> Any:
        stream = FakeStream(self, device)
        self._streams.append(stream)
        return stream

    def compute_stream(self, device: torch.device) -> Any:
        if self._current is None:
            self._current = self.stream(device)
        return self._current

    def event(self) -> Any:
        return FakeEvent(self)

    def pinned(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows, width), torch.nan, dtype=dtype)

    def buffer(self, rows: int, width: int, dtype: torch.dtype, stream: Any) -> torch.Tensor:
        return torch.full((rows, width), torch.nan, dtype=dtype)

    def copy(self, into: torch.Tensor, rows: torch.Tensor, stream: Any, other: Any = None) -> None:
        stream.add(lambda: into.copy_(rows))

    def widened(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype == torch.float32 or self._current is None:
            return rows.float()
        wide = torch.full(rows.shape, torch.nan)
        self._current.add(lambda: wide.copy_(rows))
        return wide

    def keep(self, tensor: torch.Tensor, stream: Any) -> None:
        pass
