"""The two schedules: how a call is cut into microbatches, and the loop each stage's worker runs.

Every worker runs the same loop over the same microbatches. With one microbatch ("batch") the
stages run in turn; with several ("overlapped") stage i+1 works on microbatch m while stage i works
on m+1. Hidden states go from worker to worker; the driver only waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.stage import DecodeRow
from pipeline.bridge import HostBridge, HostLink, LinkAborted
from pipeline.errors import StageError
from pipeline.hidden import PipelineHidden
from pipeline.interfaces import Stage
from pipeline.modes import LlamaPipelineMode
from pipeline.trace import StageTrace
from pipeline.work import Answer, Decode, Work
from pipeline.worker import StageWorker

MIN_OVERLAPPED_DECODE_BATCH = 16
"""Below this many rows an overlapped pipeline keeps a batch whole: microbatches re-read weights."""


@dataclass(frozen=True)
class Plan:
    """How a decode batch is cut, and how much concurrency that cut plans for."""

    microbatch_size: int
    microbatch_count: int
    in_flight_stages: int
    queue_depth: int

    @property
    def overlapped(self) -> bool:
        """Whether stages are planned to work at the same time."""
        return self.microbatch_count > 1


def plan_decode(mode: LlamaPipelineMode, stage_count: int, rows: int) -> Plan:
    """Cut `rows` >= 1 rows: whole, or S microbatches of ceil(rows / S) in overlapped mode."""
    if mode is LlamaPipelineMode.BATCH or rows < MIN_OVERLAPPED_DECODE_BATCH:
        return Plan(rows, 1, in_flight_stages=1, queue_depth=0)
    size = -(-rows // stage_count)
    count = -(-rows // size)
    if count == 1:
        return Plan(rows, 1, in_flight_stages=1, queue_depth=0)
    return Plan(size, count, in_flight_stages=min(stage_count, count), queue_depth=1)


def cut(batch: Sequence[DecodeRow], plan: Plan) -> list[Work]:
    """The microbatches of a plan, in order."""
    size = plan.microbatch_size
    return [Decode(batch[start : start + size]) for start in range(0, len(batch), size)]


class Flight:
    """One call on its way through the stages: its work, what came out, or why it failed."""

    def __init__(
        self, microbatches: Sequence[Work], answer: Answer, stage_count: int, bridge: HostBridge
    ) -> None:
        self.microbatches = microbatches
        self.answer = answer
        self.traces = [StageTrace() for _ in range(stage_count)]
        self.outputs: list[torch.Tensor] = []  # of the last stage, in order of microbatches
        self.hidden: PipelineHidden | None = None  # the last stage's last
        self.failure: StageError | None = None
        self.stopped = False
        self._bridge = bridge
        self._lock = threading.Lock()

    def stop(self, failure: StageError | None = None) -> None:
        """Let no stage begin anything more, and wake those that wait. The first failure stays."""
        with self._lock:
            if self.failure is None:
                self.failure = failure
            self.stopped = True
        self._bridge.abort()


class StageLoop:
    """One stage's part of a flight; `run` is the work its worker does.

    `link_in` is None for the first stage, `link_out` for the last.
    """

    def __init__(
        self,
        flight: Flight,
        index: int,
        stage: Stage,
        worker: StageWorker,
        link_in: HostLink | None,
        link_out: HostLink | None,
    ) -> None:
        self.flight = flight
        self.index = index
        self.stage = stage
        self.worker = worker
        self.link_in = link_in
        self.link_out = link_out
        self.trace = flight.traces[index]
        self.operation = "receive"
        self.microbatch = 0

    def run(self) -> None:
        """Take every microbatch through the stage. A failure stops the flight, with its reason."""
        try:
            for number, work in enumerate(self.flight.microbatches):
                self.microbatch = number
                if self.flight.stopped:
                    return
                if self.link_in is None:
                    self._advance(work, None, time.perf_counter_ns())
                else:
                    self._receive_and_advance(self.link_in, work)
        except LinkAborted:
            return
        except BaseException as error:  # the driver raises it, once every stage is at rest
            self.flight.stop(StageError(self.index, self.operation, error, self.microbatch))

    def _receive_and_advance(self, link: HostLink, work: Work) -> None:
        self.operation = "receive"
        with self.worker.waiting():
            envelope = link.wait()
        start = time.perf_counter_ns()
        # The slot stays taken until this microbatch is through: its buffer may still be in use.
        with link.receive(envelope) as (hidden, timing):
            self.trace.bridge += timing
            self._advance(work, hidden.storage, start)

    def _advance(self, work: Work, hidden: torch.Tensor | None, start: int) -> None:
        self.operation = work.operation(first=hidden is None)
        after = PipelineHidden(work.run(self.stage, hidden))
        computed = time.perf_counter_ns()
        self.trace.stage_ns += computed - start
        if self.link_out is None:
            self._answer(work, after, start, computed)
        else:
            self.trace.busy.append((start, computed))
            self._send(self.link_out, after)

    def _answer(self, work: Work, after: PipelineHidden, start: int, computed: int) -> None:
        self.operation = self.flight.answer.value
        wanted = work.answered(after.storage)
        self.flight.outputs.append(self.flight.answer.of(self.stage, wanted))
        self.flight.hidden = after
        end = time.perf_counter_ns()
        self.trace.logits_ns += end - computed
        self.trace.busy.append((start, end))

    def _send(self, link: HostLink, after: PipelineHidden) -> None:
        self.operation = "send"
        with self.worker.waiting():
            slot = link.acquire()
        start = time.perf_counter_ns()
        self.trace.bridge += link.fill(slot, after)
        self.trace.sent_bytes += after.len_bytes
        self.trace.busy.append((start, time.perf_counter_ns()))
        link.hand_over(slot, after.row_count)  # last, as it wakes the next stage
