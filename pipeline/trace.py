"""What one call cost each stage, as measured in its worker, and how much of it ran at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bridges.link import BridgeTiming

Span = tuple[int, int]
"""Start and end on the `time.perf_counter_ns` clock."""


@dataclass
class StageTrace:
    """One stage's part of a call; times in nanoseconds."""

    stage_ns: int = 0  # receiving and computing hidden states
    logits_ns: int = 0  # final norm and head
    sent_bytes: int = 0
    bridge: BridgeTiming = field(default_factory=BridgeTiming)
    busy: list[Span] = field(default_factory=list)  # of its device; in order, not overlapping

    @property
    def busy_ns(self) -> int:
        """Sum of the busy spans."""
        return sum(end - start for start, end in self.busy)


@dataclass(frozen=True)
class Concurrency:
    """How many stages were busy at once during a call."""

    stages_busy_max: int
    all_busy_ns: int  # time with every stage busy


def concurrency(traces: Sequence[StageTrace]) -> Concurrency:
    """Sweep over all stages' busy spans in order of time."""
    return _sweep([trace.busy for trace in traces])


class ConcurrencyMeter:
    """The same over calls that are under way at the same time, told in the order of their ends."""

    def __init__(self, stage_count: int) -> None:
        self._lanes: list[list[Span]] = [[] for _ in range(stage_count)]

    def add(self, traces: Sequence[StageTrace]) -> Concurrency:
        """What became known with one more call.

        A stage's spans are known up to the end of this call's: it worked in the calls' order. What
        comes after the earliest of these ends waits for the next call.
        """
        for lane, trace in zip(self._lanes, traces, strict=True):
            lane.extend(trace.busy)
        known = min((lane[-1][1] if lane else 0) for lane in self._lanes)
        swept = [[(s, min(e, known)) for s, e in lane if s < known] for lane in self._lanes]
        self._lanes = [[(max(s, known), e) for s, e in lane if e > known] for lane in self._lanes]
        return _sweep(swept)


def _sweep(lanes: Sequence[Sequence[Span]]) -> Concurrency:
    # A span that ends where another starts does not overlap it, so ends (-1) sort first.
    edges = sorted(
        edge for lane in lanes for start, end in lane for edge in ((start, 1), (end, -1))
    )
    busy = most = all_busy_ns = 0
    since = 0
    for at, change in edges:
        if busy == len(lanes):
            all_busy_ns += at - since
        since = at
        busy += change
        most = max(most, busy)
    return Concurrency(most, all_busy_ns)
