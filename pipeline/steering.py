"""How the next decode step is run: as the mode says, or as the cost model finds best."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from kernels.errors import LamellaError
from pipeline.auto import AutoMode
from pipeline.candidates import BATCH, Arrangement, Candidate
from pipeline.explanation import Explanation
from pipeline.job import Call
from pipeline.modes import LlamaPipelineMode
from pipeline.schedule import Plan, plan_decode
from pipeline.sequences import Running

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A decode step of one group's `rows` sequences, as it is sent.

    `returned_ns` is when the tokens that it goes on from left the last stage, or the driver came
    to wait for them; None if the step waited for something else.
    """

    rows: int
    way: Candidate
    plan: Plan
    returned_ns: int | None


@dataclass(frozen=True)
class Landing:
    """A step that came back, when `running` sequences with `cached` tokens each ran.

    `at_ns` is on a clock of the run that stands still while nothing is under way.
    """

    step: Step
    call: Call
    running: int
    cached: float
    at_ns: int


@dataclass
class _Record:
    """What was run in one way, and the newest cycle."""

    steps: int = 0
    tokens: int = 0
    predicted_s: float | None = None
    measured_s: float | None = None


def _alone(method: Callable[Concatenate[Steering, P], T]) -> Callable[Concatenate[Steering, P], T]:
    """One thread at a time: several may generate with one pipeline."""

    @wraps(method)
    def locked(self: Steering, /, *args: P.args, **options: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **options)

    return locked


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
        self._lock = threading.RLock()
        self._stage_count = stage_count
        self._groups = groups or stage_count
        self._arrange = arrange
        self._arranged = Arrangement.TURNS  # as stages of mode auto begin
        self._runs: set[int] = set()  # under way, by identity
        self._records: dict[Candidate, _Record] = {}
        self._last: Candidate | None = None  # way of the step that landed last
        self._predicted_s: float | None = None
        self._landings: deque[int] = deque()  # of decode steps, with nothing else in between
        self._in_cycle = 0  # steps landed since the last cycle was told
        self._returned_ns: int | None = None
        self._free_ns = [0] * stage_count  # when each stage was through with what landed last

    # Runs

    @_alone
    def begin(self, run: object) -> None:
        """A run sends steps from now on. Again is fine."""
        if not self._runs and self.auto is not None:
            self.auto.rest()
        if id(run) not in self._runs:
            self._runs.add(id(run))
            self._changed()

    def forget(self, run: object) -> None:
        """A run sends no more steps; safe wherever a finaliser may run."""
        self._runs.discard(id(run))

    @_alone
    def end(self, run: object) -> None:
        """The same; after the last run calls find the stages take turns, as they expect."""
        self.forget(run)
        if self._runs or self.auto is None:
            return
        self.current = BATCH
        self._changed()
        with suppress(LamellaError):  # a pipeline that is closed or lost says so when it is used
            self._share(Arrangement.TURNS)

    def _share(self, arrangement: Arrangement) -> None:
        if arrangement is not self._arranged:
            self._arrange(arrangement)
            self._arranged = arrangement

    # What to send

    @_alone
    def way(self, running: Sequence[Running]) -> Candidate:
        """How to run the next steps of these sequences."""
        way = self._chosen(running)
        if self.auto is not None:
            self._share(way.arrangement)
        if way != self.current:
            self.current = way
            self._changed()
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
        self._predicted_s = choice.predicted_cycle_s
        return choice.candidate

    @_alone
    def step(self, rows: int) -> Step:
        """How to send a step of one group of `rows` sequences, which goes off now."""
        returned_ns, self._returned_ns = self._returned_ns, None
        return Step(rows, self.current, self._plan(rows), returned_ns)

    def _plan(self, rows: int) -> Plan:
        if self.current.mode is LlamaPipelineMode.CONTINUOUS and self.current.groups > 1:
            at_once = min(self._stage_count, self.current.groups)
            return Plan(rows, 1, in_flight_stages=at_once, queue_depth=1)
        mode = self.current.mode
        if self.auto is not None:
            return plan_decode(mode, self._stage_count, rows, least=2)
        return plan_decode(mode, self._stage_count, rows)

    # What came back

    @_alone
    def disturbed(self, call: Call) -> None:
        """A prefill landed: the cycle that it fell into says nothing of decode steps alone."""
        self._landings.clear()
        self._returned_ns = None
        for stage, trace in enumerate(call.traces):
            if trace.busy:
                self._free_ns[stage] = max(end for _, end in trace.busy)

    @_alone
    def back(
        self, step: Step, call: Call, running: Sequence[Running], at_ns: int, asked_ns: int
    ) -> Landing:
        """A step came back that was waited for since `asked_ns`; quick, as the next one waits.

        `running` are the sequences of all groups; `at_ns` as in `Landing`.
        """
        ended_ns = max((end for _, end in call.traces[-1].busy), default=None)
        self._returned_ns = None if ended_ns is None else max(ended_ns, asked_ns)
        return Landing(step, call, len(running), mean_cached(running), at_ns)

    @_alone
    def landed(self, landing: Landing) -> None:
        """Take note of what a step took, once the next ones are sent."""
        way = landing.step.way
        self._last = way
        record = self._records.setdefault(way, _Record())
        record.steps += 1
        record.tokens += landing.step.rows
        if self.auto is not None:
            self._observe(self.auto, landing)
        if way == self.current:  # otherwise the next ones are already sent in another way
            record.predicted_s = self._predicted_s
            self._note_cycle(landing, record)

    def _note_cycle(self, landing: Landing, record: _Record) -> None:
        way, step = landing.step.way, landing.step
        groups = way.groups if way.mode is LlamaPipelineMode.CONTINUOUS else 1
        if len(self._runs) > 1:  # each has a clock of its own
            self._landings.clear()
        self._landings.append(landing.at_ns)
        self._in_cycle += 1
        seconds = None
        if len(self._landings) > groups:
            cycle_ns = landing.at_ns - self._landings.popleft()
            if groups == 1 and step.returned_ns is not None:  # the clock stood still meanwhile
                cycle_ns += max(0, landing.call.sent_ns - step.returned_ns)
            if cycle_ns > 0:
                seconds = record.measured_s = cycle_ns / 1e9
        if self._in_cycle >= groups:
            self._in_cycle = 0
            if self.auto is not None and landing.running:
                self.auto.observe_cycle(way, landing.running, landing.cached, seconds)

    def _observe(self, auto: AutoMode, landing: Landing) -> None:
        """Tell the cost model times of stages, and of hops to stages that waited for them.

        What cannot be is left out, as clocks of devices and hosts agree only roughly.
        """
        step, traces = landing.step, landing.call.traces
        kind, rows, jobs = step.way.arrangement, step.plan.microbatch_size, len(landing.call.jobs)
        came_ns = step.returned_ns
        for stage, trace in enumerate(traces):
            if not trace.busy:
                return
            begun_ns = min(start for start, _ in trace.busy)
            if jobs == 1 and came_ns is not None and self._free_ns[stage] <= came_ns < begun_ns:
                hop = (stage - 1) % self._stage_count
                nbytes = auto.model.hop_bytes(hop, rows)
                auto.observe_hop(kind, hop, nbytes, (begun_ns - came_ns) / 1e9)
            if (busy_ns := trace.busy_ns) > 0:
                auto.observe_stage(kind, stage, rows, landing.cached, busy_ns / jobs / 1e9)
            came_ns = self._free_ns[stage] = max(end for _, end in trace.busy)

    def _changed(self) -> None:
        """The next steps run in another way."""
        self._landings.clear()
        self._in_cycle = 0

    # What to show

    @_alone
    def explain(self) -> Explanation | None:
        """Why mode "auto" runs steps as it does; None in other modes, and before any step."""
        return None if self.auto is None else self.auto.explain()

    @_alone
    def json(self) -> dict[str, Any]:
        """The way of the last step and the one that made most tokens, with predicted and measured
        times of one cycle; and the steps and tokens of every way since the pipeline began.
        """
        records = self._records
        last = self._last or self.current
        most = max(records, key=lambda way: records[way].tokens, default=last)
        return {
            **self._way_json(last),
            "most": self._way_json(most),
            "steps": {str(way): record.steps for way, record in records.items()},
            "tokens": {str(way): record.tokens for way, record in records.items()},
        }

    def _way_json(self, way: Candidate) -> dict[str, Any]:
        record = self._records.get(way, _Record())
        return {
            "mode": way.mode.value,
            "groups": way.groups,
            "predicted_cycle_us": _micros(record.predicted_s),
            "measured_cycle_us": _micros(record.measured_s),
        }


def mean_cached(running: Sequence[Running]) -> float:
    """Mean number of cached tokens."""
    return sum(one.sent for one in running) / len(running) if running else 0.0


def _micros(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)
