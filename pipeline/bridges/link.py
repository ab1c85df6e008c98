"""What a link between two stages does, whatever it copies with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from pipeline.modes import StageBridge

SLOTS = 2
"""Slots per link: one being read, one being filled. More would only add latency."""


@dataclass(frozen=True)
class BridgeTiming:
    """What handing over cost, in nanoseconds; waiting for the other side is not part of it.

    Args:
        bridge_ns: all of it: the calls' own time, and that of copies which streams did later.
        host_copy_ns: copies into host memory, part of `bridge_ns`.
        device_copy_ns: copies into a device's memory, part of `bridge_ns`.
    """

    bridge_ns: int = 0
    host_copy_ns: int = 0
    device_copy_ns: int = 0

    def __add__(self, other: BridgeTiming) -> BridgeTiming:
        return BridgeTiming(
            self.bridge_ns + other.bridge_ns,
            self.host_copy_ns + other.host_copy_ns,
            self.device_copy_ns + other.device_copy_ns,
        )


NO_TIME = BridgeTiming()
"""Where nothing is known of a cost, or there was none."""


class Envelope(NamedTuple):
    """What comes out of a link: a hand-over of `rows` rows in `slot`, or a note and no slot."""

    ticket: int
    slot: int | None
    rows: int = 0
    note: object = None


class LinkOut(Protocol):
    """The sender's side of a `Link`."""

    def nbytes(self, rows: int) -> int:
        """Bytes that cross the link for `rows` rows."""
        ...

    def acquire(self) -> int:
        """Wait for a free slot."""
        ...

    def fill(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Copy `hidden`, float32 [rows, hidden], into an acquired slot.

        The copy may still be under way on return, so `hidden` must not be written to again.
        """
        ...

    def hand_over(self, slot: int, rows: int) -> None:
        """Tell the receiver that `rows` rows lie in a filled slot."""
        ...

    def give_back(self, slot: int) -> None:
        """Free an acquired slot that will not be handed over."""
        ...

    def pass_note(self, note: object) -> None:
        """Pass something else in a hidden state's place."""
        ...


class LinkIn(Protocol):
    """The receiver's side of a `Link`."""

    def wait(self) -> Envelope:
        """Wait for the next hand-over or note.

        Raises `BridgeError` for a note whose ticket is out of turn.
        """
        ...

    def receive(
        self, envelope: Envelope
    ) -> AbstractContextManager[tuple[torch.Tensor, BridgeTiming]]:
        """A hand-over's rows, float32 [rows, hidden] on the receiving stage's device.

        They are valid until the context's end, which frees the slot, also when the body raised.
        Raises `BridgeError` for a ticket that is out of turn; the slot is free all the same.
        """
        ...


class Link(LinkOut, LinkIn, Protocol):
    """A FIFO from one stage to the next, for one sender thread and one receiver thread.

    The sender acquires a slot, fills it and hands it over, or gives it back if filling failed. A
    note goes in a hidden state's place and takes no slot. Tickets count both. Every job sends
    exactly one of them over every link, whatever fails, so that nobody waits for ever.
    """

    @property
    def kind(self) -> StageBridge:
        """What the link copies with."""
        ...
