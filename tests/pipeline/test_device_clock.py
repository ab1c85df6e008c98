"""Times of devices that do their work later than they are asked to."""

from __future__ import annotations

import pytest
import torch

from pipeline.device_clock import Clock, CudaClock, HostClock, Mark, clock_of
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
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
