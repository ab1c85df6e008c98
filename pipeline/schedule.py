"""How a decode step is cut into microbatches that overlap."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.modes import LlamaPipelineMode

MIN_OVERLAPPED_DECODE_BATCH = 16
"""Below this many rows an overlapped pipeline keeps a batch whole: microbatches re-read weights."""


@dataclass(frozen=True)
class Plan:
    """How a decode batch is cut, and how much concurrency that cut plans for."""

    microbatch_size: int
    microbatch_count: int
    in_flight_stages: int
    queue_depth: int

    @property
    def overlapped(self) -> bool:
        """Whether stages are planned to work at the same time."""
        return self.in_flight_stages > 1

    @property
    def in_flight(self) -> bool:
        """Whether other steps are planned to be under way at the same time."""
        return self.overlapped and self.microbatch_count == 1

    def slices(self, rows: int) -> list[slice]:
        """The microbatches of `rows` rows, in order."""
        size = self.microbatch_size
        return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def plan_decode(
    mode: LlamaPipelineMode,
    stage_count: int,
    rows: int,
    least: int = MIN_OVERLAPPED_DECODE_BATCH,
) -> Plan:
    """Cut `rows` >= 1 rows: whole, or S microbatches of ceil(rows / S) in overlapped mode.

    Batches of fewer than `least` rows stay whole.
    """
    if mode is not LlamaPipelineMode.OVERLAPPED or rows < least:
        return Plan(rows, 1, in_flight_stages=1, queue_depth=0)
    size = -(-rows // stage_count)
    count = -(-rows // size)
    if count == 1:
        return Plan(rows, 1, in_flight_stages=1, queue_depth=0)
    return Plan(size, count, in_flight_stages=min(stage_count, count), queue_depth=1)
