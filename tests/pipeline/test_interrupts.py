"""Ctrl-C while the driver waits: the call is undone, the error goes on, nothing hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from kernels.errors import LamellaError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.building import footprint, workers_of
from tests.pipeline.fake_stage import FakeStage, fake_logits, fake_stages

Work = Callable[[LlamaPipeline], object]

CALLS: dict[str, Work] = {
    "prefill": lambda p: p.prefill("a", list(range(20))),
    "decode": lambda p: p.decode("a", 1, 3),
    "decode of many": lambda p: p.decode_batch([(f"s{row}", 1, 0) for row in range(24)]),
    "greedy": lambda p: p.decode_greedy([(f"s{row}", 1, 0) for row in range(24)]),
    "score": lambda p: p.score([1, 2, 3]),
    "prepare": lambda p: p.prepare("fresh", 20),
}


@contextmanager
def interrupts(*seconds: float) -> Iterator[None]:
    """Ctrl-C in the main thread after so many seconds from now, each."""
    timers = [threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)) for delay in seconds]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()


@pytest.fixture(params=["batch", "overlapped", "continuous"])
def slow(request: pytest.FixtureRequest) -> Iterator[tuple[LlamaPipeline, list[FakeStage]]]:
    stages = fake_stages([1, 1, 1])
    placement = Placement.even(3, 3, mode=request.param)
    with LlamaPipeline(stages, placement, threads=1) as pipeline:
        pipeline.prefill("a", [1, 2, 3])
        for stage in stages:
            stage.seconds = lambda rows: 0.06
        yield pipeline, stages
        for stage in stages:
            stage.seconds = None


def slow_chores(stages: list[FakeStage]) -> None:
    for stage in stages:
        stage.chore_seconds = 0.06


def assert_all_well(pipeline: LlamaPipeline, stages: list[FakeStage]) -> None:
    for stage in stages:
        stage.seconds, stage.chore_seconds = None, 0.0
    assert torch.equal(pipeline.decode("a", 4, 3), fake_logits([1, 2, 3, 4], 3))
    logits = pipeline.decode_batch([(f"s{row}", row, 0) for row in range(24)])
    assert torch.equal(logits, torch.stack([fake_logits([row], 3) for row in range(24)]))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("delay", [0.02, 0.09])
def test_an_interrupted_call_is_undone(
    name: str, delay: float, slow: tuple[LlamaPipeline, list[FakeStage]]
) -> None:
    pipeline, stages = slow
    if name == "prepare":
        slow_chores(stages)
        delay = 0.02  # its stages work at the same time
    before = footprint(pipeline)
    with pytest.raises(KeyboardInterrupt), interrupts(delay):
        CALLS[name](pipeline)
    assert footprint(pipeline) == before
    assert_all_well(pipeline, stages)


@pytest.mark.parametrize("name", ["prefill", "decode of many", "prepare"])
def test_a_second_interrupt_leaves_the_undoing_to_the_next_call(
    name: str, slow: tuple[LlamaPipeline, list[FakeStage]]
) -> None:
    pipeline, stages = slow
    if name == "prepare":
        slow_chores(stages)
    before = footprint(pipeline)
    with pytest.raises(KeyboardInterrupt), interrupts(0.02, 0.04):
        CALLS[name](pipeline)
    assert pipeline._engine._unfinished is not None
    assert pipeline.cache_len("a") == 3  # any call settles first
    assert footprint(pipeline) == before
    assert_all_well(pipeline, stages)


@pytest.mark.parametrize("operation", ["truncate", "release"])
def test_an_interrupted_truncate_or_release_is_finished_by_the_next_call(
    operation: str, slow: tuple[LlamaPipeline, list[FakeStage]]
) -> None:
    pipeline, stages = slow
    slow_chores(stages)
    with pytest.raises(KeyboardInterrupt), interrupts(0.02):
        pipeline.truncate_kv("a", 1) if operation == "truncate" else pipeline.release("a")
    kept = 1 if operation == "truncate" else 0
    assert pipeline.cache_len("a") == kept
    assert [stage.cache_len("a") for stage in stages] == [kept] * 3


def test_close_in_the_middle_of_undoing_does_not_hang(
    slow: tuple[LlamaPipeline, list[FakeStage]],
) -> None:
    pipeline, _ = slow
    with pytest.raises(KeyboardInterrupt), interrupts(0.02, 0.04):
        pipeline.decode("a", 1, 3)
    start = time.perf_counter()
    pipeline.close()
    assert time.perf_counter() - start < 1


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("name", CALLS)
def test_close_from_a_signal_handler_ends_the_call_under_way(
    name: str, slow: tuple[LlamaPipeline, list[FakeStage]]
) -> None:
    pipeline, stages = slow
    if name == "prepare":
        slow_chores(stages)
    before = footprint(pipeline)
    workers = workers_of(pipeline)

    def close_twice(*_: object) -> None:
        pipeline.close()
        pipeline.close()

    former = signal.signal(signal.SIGALRM, close_twice)
    start = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        if name == "prepare":  # has nothing to stop: it comes to its end
            CALLS[name](pipeline)
        else:
            with pytest.raises(LamellaError, match="closed during the call"):
                CALLS[name](pipeline)
            assert footprint(pipeline) == before
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert time.perf_counter() - start < 2
    assert not any(worker.alive for worker in workers)
    with pytest.raises(LamellaError, match="the pipeline is closed"):
        pipeline.cache_len("a")


def test_an_interrupted_generate_releases_its_sequences(
    slow: tuple[LlamaPipeline, list[FakeStage]],
) -> None:
    pipeline, stages = slow
    for stage in stages:
        stage.seconds = lambda rows: 0.01
    before = footprint(pipeline)
    with pytest.raises(KeyboardInterrupt), interrupts(0.3):
        pipeline.generate([[1, 2]] * 20, max_new_tokens=40, stop_token_ids=())
    pipeline.cache_len("a")
    assert footprint(pipeline) == before
    assert_all_well(pipeline, stages)
