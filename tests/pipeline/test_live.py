"""Live figures are those of the last seconds, and of nothing else."""

from __future__ import annotations

import json
import time

import pytest

from kernels.errors import InvalidInputError
from pipeline.live import MOST_SPANS, LiveMetrics
from pipeline.timeline import Recorder, Track

C, S, W = Track.COMPUTE, Track.SEND, Track.WAIT
MS = 1_000_000


def second_of_work(recorder: Recorder, start: int) -> None:
    """Each 100 ms a step of 8 rows: 60 on stage 0, 10 of sending, 30 on stage 1 beside the next."""
    for step in range(10):
        at = start + 100 * MS * step
        recorder.record(0, C, at, at + 60 * MS, step, "decode", 8)
        recorder.record(0, S, at + 60 * MS, at + 70 * MS, step, "decode", 8)
        recorder.record(1, W, at, at + 70 * MS, step, "decode", 8)
        recorder.record(1, C, at + 70 * MS, at + 90 * MS, step, "decode", 8)
        recorder.record(1, C, at + 90 * MS, at + 100 * MS, step, "greedy", 8)


def test_figures() -> None:
    recorder = Recorder(2)
    second_of_work(recorder, 5_000 * MS)
    live = LiveMetrics(recorder, clock=lambda: 6_010 * MS).json()
    assert json.loads(json.dumps(live)) == live
    assert live == {
        "window_s": pytest.approx(1.0),  # the pipeline is no older
        "bubble_share": pytest.approx(0.5),
        "all_busy_share": 0,
        "effective_groups": pytest.approx(1.0),
        "stage_busy_share": pytest.approx([0.7, 0.3]),
        "stage_wait_share": pytest.approx([0, 0.7]),
        "decode_tokens_per_s": pytest.approx(80),  # the last stage's, the head not counted again
        "prefill_tokens_per_s": 0,
        "stage_busy_s_total": pytest.approx([0.7, 0.3]),
        "stage_wait_s_total": pytest.approx([0, 0.7]),
    }


def test_the_window_forgets_but_totals_do_not() -> None:
    recorder = Recorder(2)
    recorder.record(1, C, 1_000 * MS, 1_900 * MS, 0, "prefill", 900)
    second_of_work(recorder, 5_000 * MS)
    live = LiveMetrics(recorder, window_s=2.0, clock=lambda: 6_000 * MS).json()
    assert live["window_s"] == pytest.approx(2.0)
    assert live["stage_busy_share"] == pytest.approx([0.35, 0.15])
    assert live["decode_tokens_per_s"] == pytest.approx(40)
    assert live["prefill_tokens_per_s"] == 0
    assert live["stage_busy_s_total"] == pytest.approx([0.7, 1.2])


def test_prefill_is_told_apart() -> None:
    recorder = Recorder(2)
    recorder.record(0, C, 0, 500 * MS, 0, "prefill", 300)
    recorder.record(1, C, 500 * MS, 1_000 * MS, 0, "prefill", 300)
    live = LiveMetrics(recorder, clock=lambda: 1_000 * MS).json()
    assert live["prefill_tokens_per_s"] == pytest.approx(300)
    assert live["decode_tokens_per_s"] == 0


@pytest.mark.parametrize("now", [7_999, 8_000, 60_000])
def test_no_figures_of_an_idle_pipeline(now: int) -> None:
    recorder = Recorder(2)
    second_of_work(recorder, 5_000 * MS)
    recorder.record(0, W, 7_000 * MS, 59_999 * MS, 99, "decode", 8)  # waiting is not work
    metrics = LiveMetrics(recorder, window_s=2.0, clock=lambda: now * MS)
    live = metrics.json()
    idle = now >= 8_000
    assert (metrics.window() is None) == idle
    assert all((live[name] is None) == idle for name in live if not name.endswith("_total"))
    assert live["stage_busy_s_total"] == pytest.approx([0.7, 0.3])


def test_nothing_yet() -> None:
    live = LiveMetrics(Recorder(2)).json()
    assert live["bubble_share"] is None
    assert live["stage_busy_s_total"] == [0, 0]


def test_quick_stages_have_a_shorter_window() -> None:
    recorder = Recorder(2)
    for at in range(20_000):
        recorder.record(0, C, at * 1000, at * 1000 + 900, at, "decode", 1)
    recorder.record(1, C, 0, 20_000_000, 0, "decode", 1)
    metrics = LiveMetrics(recorder, clock=lambda: 20_000_000)
    window = metrics.window()
    assert window is not None
    assert len(window.spans) == MOST_SPANS + 1
    assert window.busy_share == pytest.approx([0.9, 1], abs=1e-3)  # not of what was not looked at


def test_the_clock_is_the_recorders() -> None:
    recorder = Recorder(1)
    now = time.perf_counter_ns()
    recorder.record(0, C, now - 1000, now, 0, "decode", 1)
    assert LiveMetrics(recorder).json()["bubble_share"] == 0


@pytest.mark.parametrize("window_s", [0, -1, float("nan")])
def test_windows_of_no_length(window_s: float) -> None:
    with pytest.raises(InvalidInputError, match="seconds above 0"):
        LiveMetrics(Recorder(1), window_s)
