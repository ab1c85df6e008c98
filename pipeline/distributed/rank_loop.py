"""One rank's part of every job, in its stage's worker thread; the same on all ranks."""

from __future__ import annotations

from pipeline.distributed.answers import AnswerSender
from pipeline.distributed.links import ReceiveLink, SendLink
from pipeline.distributed.trips import Trip
from pipeline.interfaces import Stage
from pipeline.stage_loop import StageLoop
from pipeline.timeline import Recorder
from pipeline.work import Work


class RankLoop:
    """Runs jobs on this rank's stage: after the rank before it, and before the next one.

    Args:
        index: of the stage.
        stage: itself.
        link_in: None on the first rank.
        link_out: None on the last.
        answers: None on all but the last.
        recorder: told of every span.
    """

    def __init__(
        self,
        index: int,
        stage: Stage,
        link_in: ReceiveLink | None,
        link_out: SendLink | None,
        answers: AnswerSender | None,
        recorder: Recorder,
    ) -> None:
        self.link_in = link_in
        self.link_out = link_out
        self._answers = answers
        self._loop = StageLoop(index, stage, link_in, link_out, recorder)
        self._stopped_call = 0

    def run(self, trip: Trip) -> None:
        """Do this rank's part. Raises `RankLostError` where a connection failed."""
        job = trip.job
        for link in (self.link_in, self.link_out):
            if link is not None:
                link.turn_to(trip)
        if isinstance(job.task, Work):
            if trip.call == self._stopped_call:
                job.call.stop()
            self._loop.run(job)
            if job.call.stopped:
                self._stopped_call = trip.call
        else:
            if self.link_in is not None:
                self.link_in.wait()  # chores keep the line's order, too
            self._loop.run(job)
            if self.link_out is not None:
                self.link_out.pass_note(job.number)
        if self._answers is not None:
            self._answers.send(trip)

    def drain(self) -> None:
        """Wait until all that this rank sent is on its way."""
        for end in (self.link_out, self._answers):
            if end is not None:
                end.drain()
