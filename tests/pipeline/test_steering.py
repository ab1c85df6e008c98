"""Steering told of calls whose times a script makes up: what is measured, booked and arranged."""

from __future__ import annotations

from collections import deque

import pytest

from kernels.errors import LamellaError
from model.stopping import StopCondition
from pipeline.auto import AutoMode
from pipeline.candidates import BATCH, Arrangement, Candidate
from pipeline.chores import Release
from pipeline.explanation import Explanation
from pipeline.generation import _NoText
from pipeline.job import Call
from pipeline.modes import LlamaPipelineMode
from pipeline.prompts import Prompt
from pipeline.sequences import Running
from pipeline.steering import Steering, Step

TURNS, TOGETHER = Arrangement.TURNS, Arrangement.TOGETHER
GROUPS = Candidate(LlamaPipelineMode.CONTINUOUS, 2)
ROW_BYTES = 256
ROWS = 16


def sequences(count: int) -> list[Running]:
    watch = StopCondition([], []).watch(_NoText(), 1000)
    return [Running(str(n), Prompt(n, [1], [1]), watch, sent=100) for n in range(count)]


class Script:
    """Two stages of 1 ms a call and 0.1 ms a row, hops between them, and a driver that feeds them.

    Args:
        mode: of the pipeline.
        hop_us: until the second stage has what the first one sent.
        driver_us: from a landing until the next step is sent.
    """

    def __init__(self, mode: str = "auto", hop_us: int = 0, driver_us: int = 0) -> None:
        self.auto = AutoMode(2, ROW_BYTES) if mode == "auto" else None
        self.arranged: list[Arrangement] = []
        self.refused: LamellaError | None = None
        self.steering = Steering(LlamaPipelineMode(mode), 2, self.arrange, auto=self.auto)
        self.steering.begin(self)
        self.hop_ns, self.driver_ns = 1000 * hop_us, 1000 * driver_us
        self.now, self.free = 10**9, [0, 0]
        self.worked = self.landed = 0  # as the scheduler counts: idle times are left out
        self.flights: deque[tuple[Step | None, Call]] = deque()
        self.ways: list[Candidate] = []

    def arrange(self, arrangement: Arrangement) -> None:
        if self.refused is not None:
            raise self.refused
        self.arranged.append(arrangement)

    def run(self, landings: int, rows: int = ROWS, *, churn: bool = False) -> None:
        """Land so many calls. With `churn` a prompt comes in after each of the steps."""
        for _ in range(landings):
            if not self.flights:
                self.feed(rows, churn)
            self.land(rows, churn)

    def feed(self, rows: int, prefill: bool) -> None:
        self.now += self.driver_ns
        way = self.steering.way(sequences(rows))
        self.ways.append(way)
        if prefill:
            self.send(None, 1, 1)
        groups = way.groups if way.mode is LlamaPipelineMode.CONTINUOUS else 1
        while sum(step is not None for step, _ in self.flights) < groups:
            step = self.steering.step(rows // groups)
            self.send(step, step.plan.microbatch_size, step.plan.microbatch_count)

    def send(self, step: Step | None, rows: int, jobs: int) -> None:
        call = Call(2)
        call.sent_ns = self.now
        for job in range(jobs):
            call.job(job, Release(()))
            at = self.now
            for stage, trace in enumerate(call.traces):
                begun = max(at, self.free[stage])
                ended = begun + 1_000_000 + 100_000 * rows
                trace.busy.append((begun, ended))
                self.free[stage], at = ended, ended + self.hop_ns
        self.flights.append((step, call))

    def land(self, rows: int, churn: bool) -> None:
        step, call = self.flights.popleft()
        ended = call.traces[-1].busy[-1][1]
        self.worked += ended - max(self.landed, call.sent_ns)
        self.landed, self.now = ended, max(self.now, ended)
        if step is None:
            self.steering.disturbed(call)
            self.feed(rows, False)
            return
        landing = self.steering.back(step, call, sequences(rows), self.worked, 0)
        self.feed(rows, churn)
        self.steering.landed(landing)


def test_stages_and_hops_are_measured_with_every_step() -> None:
    script = Script(hop_us=40, driver_us=200)
    script.run(3)
    assert script.auto is not None
    costs = script.auto.model.stage_costs(TURNS) or []
    assert [cost.at(ROWS, 100) for cost in costs] == pytest.approx([2.6e-3] * 2, rel=0.01)
    first, back = script.auto.model.hop_costs(TURNS)
    assert first[0] + first[1] * ROWS * ROW_BYTES == pytest.approx(40e-6, rel=0.05)
    assert back[0] + back[1] * ROWS * 8 == pytest.approx(200e-6, rel=0.05)
    (ratio,) = [one.estimate for one in _explained(script).entries if one.estimate.measured_s]
    assert ratio.measured_s == pytest.approx(2 * 2.6e-3 + 240e-6, rel=0.01)
    assert ratio.predicted_s == pytest.approx(ratio.measured_s, rel=0.02)


def test_a_hop_to_a_stage_that_was_busy_is_not_measured() -> None:
    script = Script("auto", hop_us=40)
    assert script.auto is not None
    for _ in range(4):  # the second of two calls waits for the first on both stages
        step = script.steering.step(4)
        for rows in (20, 4):
            script.send(step, rows, 1)
        (_, before), (_, after) = script.flights
        script.steering.disturbed(before)
        script.steering.landed(script.steering.back(step, after, sequences(8), script.now, 0))
        script.flights.clear()
        script.now += 10**9
    assert script.auto.model.hop_costs(TURNS) == [(0.0, 0.0)] * 2


def test_prompts_that_come_in_all_the_time_do_not_keep_groups_from_being_tried() -> None:
    script = Script()
    script.run(400, churn=True)
    assert set(script.ways[-200:]) == {GROUPS}
    steps = script.steering.json()["steps"]
    assert steps["batch"] < 20
    assert script.steering.json()["measured_cycle_us"] is None  # never a cycle of its own
    assert _explained(script).chosen == GROUPS


def test_steps_are_booked_as_they_were_sent() -> None:
    script = Script()
    ways = iter([GROUPS] * 5 + [BATCH] * 10)
    script.steering._chosen = lambda running: next(ways)  # type: ignore[method-assign]
    script.run(8)
    # One group was still under way when batch mode began; its landing made way for a whole step.
    assert script.steering.json()["steps"] == {"continuous 2": 6, "batch": 2}
    assert script.steering.json()["tokens"] == {"continuous 2": 6 * 8, "batch": 2 * 16}
    assert script.arranged == [TOGETHER, TURNS]


def test_the_way_of_most_tokens_is_shown_also_after_a_tail() -> None:
    script = Script()
    script.run(200)
    script.run(6, rows=1)
    shown = script.steering.json()
    assert (shown["mode"], shown["groups"]) == ("batch", 1)
    assert (shown["most"]["mode"], shown["most"]["groups"]) == ("continuous", 2)
    assert shown["most"]["measured_cycle_us"] == pytest.approx(3600, rel=0.01)
    assert shown["most"]["predicted_cycle_us"] == pytest.approx(3600, rel=0.05)
    assert _explained(script).rows > 1


def test_a_trial_ends_with_its_run_and_stages_take_turns_after_it() -> None:
    script = Script()
    while not script.arranged:
        script.run(1)
    assert script.auto is not None
    assert script.auto._trial is not None
    other = object()
    script.steering.begin(other)
    script.steering.end(script)
    assert script.arranged == [TOGETHER]  # the other still runs
    script.steering.end(other)
    script.steering.end(other)
    assert script.arranged == [TOGETHER, TURNS]
    script.steering.begin(script)
    assert script.auto._trial is None
    script.flights.clear()
    script.run(100)
    assert script.ways[-1] == GROUPS


def test_a_pipeline_that_is_closed_stays_as_it_is() -> None:
    script = Script()
    script.run(200)
    assert script.arranged[-1] is TOGETHER
    script.refused = LamellaError("the pipeline is closed")
    script.steering.end(script)
    script.refused = None
    script.steering.end(script)
    assert script.arranged[-1] is TURNS


@pytest.mark.parametrize("mode", ["batch", "overlapped", "continuous"])
def test_other_modes_never_change_anything(mode: str) -> None:
    script = Script(mode)
    script.run(20)
    script.steering.end(script)
    assert script.arranged == []
    assert len(set(script.ways)) == 1
    assert script.steering.json()["most"]["measured_cycle_us"] > 0
    assert script.steering.json()["predicted_cycle_us"] is None


def test_times_that_cannot_be_are_left_out() -> None:
    script = Script()
    script.run(2)
    assert script.auto is not None
    before = script.auto.model.stage_costs(TURNS)
    for busy in ([], [(5, 5)], [(9, 5)]):
        call = Call(2)
        call.job(0, Release(()))
        for trace in call.traces:
            trace.busy.extend(busy)
        step = script.steering.step(ROWS)
        landing = script.steering.back(step, call, sequences(ROWS), script.now, 0)
        script.steering.landed(landing)
        script.steering.landed(landing)  # no time has passed
    assert script.auto.model.stage_costs(TURNS) == before


def _explained(script: Script) -> Explanation:
    assert script.auto is not None
    explanation = script.auto.explain()
    assert explanation is not None
    return explanation
