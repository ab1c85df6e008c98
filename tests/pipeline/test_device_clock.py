"""Times of devices that do their work later than they are asked to."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from model.stage import DecodeRow
from pipeline.device_clock import Clock, CudaClock, HostClock, Mark, clock_of
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from pipeline.work import Answer, Decode
from tests.devices import DEVICE
from tests.pipeline.fake_stage import fake_stages


class LateClock:
    """Marks that say nothing until somebody waits for them: each is 5 ms after the one before."""

    deferred = True

    def __init__(self) -> None:
        self.marks = 0
        self.asked: list[int] = []

    def mark(self) -> Mark:
        self.marks += 1
        return self.marks

    def ns(self, mark: Mark) -> int:
        assert isinstance(mark, int)
        self.asked.append(mark)
        return mark * 5_000_000


def test_the_host_knows_at_once() -> None:
    clock: Clock = clock_of(torch.device("cpu"))
    assert isinstance(clock, HostClock)
    first, second = clock.mark(), clock.mark()
    assert clock.ns(first) <= clock.ns(second)


@pytest.mark.parametrize("mode", ["batch", "continuous"])
def test_what_a_device_took_is_taken_down_when_it_is_through(mode: str) -> None:
    stages = fake_stages([1, 1])
    with LlamaPipeline(stages, Placement.even(2, 2, mode=mode), threads=1) as pipeline:
        loops = pipeline.engine.line._loops
        clocks = [LateClock(), LateClock()]
        for loop, clock in zip(loops, clocks, strict=True):
            loop.clock = clock
        pipeline.generate([[1], [2]], max_new_tokens=4, stop_token_ids=())
        stats = pipeline.cache_metrics_snapshot()["pipeline_decode"]
        spans = pipeline.timeline().spans
    for clock in clocks:
        assert sorted(clock.asked) == list(range(1, clock.marks + 1))  # every mark, once
    assert stats["stage_us_last"] == [5000, 5000]
    assert stats["logits_us_last"] == 5000
    assert stats["measured"]["busy_us_last"][1] == 10_000
    computed = [span for span in spans if span.stage == 1 and span.track == "compute"]
    assert {span.end_ns - span.start_ns for span in computed if span.rows} == {5_000_000}


def test_busy_spans_are_the_devices_and_do_not_overlap() -> None:
    stages = fake_stages([1, 1])
    with LlamaPipeline(stages, Placement.even(2, 2, mode="batch"), threads=1) as pipeline:
        for loop in pipeline.engine.line._loops:
            loop.clock = LateClock()
        call = pipeline.engine.launch([Decode([DecodeRow("a", 1, 0)], Answer.LOGITS)])
        pipeline.engine.land(call)
    assert [len(trace.busy) for trace in call.traces] == [1, 1]
    assert call.traces[0].busy_ns == 5_000_000
    assert call.traces[0].sent_bytes > 0


class Gpu:
    """A pretend GPU, whose clock gains 10 microseconds a second."""

    def __init__(self) -> None:
        self.host_ns = 10**15
        self.events = 0

    @property
    def ms(self) -> float:
        return self.host_ns * (1 + 1e-5) / 1e6

    def event(self, enable_timing: bool) -> PretendEvent:
        assert enable_timing
        self.events += 1
        return PretendEvent(self)


class PretendEvent:
    """Reached at once; tells time as CUDA does, in float32."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def record(self, stream: object) -> None:
        self.ms = self._gpu.ms

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: PretendEvent) -> float:
        assert other.ms >= self.ms, "CUDA does not promise times below 0"
        return float(torch.tensor(other.ms - self.ms, dtype=torch.float32))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    pretend = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", pretend.event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr("pipeline.device_clock.time.perf_counter_ns", lambda: pretend.host_ns)
    return pretend


def test_marks_stay_sharp_however_long_a_clock_runs(gpu: Gpu) -> None:
    clock = CudaClock(torch.device("cuda", 0))
    for later_s in (0, 1, 100, 86_400, 30 * 86_400):
        gpu.host_ns += later_s * 10**9
        told = []
        for _ in range(3):
            mark, at = clock.mark(), gpu.host_ns
            told.append(clock.ns(mark))
            assert abs(told[-1] - at) < 11_000  # what a second drifts
            gpu.host_ns += 2_000
        assert [1_000 < after - before < 3_000 for before, after in pairwise(told)] == [True] * 2


def test_a_new_anchor_is_rare_and_keeps_marks_in_order(gpu: Gpu) -> None:
    clock = CudaClock(torch.device("cuda", 0))
    marks = []
    for at in range(1_000):
        if at == 500:
            gpu.host_ns += 4_990_000_000
        marks.append(clock.mark())
        gpu.host_ns += 12_123
    told = [clock.ns(mark) for mark in marks]
    assert told == sorted(told)
    assert gpu.events == 1_000 + 2  # anchors at 0 and 5 s


@pytest.mark.skipif(DEVICE != "cuda", reason="needs --device cuda")
def test_a_gpus_marks_are_on_the_hosts_clock() -> None:
    device = torch.device("cuda", 0)
    clock, host = CudaClock(device), HostClock()
    before = host.mark()
    first = clock.mark()
    product = torch.rand(4096, 4096, device=device)
    for _ in range(20):
        product = product @ product
    second = clock.mark()
    torch.cuda.synchronize()
    after = host.mark()
    slack = 1_000_000
    assert before - slack <= clock.ns(first) < clock.ns(second) <= after + slack
