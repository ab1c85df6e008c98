"""Pipelines end cleanly: no threads stay, `close` never hangs, and `repr` is of use."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest
import torch

from kernels.errors import LamellaError
from pipeline.errors import StageError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.building import footprint, parity_pipeline
from tests.pipeline.fake_stage import fake_stages


def stage_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lamella-stage")}


@pytest.fixture(autouse=True)
def no_leak():
    gc.collect()
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_closing_ends_the_threads() -> None:
    pipeline = parity_pipeline()
    assert len(stage_threads()) == 2
    pipeline.prefill("a", [1])
    pipeline.close()
    assert stage_threads() == set()
    pipeline.close()  # again is fine


def test_the_context_closes_also_after_an_error() -> None:
    def fail() -> None:
        with parity_pipeline() as pipeline:
            pipeline.prefill("a", [1])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert stage_threads() == set()


def test_a_forgotten_pipeline_ends_its_threads() -> None:
    pipeline = parity_pipeline()
    pipeline.decode_batch([(f"s{row}", 1, 0) for row in range(20)])
    gone = weakref.ref(pipeline)
    del pipeline
    gc.collect()
    assert gone() is None
    assert stage_threads() == set()


def test_a_pipeline_forgotten_after_a_failure_ends_its_threads() -> None:
    stages = fake_stages([1, 1])
    pipeline = LlamaPipeline(stages, threads=1)
    stages[1].fail("decode_hidden")
    with pytest.raises(StageError):
        pipeline.decode("a", 1, 0)
    del pipeline
    gc.collect()
    assert stage_threads() == set()


def test_closing_from_another_thread_ends_the_call_under_way() -> None:
    stages = fake_stages([1, 1, 1], seconds=lambda rows: 0.03)
    pipeline = LlamaPipeline(stages, Placement.even(3, 3, mode="overlapped"), threads=1)
    timer = threading.Timer(0.02, pipeline.close)
    timer.start()

    def decode_on() -> None:
        for position in range(60):
            pipeline.decode_batch([(f"s{row}", 1, position) for row in range(30)])

    with pytest.raises(LamellaError, match="closed"):
        decode_on()
    timer.join()
    assert stage_threads() == set()
    lengths, free = zip(*footprint(pipeline), strict=True)  # undone there too
    assert lengths[0] == lengths[1] == lengths[2]
    assert len(set(free)) == 1


def test_close_gives_up_on_work_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = fake_stages([1, 1])
    pipeline = LlamaPipeline(stages, Placement.even(2, 2), threads=1)
    release = threading.Event()
    pipeline._engine.line._crew.submit(1, release.wait)
    crew_close = type(pipeline._engine.line._crew).close
    monkeypatch.setattr(
        type(pipeline._engine.line._crew),
        "close",
        lambda crew, timeout=0.05: crew_close(crew, timeout),
    )
    start = time.perf_counter()
    with pytest.warns(ResourceWarning, match=r"still at work after close: \['lamella-stage-1'\]"):
        pipeline.close()
    assert time.perf_counter() - start < 2
    release.set()
    for thread in stage_threads():
        thread.join(5)


def test_calls_from_many_threads_run_one_at_a_time() -> None:
    with parity_pipeline(max_seq_len=16) as pipeline, parity_pipeline() as alone:
        expected = [alone.prefill(f"x{n}", [n % 7, 3, 5]) for n in range(8)]
        expected_after = [alone.decode(f"x{n}", 2, 3) for n in range(8)]
        got: dict[int, list[torch.Tensor]] = {}

        def work(number: int) -> None:
            first = pipeline.prefill(f"t{number}", [number % 7, 3, 5])
            got[number] = [first, pipeline.decode(f"t{number}", 2, 3)]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(8):
        assert torch.equal(got[number][0], expected[number])
        assert torch.equal(got[number][1], expected_after[number])


def test_a_call_within_a_call_of_the_same_thread_is_refused() -> None:
    message = "in the middle of another call of this thread"
    with (
        parity_pipeline() as pipeline,
        pipeline._engine._ready(),
        pytest.raises(LamellaError, match=message),
    ):
        pipeline.cache_len("a")


def test_results_belong_to_the_caller() -> None:
    with parity_pipeline() as pipeline:
        logits = pipeline.decode_batch([("a", 1, 0), ("b", 2, 0)])
        kept = logits.clone()
        assert not logits.is_inference()
        logits.requires_grad_().sum().backward()
        with torch.no_grad():
            logits.zero_()
        pipeline.release("a")
        assert torch.equal(pipeline.decode("a", 1, 0), kept[0])
        assert not pipeline.prefill("c", [1]).is_inference()
        assert not pipeline.decode_greedy([("d", 1, 0)]).is_inference()


def test_repr_tells_what_it_is() -> None:
    with parity_pipeline() as pipeline:
        assert repr(pipeline) == (
            "LlamaPipeline(stages=2, mode=overlapped, bridge=host, impl=cpu, threads=[1, 1], "
            "placement='stage0:cpu:layers=0-0;stage1:cpu:layers=1-2')"
        )
    assert repr(pipeline).endswith(", closed)")


def test_a_closed_pipeline_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with parity_pipeline():
            pass


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(0)", "del pipeline"])
def test_the_interpreter_exits_with_a_pipeline_open(ending: str) -> None:
    program = (
        "from tests.pipeline.building import parity_pipeline\n"
        "pipeline = parity_pipeline()\n"
        "pipeline.prefill('a', [1])\n"
        f"{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_the_package_is_light() -> None:
    program = "import sys, pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_every_public_name_resolves() -> None:
    import pipeline

    for name in pipeline.__all__:
        assert getattr(pipeline, name).__name__ == name
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="has no attribute 'Rope'"):
        pipeline.Rope  # noqa: B018
