"""When a device did what it was asked to: moments that are told on the host's clock."""

from __future__ import annotations

import time
from typing import Protocol

import torch

Mark = int | torch.cuda.Event


class Clock(Protocol):
    """Marks moments of the work that a stage gives to its device."""

    deferred: bool
    """Whether a mark's time is known only when the device has come to it."""

    def mark(self) -> Mark:
        """Now, in the order of the work that this thread has queued."""

    def ns(self, mark: Mark) -> int:
        """A mark on the `time.perf_counter_ns` clock; waits for the device to come to it."""


class HostClock:
    """The CPU does what it is asked to at once."""

    deferred = False

    def mark(self) -> int:
        """Nanoseconds now."""
        return time.perf_counter_ns()

    def ns(self, mark: Mark) -> int:
        """The same."""
        assert isinstance(mark, int)
        return mark


class CudaClock:
    """Events on the current stream of a GPU, against one whose time on the host is known.

    Args:
        device: of the stage; what it has queued is waited for, once.
    """

    deferred = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._anchor = self.mark()
        self._anchor.synchronize()
        self._anchor_ns = time.perf_counter_ns()

    def mark(self) -> torch.cuda.Event:
        """An event, recorded behind what is queued by now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def ns(self, mark: Mark) -> int:
        """Nanoseconds, to half a microsecond at best, as CUDA's events are."""
        assert not isinstance(mark, int)
        mark.synchronize()
        return self._anchor_ns + round(self._anchor.elapsed_time(mark) * 1e6)


def clock_of(device: torch.device) -> Clock:
    """The clock of a stage's device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
