"""Decode statistics: the origin's keys, their meaning, and what is measured beside them."""

from __future__ import annotations

import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bridges.host import HostCopier
from pipeline.bridges.link import BridgeTiming
from pipeline.llama_pipeline import LlamaPipeline
from pipeline.placement import Placement
from pipeline.schedule import Plan
from pipeline.stats import DecodeCall, DecodeStats, micros
from pipeline.trace import ConcurrencyMeter, Span, StageTrace, concurrency
from tests.pipeline.building import parity_pipeline
from tests.pipeline.fake_stage import HIDDEN, fake_stages


def trace(
    stage_ns: int, busy: list[Span], logits_ns: int = 0, sent: int = 0, bridge_ns: int = 0
) -> StageTrace:
    return StageTrace(stage_ns, logits_ns, sent, BridgeTiming(bridge_ns, bridge_ns // 2, 1), busy)


def call(rows: int, plan: Plan) -> DecodeCall:
    first = trace(5_000, [(0, 5_000)], sent=rows * 32, bridge_ns=1_500)
    last = trace(3_001, [(4_000, 8_001)], logits_ns=1_000, bridge_ns=500)
    return DecodeCall(rows, plan, [first, last], total_ns=10_000)


WHOLE = Plan(3, 1, in_flight_stages=1, queue_depth=0)
CUT = Plan(8, 2, in_flight_stages=2, queue_depth=1)


# Every key of the origin's `PipelineDecodeStats::json`, in its order, after call(16, CUT) and
# call(3, WHOLE).
TWO_CALLS = {
    "calls": 2,
    "overlapped_calls": 1,
    "rows": 19,
    "max_batch": 16,
    "last_batch": 3,
    "microbatch_count_max": 2,
    "microbatch_count_last": 1,
    "microbatch_size_max": 8,
    "microbatch_size_last": 3,
    "in_flight_stage_count_max": 2,
    "in_flight_stage_count_last": 1,
    "queue_depth_max": 1,
    "queue_depth_last": 0,
    "host_bridge_bytes_total": 19 * 32,
    "host_bridge_bytes_last": 3 * 32,
    "host_bridge_bytes_avg": 19 * 32 // 2,
    "bridge_us_total": 4,
    "bridge_us_last": 2,
    "bridge_us_avg": 2,
    "host_copy_us_total": 2,
    "host_copy_us_last": 1,
    "host_copy_us_avg": 1,
    "device_copy_us_total": 1,
    "device_copy_us_last": 1,
    "device_copy_us_avg": 1,
    "stage_us_total": [10, 7],
    "stage_us_last": [5, 4],
    "stage_us_avg": [5, 4],
    "logits_us_total": 2,
    "logits_us_last": 1,
    "logits_us_avg": 1,
    "total_us_total": 20,
    "total_us_last": 10,
    "total_us_avg": 10,
}


def test_keys_are_the_origins_and_measured() -> None:
    stats = DecodeStats(2).json()
    assert list(stats) == [*TWO_CALLS, "measured"]


def test_nothing_is_known_before_the_first_call() -> None:
    stats = DecodeStats(2).json()
    assert stats["calls"] == 0
    assert stats["stage_us_total"] == [0, 0]
    assert stats["stage_us_avg"] == [None, None]
    assert all(stats[key] is None for key in stats if key.endswith("_us_avg") and key[0] != "s")
    assert stats["measured"]["bubble_share"] is None
    json.dumps(stats)


def test_calls_add_up() -> None:
    stats = DecodeStats(2)
    stats.record(call(16, CUT))
    stats.record(call(3, WHOLE))
    got = stats.json()
    assert {key: got[key] for key in TWO_CALLS} == TWO_CALLS
    assert got["measured"] == {
        "stages_busy_max": 2,
        "stages_busy_max_last": 2,
        "all_busy_share": pytest.approx(0.1),
        "all_busy_share_last": pytest.approx(0.1),
        "busy_us_total": [10, 9],
        "busy_us_last": [5, 5],
        "idle_us_total": [10, 12],
        "idle_us_last": [5, 6],
        "bubble_share": pytest.approx(1 - 9_001 / 20_000),
        "bubble_share_last": pytest.approx(1 - 9_001 / 20_000),
    }


@pytest.mark.parametrize(
    ("nanoseconds", "expected"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)]
)
def test_microseconds_are_rounded_up(nanoseconds: int, expected: int) -> None:
    assert micros(nanoseconds) == expected


@pytest.mark.parametrize(
    ("spans", "most", "all_busy"),
    [
        ([[(0, 10)], [(10, 20)]], 1, 0),  # touching is not overlapping
        ([[(0, 10)], [(4, 6)]], 2, 2),
        ([[(0, 4), (6, 10)], [(2, 8)]], 2, 4),
        ([[(0, 10)], [(0, 10)], []], 2, 0),
        ([[(0, 9)], [(3, 12)], [(6, 15)]], 3, 3),
        ([[(0, 10)]], 1, 10),
        ([[], []], 0, 0),
    ],
)
def test_concurrency_is_swept_from_spans(spans: list[list[Span]], most: int, all_busy: int) -> None:
    measured = concurrency([trace(0, busy) for busy in spans])
    assert (measured.stages_busy_max, measured.all_busy_ns) == (most, all_busy)


def test_the_snapshot_has_the_origins_keys() -> None:
    with parity_pipeline() as pipeline:
        snapshot = pipeline.cache_metrics_snapshot()
    decode = snapshot.pop("pipeline_decode")
    assert set(decode) == {*TWO_CALLS, "measured"}
    json.dumps([snapshot.pop("pipeline_mode"), snapshot.pop("pipeline_live")])
    assert snapshot.pop("kv_free_blocks") == [32, 32]
    assert snapshot == {
        "position": "llama-layer-split-pipeline",
        "stage_count": 2,
        "stage_device_ordinals": [None, None],
        "transport": "host-hidden-bridge",
        "selected_pipeline_mode": "overlapped",
        "selected_stage_bridge": "host",
        "pipeline_hidden": {"dtype": "f32", "device": "host", "layout": "row_major"},
    }
    json.dumps(decode)


@pytest.mark.parametrize("mode", ["batch", "overlapped"])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_bytes_over_the_bridge_are_rows_by_hidden_per_boundary(mode: str, rows: int) -> None:
    placement = Placement.even(3, 3, mode=mode)
    with LlamaPipeline(fake_stages([1, 1, 1]), placement, threads=1) as pipeline:
        pipeline.decode_batch([(f"s{row}", 1, 0) for row in range(rows)], full_logits=True)
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert decode["host_bridge_bytes_last"] == rows * HIDDEN * 4 * 2
    assert decode["bridge_us_last"] >= decode["host_copy_us_last"] > 0


def test_stage_times_cover_compute_and_total_covers_everything() -> None:
    stages = fake_stages([1, 1], seconds=lambda rows: 0.01)
    with LlamaPipeline(stages, Placement.even(2, 2, mode="batch"), threads=1) as pipeline:
        pipeline.decode("a", 1, 0)
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    parts = [*decode["stage_us_last"], decode["logits_us_last"]]
    assert all(part >= 10_000 for part in parts)
    assert sum(parts) <= decode["total_us_last"]
    assert decode["bridge_us_last"] < 10_000  # waiting for the other stage is not part of it


def test_receiving_is_part_of_the_stages_time_and_sending_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_us = 20_000
    read, write = HostCopier.read, HostCopier.write

    def slow_read(copier: HostCopier, slot: int, rows: int) -> tuple[torch.Tensor, BridgeTiming]:
        time.sleep(slow_us / 1e6)
        hidden, timing = read(copier, slot, rows)
        return hidden, timing + BridgeTiming(slow_us * 1000)

    def slow_write(copier: HostCopier, slot: int, hidden: torch.Tensor) -> BridgeTiming:
        time.sleep(3 * slow_us / 1e6)
        slept = 3 * slow_us * 1000
        return write(copier, slot, hidden) + BridgeTiming(slept, host_copy_ns=slept)

    placement = Placement.even(2, 2, mode="batch")
    with LlamaPipeline(fake_stages([1, 1]), placement, threads=1) as pipeline:
        monkeypatch.setattr(HostCopier, "read", slow_read)
        monkeypatch.setattr(HostCopier, "write", slow_write)
        pipeline.decode("a", 1, 0)
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert decode["stage_us_last"][0] < 3 * slow_us
    assert slow_us <= decode["stage_us_last"][1] < 3 * slow_us
    assert decode["host_copy_us_last"] >= 3 * slow_us
    assert decode["bridge_us_last"] >= 4 * slow_us
    assert all(busy >= slow_us for busy in decode["measured"]["busy_us_last"])


def test_what_is_no_decode_call_is_not_counted() -> None:
    with parity_pipeline() as pipeline:
        pipeline.prefill("a", [1, 2])
        pipeline.score([1, 2, 3])
        pipeline.prepare("b", 4)
        assert pipeline.decode_batch([]).shape == (0, 7)
        assert pipeline.decode_greedy([]).shape == (0,)
        with pytest.raises(ValueError, match="position must be 2"):
            pipeline.decode("a", 1, 0)
        assert pipeline.cache_metrics_snapshot()["pipeline_decode"]["calls"] == 0
        pipeline.decode_batch([("a", 1, 2)])
        pipeline.decode_greedy([("a", 1, 3)])
        decode = pipeline.cache_metrics_snapshot()["pipeline_decode"]
    assert (decode["calls"], decode["rows"], decode["max_batch"]) == (2, 2, 1)


@given(
    lanes=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=6, max_size=6),
        min_size=1,
        max_size=3,
    )
)
def test_calls_under_way_at_once_are_swept_together(lanes: list[list[tuple[int, int]]]) -> None:
    """Whatever the calls' spans, their sum is that of one sweep up to the last known moment."""
    spans: list[list[Span]] = []
    for gaps in lanes:
        at, lane = 0, []
        for gap, length in gaps:
            lane.append((at + gap, at + gap + length))
            at += gap + length
        spans.append(lane)
    meter = ConcurrencyMeter(len(lanes))
    parts = [meter.add([trace(0, [lane[call]]) for lane in spans]) for call in range(6)]
    known = min(lane[-1][1] for lane in spans)
    whole = concurrency(
        [trace(0, [(s, min(e, known)) for s, e in lane if s < known]) for lane in spans]
    )
    assert sum(part.all_busy_ns for part in parts) == whole.all_busy_ns
    assert max(part.stages_busy_max for part in parts) == whole.stages_busy_max
