"""How batches are cut, and that the stages really work at the same time."""

from __future__ import annotations

import time

import pytest
import torch

from pipeline.errors import StageError
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.modes import LlamaPipelineMode
from pipeline.placement import Placement
from pipeline.schedule import Plan, plan_decode
from tests.pipeline.building import workers_of
from tests.pipeline.fake_stage import fake_logits, fake_stages

BATCH, OVERLAPPED = LlamaPipelineMode.BATCH, LlamaPipelineMode.OVERLAPPED


@pytest.mark.parametrize("rows", [1, 15, 16, 1000])
def test_batch_mode_keeps_batches_whole(rows: int) -> None:
    assert plan_decode(BATCH, 3, rows) == Plan(rows, 1, in_flight_stages=1, queue_depth=0)


@pytest.mark.parametrize("stages", [2, 3, 20])
@pytest.mark.parametrize("rows", [1, 2, 15])
def test_small_batches_stay_whole_in_overlapped_mode(stages: int, rows: int) -> None:
    plan = plan_decode(OVERLAPPED, stages, rows)
    assert plan == Plan(rows, 1, in_flight_stages=1, queue_depth=0)
    assert not plan.overlapped


@pytest.mark.parametrize(
    ("stages", "rows", "size", "count", "in_flight"),
    [
        (2, 16, 8, 2, 2),
        (2, 17, 9, 2, 2),
        (3, 16, 6, 3, 3),
        (3, 64, 22, 3, 3),
        (5, 16, 4, 4, 4),  # microbatches of 4 rows: only four of them, for five stages
        (8, 17, 3, 6, 6),
        (40, 20, 1, 20, 20),
    ],
)
def test_overlapped_batches_are_cut_into_as_many_pieces_as_stages(
    stages: int, rows: int, size: int, count: int, in_flight: int
) -> None:
    plan = plan_decode(OVERLAPPED, stages, rows)
    assert plan == Plan(size, count, in_flight_stages=in_flight, queue_depth=1)
    pieces = plan.slices(rows)
    assert len(pieces) == count
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))


def pipeline_of(
    stages: int, mode: LlamaPipelineMode, seconds_per_row: float = 0.0
) -> LlamaPipeline:
    delay = None if seconds_per_row == 0 else lambda rows: seconds_per_row * rows
    fakes = fake_stages([2] * stages, seconds=delay)
    return LlamaPipeline(fakes, Placement.even(2 * stages, stages, mode=mode), threads=1)


def decode_once(pipeline: LlamaPipeline, rows: int) -> float:
    """Seconds of one decode of new sequences."""
    batch = [(f"s{row}", row % 50, 0) for row in range(rows)]
    start = time.perf_counter()
    pipeline.decode_greedy(batch)
    return time.perf_counter() - start


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("mode", [BATCH, OVERLAPPED])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40])
def test_rows_come_back_in_order(stages: int, mode: LlamaPipelineMode, rows: int) -> None:
    with pipeline_of(stages, mode) as pipeline:
        for row in range(rows):
            pipeline.prefill(f"s{row}", list(range(1 + row % 3)))
        batch = [(f"s{row}", row % 50, 1 + row % 3) for row in range(rows)]
        logits = pipeline.decode_batch(batch, full_logits=True)
        expected = [fake_logits([*range(1 + row % 3), row % 50], 2 * stages) for row in range(rows)]
        assert torch.equal(logits, torch.stack(expected))


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_overlap_takes_the_time_that_arithmetic_predicts(stages: int) -> None:
    rows, per_row = 24, 0.002
    with pipeline_of(stages, OVERLAPPED, per_row) as pipeline:
        seconds = decode_once(pipeline, rows)
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    # S stages, S microbatches, and the head once more for each microbatch at the end.
    micro = rows / stages * per_row
    ideal = (2 * stages - 1) * micro + stages * micro
    in_turn = (stages + 1) * rows * per_row
    assert ideal * 0.95 < seconds < min(1.3 * ideal, 0.97 * in_turn)
    measured = decode["measured"]
    assert measured["stages_busy_max"] == stages
    assert 0 < measured["all_busy_share"] < 1
    assert 0 < measured["bubble_share"] < 0.7
    assert all(idle > 0 for idle in measured["idle_us_last"])


def test_batch_mode_has_one_stage_busy_at_a_time() -> None:
    with pipeline_of(3, BATCH, 0.001) as pipeline:
        decode_once(pipeline, 20)
        measured = pipeline.cache_metrics_snapshot()["pipeline_decode"]["measured"]
    assert measured["stages_busy_max"] == 1
    assert measured["all_busy_share"] == 0
    assert measured["bubble_share"] > 0.6


@pytest.mark.parametrize("shared", [False, True])
def test_batch_mode_works_with_one_worker_or_several(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.threads.SHARE_WORKER_IN_TURNS", shared)
    with pipeline_of(3, BATCH) as pipeline:
        assert len(workers_of(pipeline)) == (1 if shared else 3)
        pipeline.stages[1].fail("decode_hidden", 1)
        for row in range(2):
            pipeline.prefill(f"s{row}", [1, 2, row])
        decode = [("s0", 4, 3), ("s1", 5, 3)]
        pipeline.decode_batch([("other", 1, 0)])
        with pytest.raises(StageError, match="stage 1 failed in decode_hidden"):
            pipeline.decode_batch(decode)
        pipeline.stages[1].mend()
        expected = [fake_logits([1, 2, row, 4 + row], 6) for row in range(2)]
        assert torch.equal(pipeline.decode_batch(decode), torch.stack(expected))


def test_every_stage_works_in_its_own_thread_with_its_own_count() -> None:
    stages = fake_stages([1, 1, 1])
    placement = Placement.even(3, 3, mode=OVERLAPPED)
    with LlamaPipeline(stages, placement, threads=[1, 3, 2]) as pipeline:
        decode_once(pipeline, 16)
        pipeline.prefill("a", [1])
        pipeline.truncate_kv("a", 0)
        pipeline.release("a")
    seen = [stage.threads_seen for stage in stages]
    assert seen == [
        {("lamella-stage-0", 1, True)},
        {("lamella-stage-1", 3, True)},
        {("lamella-stage-2", 2, True)},
    ]


def test_no_thread_is_made_per_call() -> None:
    with pipeline_of(2, OVERLAPPED) as pipeline:
        decode_once(pipeline, 16)
        threads = {worker._thread.ident for worker in workers_of(pipeline)}
        for _ in range(5):
            pipeline.reset()
            decode_once(pipeline, 32)
        assert {worker._thread.ident for worker in workers_of(pipeline)} == threads
