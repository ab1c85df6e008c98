"""Groups of mode continuous keep stages busy that sleep; prompts flow between decode steps."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from pipeline.spans import Span, Track
from tests.pipeline.fake_stage import FakeStage, fake_stages
from tests.pipeline.test_many_requests import continued

JOB_S = 0.02


def sleeping(
    stages: int, mode: str = "continuous", seconds: float = JOB_S, **options: Any
) -> tuple[LlamaPipeline, list[FakeStage]]:
    made = fake_stages([1] * stages)
    for stage in made:
        stage.seconds = lambda rows: seconds
    made[-1].greedy = lambda hidden: hidden[:, 0].long() % 50  # type: ignore[method-assign]
    placement = Placement.even(stages, stages, mode=mode)
    return LlamaPipeline(made, placement, threads=1, **options), made


def decodes(pipeline: LlamaPipeline, stage: int) -> list[Span]:
    """What a stage computed of decode steps, in order."""
    spans = pipeline.timeline().spans
    return [s for s in spans if (s.stage, s.track, s.name) == (stage, Track.COMPUTE, "decode")]


def stops_after(count: int, token: int) -> int:
    """A prompt of one token whose completion has `token` at place `count` first, if any does."""
    return next(
        start for start in range(50) if (said := continued([start], count))[-1] == token
        and token not in said[:-1]
    )  # fmt: skip


@pytest.mark.parametrize("stages", [2, 4])
def test_with_a_group_for_each_stage_the_slowest_stage_never_waits(stages: int) -> None:
    pipeline, _ = sleeping(stages)
    steps = 12
    with pipeline:
        pipeline.generate([[n] for n in range(2 * stages)], max_new_tokens=steps, stop_token_ids=())
        starts = [span.start_ns / 1e9 for span in decodes(pipeline, stages - 1)]
    cycles = [after - before for before, after in zip(starts, starts[stages:], strict=False)]
    cycle = sorted(cycles)[len(cycles) // 2]
    assert cycle >= 0.98 * stages * JOB_S  # G jobs on one stage
    assert cycle <= 1.15 * stages * JOB_S


def test_one_group_takes_the_sum_of_the_stages() -> None:
    pipeline, _ = sleeping(3, groups=1)
    with pipeline:
        pipeline.generate([[1], [2], [3]], max_new_tokens=6, stop_token_ids=())
        starts = [span.start_ns / 1e9 for span in decodes(pipeline, 0)]
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.98 * 3 * JOB_S


def test_a_groups_next_step_waits_for_no_other_group() -> None:
    pipeline, _ = sleeping(3)
    with pipeline:
        pipeline.generate([[n] for n in range(6)], max_new_tokens=6, stop_token_ids=())
        first, last = decodes(pipeline, 0), decodes(pipeline, 2)
    order = [span.job for span in first]
    assert order == [span.job for span in last]
    assert len(order) == 3 * 5
    overlapping = 0
    for number, span in enumerate(first[3:]):
        own = last[number]  # the step before, of the same group
        assert span.start_ns >= own.end_ns
        overlapping += span.start_ns < last[number + 1].end_ns
    assert overlapping > 9  # others were still under way


@pytest.mark.parametrize("mode", ["batch", "overlapped", "continuous"])
@pytest.mark.parametrize("running", [1, 4])
def test_decode_steps_go_on_between_the_chunks_of_a_long_prompt(mode: str, running: int) -> None:
    pipeline, stages = sleeping(3, mode, seconds=0.002)
    prompts = [*([n] for n in range(running)), [1] * 48]  # the last in twelve chunks
    with pipeline:
        result = pipeline.generate(prompts, max_new_tokens=12, prefill_chunk=4, stop_token_ids=())
    assert [done.tokens for done in result.completions] == [continued(p, 12) for p in prompts]
    calls = [name for name, rows in stages[0].calls if (name, rows) != ("prefill_tokens", 1)]
    chunks = [place for place, name in enumerate(calls) if name == "prefill_tokens"]
    assert len(chunks) == 12
    between = calls[chunks[4] : chunks[11]].count("decode_tokens")
    assert between >= 6


def test_prompts_are_let_in_also_where_every_step_ends_a_sequence() -> None:
    pipeline, stages = sleeping(3, "batch", seconds=0.0)
    # Of eight sequences one ends with every step, and another one takes its place at once.
    with pipeline:
        stop = 7
        prompts = [[stops_after(count, stop)] for count in (*range(2, 10), *[9] * 20)]
        result = pipeline.generate(prompts, max_new_tokens=30, max_batch=8, stop_token_ids=[stop])
    assert len(result.completions) == 28
    rows = [rows for name, rows in stages[0].calls if name == "decode_tokens"]
    assert min(rows[:18]) >= 6


def test_a_finished_sequence_is_replaced_while_others_are_under_way() -> None:
    pipeline, stages = sleeping(2, seconds=0.002)
    with pipeline:
        result = pipeline.generate(
            [[n] for n in range(12)], max_new_tokens=4, max_batch=4, stop_token_ids=()
        )
        assert result.metrics["running_max"] == 4
    rows = [rows for name, rows in stages[0].calls if name == "decode_tokens"]
    assert sum(rows) == 12 * 3
    assert max(rows) == 2  # two groups of two


def test_auto_finds_groups_where_prompts_come_in_at_every_step() -> None:
    """No cycle is without a prefill, so that times of stages have to do."""
    seconds = {}
    for mode in ("batch", "continuous", "auto"):
        pipeline, stages = sleeping(2, mode)
        for stage in stages:
            stage.seconds = lambda rows: 0.002 + 0.0005 * rows
        prompts = [[stops_after(2 + n % 8, 7)] for n in range(64)]
        with pipeline:
            for _ in range(2):  # the second run is warm
                start = time.perf_counter()
                pipeline.generate(prompts, max_new_tokens=10, max_batch=16, stop_token_ids=[7])
                seconds[mode] = time.perf_counter() - start
            steps = pipeline.cache_metrics_snapshot()["pipeline_mode"]["steps"]
    assert sum(steps.values()) > 2 * steps["batch"]
    assert seconds["auto"] <= 1.1 * min(seconds["batch"], seconds["continuous"])
