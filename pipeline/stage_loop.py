"""One stage's part of every job: wait, run, send, record.

The same for all modes: with one job at a time the stages run in turn; with several, stage i+1
works on one job while stage i works on the next. A job that failed, or was stopped, goes on down
the line as a note in its hidden state's place, so that order is kept and nobody waits for ever.
"""

from __future__ import annotations

import time

import torch

from pipeline.bridges.link import LinkIn, LinkOut
from pipeline.hidden import PipelineHidden
from pipeline.interfaces import Stage
from pipeline.job import Job
from pipeline.timeline import Recorder, Track
from pipeline.trace import StageTrace
from pipeline.work import Work


class StageLoop:
    """Runs jobs on one stage, in the stage's worker.

    Args:
        index: of the stage.
        stage: itself.
        link_in: hidden states come from here; None for the first stage.
        link_out: they go there; None for the last.
        recorder: told of every span.
    """

    def __init__(
        self,
        index: int,
        stage: Stage,
        link_in: LinkIn | None,
        link_out: LinkOut | None,
        recorder: Recorder,
    ) -> None:
        self.index = index
        self.stage = stage
        self.link_in = link_in
        self.link_out = link_out
        self._recorder = recorder
        self._rested_ns = 0  # when the last job was through

    def run(self, job: Job) -> None:
        """Do this stage's part; never raises: what goes wrong is noted in the job."""
        if self._rested_ns:
            self.span(Track.WAIT, self._rested_ns, job, job.task.name, 0)
        try:
            if isinstance(job.task, Work):
                _Passage(self, job, job.task).run()
            else:
                self._chore(job)
        finally:
            self._rested_ns = time.perf_counter_ns()
            job.leave()

    def _chore(self, job: Job) -> None:
        assert not isinstance(job.task, Work)
        start = time.perf_counter_ns()
        try:
            job.task.run(self.stage)
        except BaseException as error:  # the driver raises it
            job.fail(self.index, job.task.name, error)
        self.span(Track.COMPUTE, start, job, job.task.name, 0)

    def span(self, track: Track, start: int, job: Job, name: str, rows: int) -> int:
        """Record what ended now, and return now."""
        end = time.perf_counter_ns()
        self._recorder.record(self.index, track, start, end, job.number, name, rows)
        return end


class _Passage:
    """One job of work going through one stage."""

    def __init__(self, loop: StageLoop, job: Job, work: Work) -> None:
        self.loop = loop
        self.job = job
        self.work = work
        self.trace: StageTrace = job.call.traces[loop.index]
        self.operation = "receive"
        self.rows = work.row_count
        self.owes = loop.link_out is not None  # the next stage waits for a hand-over or a note

    def run(self) -> None:
        try:
            if self.loop.link_in is None:
                if not self.job.call.stopped:
                    self._advance(None, time.perf_counter_ns())
            else:
                self._receive(self.loop.link_in)
        except BaseException as error:  # the driver raises it, when the job has come to its end
            self.job.fail(self.loop.index, self.operation, error)
        if self.owes and self.loop.link_out is not None:
            self.loop.link_out.pass_note(self.job.number)

    def _receive(self, link: LinkIn) -> None:
        waiting = time.perf_counter_ns()
        envelope = link.wait()
        start = self.loop.span(Track.WAIT, waiting, self.job, self.work.name, self.rows)
        if envelope.slot is None:
            return
        # The slot stays taken until this job is through: its buffer may still be in use.
        with link.receive(envelope) as (hidden, timing):
            self.trace.bridge += timing
            self.loop.span(Track.RECEIVE, start, self.job, self.work.name, self.rows)
            if not self.job.call.stopped:
                self._advance(hidden, start)

    def _advance(self, hidden: torch.Tensor | None, start: int) -> None:
        begun = time.perf_counter_ns()
        self.operation = self.work.operation(first=hidden is None)
        after = PipelineHidden(self.work.run(self.loop.stage, hidden))
        computed = self.loop.span(Track.COMPUTE, begun, self.job, self.work.name, self.rows)
        self.trace.stage_ns += computed - start
        if self.loop.link_out is None:
            self._answer(after, start, computed)
        else:
            self.trace.busy.append((start, computed))
            self._send(self.loop.link_out, after)

    def _answer(self, after: PipelineHidden, start: int, computed: int) -> None:
        self.job.hidden = after
        wanted = self.work.answered(after.storage)
        if not len(wanted):
            self.trace.busy.append((start, computed))
            return
        asked = self.work.answer
        self.operation = asked.value
        self.job.output = asked.of(self.loop.stage, wanted)
        end = self.loop.span(Track.COMPUTE, computed, self.job, asked.value, len(wanted))
        self.trace.logits_ns += end - computed
        self.trace.busy.append((start, end))

    def _send(self, link: LinkOut, after: PipelineHidden) -> None:
        self.operation = "send"
        waiting = time.perf_counter_ns()
        slot = link.acquire()
        start = self.loop.span(Track.WAIT, waiting, self.job, self.work.name, self.rows)
        try:
            self.trace.bridge += link.fill(slot, after.storage)
        except BaseException:
            link.give_back(slot)
            raise
        self.trace.sent_bytes += link.nbytes(after.row_count)
        end = self.loop.span(Track.SEND, start, self.job, self.work.name, self.rows)
        self.trace.busy.append((start, end))
        self.owes = False
        link.hand_over(slot, after.row_count)  # last, as it wakes the next stage
