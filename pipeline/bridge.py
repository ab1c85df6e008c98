"""The host bridge: hands hidden states from stage to stage through preallocated host memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from pipeline.errors import BridgeError
from pipeline.hidden import PipelineHidden
from pipeline.modes import StageBridge

SLOTS = 2
"""Slots per link: one being read, one being filled. More would only add latency."""

_FIRST_ROWS = 64


class LinkAborted(Exception):
    """Another stage failed; whoever waits on a link is woken with this."""


@dataclass(frozen=True)
class BridgeTiming:
    """What handing over cost, in nanoseconds; waiting for the other side is not part of it."""

    bridge_ns: int = 0
    host_copy_ns: int = 0
    device_copy_ns: int = 0

    def __add__(self, other: BridgeTiming) -> BridgeTiming:
        return BridgeTiming(
            self.bridge_ns + other.bridge_ns,
            self.host_copy_ns + other.host_copy_ns,
            self.device_copy_ns + other.device_copy_ns,
        )


@dataclass(frozen=True)
class _Envelope:
    ticket: int
    slot: int
    rows: int


class HostLink:
    """A ring of two slots from one stage to the next, for one sender and one receiver.

    A slot is filled again only after its receiver is done with it. Hand-overs are numbered, and
    the receiver checks the numbers.

    Args:
        hidden_size: width of a row.
        target: device that the receiving stage computes on.
        pinned: whether slots are page-locked, for copies from and to CUDA.
    """

    def __init__(
        self, hidden_size: int, target: torch.device | str = "cpu", *, pinned: bool = False
    ) -> None:
        self._hidden_size = hidden_size
        self._target = torch.device(target)
        self._pinned = pinned
        self._slots = [self._allocate(_FIRST_ROWS) for _ in range(SLOTS)]
        self.reset()

    def reset(self) -> None:
        """Forget whatever is on its way; only while neither side is at work."""
        self._free: SimpleQueue[int | None] = SimpleQueue()
        self._filled: SimpleQueue[_Envelope | None] = SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        self._sent = self._received = 0

    def abort(self) -> None:
        """Wake both sides with `LinkAborted`; `reset` makes the link usable again."""
        self._free.put(None)
        self._filled.put(None)

    def acquire(self) -> int:
        """Wait for a free slot. Raises `LinkAborted`."""
        slot = self._free.get()
        if slot is None:
            raise LinkAborted
        return slot

    def fill(self, slot: int, hidden: PipelineHidden) -> BridgeTiming:
        """Copy `hidden` [rows, hidden] into an acquired slot."""
        start = time.perf_counter_ns()
        rows = hidden.row_count
        if self._slots[slot].shape[0] < rows:
            self._slots[slot] = self._allocate(rows)
        view = self._slots[slot][:rows]
        copy_start = time.perf_counter_ns()
        self._copy(view, hidden.storage)
        end = time.perf_counter_ns()
        return BridgeTiming(end - start, host_copy_ns=end - copy_start)

    def hand_over(self, slot: int, rows: int) -> None:
        """Tell the receiver that `rows` rows lie in a filled slot."""
        self._sent += 1
        self._filled.put(_Envelope(self._sent, slot, rows))

    def wait(self) -> _Envelope:
        """Wait for the next hand-over. Raises `LinkAborted`."""
        envelope = self._filled.get()
        if envelope is None:
            raise LinkAborted
        return envelope

    @contextmanager
    def receive(self, envelope: _Envelope) -> Iterator[tuple[PipelineHidden, BridgeTiming]]:
        """The hidden state of a hand-over; its slot is free again when the context ends.

        Raises `BridgeError` if a hand-over was lost or came twice.
        """
        start = time.perf_counter_ns()
        self._received += 1
        if envelope.ticket != self._received:
            raise BridgeError(
                f"hand-over {envelope.ticket} came where {self._received} was expected"
            )
        storage = self._slots[envelope.slot][: envelope.rows]
        copied = 0
        if self._target.type != "cpu":
            copy_start = time.perf_counter_ns()
            storage = storage.to(self._target)
            copied = time.perf_counter_ns() - copy_start
        hidden = PipelineHidden(storage)
        yield hidden, BridgeTiming(time.perf_counter_ns() - start, device_copy_ns=copied)
        # After an error the slot stays taken until `reset`, so that nothing overwrites it.
        self._free.put(envelope.slot)

    def _allocate(self, rows: int) -> torch.Tensor:
        return torch.empty(rows, self._hidden_size, dtype=torch.float32, pin_memory=self._pinned)

    def _copy(self, into: torch.Tensor, hidden: torch.Tensor) -> None:
        into.copy_(hidden)


class HostBridge:
    """One `HostLink` for each boundary between stages.

    Args:
        hidden_size: width of a row.
        devices: device of each stage.
    """

    name = StageBridge.HOST

    def __init__(self, hidden_size: int, devices: Sequence[torch.device]) -> None:
        self._hidden_size = hidden_size
        pinned = any(device.type == "cuda" for device in devices)
        self.links = [HostLink(hidden_size, device, pinned=pinned) for device in devices[1:]]

    def into(self, stage: int) -> HostLink | None:
        """The link that `stage` receives from; None for the first."""
        return self.links[stage - 1] if stage > 0 else None

    def out_of(self, stage: int) -> HostLink | None:
        """The link that `stage` sends on; None for the last."""
        return self.links[stage] if stage < len(self.links) else None

    def abort(self) -> None:
        """Wake every stage that waits on a link."""
        for link in self.links:
            link.abort()

    def reset(self) -> None:
        """Forget whatever is on its way; only while no stage is at work."""
        for link in self.links:
            link.reset()

    def probe(self) -> None:
        """Send a known pattern through every slot of every link and compare checksums.

        Some machines deliver zeros or stale bytes without an error, so this runs at start-up.
        Raises `BridgeError` that names the two stages.
        """
        for stage, link in enumerate(self.links):
            for turn in range(SLOTS + 1):  # one more than slots, so that one is used again
                pattern = _pattern(turn, self._hidden_size)
                slot = link.acquire()
                link.fill(slot, PipelineHidden(pattern))
                link.hand_over(slot, len(pattern))
                with link.receive(link.wait()) as (hidden, _):
                    sent, got = checksum(pattern), checksum(hidden.storage.cpu())
                if sent != got:
                    raise BridgeError(
                        f"bridge {self.name.value!r} from stage {stage} to stage {stage + 1} "
                        f"delivered checksum {got:#x}, expected {sent:#x}"
                    )
            link.reset()


def checksum(hidden: torch.Tensor) -> int:
    """A 64-bit sum of the float32 bit patterns, each weighted by its place."""
    bits = hidden.contiguous().view(torch.int32).flatten().to(torch.int64)
    return int((bits * torch.arange(1, bits.numel() + 1)).sum())


def _pattern(turn: int, hidden_size: int) -> torch.Tensor:
    values = torch.arange(3 * hidden_size, dtype=torch.float32).reshape(3, hidden_size)
    return values.mul(0.37).add(turn).sin()
