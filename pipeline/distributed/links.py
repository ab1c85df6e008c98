"""Hand-over between processes: each rank holds its own end of a link."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.errors import InvalidInputError
from pipeline.bridges.link import NO_TIME, BridgeTiming, Envelope
from pipeline.distributed.failures import failure_text, rebuilt
from pipeline.distributed.frames import Flag, Frame
from pipeline.distributed.ports import ReceivePort, SendPort
from pipeline.distributed.trips import Trip
from pipeline.errors import BridgeError
from pipeline.timeline import Recorder


class _End:
    """What both ends know.

    Args:
        hidden_size: width of a row.
        dtype: of the rows that cross.
        epoch: number of this start of the processes.
        stage: that is here.
    """

    def __init__(self, hidden_size: int, dtype: torch.dtype, epoch: int, stage: int) -> None:
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._epoch = epoch
        self._stage = stage
        self._trip: Trip | None = None

    def nbytes(self, rows: int) -> int:
        """Bytes of the hidden state that cross the link for `rows` rows."""
        return rows * self._hidden_size * self._dtype.itemsize

    def turn_to(self, trip: Trip) -> None:
        """From now on it is this job that crosses."""
        self._trip = trip

    @property
    def trip(self) -> Trip:
        """The job that crosses."""
        assert self._trip is not None
        return self._trip

    def _rows(self, frame: Frame, rows: int) -> torch.Tensor:
        payload = frame.payload(self.nbytes(rows))
        return payload.view(self._dtype).view(rows, self._hidden_size)


class SendLink(_End):
    """The sending end, a `LinkOut`; a slot is one of the port's.

    Args:
        recorder: that the stage writes to; None where its measurements need not cross.
    """

    def __init__(
        self,
        port: SendPort,
        hidden_size: int,
        dtype: torch.dtype,
        epoch: int,
        stage: int,
        recorder: Recorder | None,
    ) -> None:
        super().__init__(hidden_size, dtype, epoch, stage)
        self._port = port
        self._recorder = recorder
        self._frame: Frame | None = None

    def acquire(self) -> int:
        """Wait until a slot has been sent."""
        self._frame = self._port.free(self.nbytes(self.trip.rows))
        return 0

    def fill(self, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        """Copy `hidden`, float32 [rows, hidden], into the acquired slot.

        On a GPU the copy is queued where the sending will be; its time is not known.
        """
        if hidden.shape != (self.trip.rows, self._hidden_size) or hidden.dtype != torch.float32:
            raise InvalidInputError(
                f"hidden state is {hidden.dtype} {list(hidden.shape)}; expected torch.float32 "
                f"[{self.trip.rows}, {self._hidden_size}]"
            )
        assert self._frame is not None
        start = time.perf_counter_ns()
        self._rows(self._frame, hidden.shape[0]).copy_(hidden)
        took = time.perf_counter_ns() - start
        return BridgeTiming(took, host_copy_ns=took)

    def hand_over(self, slot: int, rows: int) -> None:
        """Send the filled slot."""
        self._send(Flag.ROWS, rows)

    def give_back(self, slot: int) -> None:
        """The slot is the next one again."""
        self._frame = None

    def pass_note(self, note: object) -> None:
        """Send the job's failure, or that there is nothing, in the rows' place."""
        self.acquire()
        self._send(Flag.NOTHING if self.trip.job.failure is None else Flag.FAILURE, 0)

    def drain(self) -> None:
        """Wait until all has been sent."""
        self._port.drain()

    def _send(self, flag: Flag, rows: int) -> None:
        frame, trip = self._frame, self.trip
        assert frame is not None
        self._frame = None
        if self._recorder is not None:
            trip.note_own(self._stage, self._recorder)
        frame.write(self._epoch, trip.job.number, rows, flag)
        trip.put_traces(frame)
        if flag is Flag.FAILURE:
            assert trip.job.failure is not None
            frame.write_failure(trip.job.failure.stage, failure_text(trip.job.failure))
        self._port.send(frame, self.nbytes(trip.rows))


class ReceiveLink(_End):
    """The receiving end, a `LinkIn`.

    Args:
        device: where the stage computes.
    """

    def __init__(
        self,
        port: ReceivePort,
        hidden_size: int,
        dtype: torch.dtype,
        epoch: int,
        stage: int,
        device: torch.device,
    ) -> None:
        super().__init__(hidden_size, dtype, epoch, stage)
        self._port = port
        self._device = device
        self._frame: Frame | None = None

    def expect(self, trip: Trip) -> None:
        """Let memory wait for a job; from the thread that takes orders."""
        self._port.expect(self.nbytes(trip.rows))

    def wait(self) -> Envelope:
        """Wait for the job's message; a failure in it becomes the job's.

        Raises `BridgeError` for another job's.
        """
        trip, frame = self.trip, self._port.take()
        if frame.turn != (self._epoch, trip.job.number):
            raise BridgeError(
                f"job {frame.turn[1]} of start {frame.turn[0]} came where job {trip.job.number} "
                f"of start {self._epoch} was expected"
            )
        trip.take_traces(frame, self._stage)
        flag = frame.flag
        if flag is Flag.ROWS:
            self._frame = frame
            return Envelope(trip.job.number, 0, frame.rows)
        if flag is Flag.FAILURE:
            stage, text = frame.failure
            trip.job.fail(stage, *rebuilt(text, stage))
        trip.job.call.stop()
        self._port.give_back(frame)
        return Envelope(trip.job.number, None)

    @contextmanager
    def receive(self, envelope: Envelope) -> Iterator[tuple[torch.Tensor, BridgeTiming]]:
        """The rows, float32 [rows, hidden] on the stage's device, until the context's end."""
        frame, self._frame = self._frame, None
        assert frame is not None
        try:
            yield self._rows(frame, envelope.rows).to(self._device).float(), NO_TIME
        finally:
            self._port.give_back(frame)
