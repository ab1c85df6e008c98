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
    busy: list[Span] = field(default_factory=list)  # in order of time, not overlapping

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
    # A span that ends where another starts does not overlap it, so ends (-1) sort first.
    edges = sorted(
        edge for trace in traces for start, end in trace.busy for edge in ((start, 1), (end, -1))
    )
    busy = most = all_busy_ns = 0
    since = 0
    for at, change in edges:
        if busy == len(traces):
            all_busy_ns += at - since
        since = at
        busy += change
        most = max(most, busy)
    return Concurrency(most, all_busy_ns)
