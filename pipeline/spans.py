"""What stages did when: spans of their time, and sums over intervals of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

Interval = tuple[int, int]
"""Start and end in nanoseconds, end not before start."""

KEEP = 65536
"""Spans of work that are kept for each stage."""

PREFILL, DECODE = "prefill", "decode"
"""Names of the spans in which a stage works on a prefill chunk, and on a decode step."""


class Track(StrEnum):
    """What a stage spends its time on. Waiting is for its input; all else is work."""

    COMPUTE = "compute"
    SEND = "send"
    RECEIVE = "receive"
    WAIT = "wait"


class Span(NamedTuple):
    """A stretch of one stage's time. A tuple, as workers make them on the hot path.

    Attributes:
        start_ns, end_ns: on the `time.perf_counter_ns` clock.
        job: number of the job that it was for; jobs are numbered in the order they were given.
        name: what was done, such as "prefill", "decode", "logits" or "release".
        rows: rows of the hidden state; 0 for a chore such as a release, which has none.
    """

    stage: int
    track: Track
    start_ns: int
    end_ns: int
    job: int
    name: str
    rows: int


class Sample(NamedTuple):
    """What a counter, such as "groups in flight", stood at from a moment on."""

    name: str
    at_ns: int
    value: float


def busy(spans: Iterable[Span], stages: int) -> list[list[Interval]]:
    """Per stage, when it worked: in order of time, touching and overlapping spans as one."""
    lanes: list[list[Interval]] = [[] for _ in range(stages)]
    for span in spans:
        if span.track is not Track.WAIT:
            lanes[span.stage].append((span.start_ns, span.end_ns))
    return [merged(lane) for lane in lanes]


def in_flight(spans: Iterable[Span]) -> list[Interval]:
    """Per job with rows, from the start of the first work on it to the end of the last."""
    jobs: dict[int, Interval] = {}
    for span in spans:
        if span.rows and span.track is not Track.WAIT:
            start, end = jobs.get(span.job, (span.start_ns, span.end_ns))
            jobs[span.job] = (min(start, span.start_ns), max(end, span.end_ns))
    return list(jobs.values())


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time without overlaps, in order."""
    out: list[Interval] = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def within(intervals: Iterable[Interval], start_ns: int, end_ns: int) -> int:
    """Sum in nanoseconds of what lies between two moments."""
    return sum(max(0, min(end, end_ns) - max(start, start_ns)) for start, end in intervals)


def common(lanes: Sequence[Sequence[Interval]]) -> list[Interval]:
    """The time that is in every lane; each lane's intervals do not overlap."""
    # An interval that ends where another starts does not overlap it, so ends (-1) sort first.
    edges = sorted(edge for lane in lanes for s, e in lane for edge in ((s, 1), (e, -1)))
    out: list[Interval] = []
    depth = since = 0
    for at, change in edges:
        if depth == len(lanes):
            out.append((since, at))
        depth += change
        since = at
    return out
