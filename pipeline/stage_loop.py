"""One stage's part of every job: wait, run, send, record.

The same for all modes: with one job at a time the stages run in turn; with several, stage i+1
works on one job while stage i works on the next. A job that failed, or was stopped, goes on down
the line as a note in its hidden state's place, so that order is kept and nobody waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from pipeline.bridges.link import LinkIn, LinkOut
from pipeline.device_clock import Clock, Mark, clock_of
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
        self.clock: Clock = clock_of(stage.device)
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
        self.record(track, start, end, job, name, rows)
        return end

    def record(self, track: Track, start: int, end: int, job: Job, name: str, rows: int) -> None:
        """Record a span of this stage's time."""
        self._recorder.record(self.index, track, start, end, job.number, name, rows)


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
        clock = self.loop.clock
        begun = clock.mark()
        self.operation = self.work.operation(first=hidden is None)
        after = PipelineHidden(self.work.run(self.loop.stage, hidden))
        marks = [begun, clock.mark()]
        if self.loop.link_out is None and self._answer(after):
            marks.append(clock.mark())
        # A device's times are known when it is through; whoever waits for the job takes them down.
        settle = partial(self._settle, start, marks)
        if clock.deferred:
            self.job.later.append(settle)
        else:
            settle()
        if self.loop.link_out is not None:
            self._send(self.loop.link_out, after)

    def _answer(self, after: PipelineHidden) -> bool:
        """Answer for the rows that want it; whether there are any."""
        self.job.hidden = after
        wanted = self.work.answered(after.storage)
        if not len(wanted):
            return False
        self.operation = self.work.answer.value
        self.job.output = self.work.answer.of(self.loop.stage, wanted)
        return True

    def _settle(self, start: int, marks: Sequence[Mark]) -> None:
        """Take down when the stage began, computed its layers and, if it did, answered."""
        begun, computed, *answered = (self.loop.clock.ns(mark) for mark in marks)
        if self.loop.clock.deferred:
            start = begun  # what is in between is the host's time, not the device's
        self.loop.record(Track.COMPUTE, begun, computed, self.job, self.work.name, self.rows)
        self.trace.stage_ns += computed - start
        end = computed
        for end in answered:
            name = self.work.answer.value
            self.loop.record(Track.COMPUTE, computed, end, self.job, name, self.rows)
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
        if not self.loop.clock.deferred:  # else this is the host's time, beside the device's
            self.trace.busy.append((start, end))
        self.owes = False
        link.hand_over(slot, after.row_count)  # last, as it wakes the next stage
