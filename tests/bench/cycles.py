"""How long a decode step of every sequence takes while a run is in full swing."""

from __future__ import annotations

from pipeline.llama_pipeline import LlamaPipeline
from pipeline.spans import DECODE, Track


def steady_cycle(pipe: LlamaPipeline, jobs: int, since_ns: int) -> float:
    """Seconds of a cycle of `jobs` decode jobs, without the run's beginning and end.

    Args:
        pipe: has been generating.
        jobs: of a step of every sequence: groups, microbatches, or 1.
        since_ns: when the run began, on the `time.perf_counter_ns` clock.
    """
    starts = [
        span.start_ns
        for span in pipe.timeline().spans
        if (span.stage, span.track, span.name) == (0, Track.COMPUTE, DECODE)
        and span.start_ns >= since_ns
    ]
    inner = starts[2 * jobs : len(starts) - 2 * jobs]
    return (inner[-1] - inner[0]) / (len(inner) - 1) * jobs / 1e9
