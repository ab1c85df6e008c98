"""How the next decode step is run: as the mode says, or as the cost model finds best."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.auto import AutoMode
from pipeline.candidates import BATCH, Arrangement, Candidate
from pipeline.job import Call
from pipeline.modes import LlamaPipelineMode
from pipeline.schedule import Plan, plan_decode
from pipeline.sequences import Running


@dataclass(frozen=True)
class Step:
    """A decode step that came back: of a group, of `rows` sequences that run in all groups."""

    call: Call
    plan: Plan
    way: Candidate
    rows: int
    cached: float
    landed_ns: int


class Steering:
    """Belongs to a pipeline, for all its runs; the driver's thread asks and tells it.

    Args:
        mode: of the pipeline.
        stage_count: number of stages.
        arrange: lets the stages share the machine in another way.
        groups: of mode "continuous"; by default as many as stages.
        auto: the policy of mode "auto".
    """

    def __init__(
        self,
        mode: LlamaPipelineMode,
        stage_count: int,
        arrange: Callable[[Arrangement], None],
        *,
        groups: int | None = None,
        auto: AutoMode | None = None,
    ) -> None:
        self.mode = mode
        self.auto = auto
        self.current = BATCH
        self.predicted_cycle_s: float | None = None
        self.measured_cycle_s: float | None = None
        self._stage_count = stage_count
        self._groups = groups or stage_count
        self._arrange = arrange
        self._landings: deque[int] = deque()  # of decode steps, with nothing else in between

    def way(self, running: Sequence[Running]) -> Candidate:
        """How to run the next steps of these sequences."""
        way = self._chosen(running)
        if way != self.current:
            if self.auto is not None and way.arrangement is not self.current.arrangement:
                self._arrange(way.arrangement)
            self.current = way
            self.disturbed()
        return way

    def _chosen(self, running: Sequence[Running]) -> Candidate:
        rows = len(running)
        if self.mode is LlamaPipelineMode.BATCH or self._stage_count == 1:
            return BATCH
        if self.mode is LlamaPipelineMode.OVERLAPPED:
            return Candidate(LlamaPipelineMode.OVERLAPPED, self._stage_count)
        if self.auto is None:
            return Candidate(LlamaPipelineMode.CONTINUOUS, max(1, min(self._groups, rows)))
        if rows == 0:
            return self.current
        choice = self.auto.choose(rows, mean_cached(running))
        self.predicted_cycle_s = choice.predicted_cycle_s
        return choice.candidate

    def plan(self, rows: int) -> Plan:
        """How to cut a step of one group of `rows` sequences."""
        if self.current.mode is LlamaPipelineMode.CONTINUOUS and self.current.groups > 1:
            at_once = min(self._stage_count, self.current.groups)
            return Plan(rows, 1, in_flight_stages=at_once, queue_depth=1)
        mode = self.current.mode
        if self.auto is not None:
            return plan_decode(mode, self._stage_count, rows, least=2)
        return plan_decode(mode, self._stage_count, rows)

    def disturbed(self) -> None:
        """Something else than decode steps ran, or they ran in another way."""
        self._landings.clear()

    def step(
        self, call: Call, plan: Plan, way: Candidate, running: Sequence[Running], at_ns: int
    ) -> Step:
        """A decode step that came back, and how it was sent off.

        `running` are the sequences of all groups; `at_ns` is on a clock that stands still while
        nothing is under way.
        """
        return Step(call, plan, way, len(running), mean_cached(running), at_ns)

    def landed(self, step: Step) -> None:
        """Take note of what a decode step took."""
        if step.way != self.current:  # the next ones are already sent in another way
            return
        groups = step.way.groups if step.way.mode is LlamaPipelineMode.CONTINUOUS else 1
        self._landings.append(step.landed_ns)
        if self._landings[0] > step.landed_ns:  # another run's: its clock is its own
            self._landings.clear()
        if len(self._landings) > groups:
            cycle_s = (self._landings[-1] - self._landings[-1 - groups]) / 1e9
            self.measured_cycle_s = cycle_s
            if (len(self._landings) - 1) % groups == 0 and self.auto is not None:
                self._observe_stages(step)
                self.auto.observe_cycle(step.way, step.rows, step.cached, cycle_s)
        while len(self._landings) > 4 * groups:
            for _ in range(groups):
                self._landings.popleft()

    def _observe_stages(self, step: Step) -> None:
        assert self.auto is not None
        for stage, trace in enumerate(step.call.traces):
            seconds = trace.busy_ns / len(step.call.jobs) / 1e9
            self.auto.observe_stage(
                step.way.arrangement, stage, step.plan.microbatch_size, step.cached, seconds
            )

    def json(self) -> dict[str, Any]:
        """How steps are run now, and predicted and measured time of one cycle."""
        return {
            "mode": self.current.mode.value,
            "groups": self.current.groups,
            "predicted_cycle_us": _micros(self.predicted_cycle_s),
            "measured_cycle_us": _micros(self.measured_cycle_s),
        }


def mean_cached(running: Sequence[Running]) -> float:
    """Mean number of cached tokens."""
    return sum(one.sent for one in running) / len(running) if running else 0.0


def _micros(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)
