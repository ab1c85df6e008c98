"""What the engine and the scheduler owe: nothing kept, nothing miscounted, nobody kept waiting."""

from __future__ import annotations

import gc
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernels.errors import LamellaError
from pipeline.errors import StageError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from tests.pipeline.building import footprint
from tests.pipeline.fake_stage import FakeStage, fake_stages


def pipeline_of(mode: str, **options: object) -> tuple[LlamaPipeline, list[FakeStage]]:
    stages = fake_stages([1, 1], **options)  # type: ignore[arg-type]
    return LlamaPipeline(stages, Placement.even(2, 2, mode=mode), threads=1), stages


def test_a_reset_that_fails_is_told_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, stages = pipeline_of("batch")
    with pipeline:
        pipeline.prefill("a", [1, 2])
        with monkeypatch.context() as patch:
            patch.setattr(stages[1], "reset", lambda: 1 / 0)
            with pytest.raises(StageError, match="stage 1 failed in reset"):
                pipeline.reset()
        with pytest.raises(LamellaError, match=r"reset\(\) makes the pipeline usable again"):
            pipeline.cache_len("a")
        pipeline.reset()
        assert footprint(pipeline) == [({}, 256)] * 2


def test_calls_of_forgotten_streams_are_not_kept() -> None:
    pipeline, _ = pipeline_of("continuous")
    with pipeline:
        for number in range(20):
            next(pipeline.stream([[number], [1]], max_new_tokens=5, stop_token_ids=()))
            gc.collect()
        pipeline.cache_len("any")
        assert len(pipeline.engine._aloft) <= 1
        assert footprint(pipeline) == [({}, 256)] * 2


@pytest.mark.parametrize("mode", ["batch", "continuous", "auto"])
def test_pauses_of_the_reader_are_not_the_pipelines(mode: str) -> None:
    pipeline, _ = pipeline_of(mode, seconds=lambda rows: 0.002)
    with pipeline:
        stream = pipeline.stream([[1], [2], [3]], max_new_tokens=6, stop_token_ids=())
        for number, _ in enumerate(stream):
            if number % 6 == 0:
                time.sleep(0.2)
        seconds = sum(stream.metrics[part]["seconds"] for part in ("prefill", "decode"))
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert seconds < 0.3  # of 0.6 s of pauses, none
    assert decode["total_us_total"] < 300_000


def test_a_release_that_fails_ends_no_other_sequence_where_failures_are_reported() -> None:
    pipeline, stages = pipeline_of("continuous")
    with pipeline:
        stages[1].fail("release", 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = pipeline.generate(
                [[n] for n in range(8)],
                max_new_tokens=3,
                max_batch=2,
                stop_token_ids=(),
                on_error="report",
            )
        assert [done.finish_reason for done in result.completions] == ["length"] * 8
        stages[1].mend()
        pipeline.cache_len("any")
        assert footprint(pipeline) == [({}, 256)] * 2


@pytest.mark.parametrize("mode", ["batch", "continuous"])
def test_a_running_sequence_takes_turns_with_several_long_prompts(mode: str) -> None:
    pipeline, stages = pipeline_of(mode, num_blocks=512)
    with pipeline:
        prompts = [[1], *[[2] * 40] * 4]
        pipeline.generate(prompts, max_new_tokens=20, prefill_chunk=2, stop_token_ids=())
    names = [name for name, _ in stages[0].calls if name != "release"]
    first, last = names.index("decode_tokens"), [n for n, _ in stages[0].calls].index("release")
    between = names[first:last]  # while the short one runs
    chunks = [len(part.split()) for part in " ".join(between).split("decode_tokens")]
    assert first <= 5  # it did not wait for them to come in
    assert len(between) > 20
    assert max(chunks) <= 2


@pytest.mark.parametrize("mode", ["continuous", "auto"])
def test_several_threads_may_generate_at_once(mode: str) -> None:
    pipeline, _ = pipeline_of(mode)
    prompts = [[[n, k] for k in range(6)] for n in range(4)]
    expected = []
    with pipeline:
        expected = [pipeline.generate(p, max_new_tokens=6, stop_token_ids=()) for p in prompts]
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as threads:
                for _ in range(8):
                    runs = [
                        threads.submit(pipeline.generate, p, max_new_tokens=6, stop_token_ids=())
                        for p in prompts
                    ]
                    for run, alone in zip(runs, expected, strict=True):
                        assert run.result().completions == alone.completions
        finally:
            sys.setswitchinterval(switch)
        assert footprint(pipeline) == [({}, 256)] * 2


@pytest.mark.parametrize("mode", ["batch", "continuous"])
def test_a_prompt_that_finds_no_room_is_reported_and_the_others_go_on(mode: str) -> None:
    pipeline, _ = pipeline_of(mode, num_blocks=4)  # of 4 positions
    with pipeline:
        pipeline.prefill("mine", [1] * 5)
        before = footprint(pipeline)
        prompts = [[1], [1] * 9, [2], [3] * 9]
        options = {"max_new_tokens": 4, "stop_token_ids": ()}
        with pipeline.stream(prompts, on_error="report", **options) as stream:
            errors = [event.index for event in stream if event.finish_reason == "error"]
            completions = stream.result().completions
        assert errors == [1, 3]
        reasons = ["length", "error", "length", "error"]
        assert [done.finish_reason for done in completions] == reasons
        assert "prompt 1 does not fit beside the sequences" in str(completions[1].error)
        assert footprint(pipeline) == before
        assert completions[0] == pipeline.generate([[1]], **options).completions[0]
