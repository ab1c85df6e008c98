"""Links from or to CUDA devices: copies on streams of their own, ordered by events."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from pipeline.bridges.cuda import CudaStreams
from pipeline.bridges.host import FIRST_ROWS
from pipeline.bridges.link import NO_TIME, SLOTS, BridgeTiming


@dataclass(frozen=True)
class _Copied:
    """The events around a copy, and whether it went to host memory."""

    start: torch.cuda.Event
    end: torch.cuda.Event
    to_host: bool

    def timing(self) -> BridgeTiming:
        """What the copy took, once its end is reached."""
        took = round(self.start.elapsed_time(self.end) * 1e6)
        if self.to_host:
            return BridgeTiming(took, host_copy_ns=took)
        return BridgeTiming(took, device_copy_ns=took)


@dataclass
class _Slot:
    """One slot's memory, and its events, which are used again as the slot is.

    Args:
        host: pinned [room, hidden]; None where nothing goes through host memory.
        device: [room, hidden] on the receiving device; None where that is the CPU.
        computed: the sender's hidden state is there.
        leaving: the copy of it.
        arriving: the copy from host memory to the receiving device.
        read: the receiver's last read.
        copies: those that were queued since the slot was settled.
        was_read: whether `read` is of a use since then.
    """

    host: torch.Tensor | None
    device: torch.Tensor | None
    computed: torch.cuda.Event
    leaving: _Copied
    arriving: _Copied
    read: torch.cuda.Event
    copies: list[_Copied] = field(default_factory=list)
    was_read: bool = False


class StreamCopier:
    """Copies of a link whose ends are not both CPUs.

    A CUDA sender's copy runs on a stream of the link's own, after what the calling thread has
    queued on the device so far. Rows go to pinned host memory and, for a CUDA receiver, on to its
    device; with `peer` they go there directly. A CUDA receiver's compute stream waits for the
    rows, its thread does not; a CPU's thread does. All copies are timed by events, which are read
    when the slot is used again.

    Args:
        hidden_size: width of a row.
        dtype: of the rows in the slots.
        source: device of the sending stage.
        target: device of the receiving stage.
        peer: copy from device to device, for which both must be CUDA.
        ahead: the sender queues the copy to the receiving device, so that it runs before the
            receiver asks for it; without it the receiver does when it does.
    """

    def __init__(
        self,
        hidden_size: int,
        dtype: torch.dtype,
        source: torch.device,
        target: torch.device,
        *,
        peer: bool = False,
        ahead: bool = False,
        cuda: CudaStreams | None = None,
    ) -> None:
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._source = source
        self._target = target
        self._peer = peer
        self._ahead = ahead
        self._cuda = cuda or CudaStreams()
        self._leaving = self._cuda.stream(source) if source.type == "cuda" else None
        self._arriving = self._cuda.stream(target) if target.type == "cuda" else None
        self._slots = [self._new_slot() for _ in range(SLOTS)]

    # The sender's side

    def settle(self, slot: int) -> BridgeTiming:
        """Wait until all copies and reads of a slot are done; what the copies took."""
        used = self._slots[slot]
        if used.was_read:
            used.read.synchronize()
            used.was_read = False
        timing = NO_TIME
        for copied in used.copies:
            copied.end.synchronize()  # there may have been no read
            timing += copied.timing()
        used.copies.clear()
        return timing

    def write(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Have float32 [rows, hidden] copied into a slot, the sender's part of the way."""
        start = time.perf_counter_ns()
        used, rows = self._slots[slot], hidden.shape[0]
        self._grow(used, rows)
        into = used.device if self._peer else used.host
        assert into is not None
        copied = 0
        if self._leaving is None:
            copy_start = time.perf_counter_ns()
            into[:rows].copy_(hidden)
            copied = time.perf_counter_ns() - copy_start
        else:
            used.computed.record(self._cuda.compute_stream(self._source))
            self._leaving.wait_event(used.computed)
            self._copy(used, used.leaving, into[:rows], hidden, self._leaving)
            self._cuda.keep(hidden, self._leaving)
        if self._peer:
            # So that the buffer's own stream is behind whatever is done to it.
            self._arriving_stream.wait_event(used.leaving.end)
        elif self._ahead:
            self._bring_in(used, rows)
        return BridgeTiming(time.perf_counter_ns() - start, host_copy_ns=copied)

    # The receiver's side

    def read(self, slot: int, rows: int) -> tuple[torch.Tensor, BridgeTiming]:
        """A slot's rows on the receiving device, float32 [rows, hidden]."""
        used = self._slots[slot]
        if self._arriving is None:
            used.leaving.end.synchronize()  # not timed: it may be the sender's computing
            assert used.host is not None
            start = time.perf_counter_ns()
            hidden = self._cuda.widened(used.host[:rows])
            return hidden, BridgeTiming(time.perf_counter_ns() - start)
        start = time.perf_counter_ns()
        if not self._peer and not self._ahead:
            self._bring_in(used, rows)
        assert used.device is not None
        compute = self._cuda.compute_stream(self._target)
        compute.wait_event((used.leaving if self._peer else used.arriving).end)
        self._cuda.keep(used.device, compute)
        hidden = self._cuda.widened(used.device[:rows])
        return hidden, BridgeTiming(time.perf_counter_ns() - start)

    def release(self, slot: int) -> None:
        """What the calling thread has queued by now is the last that reads the slot."""
        if self._arriving is not None:
            self._slots[slot].read.record(self._cuda.compute_stream(self._target))
            self._slots[slot].was_read = True

    # Both

    def _bring_in(self, used: _Slot, rows: int) -> None:
        """Queue the copy from host memory to the receiving device."""
        assert used.device is not None
        assert used.host is not None
        if self._leaving is not None:
            self._arriving_stream.wait_event(used.leaving.end)
        self._copy(used, used.arriving, used.device[:rows], used.host[:rows], self._arriving_stream)

    def _copy(
        self,
        used: _Slot,
        copied: _Copied,
        into: torch.Tensor,
        rows: torch.Tensor,
        stream: torch.cuda.Stream,
    ) -> None:
        copied.start.record(stream)
        self._cuda.copy(into, rows, stream, self._arriving)
        copied.end.record(stream)
        used.copies.append(copied)

    @property
    def _arriving_stream(self) -> torch.cuda.Stream:
        assert self._arriving is not None
        return self._arriving

    def _new_slot(self) -> _Slot:
        event = self._cuda.event
        slot = _Slot(
            host=None,
            device=None,
            computed=event(),
            leaving=_Copied(event(), event(), to_host=not self._peer),
            arriving=_Copied(event(), event(), to_host=False),
            read=event(),
        )
        self._grow(slot, FIRST_ROWS)
        return slot

    def _grow(self, slot: _Slot, rows: int) -> None:
        """Make room for `rows` rows in a slot that is settled, so that nothing uses the old."""
        held = slot.host if self._arriving is None else slot.device
        if held is not None and held.shape[0] >= rows:
            return
        shape = (rows, self._hidden_size, self._dtype)
        # A slot that grows inside inference mode must not become an inference tensor: those can
        # only be written to there.
        with torch.inference_mode(False):
            host = None if self._peer else self._cuda.pinned(*shape)
            device = None
            if self._arriving is not None:
                device = self._cuda.buffer(*shape, self._arriving)
        slot.host, slot.device = host, device
