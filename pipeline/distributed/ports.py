"""The two ends of a one-way connection between ranks: sending from a ring, receiving in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from pipeline.bridges.link import SLOTS
from pipeline.distributed.channels import Group
from pipeline.distributed.frames import Frame
from pipeline.errors import RankLostError

Suspect = Callable[[int, str], RankLostError]
"""Told of a rank and why a connection to it failed; which rank is lost."""


class Port:
    """What both ends have.

    Args:
        group: of the two processes, or of all.
        peer: the other end's rank in the group.
        rank: the other end's rank among all.
        stages: of the pipeline.
        device: where messages lie.
        suspect: asked when the connection fails.
    """

    def __init__(
        self,
        group: Group,
        peer: int,
        rank: int,
        stages: int,
        device: torch.device,
        suspect: Suspect,
    ) -> None:
        self._group = group
        self._peer = peer
        self._rank = rank
        self._stages = stages
        self._device = device
        self._suspect = suspect

    def _begin(self, operation: Callable[..., Any], message: torch.Tensor) -> Any:
        """Start sending or receiving one message."""
        try:
            return operation([message], self._peer, 0)
        except RuntimeError as error:  # all of torch.distributed's errors are
            raise self._suspect(self._rank, str(error)) from error

    def _finish(self, transfer: Any) -> None:
        """Wait until it is through; on CUDA, too, its memory may be used then."""
        try:
            transfer.wait()
        except RuntimeError as error:
            raise self._suspect(self._rank, str(error)) from error
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _frame(self, room: int) -> Frame:
        return Frame(self._stages, room, self._device)


class SendPort(Port):
    """Sends messages from a ring of `SLOTS`; one is filled again when it has been sent."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._frames = [self._frame(0) for _ in range(SLOTS)]
        self._sending: list[Any] = [None] * SLOTS
        self._turn = 0

    def free(self, room: int) -> Frame:
        """The next slot, with that much room, once its last message has been sent."""
        turn = self._turn
        if (transfer := self._sending[turn]) is not None:
            self._sending[turn] = None
            self._finish(transfer)
        if self._frames[turn].room < room:
            self._frames[turn] = self._frame(room)
        return self._frames[turn]

    def send(self, frame: Frame, room: int) -> None:
        """Send the slot that `free` gave."""
        frame.put()
        self._sending[self._turn] = self._begin(self._group.send, frame.message(room))
        self._turn = (self._turn + 1) % SLOTS

    def drain(self) -> None:
        """Wait until all has been sent."""
        for turn, transfer in enumerate(self._sending):
            if transfer is not None:
                self._sending[turn] = None
                self._finish(transfer)


class ReceivePort(Port):
    """Receives messages in the order in which they are expected.

    One thread says what is expected, and another may take it.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._expected: deque[tuple[Frame, Any]] = deque()
        self._spare: list[Frame] = []

    def expect(self, room: int) -> None:
        """Let memory wait for the next message, whose payload is `room` bytes."""
        frame = self._spare.pop() if self._spare else self._frame(room)
        if frame.room < room:
            frame = self._frame(room)
        self._expected.append((frame, self._begin(self._group.recv, frame.message(room))))

    def take(self) -> Frame:
        """Wait for the next message that was expected; to be given back."""
        frame, transfer = self._expected.popleft()
        self._finish(transfer)
        frame.fetch()
        return frame

    def give_back(self, frame: Frame) -> None:
        """Its memory may wait for another message."""
        self._spare.append(frame)
