"""Counts and times of decode calls: the origin's metrics by the same names, and measured ones.

Times are kept in nanoseconds and given in microseconds rounded up, so that nothing that was
measured reads as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.bridges.link import BridgeTiming
from pipeline.schedule import Plan
from pipeline.trace import ConcurrencyMeter, StageTrace, concurrency


def micros(nanoseconds: int) -> int:
    """Microseconds, rounded up."""
    return -(-nanoseconds // 1000)


@dataclass(frozen=True)
class DecodeCall:
    """One decode call: what was planned, and what it cost in nanoseconds.

    Of steps that are in flight at the same time, `total_ns` is what each added to the time of all:
    from the landing of the one before it.
    """

    rows: int
    plan: Plan
    traces: Sequence[StageTrace]
    total_ns: int

    @property
    def host_bridge_bytes(self) -> int:
        """rows * hidden * 4 for every boundary."""
        return sum(trace.sent_bytes for trace in self.traces)

    @property
    def bridge(self) -> BridgeTiming:
        """Hand-over over all boundaries."""
        return sum((trace.bridge for trace in self.traces), BridgeTiming())

    @property
    def stage_ns(self) -> list[int]:
        """Receiving and computing, per stage."""
        return [trace.stage_ns for trace in self.traces]

    @property
    def logits_ns(self) -> int:
        """Final norm and head."""
        return sum(trace.logits_ns for trace in self.traces)


class _Time:
    """A total and a last value in nanoseconds."""

    def __init__(self) -> None:
        self.total = 0
        self.last = 0

    def add(self, nanoseconds: int) -> None:
        self.total += nanoseconds
        self.last = nanoseconds


class _Level:
    """The highest and the last value of something planned."""

    def __init__(self) -> None:
        self.max = 0
        self.last = 0

    def set(self, value: int) -> None:
        self.max = max(self.max, value)
        self.last = value


class DecodeStats:
    """Statistics of all decode calls of a pipeline with `stage_count` stages."""

    def __init__(self, stage_count: int) -> None:
        self.calls = 0
        self.overlapped_calls = 0
        self.rows = 0
        self.batch = _Level()
        self.microbatch_count = _Level()
        self.microbatch_size = _Level()
        self.in_flight_stage_count = _Level()
        self.queue_depth = _Level()
        self.host_bridge_bytes = _Time()
        self.bridge = _Time()
        self.host_copy = _Time()
        self.device_copy = _Time()
        self.stage = [_Time() for _ in range(stage_count)]
        self.logits = _Time()
        self.total = _Time()
        self.busy = [_Time() for _ in range(stage_count)]
        self.all_busy = _Time()
        self.stages_busy = _Level()
        self._meter = ConcurrencyMeter(stage_count)

    def record(self, call: DecodeCall) -> None:
        """Add one call."""
        self.calls += 1
        self.overlapped_calls += call.plan.overlapped
        self.rows += call.rows
        self.batch.set(call.rows)
        self.microbatch_count.set(call.plan.microbatch_count)
        self.microbatch_size.set(call.plan.microbatch_size)
        self.in_flight_stage_count.set(call.plan.in_flight_stages)
        self.queue_depth.set(call.plan.queue_depth)
        self.host_bridge_bytes.add(call.host_bridge_bytes)
        bridge = call.bridge
        self.bridge.add(bridge.bridge_ns)
        self.host_copy.add(bridge.host_copy_ns)
        self.device_copy.add(bridge.device_copy_ns)
        for stage, busy, trace in zip(self.stage, self.busy, call.traces, strict=True):
            stage.add(trace.stage_ns)
            busy.add(trace.busy_ns)
        self.logits.add(call.logits_ns)
        self.total.add(call.total_ns)
        measure = self._meter.add if call.plan.in_flight else concurrency
        measured = measure(call.traces)
        self.stages_busy.set(measured.stages_busy_max)
        self.all_busy.add(measured.all_busy_ns)

    def json(self) -> dict[str, Any]:
        """Every metric; averages are per call, and None before the first."""
        fields: dict[str, Any] = {
            "calls": self.calls,
            "overlapped_calls": self.overlapped_calls,
            "rows": self.rows,
            "max_batch": self.batch.max,
            "last_batch": self.batch.last,
        }
        for name in (
            "microbatch_count", "microbatch_size", "in_flight_stage_count", "queue_depth"
        ):  # fmt: skip
            level: _Level = getattr(self, name)
            fields |= {f"{name}_max": level.max, f"{name}_last": level.last}
        fields |= {
            "host_bridge_bytes_total": self.host_bridge_bytes.total,
            "host_bridge_bytes_last": self.host_bridge_bytes.last,
            "host_bridge_bytes_avg": (
                self.host_bridge_bytes.total // self.calls if self.calls else None
            ),
        }
        for name in ("bridge", "host_copy", "device_copy"):
            fields |= self._times(f"{name}_us", getattr(self, name))
        fields |= {
            "stage_us_total": [micros(stage.total) for stage in self.stage],
            "stage_us_last": [micros(stage.last) for stage in self.stage],
            "stage_us_avg": [self._average(stage) for stage in self.stage],
        }
        fields |= self._times("logits_us", self.logits)
        fields |= self._times("total_us", self.total)
        return fields | {"measured": self._measured()}

    def _measured(self) -> dict[str, Any]:
        wall, last = self.total.total, self.total.last
        return {
            "stages_busy_max": self.stages_busy.max,
            "stages_busy_max_last": self.stages_busy.last,
            "all_busy_share": _share(self.all_busy.total, wall),
            "all_busy_share_last": _share(self.all_busy.last, last),
            "busy_us_total": [micros(busy.total) for busy in self.busy],
            "busy_us_last": [micros(busy.last) for busy in self.busy],
            "idle_us_total": [micros(wall - busy.total) for busy in self.busy],
            "idle_us_last": [micros(last - busy.last) for busy in self.busy],
            "bubble_share": _bubbles(sum(b.total for b in self.busy), wall * len(self.busy)),
            "bubble_share_last": _bubbles(sum(b.last for b in self.busy), last * len(self.busy)),
        }

    def _times(self, name: str, time: _Time) -> dict[str, int | None]:
        return {
            f"{name}_total": micros(time.total),
            f"{name}_last": micros(time.last),
            f"{name}_avg": self._average(time),
        }

    def _average(self, time: _Time) -> int | None:
        return -(-time.total // (1000 * self.calls)) if self.calls else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _bubbles(busy: int, available: int) -> float | None:
    """Share of the stages' time that went unused."""
    return 1.0 - busy / available if available else None
