"""When a device did what it was asked to: moments that are told on the host's clock."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import torch

ANCHOR_NS = 5_000_000_000
"""How long an anchor is used. Events tell milliseconds in float32, and the two clocks drift."""


class Anchor(NamedTuple):
    """An event whose time on the host is known."""

    event: torch.cuda.Event
    ns: int


class EventMark(NamedTuple):
    """An event, and the anchor before it from which its time is told."""

    event: torch.cuda.Event
    anchor: Anchor


Mark = int | EventMark


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

    That one is taken anew every few seconds, on a stream of its own, so no work is waited for.

    Args:
        device: of the stage.
    """

    deferred = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._anchor = self._new_anchor()
        self._latest_ns = 0

    def _new_anchor(self) -> Anchor:
        event = torch.cuda.Event(enable_timing=True)
        before = time.perf_counter_ns()
        event.record(self._stream)
        event.synchronize()
        return Anchor(event, (before + time.perf_counter_ns()) // 2)

    def mark(self) -> EventMark:
        """An event, recorded behind what is queued by now."""
        if time.perf_counter_ns() - self._anchor.ns > ANCHOR_NS:
            self._anchor = self._new_anchor()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return EventMark(event, self._anchor)

    def ns(self, mark: Mark) -> int:
        """Nanoseconds, to a microsecond or so; never before a mark that was asked for earlier.

        Events themselves tell half a microsecond; what the clocks drift apart between two anchors
        comes on top, and would else turn the order of marks with different anchors.
        """
        assert not isinstance(mark, int)
        mark.event.synchronize()
        at = mark.anchor.ns + round(mark.anchor.event.elapsed_time(mark.event) * 1e6)
        self._latest_ns = max(self._latest_ns, at)
        return self._latest_ns


def clock_of(device: torch.device) -> Clock:
    """The clock of a stage's device."""
    return CudaClock(device) if device.type == "cuda" else HostClock()
