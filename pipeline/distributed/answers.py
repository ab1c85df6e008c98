"""What the last rank tells the driver at the end of every job."""

from __future__ import annotations

import torch

from pipeline.distributed.failures import failure_text, rebuilt
from pipeline.distributed.frames import Flag, Frame, add_trace, unpack_spans
from pipeline.distributed.ports import SendPort
from pipeline.distributed.trips import Trip
from pipeline.errors import BridgeError
from pipeline.job import Job
from pipeline.timeline import Recorder
from pipeline.work import Answer, Decode, Prefill, Work


def answer_rows(work: Prefill | Decode) -> int:
    """Rows that want an answer."""
    if isinstance(work, Decode) or work.all_rows:
        return work.row_count
    return sum(piece.ends for piece in work.pieces)


def answer_room(job: Job, vocab_size: int) -> int:
    """Bytes of a job's answers: float32 [rows, V] for logits, else int64 [rows]."""
    task = job.task
    if not isinstance(task, Work):
        return 0
    return answer_rows(task) * (4 * vocab_size if task.answer is Answer.LOGITS else 8)


class AnswerSender:
    """The last rank's side.

    Args:
        port: to the driver.
        vocab_size: width of logits.
        epoch: number of this start of the processes.
        stage: that is here.
        recorder: that the stage writes to.
    """

    def __init__(
        self, port: SendPort, vocab_size: int, epoch: int, stage: int, recorder: Recorder
    ) -> None:
        self._port = port
        self._vocab_size = vocab_size
        self._epoch = epoch
        self._stage = stage
        self._recorder = recorder

    def send(self, trip: Trip) -> None:
        """Send what came of a job that this rank is through with."""
        job = trip.job
        room = answer_room(job, self._vocab_size)
        frame = self._port.free(room)
        trip.note_own(self._stage, self._recorder)
        trip.put_traces(frame)
        if job.failure is not None:
            frame.write(self._epoch, job.number, 0, Flag.FAILURE)
            frame.write_failure(job.failure.stage, failure_text(job.failure))
        elif job.output is not None:
            frame.write(self._epoch, job.number, len(job.output), Flag.ROWS)
            flat = job.output.to("cpu").contiguous().view(torch.uint8).flatten()
            frame.payload(room).copy_(flat)
        else:
            frame.write(self._epoch, job.number, 0, Flag.NOTHING)
        self._port.send(frame, room)

    def drain(self) -> None:
        """Wait until all has been sent."""
        self._port.drain()


class AnswerReader:
    """The driver's side: fills in jobs.

    Args:
        vocab_size: width of logits.
        epoch: number of this start of the processes.
        offsets: by how many nanoseconds each stage's clock is ahead of the driver's.
        recorder: told of the other ranks' spans.
    """

    def __init__(self, vocab_size: int, epoch: int, offsets: list[int], recorder: Recorder) -> None:
        self._vocab_size = vocab_size
        self._epoch = epoch
        self._offsets = offsets
        self._recorder = recorder

    def read(self, frame: Frame, job: Job) -> None:
        """Note in the job what the stages after the first made of it, and what they measured.

        Raises `BridgeError` for another job's message.
        """
        if frame.turn != (self._epoch, job.number):
            raise BridgeError(
                f"an answer to job {frame.turn[1]} of start {frame.turn[0]} came where job "
                f"{job.number} of start {self._epoch} was expected"
            )
        self._measured(frame, job)
        flag = frame.flag
        if flag is Flag.FAILURE:
            stage, text = frame.failure
            job.fail(stage, *rebuilt(text, stage))
        elif flag is Flag.ROWS:
            raw = frame.payload(answer_room(job, self._vocab_size)).clone()
            assert isinstance(job.task, Work)
            if job.task.answer is Answer.LOGITS:
                job.output = raw.view(torch.float32).view(frame.rows, self._vocab_size)
            else:
                job.output = raw.view(torch.int64)

    def _measured(self, frame: Frame, job: Job) -> None:
        answer = job.task.answer.value if isinstance(job.task, Work) else ""
        names = (job.task.name, answer)
        for stage in range(1, len(self._offsets)):
            words, offset = frame.traces[stage], self._offsets[stage]
            add_trace(words, job.call.traces[stage], offset)
            for span in unpack_spans(words, stage, job.number, names, offset):
                self._recorder.record(*span)
