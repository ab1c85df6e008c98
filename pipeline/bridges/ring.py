"""The ring that every link is: which slot may be used by whom, in what order, and when again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Protocol

import torch

from kernels.errors import InvalidInputError
from pipeline.bridges.link import NO_TIME, SLOTS, BridgeTiming, Envelope
from pipeline.errors import BridgeError
from pipeline.modes import StageBridge

_FREE, _ACQUIRED = -1, 0  # a slot's state; above 0 it is the ticket of its hand-over


class Copier(Protocol):
    """A link's memory, and the copies into and out of it.

    Copies may be asynchronous: only `settle` waits for them. A slot's calls come in the order
    `settle`, `write`, `read`, `release`, of which the last ones may be missing; the first two come
    from the sender's thread, the others from the receiver's.
    """

    def settle(self, slot: int) -> BridgeTiming:
        """Wait until everything that was queued on a slot is done; what its copies took."""
        ...

    def write(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Copy float32 [rows, hidden] into a slot; what is known of the cost by now."""
        ...

    def read(self, slot: int, rows: int) -> tuple[torch.Tensor, BridgeTiming]:
        """A slot's rows, float32 [rows, hidden]; work queued on them later sees them whole."""
        ...

    def release(self, slot: int) -> None:
        """What the receiver has queued by now is the last that reads the slot."""
        ...


class RingLink:
    """A `Link` over `SLOTS` slots of a copier.

    A slot is filled again only after its receiver gave it up *and* its copies and reads are done.
    Times of asynchronous copies are known then, so `fill` returns those of an earlier hand-over
    together with its own call's.

    Args:
        kind: what it copies with.
        copier: memory of `SLOTS` slots.
        hidden_size: width of a row.
        dtype: of the rows that cross.
    """

    def __init__(
        self, kind: StageBridge, copier: Copier, hidden_size: int, dtype: torch.dtype
    ) -> None:
        self.kind = kind
        self._copier = copier
        self._row_shape = (hidden_size,)
        self._row_bytes = hidden_size * dtype.itemsize
        self._states = [_FREE] * SLOTS
        self._free: SimpleQueue[int] = SimpleQueue()
        self._passed: SimpleQueue[Envelope] = SimpleQueue()
        for slot in range(SLOTS):
            self._free.put(slot)
        self._sent = self._received = 0
        self._settled = NO_TIME

    def nbytes(self, rows: int) -> int:
        """Bytes that cross the link for `rows` rows."""
        return rows * self._row_bytes

    # The sender's side

    def acquire(self) -> int:
        """Wait until a slot is free, and its last copies and reads are done."""
        slot = self._free.get()
        try:
            known = self._copier.settle(slot)
        except BaseException:
            self._free.put(slot)
            raise
        if known is not NO_TIME:
            self._settled += known
        self._states[slot] = _ACQUIRED
        return slot

    def fill(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Copy `hidden`, float32 [rows, hidden], into an acquired slot; see `Link.fill`."""
        self._check_acquired(slot, "filled")
        if hidden.shape[1:] != self._row_shape or hidden.dtype != torch.float32:
            raise InvalidInputError(
                f"hidden state is {hidden.dtype} {list(hidden.shape)}; expected torch.float32 "
                f"[rows, {self._row_shape[0]}]"
            )
        timing = self._copier.write(slot, hidden)
        if self._settled is not NO_TIME:
            timing += self._settled
            self._settled = NO_TIME
        return timing

    def hand_over(self, slot: int, rows: int) -> None:
        """Tell the receiver that `rows` rows lie in a filled slot."""
        self._check_acquired(slot, "handed over")
        self._sent += 1
        self._states[slot] = self._sent
        self._passed.put(Envelope(self._sent, slot, rows))

    def give_back(self, slot: int) -> None:
        """Free an acquired slot that will not be handed over."""
        self._check_acquired(slot, "given back")
        self._free_slot(slot)

    def pass_note(self, note: object) -> None:
        """Pass something else in a hidden state's place."""
        self._sent += 1
        self._passed.put(Envelope(self._sent, None, note=note))

    # The receiver's side

    def wait(self) -> Envelope:
        """The next hand-over or note; see `Link.wait`."""
        envelope = self._passed.get()
        if envelope.slot is None:
            self._check_turn(envelope)
        return envelope

    @contextmanager
    def receive(self, envelope: Envelope) -> Iterator[tuple[torch.Tensor, BridgeTiming]]:
        """A hand-over's rows until the context's end; see `Link.receive`."""
        slot = envelope.slot
        if slot is None:
            raise BridgeError(f"ticket {envelope.ticket} is a note; there is nothing to receive")
        try:
            self._check_turn(envelope)
            yield self._copier.read(slot, envelope.rows)
        finally:
            # Not if it was received before: the slot may be another hand-over's by now.
            if self._states[slot] == envelope.ticket:
                try:
                    self._copier.release(slot)
                finally:
                    self._free_slot(slot)

    def _check_turn(self, envelope: Envelope) -> None:
        expected, self._received = self._received + 1, envelope.ticket
        if envelope.ticket != expected:
            raise BridgeError(f"hand-over {envelope.ticket} came where {expected} was expected")

    def _check_acquired(self, slot: int, done: str) -> None:
        if self._states[slot] != _ACQUIRED:
            raise BridgeError(f"slot {slot} was {done} without being acquired")

    def _free_slot(self, slot: int) -> None:
        self._states[slot] = _FREE
        self._free.put(slot)
