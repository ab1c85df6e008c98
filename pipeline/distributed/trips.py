"""One job's passage through one rank, with what the ranks before it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.distributed.frames import TRACE_WORDS, Frame, pack_trace
from pipeline.job import Job
from pipeline.timeline import Recorder
from pipeline.work import Work


@dataclass
class Trip:
    """A job on a rank.

    Args:
        job: itself; on other ranks than the driver's it stands for the driver's.
        call: number of the first job of its call.
        stages: of the pipeline.
    """

    job: Job
    call: int
    stages: int
    traces: np.ndarray = field(init=False)  # int64 [stages, TRACE_WORDS]

    def __post_init__(self) -> None:
        self.traces = np.zeros((self.stages, TRACE_WORDS), np.int64)

    @property
    def rows(self) -> int:
        """Rows of the hidden state; a chore has none."""
        return self.job.task.row_count if isinstance(self.job.task, Work) else 0

    def note_own(self, stage: int, recorder: Recorder) -> None:
        """Take in what this rank measured; on a GPU that is known when it is through."""
        self.job.settle()
        task = self.job.task
        answer = task.answer.value if isinstance(task, Work) else ""
        latest = recorder.latest(8)[stage]
        spans = [span for span in reversed(latest) if span.job == self.job.number]
        pack_trace(self.traces[stage], self.job.call.traces[stage], spans, answer)

    def put_traces(self, frame: Frame) -> None:
        """Write what is known of all stages into a message."""
        frame.traces[:] = self.traces

    def take_traces(self, frame: Frame, stages: int) -> None:
        """Read what is known of the first `stages` stages from a message."""
        self.traces[:stages] = frame.traces[:stages]
